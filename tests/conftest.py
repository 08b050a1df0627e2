"""Fixtures every test may use."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the public data files (see docs/data.md); tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EDGEROUTE_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"public data files not found in {folder}; set EDGEROUTE_DATA to the folder that holds them")
    return folder
