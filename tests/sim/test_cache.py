"""Compiled code is kept where nobody else can write to; a place to keep it is never needed."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rllib_envs.sim.cache import cache_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "/dev/null/nowhere"  # no folder can be made there, whoever asks
KERNEL = """
import resource, sys
from rllib_envs.sim.jit import kernel

@kernel
def double(x):
    return 2 * x

if len(sys.argv) > 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
print(double(21))
"""


@pytest.fixture
def compiled(tmp_path):
    """Runs a program with a compiled function; the lines of its stderr, with NUMBA_CACHE_DIR and XDG_CACHE_HOME unset."""
    program = tmp_path / "program.py"
    program.write_text(KERNEL)

    def run(*arguments, **environment):
        inherited = {key: value for key, value in os.environ.items() if key not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
        done = subprocess.run(
            [sys.executable, program, *arguments],
            env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "42\n"
        return done.stderr.splitlines()

    return run


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("environment", [{"HOME": NOWHERE}, {"NUMBA_CACHE_DIR": NOWHERE}], ids=["home", "named"])
def test_without_a_place_of_its_own_it_is_a_private_temporary_folder_and_a_line(compiled, tmp_path, environment):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (line,) = compiled(TMPDIR=str(temporary), **environment)
    assert line.startswith(f"edgeroute: warning: {NOWHERE}")
    assert "NUMBA_CACHE_DIR names another folder" in line
    (place,) = temporary.iterdir()
    assert str(place) in line
    assert place.stat().st_mode & 0o077 == 0
    assert files(place)  # the next start compiles nothing


def test_a_damaged_file_costs_the_time_to_compile(compiled, tmp_path):
    cache = tmp_path / "cache"
    assert compiled(NUMBA_CACHE_DIR=str(cache)) == []
    written = files(cache)
    for damage in (b"", b"\x80\x04no pickle"):
        for path in written:
            path.write_bytes(damage)
        assert compiled(NUMBA_CACHE_DIR=str(cache)) == []
        assert all(path.stat().st_size > len(damage) for path in written)  # mended


def test_a_copy_of_the_project_compiles_nothing_anew(tmp_path):
    """As a job on a cluster runs one. A module that was changed does not find what was compiled before."""
    cache, found = tmp_path / "cache", []
    program = "from rllib_envs.sim.plan import blocks_of; print(blocks_of(33), blocks_of.__wrapped__.__code__.co_filename)"
    for name in ("one", "two", "changed"):
        copy = tmp_path / name
        shutil.copytree(ROOT / "rllib_envs", copy / "rllib_envs", ignore=shutil.ignore_patterns("__pycache__"))
        if name == "changed":
            with (copy / "rllib_envs" / "sim" / "plan.py").open("a") as file:
                file.write("#")
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONPATH": str(copy), "NUMBA_CACHE_DIR": str(cache)},
            cwd=copy,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"3 {copy / 'rllib_envs' / 'sim' / 'plan.py'}\n"
        found.append({path: path.stat().st_mtime_ns for path in files(cache)})
    one, two, changed = found
    assert one == two != {}
    assert changed.items() > two.items()


def test_a_disk_that_fills_up_costs_no_more(compiled, tmp_path):
    assert compiled("16", NUMBA_CACHE_DIR=str(tmp_path / "cache")) == []
    assert files(tmp_path / "cache") == []


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files, for a user whose cache cannot be written to."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", NOWHERE)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_processes_started_later_use_the_same_folder(temporary, capsys):
    found = cache_folder("x")
    assert found == temporary / f"edgeroute-{os.geteuid()}" / "x"
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert cache_folder("x") == found
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("taken", ["writable", "other", "link"])
def test_a_folder_that_somebody_else_can_write_to_is_not_used(temporary, taken):
    theirs = temporary / f"edgeroute-{os.geteuid()}"
    if taken == "link":
        (temporary / "theirs").mkdir()
        theirs.symlink_to(temporary / "theirs")
        theirs = temporary / "theirs"
    theirs.mkdir(exist_ok=True)
    if taken == "writable":
        theirs.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(theirs, 65534, 65534)
    else:
        pytest.skip("only root can make another user's folder")
    found = cache_folder("x")
    assert found is not None
    assert theirs not in found.parents
    assert found.stat().st_uid == os.geteuid()
    assert stat.S_IMODE(found.stat().st_mode) == stat.S_IMODE(found.parent.stat().st_mode) == 0o700


def test_the_usual_place_is_not_used_either_where_others_can_write_to_it(temporary, monkeypatch):
    place = temporary / "shared"
    (place / "x").mkdir(parents=True)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(place))
    assert cache_folder("x") == place / "x"
    (place / "x").chmod(0o770)
    assert place not in cache_folder("x").parents


def test_where_there_is_no_place_at_all_every_start_compiles(monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_CACHE_DIR", NOWHERE)
    monkeypatch.setattr(tempfile, "tempdir", NOWHERE)
    assert cache_folder("x") is None
    (line,) = capsys.readouterr().err.splitlines()
    assert "every start compiles anew" in line
    assert os.environ["NUMBA_CACHE_DIR"] == NOWHERE
