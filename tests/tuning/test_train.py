"""``edgeroute train``: a run from its first step to the router that it leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from models.envelope import measure
from models.export.bundle import load_bundle
from models.paper.networks import PaperPolicy
from models.rllib.avl.learner import AVLLearner
from models.rllib.checkpoint import BUNDLE, find_checkpoint, load_router, read_checkpoint
from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from rllib_envs.simulation import Simulation
from tuning.train import run
from tuning.training.log import LOG, read_log
from tuning.training.options import TrainOptions, preset

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "edgeroute.py", "train"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
TINY = {"smoke": True, "fleets": (), "variation": False}


@pytest.fixture(scope="module")
def trained(one_ray, tmp_path_factory):
    """Four iterations without a break."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run(TrainOptions(run_dir=folder, iterations=4, **TINY)) == 0
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def weights(folder):
    return load_bundle(find_checkpoint(folder) / BUNDLE).router.state_dict()


def same(a, b):
    return all(torch.equal(x, b[name]) for name, x in a.items())


def test_a_run_leaves_what_it_should(trained):
    assert [record.iteration for record in read_log(trained / LOG, 99)] == [1, 2, 3, 4]
    assert read_checkpoint(find_checkpoint(trained))["iteration"] == 4
    assert (trained / "training.png").stat().st_size > 5_000
    assert list((trained / "tensorboard").iterdir())
    contents = yaml.safe_load((trained / "config.yaml").read_text())
    scenario = parse_scenario(contents["scenario"], "config")
    assert scenario.observation.whatif and scenario.observation.calibrate  # noqa: PT018
    assert not list((trained / "checkpoints").glob(".*"))


def test_the_router_routes_without_ray(trained):
    code = (
        "import sys; from pathlib import Path; from models.rllib.checkpoint import load_router;"
        f"load_router(Path({str(trained)!r})); print('ray' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
    route, observation = load_router(trained)
    scenario = load_scenario("edge6")
    simulation = Simulation(replace(scenario, observation=observation, capacity_rps=24.0), 2)
    simulation.start_all([1, 2])
    assert (route(simulation, np.random.default_rng(0)) <= 6).all()


def test_the_networks_know_the_range_of_their_inputs_in_training(trained):
    kept = weights(trained)
    for network in ("estimator.correction", "future"):
        low, high = (kept[f"{network}.range.{side}"] for side in ("low", "high"))
        assert (low <= high).all()
        assert (low < high).sum() > len(low) / 2


def test_the_same_seed_gives_the_same_weights_and_another_does_not(trained, one_ray, tmp_path):
    assert run(TrainOptions(run_dir=tmp_path / "same", iterations=4, **TINY)) == 0
    assert same(weights(trained), weights(tmp_path / "same"))
    assert run(TrainOptions(run_dir=tmp_path / "other", iterations=4, seed=1, **TINY)) == 0
    assert not same(weights(trained), weights(tmp_path / "other"))


def test_a_run_goes_on_where_it_stopped(trained, one_ray, tmp_path):
    folder = tmp_path / "run"
    assert run(TrainOptions(run_dir=folder, iterations=2, **TINY)) == 0
    before = read_log(folder / LOG, 99)
    assert run(TrainOptions(run_dir=folder, iterations=4, resume=True, **TINY)) == 0
    after = read_log(folder / LOG, 99)
    assert after[:2] == before
    assert [record.iteration for record in after] == [1, 2, 3, 4]
    assert after[2].steps > before[-1].steps


def test_rllib_reads_its_checkpoints_and_the_page_on_rllib_works(trained, one_ray):
    """The page's blocks in their order, with the checkpoint of a run in place of the reader's."""
    folder, found = find_checkpoint(trained), {}
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "rllib.md").read_text(), re.DOTALL):
        exec(block.replace("runs/mine/checkpoints/000012", str(folder)), found)
        if "algorithm" in block and "build_algo" in block:
            found["algorithm"].stop()
    assert found["algorithm"].iteration == 4
    weights_there = load_bundle(folder / BUNDLE).router.state_dict()
    assert same(found["module"].router_to_serve().state_dict(), weights_there)
    found["config"].environment(env_config={"scenario": "edge3"}).validate()
    found["algorithm"].stop()


@pytest.mark.parametrize("algo", ["ppo", "sac", "dqn"])
def test_the_other_algorithms_train_too(algo, one_ray, tmp_path):
    assert run(TrainOptions(algo=algo, run_dir=tmp_path / algo, **TINY)) == 0
    about = load_bundle(find_checkpoint(tmp_path / algo) / BUNDLE).about
    assert (about["algo"], about["iteration"]) == (algo, 2)


