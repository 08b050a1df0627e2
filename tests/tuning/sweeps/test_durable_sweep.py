"""Sweeps go on after faults, on other hosts too, and are not gone on with if they are somebody else's."""

import base64
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

import edgeroute
from models.rllib.checkpoint import load_router
from rllib_envs.yaml_files import parse_yaml
from tests.tuning.sweeps.tune_state import ended, wait_for_a_trial
from tuning.run_dir.signature import KEY_FILE, derived_key
from tuning.sweeps.signed_state import STATE, unpacked

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[3]
TRIALS = 2
SWEEP = ["sweep", "--space", "reward-weights", "--num-samples", str(TRIALS), "--scheduler", "none", "--max-concurrent", "1"]
SWEEP.append("--smoke")


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


KINDS = ("tuner", "experiment_state", "searcher-state", "search_gen_state", "basic-variant-state", "error")


def plant(folder, trace, kinds=KINDS):
    """Write such a pickle to a sweep's folder, under the names of what Tune unpickles or may."""
    evil = pickle.dumps(Evil(trace))
    row = json.dumps({"_type": "CLOUDPICKLE_FALLBACK", "value": evil.hex()})  # as Tune writes pickles to JSON
    for kind in kinds:
        for path in [*folder.glob(f"{kind}-*.json"), folder / f"{kind}-9999-12-31_00-00-00.json"]:
            path.write_text(f'{{"trial_data": [], "runner_data": {row}, "stats": {row}}}')
        for within in (folder, *folder.glob("trial-*")):
            (within / f"{kind}.pkl").write_bytes(evil)
        (folder / f"{kind}-9999-12-31_00-00-00.pkl").write_bytes(evil)


def test_a_planted_or_swapped_state_does_not_run(killed, tmp_path):
    """It is written before Tune looks, and again and again while it does."""
    run_dir, stop = Path(shutil.copytree(killed[1] / "run", tmp_path / "run")), threading.Event()
    for folder in run_dir.glob("tune/trial-*/checkpoint_*"):  # as Tune pickles a dictionary
        (folder / "_dict_checkpoint.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "ran")))

    def swap():
        while not stop.wait(0.02):
            plant(run_dir / "tune", tmp_path / "ran")

    plant(run_dir / "tune", tmp_path / "ran")
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        process = start(run_dir, "--resume")
        output, _ = process.communicate(timeout=600)
    finally:
        stop.set()
        thread.join()
    assert process.returncode == 0, output
    assert not (tmp_path / "ran").exists()
    contents = json.loads((run_dir / "sweep.json").read_text())
    assert [trial["status"] for trial in contents["trials"]] == ["finished"] * TRIALS


@pytest.mark.parametrize("kind", ["tuner", "experiment_state"])
def test_who_trusts_a_planted_state_runs_it(kind, killed, tmp_path):
    """So the test before would notice. What the sweep does from then on is nobody's concern."""
    run_dir = Path(shutil.copytree(killed[1] / "run", tmp_path / "run"))
    plant(run_dir / "tune", tmp_path / "ran", [kind])
    process = start(run_dir, "--resume", "--trust-checkpoint")
    until = time.monotonic() + 600
    while not (tmp_path / "ran").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    with suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert (tmp_path / "ran").exists(), output


def test_a_sweep_of_a_version_with_other_modules_is_refused_in_one_line(killed, tmp_path):
    run_dir = Path(shutil.copytree(killed[1] / "run", tmp_path / "run"))
    module, name = (pickle.SHORT_BINUNICODE + bytes([len(part)]) + part.encode() for part in ("tuning.trial", "Trial"))
    (run_dir / "tune" / "tuner.pkl").write_bytes(pickle.PROTO + b"\x04" + module + name + pickle.STACK_GLOBAL + pickle.STOP)
    process = start(run_dir, "--resume", "--trust-checkpoint")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2, output
    assert "another version of edgeroute" in output.splitlines()[-1]
    assert "Traceback" not in output


def test_a_sweep_of_an_earlier_version_is_gone_on_with_if_it_is_trusted(killed, tmp_path, capsys):
    run_dir = Path(shutil.copytree(killed[1] / "run", tmp_path / "run"))
    (run_dir / STATE).unlink()
    assert edgeroute.main([*SWEEP, "--run-dir", str(run_dir), "--resume"]) == 2
    assert f"{STATE}: missing" in capsys.readouterr().err


def test_the_state_is_signed_where_the_trials_are_alone(killed, resumed):
    """An older copy from here never takes the place of the newer one there."""
    assert (killed[1] / "run" / STATE).exists()
    assert not (killed[0] / STATE).exists()
    assert not (resumed / STATE).exists()


def test_nothing_written_of_a_sweep_holds_the_key_of_its_trials(killed, resumed):
    nonce = parse_yaml((resumed / "sweep.yaml").read_text(), "sweep.yaml")["nonce"]
    key = derived_key(nonce)
    forms = [key, key.hex().encode(), key.hex().encode().hex().encode(), base64.b64encode(key)]
    for path in (path for folder in (resumed, killed[1]) for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.name == STATE:
            data += b"".join(unpacked(data, path).values())
        assert not any(form in data for form in forms), path


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


@pytest.mark.nightly
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
