"""A reader of the README learns on one screen what it is, sees the picture, and finds three commands and the way on by role."""

import importlib.util
import re
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.transforms import Bbox

ROOT = Path(__file__).resolve().parents[2]
ONE_SCREEN = 30  # lines


def overview():
    path = ROOT / "docs" / "figures" / "overview.py"
    spec = importlib.util.spec_from_file_location("overview", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_first_screen_has_picture_commands_and_the_way_on():
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:ONE_SCREEN])
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", screen)
    assert [(ROOT / picture).is_file() for picture in pictures] == [True]
    assert re.findall(r"^    make ([\w-]+)", screen, re.MULTILINE) == ["demo", "serve-demo", "test"]
    roles = re.findall(r"^\| an? ([\w ]+) \| \[[^]]+\]\(([^)]+)\)", screen, re.MULTILINE)
    assert [role for role, _ in roles] == ["researcher", "RLlib user", "platform engineer"]
    assert all((ROOT / page).is_file() for _, page in roles)


def test_texts_of_the_overview_stay_in_their_boxes_and_apart():
    figure, boxes = overview().draw()
    figure.canvas.draw()
    (axes,) = figure.axes
    for box, texts in boxes:
        corners = [(box.left, box.bottom), (box.left + box.width, box.bottom + box.height)]
        (left, bottom), (right, top) = axes.transData.transform(corners)
        for shown in (text.get_window_extent() for text in texts):
            assert left < shown.x0
            assert shown.x1 < right
            assert bottom < shown.y0
            assert shown.y1 < top
    shown = [(text.get_text(), text.get_window_extent()) for text in axes.texts if text.get_text()]
    assert [(a, b) for (a, one), (b, other) in combinations(shown, 2) if one.overlaps(other)] == []
    whole = Bbox.union([figure.bbox, *(extent for _, extent in shown)])
    assert whole.bounds == figure.bbox.bounds, "a text leaves the picture"


@pytest.mark.parametrize("picture", sorted(path.name for path in (ROOT / "docs" / "figures").glob("*.png")))
def test_every_picture_is_on_a_page(picture):
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert any(f"figures/{picture})" in page.read_text() for page in pages)
