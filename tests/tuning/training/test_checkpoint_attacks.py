"""A signed checkpoint runs no code that was not signed: whatever is put beside its files, or for them, and whenever."""

import json
import pickle
import shutil
from pathlib import Path

import pytest

import tuning.train
from models.export.manifest import manifest_of
from models.rllib.checkpoint import ABOUT, find_checkpoint, load_router, read_checkpoint, restore_checkpoint
from rllib_envs.errors import InputError
from tuning.run_dir.signature import check_signature
from tuning.train import run
from tuning.training.options import TrainOptions, complete
from tuning.training.setup import algorithm_of, variant_options
from tuning.training.variants import base_scenario, training_groups

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_ray")]

TINY = {"smoke": True, "fleets": (), "variation": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with one checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run(TrainOptions(run_dir=folder, iterations=1, **TINY)) == 0
    return folder


@pytest.fixture(scope="module")
def algorithm():
    """One like that of the run."""
    options = complete(TrainOptions(**TINY))
    scenario = base_scenario(variant_options(options))
    groups = training_groups(scenario, variant_options(options), options.envs_per_runner)
    with algorithm_of(options, scenario, groups, 1) as algorithm:
        yield algorithm


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the run, to be attacked."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


class Evil:
    """As a pickle, it leaves a trace when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def planted(name):
    def attack(rllib, payload):
        (rllib / name).parent.mkdir(parents=True, exist_ok=True)
        (rllib / name).unlink(missing_ok=True)
        (rllib / name).write_bytes(payload)

    return attack


def linked(rllib, payload):
    (rllib.parents[2] / "evil").write_bytes(payload)
    (rllib / "learner_group" / "state.pkl").unlink()
    (rllib / "learner_group" / "state.pkl").symlink_to(rllib.parents[2] / "evil")


def swapped_folder(rllib, payload):
    there = Path(shutil.copytree(rllib / "learner_group", rllib.parents[2] / "evil"))
    (there / "state.pkl").write_bytes(payload)
    shutil.rmtree(rllib / "learner_group")
    (rllib / "learner_group").symlink_to(there)


def described_anew(folder):
    """Write a description that fits the files that are there, as anybody can."""
    about = json.loads((folder / ABOUT).read_text())
    del about["self_sha256"], about["signature"]
    (folder / ABOUT).unlink()
    (folder / ABOUT).write_text(json.dumps(about | manifest_of(folder).to_dict()))


RUNNING = {
    "a module that was not saved": planted("env_runner/rl_module/module_state.pkl"),
    "a state": planted("learner_group/learner/state.pkl"),
    "the algorithm's state": planted("algorithm_state.pkl"),
    "a link": linked,
    "a linked folder": swapped_folder,
}
"""Attacks that RLlib falls for where nobody looks first."""

QUIET = {
    "msgpack beside a pickle": planted("learner_group/state.msgpack"),
    "more of what is not loaded": planted("more.txt"),
}


@pytest.mark.parametrize("attack", RUNNING.values(), ids=RUNNING)
def test_the_attacks_are_real(attack, copied, algorithm, tmp_path):
    rllib, trace = find_checkpoint(copied) / "rllib", tmp_path / "ran"
    attack(rllib, pickle.dumps(Evil(trace)))
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever RLlib makes of a payload that is no state)
        algorithm.restore_from_path(rllib)
    assert trace.exists()


@pytest.mark.parametrize("attack", [*RUNNING.values(), *QUIET.values()], ids=[*RUNNING, *QUIET])
def test_a_checkpoint_with_other_files_than_were_signed_is_not_gone_on_from(attack, copied, tmp_path):
    attack(find_checkpoint(copied) / "rllib", pickle.dumps(Evil(tmp_path / "ran")))
    with pytest.raises(InputError, match=r"tampered|damaged|is a link"):
        run(TrainOptions(run_dir=copied, iterations=2, resume=True, **TINY))
    with pytest.raises(InputError, match=r"tampered|damaged|is a link"):
        load_router(copied)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("attack", [*RUNNING.values(), *QUIET.values()], ids=[*RUNNING, *QUIET])
@pytest.mark.parametrize("described", [False, True], ids=["files", "files and description"])
def test_what_is_swapped_after_the_signature_was_checked_does_not_run(attack, described, copied, algorithm, tmp_path):
    folder, trace = find_checkpoint(copied), tmp_path / "ran"
    about = read_checkpoint(folder)
    check_signature(about, folder / ABOUT, trusted=False)
    attack(folder / "rllib", pickle.dumps(Evil(trace)))
    if described:
        described_anew(folder)
    with pytest.raises(InputError):
        restore_checkpoint(folder, about, algorithm)
    assert not trace.exists()


def test_the_command_loads_what_it_has_checked(copied, tmp_path, monkeypatch):
    """Between its check and its loading, Ray starts: time enough for anybody."""
    folder, trace, algorithm_of = find_checkpoint(copied), tmp_path / "ran", tuning.train.algorithm_of

    def swap(*args):
        planted("learner_group/state.pkl")(folder / "rllib", pickle.dumps(Evil(trace)))
        described_anew(folder)
        return algorithm_of(*args)

    monkeypatch.setattr(tuning.train, "algorithm_of", swap)
    with pytest.raises(InputError, match="damaged"):
        run(TrainOptions(run_dir=copied, iterations=2, resume=True, **TINY))
    assert not trace.exists()


def test_what_is_whole_is_restored_and_no_copy_stays(copied, algorithm, tmp_path, monkeypatch):
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(private))
    folder = find_checkpoint(copied)
    restore_checkpoint(folder, read_checkpoint(folder), algorithm)
    assert not list(private.iterdir())


def test_without_room_for_a_copy_there_is_one_line(copied, algorithm, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    folder = find_checkpoint(copied)
    with pytest.raises(InputError, match=r"gone: no room for a private copy"):
        restore_checkpoint(folder, read_checkpoint(folder), algorithm)


@pytest.mark.parametrize("missing", [("models.rllib.avl_learner", "Floats"), ("models.rllib.avl.learner", "OfOld")])
def test_one_of_a_version_with_other_modules_is_refused_and_its_router_read(missing, copied, algorithm):
    folder = find_checkpoint(copied)
    module, name = (pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in missing)
    (folder / "rllib" / "algorithm_state.pkl").write_bytes(
        pickle.PROTO + b"\x04" + module + name + pickle.STACK_GLOBAL + pickle.STOP
    )
    described_anew(folder)
    with pytest.raises(InputError, match="another version of edgeroute"):
        restore_checkpoint(folder, read_checkpoint(folder), algorithm)
    load_router(copied)


def test_checkpoints_of_a_version_without_sizes_are_read(copied):
    folder = find_checkpoint(copied)
    about = json.loads((folder / ABOUT).read_text())
    for name in ("bytes", "self_sha256", "signature"):
        del about[name]
    (folder / ABOUT).write_text(json.dumps(about))
    assert read_checkpoint(folder)["iteration"] == 1


@pytest.mark.parametrize("name", ["٠٠٠٠٠٩", "²", "00001x", "-1"])
def test_only_ascii_digits_name_a_checkpoint(name, copied):
    (copied / "checkpoints" / name).mkdir()
    assert find_checkpoint(copied).name == "000001"
