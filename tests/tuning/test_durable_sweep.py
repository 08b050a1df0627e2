"""Sweeps go on after faults, on other hosts too, and are not gone on with if they are somebody else's."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgeroute
from models.rllib.checkpoint import load_router
from tests.tuning.tune_state import ended, wait_for_a_trial
from tuning.signature import KEY_FILE

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
SWEEP = ["sweep", "--space", "reward-weights", "--num-samples", "3", "--scheduler", "none", "--max-concurrent", "1", "--smoke"]
TRIALS = 3


def start(run_dir, *more):
    """A process of its own, as the leader of a group, so that a kill takes Ray's processes with it."""
    return subprocess.Popen(
        [sys.executable, "edgeroute.py", *SWEEP, "--run-dir", str(run_dir), *map(str, more)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A sweep with a storage, killed soon after its first trial had ended: its folder, the storage, what had ended."""
    tmp_path = tmp_path_factory.mktemp("sweep")
    run_dir, store = tmp_path / "here" / "run", tmp_path / "store"
    process = start(run_dir, "--storage", f"file://{store}")
    before = wait_for_a_trial(process, store / "run" / "tune", 2)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert before, output
    return run_dir, store, before


@pytest.fixture(scope="module")
def resumed(killed, tmp_path_factory):
    """The sweep gone on with on another host, which has nothing but the storage and the key: its folder there."""
    run_dir = tmp_path_factory.mktemp("there") / "run"
    process = start(run_dir, "--storage", f"file://{killed[1]}", "--resume")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return run_dir


def test_a_sweep_goes_on_elsewhere_from_its_storage(killed, resumed):
    _, store, before = killed
    contents = json.loads((resumed / "sweep.json").read_text())
    assert {trial["status"] for trial in contents["trials"]} == {"finished"}
    assert len(contents["trials"]) == TRIALS
    after = ended(resumed / "tune", 2)
    assert all(after[name] == records for name, records in before.items())
    for name in ("sweep.yaml", "sweep.json", "sweep.md", "best.yaml", "parallel.png"):
        assert (store / "run" / name).read_bytes() == (resumed / name).read_bytes()
    for trial in (resumed / "tune").glob("trial-*"):
        load_router(max(trial.glob("checkpoint_*")))


def test_a_complete_sweep_says_so(resumed, capsys):
    assert edgeroute.main([*SWEEP, "--run-dir", str(resumed), "--auto-resume"]) == 0
    assert "complete already" in capsys.readouterr().out


def test_a_sweep_in_the_storage_is_not_begun_anew(killed, tmp_path, capsys):
    assert edgeroute.main([*SWEEP, "--run-dir", str(tmp_path / "run"), "--storage", str(killed[1])]) == 2
    assert "holds a sweep already" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Evil:
    """As a pickle, it leaves a trace when it is loaded."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("case", ["another's", "unsigned", "changed"])
def test_a_sweep_from_elsewhere_is_not_unpickled(case, resumed, tmp_path, monkeypatch, capsys):
    run_dir = Path(shutil.copytree(resumed, tmp_path / "run"))
    for path in (run_dir / "tune").glob("*.pkl"):
        path.write_bytes(pickle.dumps(Evil(tmp_path / "ran")))
    config = run_dir / "sweep.yaml"
    if case == "another's":
        monkeypatch.setenv(KEY_FILE, str(tmp_path / "another.key"))
    elif case == "unsigned":
        config.write_text(config.read_text().partition("signature:")[0])
    else:
        config.write_text(config.read_text().replace("final_seeds: 2", "final_seeds: 3"))
    assert edgeroute.main([*SWEEP, "--run-dir", str(run_dir), "--resume"]) == 2
    assert "--trust-checkpoint loads it all the same" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


def test_a_trusted_sweep_is_gone_on_with_and_then_ones_own(killed, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    shutil.copytree(killed[1] / "run", run_dir)
    monkeypatch.setenv(KEY_FILE, str(tmp_path / "another.key"))
    process = start(run_dir, "--resume", "--trust-checkpoint")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert len(ended(run_dir / "tune", 2)) == TRIALS
    (run_dir / "sweep.json").unlink()
    process = start(run_dir, "--auto-resume")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def test_a_storage_that_trials_would_not_see_is_refused(tmp_path, capsys):
    assert edgeroute.main([*SWEEP, "--run-dir", str(tmp_path / "run"), "--storage", "memory://place"]) == 2
    assert "other processes do not see it" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
