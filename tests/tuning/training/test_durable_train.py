"""Training goes on after faults: damaged checkpoints, a full disk, a host that is gone. What is no good is refused."""

import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import uuid
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest

import tuning.training.loop
from models.export.manifest import digest
from models.rllib.avl.learner import AVLLearner
from models.rllib.checkpoint import ABOUT, find_checkpoint, load_router, numbered_checkpoints, read_checkpoint
from models.rllib.rollout.collect import ask_learners
from rllib_envs.errors import InputError
from tuning.run_dir.signature import KEY_FILE
from tuning.train import run
from tuning.training.log import LOG, read_log
from tuning.training.loop import Trainer
from tuning.training.options import TrainOptions as Options

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("one_ray")]

TINY = {"smoke": True, "fleets": (), "variation": False}
STATE = "rllib/learner_group/learner/rl_module/default_policy/module_state.pkl"


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every iteration."""
    monkeypatch.setattr(tuning.training.loop, "_CHECKPOINT_INTERVAL_S", 0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Four iterations, with a checkpoint after each."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning.training.loop, "_CHECKPOINT_INTERVAL_S", 0.0)
        assert run(Options(run_dir=folder, iterations=4, **TINY)) == 0
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def again(folder, **options):
    return run(Options(run_dir=folder, **{"resume": True, **TINY, **options}))


def iterations(folder):
    return [record.iteration for record in read_log(folder / LOG, 99)]


def checkpoints(folder):
    return [int(path.name) for path in numbered_checkpoints(folder)]


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", [ABOUT, "bundle/router.safetensors", STATE])
def test_a_damaged_checkpoint_is_named_and_the_one_before_gone_on_from(damage, name, copied, capsys):
    before = read_log(copied / LOG, 99)
    damage(copied / "checkpoints" / "000004" / name)
    assert again(copied, iterations=4) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert str(copied / "checkpoints" / "000004" / name) in warnings[0]
    assert "going on from" in warnings[0]
    after = read_log(copied / LOG, 99)
    assert [record.iteration for record in after] == [1, 2, 3, 4]
    assert after[:3] == before[:3]
    assert after[3] != before[3]
    assert read_checkpoint(find_checkpoint(copied))["iteration"] == 4


def test_the_newest_whole_one_counts_and_damaged_ones_are_out_of_the_way(copied, capsys):
    for number in (3, 4):
        truncate(copied / "checkpoints" / f"{number:06d}" / STATE)
    assert again(copied, iterations=3) == 0
    assert capsys.readouterr().err.count("warning") == 2
    assert checkpoints(copied) == [2, 3]
    load_router(copied)
    assert iterations(copied) == [1, 2, 3]


def test_where_none_is_whole_each_is_named(copied):
    for path in numbered_checkpoints(copied):
        truncate(path / STATE)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="no checkpoint is whole") as caught:
        again(copied, iterations=5)
    assert len(str(caught.value).splitlines()) == len(numbered_checkpoints(copied)) + 1
    assert all(path.read_bytes() == data for path, data in before.items() if path.name != "run.lock")


def test_a_damaged_checkpoint_that_is_named_is_an_error(copied):
    truncate(copied / "checkpoints" / "000004" / STATE)
    for path in (copied, copied / "checkpoints" / "000004"):
        with pytest.raises(InputError, match=STATE):
            load_router(path)
    load_router(copied / "checkpoints" / "000003")


def test_whatever_bit_flips_in_what_a_checkpoint_says_of_itself_is_noticed(copied):
    """Or changes nothing: a space between two numbers may become another one."""
    where, rng = find_checkpoint(copied) / ABOUT, random.Random(0)
    good, told = where.read_bytes(), read_checkpoint(where.parent)
    self_digest = good.index(b"self_sha256")  # its name alone is not covered by it, but by the signature
    for _ in range(300):
        data, position = bytearray(good), rng.randrange(len(good))
        if self_digest <= position < self_digest + len("self_sha256"):
            continue
        data[position] ^= 1 << rng.randrange(8)
        where.write_bytes(data)
        with suppress(InputError):
            assert read_checkpoint(where.parent) == told


@pytest.fixture(params=["no space", "a limit on files"])
def full_disk(request, tmp_path):
    """A folder, and functions that fill its disk and free it: a real disk, if we may mount one, or a limit on files' sizes."""
    folder, ballast = tmp_path / "disk", tmp_path / "disk" / "ballast"
    folder.mkdir()
    if request.param == "a limit on files":
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        yield (
            folder,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard)),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root alone")

    def fill():
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))

    yield folder, fill, ballast.unlink
    subprocess.run(["umount", "-l", str(folder)], check=True)


