"""One run at a time in a folder."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import edgeroute
from rllib_envs.errors import InputError
from tuning.run_dir.lock import LOCK, run_lock

pytestmark = pytest.mark.slow  # starts processes

ROOT = Path(__file__).resolve().parents[3]
HOLD = """
import sys, time
from pathlib import Path
from tuning.run_dir.lock import run_lock

with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that runs in the folder ``run``."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    "command",
    [
        ["train"],
        ["train", "--auto-resume"],
        ["train", "--storage", "memory://somewhere", "--resume"],
        ["sweep"],
        ["sweep", "--resume"],
        ["sweep", "--auto-resume"],
    ],
)
def test_a_second_run_in_a_folder_is_refused_and_told_who_is_there(holder, tmp_path, command, capsys):
    assert edgeroute.main([*command, "--smoke", "--run-dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    for part in (str(tmp_path / "run"), socket.gethostname(), f"process {holder.pid}", "since 20"):
        assert part in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]


def test_a_killed_process_leaves_the_folder_free(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with run_lock(tmp_path / "run"):
        pass


def test_another_folder_is_free(holder, tmp_path):
    with run_lock(tmp_path / "other"):
        assert (tmp_path / "other" / LOCK).exists()


def test_a_folder_that_nothing_came_of_goes_again(tmp_path):
    with run_lock(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()
    with run_lock(tmp_path / "used"):
        (tmp_path / "used" / "config.yaml").touch()
    assert (tmp_path / "used" / "config.yaml").exists()


def test_a_folder_that_cannot_be_is_bad_input(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), run_lock(tmp_path / "file" / "run"):
        pass