def test_a_price_for_any_cluster_is_searched_for_in_drawn_ones(one_ray, tmp_path):
    assert run(replace(preset("any-cluster"), run_dir=tmp_path / "any", smoke=True, iterations=2)) == 0
    bundle = load_bundle(find_checkpoint(tmp_path / "any") / BUNDLE)
    price = bundle.router.price
    assert bundle.observation.demand
    assert not list(bundle.router.parameters())
    assert not torch.equal(price.terms, type(price)().terms)  # the generation moved it
    edge6 = preset("any-cluster").scenario
    assert bundle.trained_on.outside(measure([load_scenario(edge6)]))  # its range is that of what was drawn: one fleet here


def test_the_paper_arm_is_the_papers(one_ray, tmp_path):
    options = preset("paper")
    changed = {
        **{name: getattr(options, name) for name in TrainOptions.__dataclass_fields__},
        "run_dir": tmp_path / "p",
        "smoke": True,
    }
    assert run(TrainOptions(**changed)) == 0
    bundle = load_bundle(find_checkpoint(tmp_path / "p") / BUNDLE)
    assert isinstance(bundle.router, PaperPolicy)
    assert not bundle.observation.whatif
    scenario = parse_scenario(yaml.safe_load((tmp_path / "p" / "config.yaml").read_text())["scenario"], "config")
    assert (scenario.name, scenario.reward.realised_qos, scenario.reward.paper_impact) == ("paper3", 1.0, 1.0)


@pytest.mark.parametrize("name", ["checkpoint.json", "bundle/router.safetensors", "bundle/router.json"])
def test_a_damaged_checkpoint_is_one_clear_error(copied, name):
    file = find_checkpoint(copied) / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match=str(file)):
        run(TrainOptions(run_dir=copied, resume=True, iterations=5, **TINY))


def test_a_checkpoint_of_other_networks_is_one_clear_error(copied):
    config = copied / "config.yaml"
    config.write_text(re.sub(r"^  impact_hidden: \d+$", "  impact_hidden: 24", config.read_text(), flags=re.MULTILINE))
    with pytest.raises(InputError, match=r"another version of edgeroute.*loading state_dict.*training must begin anew") as caught:
        run(TrainOptions(run_dir=copied, resume=True, iterations=5, **TINY))
    assert "\n" not in str(caught.value)


def test_a_run_directory_is_not_overwritten(copied):
    with pytest.raises(InputError, match="--resume"):
        run(TrainOptions(run_dir=copied, **TINY))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "lr = -1.0"),
        ({"steps": 0}, "steps = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"scenario": "edgy"}, "edgy"),
        ({"load": "hevy"}, "hevy"),
        ({"resume": True}, "no such folder"),
    ],
)
def test_wrong_options_are_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        run(TrainOptions(run_dir=tmp_path / "run", **{**TINY, "smoke": False, **changes}))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_state(one_ray, tmp_path, monkeypatch, capsys):
    learn = AVLLearner.update

    def fail(self, **kwargs):
        if self._samples == 2:
            raise FloatingPointError("value loss is nan: training cannot go on")
        return learn(self, **kwargs)

    monkeypatch.setattr(AVLLearner, "update", fail)
    assert run(TrainOptions(run_dir=tmp_path / "run", iterations=5, **TINY)) == 1
    assert "value loss is nan" in capsys.readouterr().err
    assert read_checkpoint(find_checkpoint(tmp_path / "run"))["iteration"] == 2


def start(folder, *arguments):
    return subprocess.Popen(
        [*COMMAND, "--smoke", "--fleets", "--no-variation", "--run-dir", folder, *arguments],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_lines(folder, count):
    until = time.monotonic() + 300
    while time.monotonic() < until:
        log = folder / LOG
        if log.exists() and len(log.read_text().splitlines()) >= count:
            return
        time.sleep(0.2)
    raise TimeoutError(f"{folder}: fewer than {count} iterations")


@pytest.mark.cluster
def test_a_terminated_run_saves_and_a_killed_one_goes_on_from_there(tmp_path):
    folder = tmp_path / "run"
    first = start(folder, "--iterations", "100000")
    wait_for_lines(folder, 2)
    first.send_signal(signal.SIGTERM)
    _, errors = first.communicate(timeout=300)
    assert first.returncode == 0, errors
    saved = read_checkpoint(find_checkpoint(folder))["iteration"]
    assert saved >= 2
    second = start(folder, "--iterations", "100000", "--resume")
    wait_for_lines(folder, saved + 2)
    second.kill()
    second.communicate(timeout=300)
    third = start(folder, "--iterations", str(saved + 1), "--resume")
    _, errors = third.communicate(timeout=300)
    assert third.returncode == 0, errors
    lines = [json.loads(line)["iteration"] for line in (folder / LOG).read_text().splitlines()]
    assert lines == list(range(1, lines[-1] + 1))
    assert lines[-1] >= saved + 1
