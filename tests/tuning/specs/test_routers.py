"""Router names, as typed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.export.bundle import save_bundle
from models.router import Router, RouterSpec
from rllib_envs.baselines import HEURISTICS
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation
from tuning.evaluation.matrix import start_simulation
from tuning.run_dir.digests import content_digest
from tuning.specs.routers import BEST, REFERENCES, build_router, parse_router, parse_routers, with_tuned


@pytest.mark.parametrize("name", HEURISTICS)
def test_every_heuristic_decides_by_its_name(name):
    scenario = with_workload(load_scenario("edge6"), requests=15)
    simulation = start_simulation(parse_router(name), scenario, [1, 2])
    assert simulation.over.all()
    assert all((simulation.records(cluster).status > 1).all() for cluster in range(2))


@pytest.mark.parametrize(
    "text",
    [
        "quality-greedy",
        "quality-greedy:cap=8",
        "quality-greedy:cap=inf",
        "impact-greedy:price=0.1234567890123",
        "impact-greedy:price=0.02,tau=0.1",
    ],
)
def test_a_router_reads_back_from_its_text(text):
    assert parse_router(text).text == text
    assert parse_router(parse_router(text).text) == parse_router(text)


def test_the_order_of_parameters_does_not_matter():
    assert parse_router("impact-greedy:tau=0.1,price=0.02").text == parse_router("impact-greedy:price=0.02,tau=0.1").text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("join-shortest-que", "did you mean 'join-shortest-queue'"),
        ("impact_greedy", "did you mean 'impact-greedy'"),
        ("zzz", "allowed are random, "),
        ("", "unknown"),
        ("quality-greedy:caps=8", "no parameter 'caps'; did you mean 'cap'"),
        ("quality-greedy:cap", "cap = '': must be a number"),
        ("quality-greedy:cap=eight", "cap = 'eight': must be a number"),
        ("quality-greedy:cap=nan", "must be a number"),
        ("quality-greedy:cap=0", "cap = 0: must be from 1 to inf"),
        ("quality-greedy:", "no parameter ''"),
        ("quality-greedy:cap=8,cap=9", "cap is given twice"),
        ("impact-greedy:tau=0", "tau = 0: must be from 0.001"),
        ("impact-greedy:shrink=-1", "shrink = -1: must be from 0 to 10"),
        ("random:cap=8", "random takes no parameters"),
        ("checkpoint:no/such/folder", "no such file or folder: no/such/folder"),
    ],
)
def test_bad_routers_are_explained(text, message):
    with pytest.raises(InputError) as error:
        parse_router(text)
    assert message in str(error.value)
    assert repr(text) in str(error.value)


def test_groups_expand_and_doubles_are_left_out():
    assert [router.text for router in parse_routers(["all"])] == list(HEURISTICS)
    assert [router.text for router in parse_routers(["best", "least-work"])] == list(BEST)
    assert {*BEST, *REFERENCES} <= set(HEURISTICS)
    with pytest.raises(InputError, match="none given"):
        parse_routers([])


def test_a_router_brings_the_observation_it_needs():
    plain = Observation(whatif=True, counterfactual=True, whatif_tau=0.3)
    assert build_router(parse_router("least-work"), plain)[1] == Observation(whatif_tau=0.3)
    assert build_router(parse_router("impact-greedy"), Observation())[1] == Observation(whatif=True)
    assert build_router(parse_router("impact-greedy:tau=0.2"), Observation())[1] == Observation(whatif=True, whatif_tau=0.2)
    corrected = Observation(whatif=True, calibrate=True)
    assert build_router(parse_router("calibrated-impact-greedy"), Observation())[1] == corrected
    assert build_router(parse_router("impact-greedy"), corrected)[1] == Observation(whatif=True)
    assert build_router(parse_router("impact-greedy-true"), Observation())[1] == Observation(counterfactual=True)


def test_parameters_reach_the_router():
    scenario = with_workload(load_scenario("edge6"), requests=60, load="heavy")
    present = []
    for cap in (1, 1000):
        simulation = start_simulation(parse_router(f"quality-greedy:cap={cap}"), scenario, [3])
        present.append(np.bincount(simulation.records(0).route, minlength=6).max())
    assert present[0] < present[1]


def test_tuned_parameters_go_to_the_bare_name_alone():
    tuned = {"quality-greedy": {"cap": 9.0}}
    assert with_tuned(parse_router("quality-greedy"), tuned).text == "quality-greedy:cap=9"
    assert with_tuned(parse_router("quality-greedy"), tuned).name == "quality-greedy"
    assert with_tuned(parse_router("quality-greedy:cap=3"), tuned).text == "quality-greedy:cap=3"
    assert with_tuned(parse_router("least-work"), tuned).text == "least-work"


def test_calibrated_impact_greedy_has_the_parameters_of_impact_greedy_unless_it_has_its_own():
    router = parse_router("calibrated-impact-greedy")
    tuned = {"impact-greedy": {"price": 3.0}}
    assert with_tuned(router, tuned).text == "calibrated-impact-greedy:price=3"
    assert with_tuned(router, tuned | {"calibrated-impact-greedy": {"price": 4.0}}).text == "calibrated-impact-greedy:price=4"
    assert with_tuned(router, {}).text == "calibrated-impact-greedy"


def test_only_fair_heuristics_are_baselines(tmp_path):
    assert not parse_router("impact-greedy-true").is_baseline
    assert not parse_router(f"checkpoint:{tmp_path}").is_baseline
    assert parse_router("impact-greedy").is_baseline


def test_plain_heuristics_predict_no_impact(tmp_path):
    plain = {name for name in HEURISTICS if parse_router(name).is_plain}
    published = {"route-balance", "slo-headroom", "polyserve", "lodestar"}
    ours = {"impact-greedy", "myopic-impact-greedy", "calibrated-impact-greedy"}
    assert set(HEURISTICS) - plain == {*ours, *published, *REFERENCES}
    assert not parse_router(f"checkpoint:{tmp_path}").is_plain


def test_a_bundle_brings_its_router_and_observation(tmp_path):
    torch.manual_seed(0)
    router = Router(RouterSpec(encoder="aggregates", hidden=4, impact_hidden=4))
    save_bundle(tmp_path / "b", router, Observation(running_slots=3, whatif=True), {"scenario": "edge6"})
    scenario = with_workload(load_scenario("edge6"), requests=10)
    simulation = start_simulation(parse_router(f"bundle:{tmp_path / 'b'}"), scenario, [1])
    assert simulation.view.running.shape[2] == 3
    assert simulation.scenario.observation.whatif
    assert simulation.over.all()


def test_a_sampled_bundle_draws_its_actions_by_their_probabilities(tmp_path):
    torch.manual_seed(0)
    router = Router(RouterSpec(encoder="aggregates", hidden=4, impact_hidden=4))
    observation = Observation(whatif=True)
    save_bundle(tmp_path / "b", router, observation, {"temperature": 0.3})
    scenario = replace(with_workload(load_scenario("edge6"), requests=10), observation=observation)
    simulation = Simulation(scenario, 2)
    simulation.start_all([1, 2])
    probabilities = (router({key: torch.from_numpy(x) for key, x in simulation.view._asdict().items() if x.size}) / 0.3).softmax(
        -1
    )
    route, _ = build_router(parse_router(f"sampled:{tmp_path / 'b'}"), scenario.observation)
    rng, n = np.random.default_rng(0), 2000
    counts = np.stack([np.eye(7)[route(simulation, rng)] for _ in range(n)]).sum(axis=0)
    assert (np.abs(counts / n - probabilities.detach().numpy()) < 5 * 0.5 / np.sqrt(n)).all()
    assert np.array_equal(
        build_router(parse_router(f"bundle:{tmp_path / 'b'}"), observation)[0](simulation, rng), counts.argmax(1)
    )


def test_a_bundle_that_does_not_say_its_temperature_is_not_sampled(tmp_path):
    save_bundle(tmp_path / "b", Router(RouterSpec(encoder="aggregates", hidden=4, impact_hidden=4)), Observation(whatif=True), {})
    with pytest.raises(InputError, match=r"router\.json: about\.temperature = None: must be a positive number"):
        build_router(parse_router(f"sampled:{tmp_path / 'b'}"), Observation(whatif=True))


def test_a_digest_sees_bytes_and_names(tmp_path):
    (tmp_path / "a").write_bytes(b"xy")
    first = content_digest([tmp_path])
    assert content_digest([tmp_path]) == first
    (tmp_path / "a").write_bytes(b"xz")
    second = content_digest([tmp_path])
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, content_digest([tmp_path])}) == 3