def at_iterations(monkeypatch, actions):
    """Do something as an iteration learns: number -> what."""
    learn = AVLLearner.update

    def update(self, **kwargs):
        if action := actions.pop(self._samples + 1, None):
            action()
        return learn(self, **kwargs)

    monkeypatch.setattr(AVLLearner, "update", update)


def test_a_full_disk_costs_checkpoints_and_nothing_else(full_disk, often, monkeypatch, capsys):
    folder, fill, free = full_disk
    at_iterations(monkeypatch, {3: fill, 5: free})
    assert run(Options(run_dir=folder / "run", iterations=6, **TINY)) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 2
    assert all("cannot be written" in line and "training goes on" in line for line in warnings)
    assert checkpoints(folder / "run") == [2, 5, 6]
    for path in numbered_checkpoints(folder / "run"):
        read_checkpoint(path)
    assert iterations(folder / "run") == [1, 2, 3, 4, 5, 6]
    assert not list((folder / "run" / "checkpoints").glob(".*"))


def test_a_disk_that_is_full_in_the_end_is_an_error_and_the_last_checkpoint_good(full_disk, often, monkeypatch):
    folder, fill, free = full_disk
    at_iterations(monkeypatch, {3: fill})
    with pytest.raises(InputError, match=r"cannot be written: .*(No space left|File too large)"):
        run(Options(run_dir=folder / "run", iterations=4, **TINY))
    free()
    assert not list((folder / "run" / "checkpoints").glob(".*"))
    assert checkpoints(folder / "run") == [1, 2]
    assert again(folder / "run", iterations=3) == 0
    assert iterations(folder / "run") == [1, 2, 3]


def test_auto_resume_begins_goes_on_and_ends(tmp_path, capsys):
    def start(**limit):
        return again(tmp_path / "run", resume=False, auto_resume=True, **limit)

    assert start(iterations=2) == 0
    assert iterations(tmp_path / "run") == [1, 2]
    assert start(iterations=3) == 0
    assert iterations(tmp_path / "run") == [1, 2, 3]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    capsys.readouterr()
    for limit in ({"iterations": 3}, {"steps": 100, "iterations": 9}, {"minutes": 0.001, "iterations": 9}):
        assert start(**limit) == 0
        assert "complete already: 3 iterations" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")} == before


def test_auto_resume_begins_where_no_checkpoint_was_come_to(tmp_path):
    (tmp_path / "run" / "checkpoints" / ".aside-000001-77").mkdir(parents=True)
    (tmp_path / "run" / LOG).write_text('{"iteration": 1')
    assert again(tmp_path / "run", resume=False, auto_resume=True) == 0
    assert iterations(tmp_path / "run") == [1, 2]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # Ray's own, as it hands data to a learner
def test_a_lost_learner_ends_the_start_and_not_the_run(tmp_path, often, monkeypatch, capsys):
    iterate, starts = Trainer._iterate, []

    def iterate_and_kill(trainer):
        iterate(trainer)
        starts.append(trainer)
        if len(starts) == 2:
            os.kill(ask_learners(trainer._algorithm, lambda _: os.getpid())[0], signal.SIGKILL)

    monkeypatch.setattr(Trainer, "_iterate", iterate_and_kill)
    options = {"resume": False, "auto_resume": True, "iterations": 4, "num_learners": 1}
    assert again(tmp_path / "run", **options) == 1
    assert "--resume goes on from there" in capsys.readouterr().err
    assert checkpoints(tmp_path / "run")[-1] >= 1
    assert again(tmp_path / "run", **options) == 0
    assert iterations(tmp_path / "run") == [1, 2, 3, 4]


