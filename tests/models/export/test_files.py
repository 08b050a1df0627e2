"""Killed between any two system calls, a writer leaves what was there before or the new one, and the next one clears up."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.export import files
from models.export.files import staged_file, staged_folder
from rllib_envs.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
KILLER = """
import os, sys
from pathlib import Path

from models.export import files
from tuning.run_dir.atomic import write_secret, write_text

place, mode = Path(sys.argv[1]), sys.argv[2]
if mode == "steps":
    files._EXCHANGE = 1 << 20  # a flag that no kernel knows: as on a file system that cannot exchange

def folder(text):
    with files.staged_folder(place / "it") as staged:
        (staged / "below").mkdir()
        for name in ("a", "below/b"):
            (staged / name).write_text(text)

write = {
    "exchange": folder,
    "steps": folder,
    "file": lambda text: write_text(place / "it", text),
    "secret": lambda text: write_secret(place / "it", text.encode()),
}[mode]

def found():
    it = place / "it"
    if it.is_dir():
        (text,) = {(it / name).read_text() for name in ("a", "below/b")}
        return text
    return it.read_text() if it.exists() else None

def killed_at(call):
    left = [call]
    def hook(event, arguments):
        if event.split(".")[0] in ("open", "os", "shutil", "fcntl", "ctypes"):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
    child = os.fork()
    if child == 0:
        sys.addaudithook(hook)
        write("new")
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0

if mode != "secret":
    write("old")
expected, calls = {found(), "new"}, 0
while killed_at(calls):
    if mode == "steps":
        files.recover(place / "it")
    assert found() in expected, (calls, found(), os.listdir(place))
    calls += 1
    if mode == "secret":
        (place / "it").unlink(missing_ok=True)
    else:
        write("old")
        assert os.listdir(place) == ["it"], (calls, os.listdir(place))
assert found() == "new"
assert os.listdir(place) == ["it"], os.listdir(place)
print(calls)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exchange", "steps", "file", "secret"])
def test_what_was_there_or_the_new_one_whenever_it_is_killed(tmp_path, mode):
    done = subprocess.run(
        [sys.executable, "-c", KILLER, tmp_path, mode],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5  # calls between which it was killed


@pytest.mark.slow
def test_what_another_process_is_just_writing_is_left_alone(tmp_path):
    with staged_folder(tmp_path / "it") as mine:
        other = multiprocessing.get_context("spawn").Process(target=_write, args=(tmp_path / "it",))
        other.start()
        other.join()
        assert other.exitcode == 0
        assert mine.is_dir()
        (mine / "x").write_text("mine")
    assert (tmp_path / "it" / "x").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def _write(target):
    with staged_folder(target) as staged:
        (staged / "x").write_text("theirs")


@pytest.mark.parametrize("name", ["it", "i[t]*?", "$x", "-"])
def test_names_mean_themselves(tmp_path, name):
    for text in ("old", "new"):
        with staged_folder(tmp_path / name) as staged:
            (staged / "x").write_text(text)
        with staged_file(tmp_path / "other") as staged:
            staged.write_text(text)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "x").read_text() == "new"


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with staged_folder(tmp_path / "link") as staged:
        (staged / "x").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "x").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "there"]


def test_without_locks_nothing_is_deleted(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(95, "Operation not supported")

    left = tmp_path / ".aside-it-0123abcd"
    left.mkdir()
    monkeypatch.setattr(files.fcntl, "flock", refused)
    with staged_folder(tmp_path / "it") as staged:
        (staged / "x").write_text("new")
    assert left.is_dir()
    monkeypatch.undo()
    with staged_folder(tmp_path / "it"):
        pass
    assert not left.exists()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match=f"^{target}: "), staged_folder(target):
            pass
