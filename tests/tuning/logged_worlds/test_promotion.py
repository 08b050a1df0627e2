"""Continue a bundle on a log: it is promoted where it is better on requests that it never saw, and only there."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import edgeroute
from models.export.bundle import load_bundle, save_bundle
from models.relative_price import TERMS, RelativePrice
from models.rllib.checkpoint import BUNDLE, find_checkpoint
from models.router import Router, RouterSpec
from rllib_envs.decision_log.reader import read_log
from rllib_envs.decision_log.table import cut, table_of
from rllib_envs.scenario import Observation, with_workload
from rllib_envs.scenarios.load import load_scenario
from tests.gateway.simulated_log import write_simulated_log
from tuning.logged_worlds.promotion import judge
from tuning.logged_worlds.run import CANDIDATE, PROMOTED, PROMOTION, WORLD
from tuning.train import run
from tuning.training.options import TrainOptions, logged_options

pytestmark = pytest.mark.slow

COUNT = 1200


def write_log(path: Path, load_rps: float) -> Path:
    """A log of three experts."""
    write_simulated_log(path, with_workload(load_scenario("edge3"), load=load_rps), "least-work", COUNT, 0)
    return path


def write_bundle(folder: Path, **terms: float) -> Path:
    """A price alone, some of its parameters other than before any training."""
    spec = RouterSpec(encoder="aggregates", price="relative", hidden=0, impact_hidden=0, bounded=True)
    router = Router(spec)
    assert isinstance(router.price, RelativePrice)
    values = {name: term.prior for name, term in TERMS.items()} | terms
    router.price.terms.copy_(torch.tensor(list(values.values())))
    observation = Observation(whatif=True, whatif_tau=0.035, demand=True, calibrate=True)
    save_bundle(folder, router, observation, {"algo": "avl"})
    return folder


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of a cluster that has much to do."""
    return write_log(tmp_path_factory.mktemp("busy") / "log.jsonl", 9.0)


