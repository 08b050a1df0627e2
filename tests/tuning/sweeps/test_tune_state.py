"""Tune reads of its state what this user's sweep wrote, whatever lies in its folder."""

import copy
import os
import pickle
from pathlib import Path

import pyarrow.fs
import pytest
from fsspec.implementations.local import LocalFileSystem

from rllib_envs.errors import InputError
from tuning.run_dir.remote_copy import RemoteCopy
from tuning.run_dir.signature import KEY_FILE
from tuning.sweeps.signed_state import STATE, found_state, own_state, packed, unpacked
from tuning.sweeps.tune_state import OwnState


@pytest.fixture(autouse=True)
def key(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "keys" / "mine.key"))


def system(folder, known=(), keep=lambda state: None):
    return pyarrow.fs.PyFileSystem(OwnState(LocalFileSystem(), str(folder), dict(known), keep))


def test_what_is_written_is_read_and_kept_and_what_others_write_is_not_there(tmp_path):
    kept = []
    fs = system(tmp_path, keep=kept.append)
    for name in ("tuner.pkl", "experiment_state-1.json"):
        with fs.open_output_stream(f"{tmp_path}/{name}") as file:
            file.write(b"own")
    assert kept[-1] == {"tuner.pkl": b"own", "experiment_state-1.json": b"own"}
    (tmp_path / "tuner.pkl").write_bytes(b"evil")
    (tmp_path / "experiment_state-9.json").write_bytes(b"evil")
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "error.pkl").write_bytes(b"evil")
    (tmp_path / "trial" / "result.json").write_bytes(b"data")
    assert fs.open_input_stream(f"{tmp_path}/tuner.pkl").readall() == b"own"
    assert fs.open_input_file(f"{tmp_path}/tuner.pkl").readall() == b"own"
    for name in ("experiment_state-9.json", "trial/error.pkl"):
        with pytest.raises(FileNotFoundError):
            fs.open_input_stream(f"{tmp_path}/{name}")
        assert fs.get_file_info(f"{tmp_path}/{name}").type == pyarrow.fs.FileType.NotFound
    found = {Path(info.path).name for info in fs.get_file_info(pyarrow.fs.FileSelector(str(tmp_path)))}
    assert found == {"tuner.pkl", "experiment_state-1.json", "trial"}
    assert fs.open_input_stream(f"{tmp_path}/trial/result.json").readall() == b"data"


def test_the_signed_copy_comes_back_and_any_other_does_not(tmp_path, monkeypatch):
    state = {"tuner.pkl": b"\0\xff", "trial/error.pkl": b""}
    data = packed(state)
    assert unpacked(data, "there") == state
    for other in (data.replace(b"AP8=", b"AP4="), b"", b"[]", b"{}", b"[" * 100_000):
        with pytest.raises(InputError, match="there"):
            unpacked(other, "there")
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "another.key"))
    packed({})
    with pytest.raises(InputError, match="another key"):
        unpacked(data, "there")


def test_processes_elsewhere_get_the_file_system_as_it_is(tmp_path):
    fs = pickle.loads(pickle.dumps(system(tmp_path, {"tuner.pkl": b"own"})))
    assert type(fs.handler) is pyarrow.fs.FSSpecHandler


