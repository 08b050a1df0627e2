"""What tests draw: the same in every run of ``make test``, anew under ``make fuzz``, and no test goes its own way."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.draws import FUZZ_EXAMPLES, examples, register_profiles

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
OF_THE_PROFILE = {"settings", "seed", "reproduce_failure"}  # tests/draws.py alone decides, and nothing that was pasted stays


def taken_from_hypothesis(tree: ast.AST) -> set[str]:
    """Names that a module imports from Hypothesis, or reaches by ``hypothesis.name``."""
    names = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "hypothesis":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hypothesis":
            names.add(node.attr)
    return names


def test_tests_leave_how_examples_are_drawn_to_the_profiles() -> None:
    found = {path.relative_to(ROOT): taken_from_hypothesis(ast.parse(path.read_text("utf-8"))) for path in TESTS}
    assert sum("given" in names for names in found.values()) > 20
    own = {str(path): names & OF_THE_PROFILE for path, names in found.items() if names & OF_THE_PROFILE}
    assert set(own) == {str(Path(__file__).relative_to(ROOT))}


def draws() -> list[int]:
    """What one property test draws."""
    drawn: list[int] = []

    @examples(300)
    @given(st.integers(0, 2**32 - 1))
    def draw(value: int) -> None:
        drawn.append(value)

    draw()
    return drawn


def test_what_was_imported_before_changes_no_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself Hypothesis draws constants of modules that happen to be there: other examples in another order of tests."""
    before = draws()
    source = tmp_path / "constants.py"
    source.write_text(f"NUMBERS = {list(range(123_456, 123_956))}")
    module = ModuleType("constants")
    module.__file__ = str(source)
    monkeypatch.setitem(sys.modules, "constants", module)
    assert draws() == before
    assert len(set(before)) > 200


def test_a_fixed_run_has_no_memory() -> None:
    fixed = settings.get_profile("fixed")
    assert (fixed.derandomize, fixed.database, fixed.deadline) == (True, None, None)


def test_fuzzing_draws_anew_and_as_many_as_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FUZZ_EXAMPLES, "40")
    monkeypatch.chdir(tmp_path)
    before, fixed = settings.get_current_profile_name(), draws()
    try:
        register_profiles()
        settings.load_profile("fuzz")
        first, second = draws(), draws()
    finally:
        monkeypatch.undo()
        register_profiles()
        settings.load_profile(before)
    assert len(first) == len(second) == 40
    assert first != second
    assert draws() == fixed  # nothing is left of it


@pytest.mark.parametrize("time", ["first", "next"])
def test_each_test_draws_from_pytorch_as_if_it_were_the_first(time: str) -> None:
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0))), time


PROPERTY = """
from hypothesis import given, strategies as st
from tests.draws import examples

@examples(7)
@given(st.integers(0, 2**64))
def test_drawn(value):
    print("drew", value)
    assert value < 1000
"""


def fuzz(folder: Path) -> str:
    """Fuzz a property in ``folder`` and return what pytest prints."""
    (folder / "conftest.py").write_text("from tests.draws import register_profiles\n\nregister_profiles()\n")
    (folder / "test_one.py").write_text(PROPERTY)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--hypothesis-profile=fuzz", "test_one.py"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), FUZZ_EXAMPLES: "40"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False).stdout


def test_fuzzing_prints_what_to_paste_and_begins_with_what_failed(tmp_path: Path) -> None:
    output = fuzz(tmp_path)
    assert re.search(r"@reproduce_failure\('[\d.]+', b'\S+'\)", output)
    assert "value=1000," in output
    assert re.findall(r"drew (\d+)", fuzz(tmp_path))[0] == "1000"
    assert ".hypothesis/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