@pytest.fixture(scope="module")
def dear(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that learned to charge so much that it drops what the cluster could serve."""
    return write_bundle(tmp_path_factory.mktemp("dear") / "bundle", level=1.5)


def tiny(log: Path, bundle: Path, run_dir: Path, **changes: Any) -> TrainOptions:
    """A run of some seconds, whose length no clock decides."""
    options = logged_options(str(log), str(bundle))
    assert not options.avl.refinements  # one generation of it takes longer than the whole search should
    search = replace(options.avl, generations=8, population=6, search_variants=4, search_requests=100)
    small = {"iterations": 9, "minutes": None, "requests": 100, "envs_per_runner": 4, "steps_per_iteration": 40}
    return replace(options, run_dir=run_dir, avl=search, num_env_runners=0, **(small | changes))


def test_the_better_bundle_is_promoted_and_no_other(busy: Path, dear: Path, tmp_path: Path) -> None:
    """Either way round, and against itself; nothing is trained here."""
    log = read_log(busy)
    later = cut(table_of(log), 0.7)[1]
    usual = write_bundle(tmp_path / "usual")
    better, worse, same = (judge(later, log.scenario, *pair, 0) for pair in ((dear, usual), (usual, dear), (dear, dear)))
    assert better.promoted
    assert not worse.promoted
    assert worse.difference.mean == pytest.approx(-better.difference.mean)
    assert (same.promoted, same.difference.mean, same.difference.half_width) == (False, 0.0, 0.0)
    assert "over 7 windows" in better.figures
    assert [x.mean.mean for x in better.policies[1:3]] == [x.mean.mean for x in worse.policies[2:0:-1]]


def test_a_bundle_that_does_not_suit_the_log_is_continued_and_promoted(
    one_ray: None, busy: Path, dear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In two starts, the second without the log and the bundle: the run has all that it needs."""
    log, bundle, folder = tmp_path / "log.jsonl", tmp_path / "bundle", tmp_path / "run"
    shutil.copy(busy, log)
    shutil.copytree(dear, bundle)
    assert run(tiny(log, bundle, folder, iterations=2)) == 0
    assert "840 requests, and 360 later ones are held out" in capsys.readouterr().out
    before = load_bundle(dear).router.state_dict()["price.terms"]
    terms = load_bundle(find_checkpoint(folder) / BUNDLE).router.state_dict()["price.terms"]
    assert (terms - before).abs().max() < 1.5  # it began there: the terms before training are further off
    assert not torch.equal(terms, before)
    log.unlink()
    shutil.rmtree(bundle)
    assert run(TrainOptions(run_dir=folder, resume=True, iterations=9, num_env_runners=0)) == 0
    said = capsys.readouterr().out
    assert "Promoted: +" in said
    told = json.loads((folder / PROMOTION).read_text())
    assert told["promoted"]
    assert told["difference"]["mean"] > told["difference"]["half_width"]
    candidate, promoted = (load_bundle(folder / name) for name in (CANDIDATE, PROMOTED))
    assert torch.equal(candidate.router.state_dict()["price.terms"], promoted.router.state_dict()["price.terms"])
    assert promoted.trained_on is not None
    assert promoted.about["continues"]
    assert {path.name for path in (folder / WORLD).iterdir()} >= {"fitted.yaml", "replayed.yaml", "requests.jsonl"}


def test_where_nothing_is_to_win_nothing_is_promoted(one_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cluster that is all but idle: no price changes anything. The candidate is kept, and no other bundle is there."""
    log, bundle = write_log(tmp_path / "log.jsonl", 0.05), write_bundle(tmp_path / "bundle")
    folder = tmp_path / "run"
    assert run(tiny(log, bundle, folder, iterations=3)) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("Not promoted: ")
    assert str(folder / CANDIDATE) in said
    assert load_bundle(folder / CANDIDATE).about["continues"]
    assert not (folder / PROMOTED).exists()
    assert not json.loads((folder / PROMOTION).read_text())["promoted"]


def test_networks_go_on_from_their_weights(one_ray: None, busy: Path, tmp_path: Path) -> None:
    """A bundle with a correction and a future part: after an iteration its weights are near those before, not new ones."""
    spec = RouterSpec(encoder="aggregates", hidden=8, impact_hidden=8)
    torch.manual_seed(7)
    router = Router(spec)
    with torch.no_grad():
        for weights in router.parameters():
            weights.add_(0.3)
    observation = Observation(whatif=True, whatif_tau=0.06, calibrate=True, running_slots=4, waiting_slots=4)
    save_bundle(tmp_path / "bundle", router, observation, {"algo": "avl"})
    options = tiny(busy, tmp_path / "bundle", tmp_path / "run", iterations=1)
    assert options.spec == spec
    assert run(options) == 0
    after = load_bundle(tmp_path / "run" / CANDIDATE)
    assert after.observation == observation
    changes = [(value - dict(router.named_parameters())[name]).abs().max() for name, value in after.router.named_parameters()]
    assert 0 < max(changes) < 0.2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from-log", "LOG"], "from-log = 'LOG': needs --bundle"),
        (["--bundle", "BUNDLE"], "bundle = 'BUNDLE': needs --from-log"),
        (["--from-log", "LOG", "--bundle", "nowhere"], "nowhere"),
        (["--from-log", "nowhere", "--bundle", "BUNDLE"], "nowhere: cannot be read"),
        (["--from-log", "LOG", "--bundle", "BUNDLE", "--scenario", "edge3"], "scenario = edge3: leave it out"),
        (["--from-log", "LOG", "--bundle", "BUNDLE", "--algo", "ppo"], "algo = ppo: leave it out"),
        (["--from-log", "LOG", "--bundle", "BUNDLE", "--held-out", "0.01"], "held-out = 0.01"),
        (["--from-log", "LOG", "--bundle", "BUNDLE", "--held-out", "0.06"], "at least 1,667 are needed"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    busy: Path, dear: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """Exit code 2, and no run has begun."""
    names = {"LOG": str(busy), "BUNDLE": str(dear)}
    given = [names.get(x, x) for x in arguments]
    assert edgeroute.main(["train", "--run-dir", str(tmp_path / "run"), *given]) == 2
    error = capsys.readouterr().err
    for short, text in names.items():
        said = said.replace(f"'{short}'", repr(text))
    assert said in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()
