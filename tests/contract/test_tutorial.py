"""The tutorial's commands, all of them and in their order, in a tiny form."""

import re
import shlex
from pathlib import Path

import pytest
import ray

import edgeroute

pytestmark = pytest.mark.cluster

TUTORIAL = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
SMALL = {  # options that make a command tiny; those of the tutorial that ask for more come out
    "simulate": ["--requests", "50"],
    "train": ["--smoke"],
    "sweep": ["--smoke", "--num-samples", "2"],
    "evaluate": ["--smoke", "--jobs", "1"],
}
DROPPED = {"--minutes": 1, "--num-samples": 1}


def commands():
    blocks = re.findall(r"```sh\n(.*?)```", TUTORIAL.read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("edgeroute ")]


def small(command, folder):
    _, name, *options = command
    kept, skip = [], 0
    for option in options:
        if skip:
            skip -= 1
        elif option in DROPPED:
            skip = DROPPED[option]
        else:
            kept.append(option.replace("runs/tutorial", str(folder)))
    return [name, *kept, *SMALL.get(name, [])]


@pytest.fixture
def one_ray():
    """Started once; each command uses the Ray that its process has."""
    ray.shutdown()  # modules before it may share a smaller one
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_the_tutorial_works(one_ray, tmp_path):
    assert {command[1] for command in commands()} == {"simulate", "train", "export", "sweep", "evaluate", "report"}
    for command in commands():
        assert edgeroute.main(small(command, tmp_path)) == 0, command
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "sweep" / "best.yaml").is_file()
