"""Ray starts where it can; where it cannot, one line says what is in the way and where."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rllib_envs.errors import InputError
from tuning.ray_cluster.session import has_token
from tuning.ray_cluster.start import local_ray
from tuning.run_dir.home import in_home

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
NOWHERE = "/dev/null/nowhere"  # no folder can be made there, whoever asks
SESSION = """
from tuning.ray_cluster.check import Needs
from tuning.ray_cluster.session import ray_session

with ray_session("local", Needs(cpus=1)):
    import ray

    print(ray.get(ray.remote(num_cpus=1)(lambda: "answered").remote(), timeout=60))
"""


@pytest.mark.cluster
def test_it_starts_without_a_home_and_with_a_temporary_folder_too_long_for_sockets(tmp_path):
    long = tmp_path / ("y" * 90)
    long.mkdir()
    before = set(Path("/tmp").glob("ray-*"))
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        env=inherited | {"HOME": NOWHERE, "TMPDIR": str(long), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "answered\n"), done.stderr
    assert set(Path("/tmp").glob("ray-*")) == before  # nothing stays


def error_of_start():
    with pytest.raises(InputError) as caught, local_ray(1):
        pass
    (line,) = str(caught.value).splitlines()
    return line


def test_a_folder_that_was_named_and_is_too_long_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/var/tmp/" + "y" * 31)
    assert error_of_start().endswith("40 characters: Ray's sockets allow 39 at most")


def test_a_folder_that_cannot_be_made_is_named(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", NOWHERE)
    assert error_of_start() == (
        f"Ray does not start in {NOWHERE}/ray: [Errno 20] Not a directory: '{NOWHERE}/ray': RAY_TMPDIR names another folder"
    )


def test_a_full_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    full = shutil.disk_usage("/")._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    assert error_of_start().startswith("Ray does not start in /tmp/ray: 1.0 MiB are free there")


def test_no_temporary_folder_at_all(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", NOWHERE)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert "RAY_TMPDIR names another folder" in error_of_start()


def test_a_user_without_home_has_no_token_and_is_told_what_to_set(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user whom the system does not know
    with pytest.raises(InputError, match="has no home folder: set HOME"):
        in_home(Path("~/.ray/auth_token"))
    assert not has_token()
