"""Bundles that tests change."""

import json


def edit(folder, change):
    """Change the description of a bundle."""
    path = folder / "router.json"
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))