class Evil:
    """As a pickle, it leaves a trace when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_checkpoint_from_elsewhere_is_not_unpickled_unless_it_is_trusted(copied, tmp_path, monkeypatch):
    checkpoint, trace = find_checkpoint(copied), tmp_path / "ran"
    state = checkpoint / "rllib" / "class_and_ctor_args.pkl"
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "another.key"))
    with pytest.raises(InputError, match=r"signed with another key.*--trust-checkpoint"):
        again(copied, iterations=5)
    about = json.loads((checkpoint / ABOUT).read_text())
    for name in ("signature", "self_sha256"):
        del about[name]
    state.write_bytes(pickle.dumps(Evil(trace)))
    about["sha256"]["rllib/class_and_ctor_args.pkl"] = digest(state)
    about["bytes"]["rllib/class_and_ctor_args.pkl"] = state.stat().st_size
    (checkpoint / ABOUT).write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"it is not signed.*--trust-checkpoint"):
        again(copied, iterations=5)
    load_router(copied)
    assert not trace.exists()


def test_a_trusted_checkpoint_is_gone_on_from_and_the_next_is_ones_own(copied, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "another.key"))
    assert again(copied, iterations=5, trust_checkpoint=True) == 0
    assert again(copied, iterations=6) == 0
    assert iterations(copied) == [1, 2, 3, 4, 5, 6]


def test_the_key_is_nowhere_in_a_run(copied):
    key = Path(os.environ[KEY_FILE]).read_bytes()
    for path in copied.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert key not in data
            assert key.hex().encode() not in data


@pytest.fixture
def place():
    """A storage that is empty."""
    return f"memory://{uuid.uuid4()}"


def test_a_run_goes_on_on_another_host_from_its_storage(tmp_path, place, often):
    first, second = tmp_path / "a" / "run", tmp_path / "b" / "run"
    assert run(Options(run_dir=first, iterations=2, storage=place, **TINY)) == 0
    assert again(second, iterations=4, storage=place) == 0
    assert iterations(second) == [1, 2, 3, 4]
    assert again(first, iterations=5, storage=place, resume=False, auto_resume=True) == 0  # whose folder has fallen behind
    assert iterations(first) == [1, 2, 3, 4, 5]
    filesystem, root = fsspec.url_to_fs(place)
    found = {path.partition("/run/")[2]: filesystem.cat_file(path) for path in filesystem.find(root)}
    kept = {str(p.relative_to(first)): p.read_bytes() for p in first.rglob("*") if p.is_file() and p.name != "run.lock"}
    assert {name: data for name, data in found.items() if name in kept} == kept
    assert {name.split("/")[1] for name in found if name.startswith("checkpoints/")} == {"000003", "000004", "000005"}


def test_a_run_is_not_begun_over_one_in_the_storage(tmp_path, place):
    assert run(Options(run_dir=tmp_path / "a" / "run", storage=place, **TINY)) == 0
    with pytest.raises(InputError, match=r"memory://.*/run: holds a run already"):
        run(Options(run_dir=tmp_path / "b" / "run", storage=place, **TINY))
    assert not (tmp_path / "b" / "run").exists()


def test_a_storage_that_fails_on_the_way_is_a_warning_and_in_the_end_an_error(tmp_path, place, often, monkeypatch, capsys):
    filesystem, _ = fsspec.url_to_fs(place)
    put = type(filesystem).put_file

    def fail(*args, **kwargs):
        raise ConnectionError("the line is dead")

    def broken():
        monkeypatch.setattr(type(filesystem), "put_file", fail)

    def mended():
        monkeypatch.setattr(type(filesystem), "put_file", put)

    at_iterations(monkeypatch, {2: broken, 3: mended, 5: broken})
    with pytest.raises(InputError, match=r"storage memory://.*/run: cannot be brought up to date: the line is dead"):
        run(Options(run_dir=tmp_path / "run", iterations=5, storage=place, **TINY))
    assert "tried again with the next checkpoint" in capsys.readouterr().err
    assert checkpoints(tmp_path / "run") == [3, 4, 5]
    mended()
    assert again(tmp_path / "run", iterations=5, storage=place, resume=False, auto_resume=True) == 0  # complete, but for the copy
    assert again(tmp_path / "elsewhere" / "run", iterations=6, storage=place) == 0
    assert iterations(tmp_path / "elsewhere" / "run") == [1, 2, 3, 4, 5, 6]
