"""Who wrote a checkpoint is known by a key that nobody else has."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import tuning.run_dir.signature
from rllib_envs.errors import InputError
from tuning.run_dir.signature import KEY_FILE, check_signature, key_path, signed

ROOT = Path(__file__).resolve().parents[3]
WHERE = Path("checkpoint.json")
CONTENTS = {"steps": 12, "sha256": {"rllib/state.pkl": "ab"}, "share": 0.1, "none": None}


@pytest.fixture(autouse=True)
def key(tmp_path, monkeypatch):
    """The user's own key, which is yet to be made. What is said once may be said anew."""
    tuning.run_dir.signature._warn.cache_clear()
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "keys" / "mine.key"))
    return tmp_path / "keys" / "mine.key"


def test_what_one_has_signed_is_trusted(key):
    check_signature(signed(CONTENTS), WHERE, trusted=False)
    assert {name: value for name, value in signed(CONTENTS).items() if name in CONTENTS} == CONTENTS


def test_the_key_is_random_secret_and_stays(key):
    first = signed(CONTENTS)
    secret = key.read_bytes()
    assert len(secret) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [path.name for path in key.parent.iterdir()] == [key.name]
    assert signed(CONTENTS) == first
    assert secret.hex() not in repr(first)
    key.unlink()
    assert signed(CONTENTS) != first


@pytest.mark.parametrize("changed", [{"steps": 13}, {"sha256": {}}, {"more": 1}])
def test_what_was_changed_since_is_not(changed):
    with pytest.raises(InputError, match="changed after you had signed it"):
        check_signature({**signed(CONTENTS), **changed}, WHERE, trusted=False)


@pytest.mark.parametrize("case", ["unsigned", "another's", "no key of one's own"])
def test_what_comes_from_elsewhere_needs_trust(case, key, tmp_path, monkeypatch):
    contents = CONTENTS if case == "unsigned" else signed(CONTENTS)
    if case == "another's":
        monkeypatch.setenv(KEY_FILE, str(tmp_path / "theirs.key"))
        signed({})
    if case == "no key of one's own":
        key.unlink()
    with pytest.raises(InputError, match=r"pickled code that came from elsewhere.*--trust-checkpoint"):
        check_signature(contents, WHERE, trusted=False)
    check_signature(contents, WHERE, trusted=True)


def test_hosts_may_share_a_key(key, tmp_path, monkeypatch):
    contents = signed(CONTENTS)
    (tmp_path / "copy.key").write_bytes(key.read_bytes())
    (tmp_path / "copy.key").chmod(0o600)
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "copy.key"))
    check_signature(contents, WHERE, trusted=False)


@pytest.mark.slow
def test_processes_that_begin_together_come_to_one_key(key):
    command = [sys.executable, "-c", "from tuning.run_dir.signature import signed; print(signed({}))"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE) for _ in range(4)]
    assert len({process.communicate(timeout=300)[0] for process in processes}) == 1
    assert [path.name for path in key.parent.iterdir()] == [key.name]


def test_a_key_that_is_too_short_is_refused(key):
    contents = signed(CONTENTS)
    key.write_bytes(b"short")
    with pytest.raises(InputError, match="has 5 bytes"):
        check_signature(contents, WHERE, trusted=False)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o644, 0o666, 0o777])
def test_a_key_that_others_may_read_or_write_is_refused_and_the_remedy_helps(mode, key, capsys):
    contents = signed(CONTENTS)
    key.chmod(mode)
    with pytest.raises(InputError, match=rf"mode {mode:04o}\): chmod 600") as caught:
        check_signature(contents, WHERE, trusted=False)
    assert len(str(caught.value).splitlines()) == 1
    assert signed(CONTENTS) == CONTENTS
    assert "chmod 600" in capsys.readouterr().err
    subprocess.run(str(caught.value).rpartition(": ")[2].split(), check=True)
    check_signature(contents, WHERE, trusted=False)


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_key_that_others_may_replace_is_refused_and_the_remedy_helps(mode, key):
    contents = signed(CONTENTS)
    key.parent.chmod(mode)
    with pytest.raises(InputError, match="chmod go-w") as caught:
        check_signature(contents, WHERE, trusted=False)
    subprocess.run(str(caught.value).rpartition(": ")[2].split(), check=True)
    check_signature(contents, WHERE, trusted=False)


def test_a_folder_that_is_sticky_is_as_good_as_ones_own(key):
    contents = signed(CONTENTS)
    key.parent.chmod(0o1777)
    check_signature(contents, WHERE, trusted=False)


@pytest.mark.parametrize(
    ("owner", "mode", "taken"),
    [(0, 0o440, True), (0, 0o400, True), (0, 0o460, False), (0, 0o444, False), (1001, 0o600, False), (1000, 0o440, False)],
)
def test_a_key_of_another_user_counts_only_if_it_is_roots(owner, mode, taken, key, monkeypatch):
    """As a mounted secret is, which its group may read."""
    signed({})
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setattr(Path, "stat", lambda path: os.stat_result((stat.S_IFDIR | 0o755, 0, 0, 1, 0, 0, 0, 0, 0, 0)))  # of root
    status = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, 1000, 32, 0, 0, 0))
    try:
        tuning.run_dir.signature._refuse_shared(key, status)
    except InputError:
        assert not taken
    else:
        assert taken


@pytest.mark.parametrize("kind", ["folder", "device"])
def test_what_is_no_file_is_no_key(kind, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_FILE, "/dev/zero" if kind == "device" else str(tmp_path))
    with pytest.raises(InputError, match="key "):
        check_signature({}, WHERE, trusted=False)


def test_without_a_place_for_a_key_nothing_is_signed_and_that_is_said_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "file" / "key"))
    assert signed(CONTENTS) == signed(CONTENTS) == CONTENTS
    assert capsys.readouterr().err.count("not signed") == 1


def test_the_key_is_in_the_users_configuration(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_FILE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert key_path() == tmp_path / "config" / "edgeroute" / "checkpoint.key"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert key_path() == tmp_path / ".config" / "edgeroute" / "checkpoint.key"