class Evil:
    """As a pickle, it leaves a trace when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("spelling", ["{}/tuner.pkl", "{}/./tuner.pkl", "{}//tuner.pkl", "{}/a/../tuner.pkl"])
def test_no_spelling_of_a_path_leads_to_what_others_wrote(spelling, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "tuner.pkl").write_bytes(b"evil")
    for folder in (tmp_path, f"{tmp_path}/", f"{tmp_path}/a/.."):
        fs = system(folder)
        with pytest.raises(FileNotFoundError):
            fs.open_input_stream(spelling.format(tmp_path))
        assert fs.get_file_info(pyarrow.fs.FileSelector(f"{tmp_path}/a/.."))[0].path.endswith("/a")


def test_copies_of_the_file_system_in_this_process_are_as_careful(tmp_path):
    (tmp_path / "tuner.pkl").write_bytes(b"evil")
    for fs in (copy.copy(system(tmp_path)), copy.deepcopy(system(tmp_path))):
        with pytest.raises(FileNotFoundError):
            fs.open_input_stream(f"{tmp_path}/tuner.pkl")


def test_what_several_threads_write_is_all_kept_before_it_is_there(tmp_path):
    kept, early = [], []

    def keep(state):
        early.extend(
            name for name, data in state.items() if (tmp_path / name).exists() and (tmp_path / name).read_bytes() != data
        )
        kept.append(dict(state))

    (tmp_path / "from").mkdir()
    names = [f"{i}.pkl" for i in range(50)]
    for name in names:
        (tmp_path / "from" / name).write_bytes(name.encode())
    fs = system(tmp_path / "to", keep=keep)
    for _ in range(2):
        pyarrow.fs.copy_files(str(tmp_path / "from"), str(tmp_path / "to"), destination_filesystem=fs)
    assert kept[-1] == {name: name.encode() for name in names}
    assert [len(state) for state in kept] == list(range(1, 51))  # what has not changed is not signed again
    assert not early


def test_what_cannot_be_signed_is_not_written(tmp_path):
    def keep(state):
        raise InputError("no space")

    fs = system(tmp_path, keep=keep)
    with pytest.raises(InputError, match="no space"), fs.open_output_stream(f"{tmp_path}/tuner.pkl") as file:
        file.write(b"own")
    assert not (tmp_path / "tuner.pkl").exists()


@pytest.fixture(params=["folder", "storage"])
def sweep(request, tmp_path):
    """A function that gives the path of Tune's folder and its file system anew, as a sweep that starts; where the copy is."""
    remote_copy = None
    if request.param == "storage":
        remote_copy = RemoteCopy(f"file://{tmp_path}/store", tmp_path / "run", config="sweep.yaml", leave_out=["tune", STATE])
    base = tmp_path / "run" if remote_copy is None else tmp_path / "store" / "run"

    def start(resume=True, trusted=False):
        return own_state(tmp_path / "run" / "tune", remote_copy, resume=resume, trusted=trusted)

    return start, base / STATE


def written(place, fs, contents):
    fs.create_dir(f"{place}/trial")
    for name in ("tuner.pkl", "trial/error.pkl"):
        with fs.open_output_stream(f"{place}/{name}") as file:
            file.write(contents)


def read(place, fs):
    return {name: fs.open_input_stream(f"{place}/{name}").readall() for name in ("tuner.pkl", "trial/error.pkl")}


def test_a_sweep_goes_on_from_what_it_wrote_whatever_lies_there(sweep, tmp_path):
    start, _ = sweep
    place, fs = start(resume=False)
    written(place, fs, b"own")
    evil = pickle.dumps(Evil(tmp_path / "ran"))
    for name in ("tuner.pkl", "trial/error.pkl", "experiment_state-9.json", "searcher-state-9.pkl"):
        (Path(place) / name).write_bytes(evil)
    assert set(read(*start()).values()) == {b"own"}
    later = start()[1]
    assert later.get_file_info(f"{place}/searcher-state-9.pkl").type == pyarrow.fs.FileType.NotFound
    (Path(place) / "tuner.pkl").unlink()
    assert read(place, later)["tuner.pkl"] == b"own"
    pickle.loads(start(trusted=True)[1].open_input_stream(f"{place}/trial/error.pkl").readall())
    assert (tmp_path / "ran").exists()  # who trusts what lies there runs it


def test_state_that_is_not_signed_is_refused_unless_it_is_trusted_and_then_ones_own(sweep):
    start, file = sweep
    place, fs = start(resume=False)
    written(place, fs, b"of an earlier version")
    file.unlink()
    with pytest.raises(InputError, match=r"tune-state.json: missing: .*--trust-checkpoint"):
        start()
    assert set(read(*start(trusted=True)).values()) == {b"of an earlier version"}
    assert set(read(*start()).values()) == {b"of an earlier version"}


def test_without_any_state_the_sweep_begins(sweep):
    place, fs = sweep[0]()
    assert fs.get_file_info(f"{place}/tuner.pkl").type == pyarrow.fs.FileType.NotFound


def test_a_copy_that_is_a_link_or_hangs_is_refused(tmp_path):
    folder = tmp_path / "run" / "tune"
    folder.mkdir(parents=True)
    (tmp_path / "mine").write_bytes(packed({}))
    for make in ((folder.parent / STATE).symlink_to, lambda _: os.mkfifo(folder.parent / STATE)):
        make(tmp_path / "mine")
        with pytest.raises(InputError, match=STATE):
            own_state(folder, None, resume=True, trusted=False)
        (folder.parent / STATE).unlink()


def test_who_trusts_gets_what_lies_there_and_tune_reads(tmp_path):
    (tmp_path / "a" / "checkpoint_000000").mkdir(parents=True)
    for name in ("tuner.pkl", "a/error.pkl", "a/result.json", "a/checkpoint_000000/state.pkl"):
        (tmp_path / name).write_bytes(name.encode())
    assert found_state(LocalFileSystem(), str(tmp_path)) == {name: name.encode() for name in ("tuner.pkl", "a/error.pkl")}
    assert found_state(LocalFileSystem(), str(tmp_path / "none")) == {}
