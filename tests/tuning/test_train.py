"""``edgeroute train``: a run from its first step to the router that it leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
import yaml

from models.rllib import ppo
from models.rllib.checkpoint import find_checkpoint, read_checkpoint
from rllib_envs.errors import InputError
from rllib_envs.scenario import load_scenario, parse_scenario, with_workload
from rllib_envs.simulation import Simulation
from tuning.train import Options, load_router, run
from tuning.training_log import Iteration, draw_curve, read_log, to_line

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "edgeroute.py", "train"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="session")
def one_ray():
    """Started once; the command uses the Ray that its process has."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def process_run(tmp_path_factory):
    """What the command leaves, run as users run it."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    result = subprocess.run(
        [*COMMAND, "--smoke", "--run-dir", folder],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return folder, result


@pytest.fixture
def trained(process_run, tmp_path):
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(process_run[0], tmp_path / "run"))


def smoke(folder, **changes):
    return Options(smoke=True, run_dir=folder, **changes)


def weights(folder):
    return torch.load(find_checkpoint(folder) / "policy.pt", weights_only=True)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_command_trains_and_says_so(process_run):
    folder, result = process_run
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["iteration", "1"], ["iteration", "2"]]
    assert len(lines) == 3
    assert all(word in lines[0] for word in ("steps", "QoS", "late", "drop", "steps/s", "left"))
    assert {path.name for path in folder.iterdir()} == {"checkpoints", "config.yaml", "metrics.jsonl", "training.png"}
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")


def test_its_progress_is_a_record_an_iteration(process_run):
    rows = records(process_run[0])
    assert [row["iteration"] for row in rows] == [1, 2]
    assert [row["steps"] for row in rows] == sorted(row["steps"] for row in rows)
    for row in rows:
        assert 0 < row["qos"] < 1
        assert 0 <= row["late_share"] <= 1
        assert 0 <= row["drop_share"] <= 1
        assert row["entropy"] >= 0
        assert np.isfinite(list(row.values())).all()


def test_its_configuration_is_the_world_it_trained_in(process_run):
    config = yaml.safe_load((process_run[0] / "config.yaml").read_text())
    scenario = parse_scenario(config["scenario"], "config")
    assert scenario.fingerprint() == config["fingerprint"]
    assert scenario.observation.whatif
    assert (scenario.reward.realised_qos, scenario.reward.marginal_qos) == (0, 1)
    assert scenario.workload.load == "mixed"
    assert scenario.experts == load_scenario("edge6").experts


def test_the_router_needs_no_ray_and_routes(process_run):
    code = (
        "import sys; from pathlib import Path; from tuning.train import load_router; "
        "router, observation = load_router(Path(sys.argv[1])); "
        "assert observation.whatif and not observation.counterfactual; print('ray' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, process_run[0]],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (0, "False\n"), result.stderr


def test_the_router_takes_possible_actions_and_the_same_ones_again(process_run):
    router, observation = load_router(process_run[0])
    world = with_workload(load_scenario("edge6"), requests=40, load=20.0)
    qos = []
    for _ in range(2):
        simulation = Simulation(replace(world, observation=observation, capacity_rps=24.0), 3)
        simulation.start_all([1, 2, 3])
        while not simulation.over.all():
            actions = router(simulation, np.random.default_rng(0))
            assert actions.shape == (3,)
            assert (simulation.view.action_mask[np.arange(3), actions] > 0).all()
            simulation.step(actions)
        qos.append([simulation.records(b).qos.sum() for b in range(3)])
    assert qos[0] == qos[1]
    assert min(qos[0]) > 0


def test_a_router_is_told_what_it_needs(process_run):
    router, observation = load_router(process_run[0])
    blind = replace(load_scenario("edge6"), observation=replace(observation, whatif=False), capacity_rps=24.0)
    simulation = Simulation(blind, 1)
    simulation.start(0, 0)
    with pytest.raises(InputError, match="whatif"):
        router(simulation, np.random.default_rng(0))


def test_a_checkpoint_folder_is_as_good_as_its_run(process_run):
    folder = process_run[0]
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert find_checkpoint(folder) == find_checkpoint(checkpoint) == checkpoint
    assert load_router(folder)[1] == load_router(checkpoint)[1]


@pytest.mark.parametrize("name", ["policy.pt", "rllib/algorithm_state.pkl", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_checkpoint_is_one_clear_error(trained, name, damage):
    file = find_checkpoint(trained) / name
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(InputError) as caught:
        load_router(find_checkpoint(trained) if name != "checkpoint.json" else trained / "checkpoints/000002")
    assert "\n" not in str(caught.value)
    assert str(trained) in str(caught.value)


def test_a_damaged_checkpoint_ends_the_command_with_2(trained, one_ray, capsys):
    import edgeroute

    file = find_checkpoint(trained) / "policy.pt"
    file.write_bytes(file.read_bytes()[:100])
    assert edgeroute.main(["train", "--smoke", "--resume", "--run-dir", str(trained)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "policy.pt: damaged" in lines[0]


def test_a_checkpoint_of_another_version_is_refused(trained):
    file = find_checkpoint(trained) / "checkpoint.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"features": about["features"][::-1]}))
    with pytest.raises(InputError, match="features are not those of this version"):
        load_router(trained)
    file.write_text(json.dumps(about | {"format": "edgeroute-checkpoint-0"}))
    with pytest.raises(InputError, match="format is not"):
        load_router(trained)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text("x"), "not a folder"),
        (lambda path: path.mkdir(), "no checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_said_to_be_none(tmp_path, make, message):
    path = tmp_path / "thing"
    make(path)
    with pytest.raises(InputError, match=message):
        load_router(path)


def test_the_same_seed_gives_the_same_weights(tmp_path, one_ray, monkeypatch):
    monkeypatch.setattr(ppo, "_CRITIC_WARMUP_STEPS", 32)
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        run(smoke(tmp_path / name, seed=seed, iterations=3))
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a)
    assert a["expert_head.weight"].abs().max() > 0  # the actor did move
    rows = [[{**row, "seconds": 0, "elapsed_s": 0} for row in records(tmp_path / name)] for name in "ab"]
    assert rows[0] == rows[1]


def test_the_critic_learns_before_the_actor(tmp_path, one_ray):
    run(smoke(tmp_path / "run"))
    after = weights(tmp_path / "run")
    assert after["expert_head.weight"].abs().max() == after["drop_head.weight"].abs().max() == 0
    rows = records(tmp_path / "run")
    assert all(row["kl"] == 0 for row in rows)


def test_a_resumed_run_goes_on_where_it_was(trained, one_ray):
    before = weights(trained)
    run(Options(run_dir=trained, resume=True, iterations=3, num_env_runners=0))
    rows = records(trained)
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert rows[2]["steps"] - rows[1]["steps"] == pytest.approx(rows[1]["steps"] - rows[0]["steps"], abs=8)
    assert rows[2]["elapsed_s"] > rows[1]["elapsed_s"]
    about = read_checkpoint(find_checkpoint(trained))
    assert (about["iteration"], about["steps"], about["starts"]) == (3, rows[2]["steps"], 2)
    after = weights(trained)  # the actor has not begun to move, so that these are the restored weights
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_resumed_actor_goes_on_learning_at_its_rate(tmp_path, one_ray, monkeypatch):
    monkeypatch.setattr(ppo, "_CRITIC_WARMUP_STEPS", 32)
    run(smoke(tmp_path / "run", iterations=3))
    before = weights(tmp_path / "run")
    run(Options(run_dir=tmp_path / "run", resume=True, iterations=4, num_env_runners=0))
    after = weights(tmp_path / "run")
    assert not any(torch.equal(before[key], after[key]) for key in before)
    # Adam moves a weight by about its learning rate in a step; there are 16 of them in an iteration
    assert max((after[key] - before[key]).abs().max() for key in before) < 16 * 2 * Options().lr


def test_records_after_the_last_checkpoint_are_dropped_on_resuming(trained, one_ray):
    rows = read_log(trained / "metrics.jsonl", 2)
    with (trained / "metrics.jsonl").open("a") as log:
        log.write(to_line(replace(rows[-1], iteration=3, steps=9999)))
    run(Options(run_dir=trained, resume=True, iterations=3, num_env_runners=0))
    assert [row["iteration"] for row in records(trained)] == [1, 2, 3]
    assert records(trained)[-1]["steps"] < 9999


def test_a_run_that_has_reached_its_limit_stays_as_it_is(trained, one_ray):
    before = records(trained)
    assert run(Options(run_dir=trained, resume=True, iterations=2)) == 0
    assert records(trained) == before
    assert [path.name for path in (trained / "checkpoints").iterdir()] == ["000002"]


def test_an_interrupt_saves_and_exits_with_130(tmp_path):
    folder = tmp_path / "run"
    command = [*COMMAND, "--run-dir", folder, "--minutes", "5", "--requests", "20", "--envs-per-runner", "4"]
    command += ["--steps-per-iteration", "64", "--num-env-runners", "0"]
    with subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("iteration")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(errors.splitlines()) == 1, errors
    assert "interrupted" in errors
    assert "--resume" in errors
    assert read_checkpoint(find_checkpoint(folder))["iteration"] == len(records(folder)) >= 1


def test_a_run_is_not_overwritten(trained):
    with pytest.raises(InputError, match="holds a run already: --resume"):
        run(smoke(trained))


def test_a_resumed_run_keeps_what_defines_it(trained):
    with pytest.raises(InputError, match=r"lr = 0\.5: a resumed run keeps its own, which is 0\.001"):
        run(Options(run_dir=trained, resume=True, lr=0.5))


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        run(Options(run_dir=tmp_path / "none", resume=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "lr = -1.0: must be positive"),
        ({"lr": float("nan")}, "lr = nan: must be positive"),
        ({"minutes": 0.0}, "minutes = 0.0: must be positive"),
        ({"steps": -5}, "steps = -5: must be positive"),
        ({"seed": -1}, "seed = -1: must be >= 0"),
        ({"num_env_runners": -1}, "num-env-runners = -1: must be >= 0"),
        ({"load": "crushing"}, "load 'crushing'"),
        ({"scenario": "edge1"}, "edge1"),
        ({"requests": 0}, "requests = 0"),
    ],
)
def test_a_wrong_option_is_named_before_anything_starts(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(Options(run_dir=tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_closed_address_is_refused_at_once(tmp_path):
    result = subprocess.run(
        [*COMMAND, "--smoke", "--address", "127.0.0.1:9", "--run-dir", tmp_path / "run"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("edgeroute: error: address '127.0.0.1:9': no Ray answers there")


def test_a_log_that_is_none_is_named_with_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:1: not the record of an iteration"):
        read_log(path, 5)


def test_the_curve_shows_what_the_records_say(tmp_path):
    blank = dict.fromkeys(Iteration.__slots__, 0.0)
    rows = [Iteration(**{**blank, "iteration": i, "steps": 100 * i, "qos": 0.5 + i / 100}) for i in range(1, 12)]
    for name, shown in (("few", rows[:2]), ("many", rows), ("again", rows)):
        draw_curve(tmp_path / f"{name}.png", shown, "a run", 4)
    few, many, again = ((tmp_path / f"{name}.png").read_bytes() for name in ("few", "many", "again"))
    assert many == again != few
