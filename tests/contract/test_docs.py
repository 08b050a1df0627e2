"""What the documents tell the reader to run exists, or they say how to get it."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

import edgeroute

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "how-to").glob("*.md")),
]
SYSTEM = {"make", "python", "ssh"}  # what every machine of a developer has, or its absence is told by the shell
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def programs(text):
    """First words of the commands in fenced and indented blocks, and of those in running text that have options."""
    fenced = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    lines = [line for language, block in fenced.findall(text) if language == "sh" for line in block.splitlines()]
    rest = fenced.sub("", text)
    lines += re.findall(r"^    ([a-z]\S* .*)$", rest, re.MULTILINE)
    lines += [span for span in re.findall(r"`([^`\n]+)`", rest) if " -" in span]
    return {line.split()[0] for line in lines if re.match(r"[a-z][\w-]* ", line)}


def test_the_commands_are_found():
    text = "```sh\nedgeroute train\n```\nor `tensorboard --logdir x`, not `x - y`\n\n    ray up cluster.yaml\n"
    assert programs(text) == {"edgeroute", "tensorboard", "x", "ray"}
    assert {"edgeroute", "make", "ray"} <= programs((ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_program_exists_or_the_page_says_how_to_install_it(page):
    text = page.read_text()
    for program in programs(text) - SYSTEM - set(edgeroute.COMMANDS):
        told = f"pip install {program}" in text or f"apt-get install {program}" in text
        assert told or shutil.which(program, path=PATH), program


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs" / "adr").glob("*.md"))], ids=lambda page: page.name)
def test_the_modules_and_files_that_a_page_names_are_there(page):
    ours = r"(?:rllib_envs|models|tuning|cluster|benchmarks|examples|tests)"
    named = re.findall(rf"`({ours}(?:/[\w.-]+)+)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]
    for name in re.findall(rf"`({ours}(?:\.[a-z_]\w*)+)[`(]", page.read_text()):
        *parts, last = name.split(".")
        home = ROOT.joinpath(*parts)
        there = home.joinpath(last).is_dir() or home.joinpath(f"{last}.py").exists()
        source = next((x for x in (home.with_suffix(".py"), home / "__init__.py") if x.exists()), None)
        assert there or (source and re.search(rf"\b{last}\b", source.read_text())) or (ROOT / name).exists(), name
