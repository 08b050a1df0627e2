"""Sweeps as users run them: real trials under Ray Tune, stopped, killed, resumed and read back."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from ray import tune
from ray.tune.experiment import Experiment

import edgeroute
from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario
from tests.tuning.sweeps.tune_state import wait_for_a_trial
from tuning.sweep import Options, run
from tuning.sweeps.figures import importances, pareto_front
from tuning.sweeps.space import load_space, parse_space
from tuning.sweeps.tuner import searcher_of, to_tune, within
from tuning.training.options import TrainOptions, options_from

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 3
SWEEP = ["sweep", "--space", "reward-weights", "--num-samples", str(TRIALS), "--scheduler", "none", "--smoke"]


def start(run_dir, *more):
    """A process of its own, as the leader of a group, so that a kill takes Ray's processes with it."""
    return subprocess.Popen(
        [sys.executable, "edgeroute.py", *SWEEP, "--run-dir", str(run_dir), *more],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(*arguments):
    """The output of a sweep run to its end in a process of its own, without wandb's variables."""
    return subprocess.run(
        [sys.executable, "edgeroute.py", "sweep", *map(str, arguments), "--scheduler", "none", "--smoke"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def results(run_dir):
    """Trial -> its records so far."""
    files = sorted((run_dir / "tune").glob("trial-*/result.json"))
    return {file.parent.name: [json.loads(line) for line in file.read_text().splitlines() if line] for file in files}


def settings_of(run_dir):
    return {file.parent.name: json.loads(file.read_text()) for file in sorted((run_dir / "tune").glob("trial-*/params.json"))}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A sweep whose driver was killed soon after a trial had ended, and then resumed: folder, what it had, output, exit code."""
    run_dir = tmp_path_factory.mktemp("sweep") / "run"
    process = start(run_dir)
    before = wait_for_a_trial(process, run_dir / "tune", 2)
    os.killpg(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
    again = start(run_dir, "--resume")
    output, _ = again.communicate(timeout=600)
    return run_dir, before, output, again.returncode


@pytest.mark.cluster
def test_a_killed_sweep_goes_on_with_finished_trials_kept(killed):
    run_dir, before, output, code = killed
    assert code == 0, output
    after = results(run_dir)
    assert len(after) == TRIALS
    assert all([r["training_iteration"] for r in records][-1] == 2 for records in after.values())
    assert before, output
    assert all(after[name] == records for name, records in before.items())


@pytest.mark.cluster
def test_it_has_the_trials_that_its_seed_stands_for(killed):
    """Killed or not: the usual settings first, and the others as its search draws them for a sweep that nobody stops."""
    options, space = replace(Options(), num_samples=TRIALS), load_space("reward-weights")
    tune.register_trainable("nothing", lambda config: None)
    generator = searcher_of(options, space, TrainOptions())
    domains = {path: to_tune(domain, "random") for path, domain in space.parameters.items()}
    generator.add_configurations([Experiment("any", run="nothing", config=domains, num_samples=TRIALS)])
    drawn = {f"trial-{i:05d}": dict(generator.next_trial().config) for i in range(TRIALS)}
    assert settings_of(killed[0]) == drawn
    assert drawn["trial-00000"] == {path: float(path == "reward.marginal_qos") for path in space.parameters}
    assert len({json.dumps(one, sort_keys=True) for one in drawn.values()}) == TRIALS


@pytest.mark.cluster
def test_what_it_wrote_says_what_happened(killed):
    run_dir, _, output, _ = killed
    contents = json.loads((run_dir / "sweep.json").read_text())
    assert [trial["id"] for trial in contents["trials"]] == [f"trial-{i:05d}" for i in range(TRIALS)]
    assert {trial["status"] for trial in contents["trials"]} == {"finished"}
    assert {trial["id"]: trial["settings"] for trial in contents["trials"]} == settings_of(run_dir)
    ranked = [rank["trial"] for rank in contents["ranking"]]
    assert contents["best"] == ranked[0]
    assert contents["reference"] == "trial-00000"
    assert "trial-00000" in ranked
    assert [rank["qos"]["mean"] for rank in contents["ranking"]] == sorted(
        (rank["qos"]["mean"] for rank in contents["ranking"]), reverse=True
    )
    for name in ("parallel.png", "importance.png", "pareto.png"):
        if (run_dir / name).exists():
            assert (run_dir / name).read_bytes().startswith(b"\x89PNG")
            assert name in (run_dir / "sweep.md").read_text()
    assert (run_dir / "parallel.png").exists()
    assert (run_dir / "pareto.png").exists()
    assert f"trial-{TRIALS - 1:05d}" in output


@pytest.mark.cluster
def test_train_accepts_its_best_settings(killed, tmp_path):
    run_dir = killed[0]
    contents = json.loads((run_dir / "sweep.json").read_text())
    best = next(trial["settings"] for trial in contents["trials"] if trial["id"] == contents["best"])
    options = options_from(run_dir / "best.yaml")
    assert options.avl.generations == 0
    assert {path: getattr(options.reward, path.partition(".")[2]) for path in best} == best
    assert edgeroute.main(["train", "--config", str(run_dir / "best.yaml"), "--smoke", "--run-dir", str(tmp_path / "run")]) == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["options"]
    assert kept["reward"] == asdict(options.reward)


@pytest.mark.cluster
def test_a_folder_with_a_sweep_is_not_begun_anew(killed):
    with pytest.raises(InputError, match="holds a sweep already"):
        run(Options(run_dir=killed[0]))


@pytest.mark.cluster
@pytest.mark.nightly
def test_a_trial_that_fails_is_listed_and_the_exit_code_says_so(tmp_path):
    """A folder is in the place of its scenario."""
    file, run_dir = tmp_path / "mine.yaml", tmp_path / "run"
    file.write_text("parameters: {scenario.slo_s_per_token: {choice: [0.04, 0.05]}}\nbase: {generations: 0}\n")
    (run_dir / "tune" / "trial-00000" / "scenario.yaml").mkdir(parents=True)
    process = finished("--space", file, "--search", "grid", "--num-samples", 1, "--run-dir", run_dir)
    assert process.returncode == 1, process.stdout + process.stderr
    contents = json.loads((tmp_path / "run" / "sweep.json").read_text())
    failed = [trial for trial in contents["trials"] if trial["status"] == "failed"]
    assert [trial["id"] for trial in failed] == ["trial-00000"]
    assert f"trial {failed[0]['id']} failed" in process.stderr
    assert contents["best"] not in {trial["id"] for trial in failed}


@pytest.mark.cluster
def test_a_search_by_optuna_for_two_goals_tracked_trial_by_trial_over_scenarios(tmp_path):
    file, run_dir = tmp_path / "mine.yaml", tmp_path / "run"
    file.write_text("parameters: {scenario.slo_s_per_token: {uniform: [0.03, 0.09]}, lr: {log_uniform: [0.0001, 0.01]}}\n")
    search = ["--search", "optuna", "--objective", "pareto", "--num-samples", 3]
    process = finished("--space", file, *search, "--track", "wandb", "--run-dir", run_dir)
    assert process.returncode == 0, process.stdout + process.stderr
    contents = json.loads((run_dir / "sweep.json").read_text())
    assert len({trial["id"] for trial in contents["trials"]}) == 3
    assert (run_dir / "pareto.png").exists()
    for trial in contents["trials"]:
        folder = run_dir / "tune" / trial["id"]
        slo = yaml.safe_load((folder / "scenario.yaml").read_text())["slo_s_per_token"]
        assert slo == trial["settings"]["scenario.slo_s_per_token"]
        assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    best = next(trial["settings"] for trial in contents["trials"] if trial["id"] == contents["best"])
    options = options_from(run_dir / "best.yaml")
    assert options.lr == best["lr"]
    assert load_scenario(options.scenario).slo_s_per_token == best["scenario.slo_s_per_token"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--space", "reward-weigths"], "'reward-weights'"),
        (["--scheduler", "pbt", "--space", "graph"], "encoder cannot change within a run"),
        (["--objective", "pareto"], "optuna"),
        (["--search", "optuna", "--scheduler", "pbt"], "pbt"),
        (["--num-samples", "0"], "num-samples = 0"),
        (["--max-concurrent", "0"], "max-concurrent = 0"),
        (["--resume"], "sweep.yaml: cannot be read"),
        (["--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(arguments, said, tmp_path, capsys):
    assert edgeroute.main(["sweep", *arguments, "--run-dir", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_more_than_the_cluster_has_is_refused(one_ray, tmp_path, capsys):
    arguments = ["sweep", "--smoke", "--gpus-per-trial", "1", "--run-dir", str(tmp_path / "run")]
    assert edgeroute.main(arguments) == 2
    assert "gpus-per-trial = 1" in capsys.readouterr().err


def test_settings_that_pbt_changed_stay_within_the_space():
    space = load_space("learner")
    for factor in (0.1, 1.0, 10.0):
        asked = {
            path: domain.values[0] if domain.kind == "choice" else factor * domain.values[1]
            for path, domain in space.parameters.items()
        }
        found = within(space, asked)
        assert all(space.parameters[path].contains(value) for path, value in found.items())
        assert all(found[path] == value for path, value in asked.items() if space.parameters[path].contains(value))


def test_what_a_sweep_is_can_be_asked_without_ray():
    code = "import sys, tuning.sweep; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_setting_that_decides_is_found_important():
    space = parse_space({"parameters": {"lr": {"uniform": [0.1, 0.9]}, "clip": {"uniform": [0, 1]}}}, "two", "two.yaml")
    rng = np.random.default_rng(0)
    settings = [{"lr": float(rng.uniform(0.1, 0.9)), "clip": float(rng.uniform())} for _ in range(40)]
    found = importances(space, settings, [one["lr"] for one in settings])
    assert found["lr"] > 0.8
    assert sum(found.values()) == pytest.approx(1)
    assert importances(space, settings, [0.5] * 40) == {}


def test_the_front_holds_what_none_beats():
    rng = np.random.default_rng(0)
    cost, value = rng.random(60), rng.random(60)
    front = pareto_front(cost, value)
    for i in range(60):
        beaten = ((cost <= cost[i]) & (value >= value[i]) & ((cost < cost[i]) | (value > value[i]))).any()
        assert (i in front) == (not beaten)
    assert (np.diff(cost[front]) > 0).all()
    assert (np.diff(value[front]) > 0).all()
