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
