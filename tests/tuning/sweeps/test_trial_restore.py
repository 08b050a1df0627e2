"""A trial goes on from checkpoints that its own sweep signed, and runs no code that others put beside them or in their place."""

import json
import pickle
from contextlib import ExitStack
from pathlib import Path

import pytest
from ray import tune
from ray.train._internal.session import _TrainingResult
from ray.tune.trainable import Trainable

from models.export.manifest import manifest_of
from models.rllib.checkpoint import ABOUT, FORMAT
from rllib_envs.errors import InputError
from tuning.run_dir.signature import KEY_FILE, derived_key, signed
from tuning.sweeps.plan import TrialPlan
from tuning.sweeps.space import load_space
from tuning.sweeps.trial import Trial
from tuning.training.options import TrainOptions

pytestmark = pytest.mark.slow  # Ray Tune takes longer to import than these to run

DICT = "_dict_checkpoint.pkl"  # which Tune unpickles where it finds one in a checkpoint


class Evil:
    """As a pickle, it leaves a trace when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


class Small(Trial):
    """Has no algorithm: what it would load it takes down, after somebody else has swapped the file in the checkpoint."""

    swapped, evil, loaded = None, b"", None

    def setup(self, config, plan=None):
        self._stack = ExitStack()

    def load_checkpoint(self, checkpoint):
        if self.swapped is not None:
            self.swapped.write_bytes(self.evil)
        self.loaded = {path.name: pickle.loads(path.read_bytes()) for path in Path(checkpoint).rglob("*") if path.is_file()}


@pytest.fixture
def trial(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "keys" / "mine.key"))
    found = Small(config={})
    found._plan = TrialPlan(options=TrainOptions(), space=load_space("learner"), folder=tmp_path, key=derived_key("this sweep"))
    return found


def saved(folder, key):
    """A checkpoint as a trial leaves it to Tune, signed with a key, or unsigned: the folder with the files of it."""
    own = folder / "checkpoints" / "000001"
    (own / "rllib").mkdir(parents=True)
    (own / "rllib" / "state.pkl").write_bytes(pickle.dumps("own"))
    contents = {"format": FORMAT, "iteration": 1, **manifest_of(own).to_dict()}
    (own / ABOUT).write_text(json.dumps(contents if key is None else signed(contents, key)))
    return own


def result(folder):
    """What Tune asks a trial to go on from."""
    return _TrainingResult(checkpoint=tune.Checkpoint.from_directory(folder), metrics={})


def test_it_goes_on_from_what_its_sweep_signed_and_from_nothing_else(trial, tmp_path):
    saved(tmp_path / "own", derived_key("this sweep"))
    trial.restore(result(tmp_path / "own"))
    assert trial.loaded == {"state.pkl": "own"}
    for name, key in (("unsigned", None), ("of another sweep", derived_key("another sweep")), ("of another", b"0" * 32)):
        saved(tmp_path / name, key)
        with pytest.raises(InputError, match="signed"):
            trial.restore(result(tmp_path / name))


def test_a_trusted_sweep_has_checkpoints_of_its_former_owner(trial, tmp_path):
    saved(tmp_path / "given", b"0" * 32)
    trial._plan = TrialPlan(options=TrainOptions(), space=trial._plan.space, folder=tmp_path, key=trial._plan.key, trusted=True)
    trial.restore(result(tmp_path / "given"))
    assert trial.loaded == {"state.pkl": "own"}


def test_what_is_planted_beside_it_does_not_run(trial, tmp_path):
    own, trace = saved(tmp_path / "own", derived_key("this sweep")), tmp_path / "ran"
    (tmp_path / "own" / DICT).write_bytes(pickle.dumps(Evil(trace)))
    trial.restore(result(tmp_path / "own"))
    assert trial.loaded == {"state.pkl": "own"}
    (own / DICT).write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(InputError, match=f"{DICT}: a file that checkpoint.json does not name"):
        trial.restore(result(tmp_path / "own"))
    assert not trace.exists()
    with pytest.raises(TypeError):  # what is loaded is no folder
        Trainable.restore(trial, result(own))
    assert trace.exists()  # Tune by itself would have


def test_what_is_swapped_after_the_check_does_not_run(trial, tmp_path):
    own, trace = saved(tmp_path / "own", derived_key("this sweep")), tmp_path / "ran"
    trial.swapped, trial.evil = own / "rllib" / "state.pkl", pickle.dumps(Evil(trace))
    trial.restore(result(tmp_path / "own"))
    assert trial.loaded == {"state.pkl": "own"}
    assert trial.swapped.read_bytes() == trial.evil
    assert not trace.exists()
