"""Service classes and tenants: what they promise holds, whom they keep apart, and nothing where there are none."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from rllib_envs.baselines import HEURISTICS
from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.scenario import Arrivals, Observation, Reward, Scenario, TraceFile, Workload, with_workload
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from rllib_envs.service import ServiceClass, Tenant
from rllib_envs.service_terms import allowed_experts
from rllib_envs.sim.state import CONFINED, DROPPED, FINISHED, TOO_LONG
from rllib_envs.sim.terms import Service
from rllib_envs.simulation import Simulation
from rllib_envs.workload.episode import draw_episode
from rllib_envs.workload.users import USER_STREAMS, draw_users
from tests.draws import examples
from tests.worlds import REQUESTS, SCORE_GRID, play, random_classes, random_world, seeds, simulation_of, small
from tuning.specs.routers import ANY_CLUSTER_ROUTER, SHIPPED_ROUTER, build_router, parse_router
from tuning.specs.workloads import TraceOptions, make_workloads

EVERYTHING = Observation(whatif=True, information=True, demand=True, counterfactual=True, calibrate=True)
INTERACTIVE = ServiceClass(name="interactive", share=3, weight=2, ttft_s=0.5, tpot_s=0.05)
BATCH = ServiceClass(name="batch", share=1, e2e_s=30)
TWO = (INTERACTIVE, BATCH)


def replayed(folder: Path, rows: str, **changes: Any) -> Scenario:
    """edge3 with two classes, and a trace that says which request is of which."""
    path = folder / "trace.csv"
    path.write_text("when,kind\n" + rows)
    trace = TraceFile(path=str(path), time_column="when", class_column="kind")
    workload = Workload(arrivals=Arrivals(kind="trace", trace=trace), load="native", **changes)
    return replace(load_scenario("edge3"), capacity_rps=1.0, classes=TWO, workload=workload)


def test_a_trace_says_of_which_class_each_request_is(tmp_path: Path) -> None:
    names = [TWO[int(i)].name for i in np.random.default_rng(0).integers(2, size=40)]
    rows = "".join(f"{i},{name}\n" for i, name in enumerate(names))
    assert capacity_rps(replace(replayed(tmp_path, rows), capacity_rps=None)) > 0
    whole = draw_episode(replayed(tmp_path, rows), 1.0, 3)
    assert [TWO[i].name for i in whole.user["service"]] == names
    parts = [draw_episode(replayed(tmp_path, rows, requests=7), 1.0, seed) for seed in range(5)]
    for part in parts:
        drawn = [TWO[i].name for i in part.user["service"]]
        assert any(drawn == names[i : i + 7] for i in range(34))
    simulation = Simulation(replayed(tmp_path, rows), 1)
    simulation.start(0, 3)
    play(simulation, np.zeros(40, np.int64))
    np.testing.assert_array_equal(simulation.records(0).service, whole.user["service"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0,batch\n1,gold\n2,batch\n", r"trace\.csv: line 3, column 'kind': 'gold' is no service class; there are inter"),
        ("0,batch\n1,\n", r"trace\.csv: line 3, column 'kind': '' must be the name of a service class"),
        ("".join(f"{i},c{i}\n" for i in range(101)), r"line 102, column 'kind': 'c100' is one name more than 100"),
    ],
)
def test_a_class_of_a_trace_that_is_none_is_named_with_its_line(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_episode(replayed(tmp_path, rows), 1.0, 3)


def test_a_class_that_only_rows_outside_the_window_have_is_no_error(tmp_path: Path) -> None:
    scenario = replayed(tmp_path, "0,gold\n1,batch\n2,interactive\n3,silver\n")
    assert scenario.workload.arrivals.trace is not None
    window = replace(scenario.workload.arrivals.trace, start_s=1.0, duration_s=2.0)
    inside = with_workload(scenario, arrivals=replace(scenario.workload.arrivals, trace=window))
    assert draw_episode(inside, 1.0, 3).user["service"].tolist() == [1, 0]


def test_classes_of_a_trace_are_those_of_the_scenario(tmp_path: Path) -> None:
    data = replayed(tmp_path, "0,batch\n").to_dict()
    assert parse_scenario(data, "here.yaml").to_dict() == data
    del data["classes"]
    with pytest.raises(InputError, match="class_column = 'kind' without classes"):
        parse_scenario(data, "here.yaml")
    options = TraceOptions(trace=tmp_path / "trace.csv", trace_time_column="when", trace_class_column="kind")
    with pytest.raises(InputError, match="class_column = 'kind' without classes"):
        make_workloads(load_scenario("edge3"), (), (), options, None)


def labelled(scenario: Scenario) -> Scenario:
    """The first half of the experts stand on the premises, the rest elsewhere."""
    half = scenario.n_experts // 2
    experts = tuple(replace(e, labels=("here" if i < half else "there",)) for i, e in enumerate(scenario.experts))
    return replace(scenario, experts=experts)


@examples(100)
@given(seeds)
def test_a_class_with_the_scenarios_own_bound_changes_nothing_to_the_last_bit(seed: int) -> None:
    scenario, episode, actions = random_world(np.random.default_rng(seed), observation=EVERYTHING)
    own = ServiceClass(name="all", per_token_s=scenario.slo_s_per_token)
    plain, classed = (simulation_of(s, episode) for s in (scenario, replace(scenario, classes=(own,))))
    for action in actions:
        assert [x.tobytes() for x in plain.view] == [x.tobytes() for x in classed.view]
        np.testing.assert_array_equal(plain.marginal, classed.marginal)
        np.testing.assert_array_equal(plain.step(np.array([action])), classed.step(np.array([action])))
    a, b = plain.records(0), classed.records(0)
    for field in fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


@examples(100)
@given(seeds)
def test_without_optional_parts_their_code_changes_nothing_to_the_last_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=EVERYTHING, reward=Reward(marginal_qos=1, paper_impact=0.5))
    if rng.random() < 0.5:  # engines by priority too serve in the order of arrival where all have the same
        experts = tuple(replace(e, engine=replace(e.engine, scheduling="priority")) for e in scenario.experts)
        scenario = replace(scenario, experts=experts)
    episode = replace(episode, telemetry_delay_s=float(rng.choice([0.0, 0.3])))
    left_out = simulation_of(scenario, episode)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "plain", False)
        compiled_in = simulation_of(scenario, episode)
    assert left_out.state.extras is None
    assert compiled_in.state.extras is not None
    for action in actions:
        assert [x.tobytes() for x in left_out.view] == [x.tobytes() for x in compiled_in.view]
        np.testing.assert_array_equal(left_out.marginal, compiled_in.marginal)
        np.testing.assert_array_equal(left_out.step(np.array([action])), compiled_in.step(np.array([action])))
        assert left_out.steps.tobytes() == compiled_in.steps.tobytes()
    assert left_out.state.experts.tobytes() == compiled_in.state.experts.tobytes()
    a, b = left_out.records(0), compiled_in.records(0)
    for field in fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


@examples(100)
@given(seeds)
def test_an_answer_is_late_if_one_of_its_bounds_does_not_hold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, several=True)
    episode.user["jitter"] = np.exp(0.4 * rng.standard_normal(REQUESTS))
    simulation = simulation_of(scenario, episode)
    rewards = play(simulation, actions)
    records = simulation.records(0)
    measured = {
        "per_token_s": records.latency_per_token_s,
        "ttft_s": records.ttft_s,
        "tpot_s": np.nan_to_num(records.tpot_s),
        "e2e_s": records.finish_s - records.arrival_s + records.network_s,
    }
    for r in np.flatnonzero(records.status == FINISHED):
        entry = scenario.classes[records.service[r]]
        bounds = {name: getattr(entry, name) for name in measured if getattr(entry, name) is not None}
        bounds = bounds or {"per_token_s": scenario.slo_s_per_token}
        ratio = max(measured[name][r] / bound for name, bound in bounds.items())
        if abs(ratio - 1) > 1e-9:  # the network's time is taken off the bound, or added to the rest: they round apart
            assert records.late[r] == (ratio > 1)
        worth = 0 if records.late[r] else entry.weight * records.score[r]
        assert records.qos[r] == pytest.approx(worth, abs=1 / SCORE_GRID)
    assert rewards.sum() == records.qos.sum()  # what counts lies on a grid: the sums are exact


@examples(50)
@given(seeds)
def test_the_classes_of_an_episode_change_neither_its_requests_nor_its_times(seed: int) -> None:
    scenario = small("edge6")
    classed = replace(scenario, classes=random_classes(np.random.default_rng(seed)))
    records = []
    for world in (scenario, classed):
        simulation = Simulation(world, 1)
        simulation.start(0, seed)
        play(simulation, np.arange(REQUESTS) % 6)
        records.append(simulation.records(0))
    for name in ("arrival_s", "finish_s", "score", "prompt_tokens", "output_tokens", "status", "route"):
        np.testing.assert_array_equal(getattr(records[0], name), getattr(records[1], name))


def test_shares_are_those_of_the_requests() -> None:
    scenario = replace(small("edge6", requests=4000), classes=TWO, tenants=(Tenant(name="a"), Tenant(name="b", share=0)))
    simulation = Simulation(scenario, 1, show=False)
    simulation.start(0, 3)
    assert np.bincount(simulation.workload.user["service"][0])[0] / 4000 == pytest.approx(0.75, abs=0.035)  # five standard errors
    assert not simulation.workload.user["tenant"].any()


@examples(50)
@given(seeds)
def test_features_are_in_units_of_the_arrived_requests_own_bound(seed: int) -> None:
    """Where one class has twice the time, an expert looks half as slow to it."""
    scenario, episode, actions = random_world(np.random.default_rng(seed), observation=Observation(calibrate=True))
    slo_s = scenario.slo_s_per_token
    classes = (ServiceClass(name="a", per_token_s=slo_s), ServiceClass(name="b", per_token_s=2 * slo_s))
    user = episode.user.copy()
    user["service"] = np.arange(REQUESTS) % 2
    plain = simulation_of(scenario, episode)
    classed = simulation_of(replace(scenario, classes=classes), replace(episode, user=user))
    for r, action in enumerate(actions):
        ours, theirs = (simulation.rows.experts["base_time"][0] for simulation in (classed, plain))
        np.testing.assert_allclose(ours * (1 + r % 2), theirs, rtol=1e-6)
        plain.step(np.array([action]))
        classed.step(np.array([action]))


@examples(100)
@given(seeds)
def test_nobody_ever_goes_where_it_may_not(seed: int) -> None:
    """Whatever is decided: a random action, masked or not, or that of a heuristic."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=EVERYTHING)
    scenario = labelled(scenario)
    places = ["here", "there", *(e.name for e in scenario.experts)]
    confined = [tuple(rng.choice(places, int(rng.integers(0, 3)), replace=False).tolist()) for _ in range(5)]
    scenario = replace(
        scenario,
        classes=tuple(ServiceClass(name=f"c{i}", confined_to=confined[i]) for i in range(2)),
        tenants=tuple(Tenant(name=f"t{i}", confined_to=confined[2 + i]) for i in range(3)),
    )
    scenario = replace(scenario, reward=Reward(realised_qos=0, marginal_qos=1))
    episode = replace(episode, user=draw_users(scenario, episode.arrival_s, dict.fromkeys(USER_STREAMS, rng)))
    name = rng.choice([name for name, h in HEURISTICS.items() if not h.sees_truth] + ["actions"])
    decide = None if name == "actions" else HEURISTICS[name].policy()
    simulation = simulation_of(scenario, episode)
    rewards = 0.0
    for action in actions:
        chosen = np.array([action]) if decide is None else decide(simulation, rng)
        rewards += simulation.step(chosen)[0]
    records, allowed = simulation.records(0), allowed_experts(scenario)
    went = records.route < scenario.n_experts
    assert allowed[records.service[went], records.tenant[went], records.route[went]].all()
    assert (records.route[records.status == CONFINED] == scenario.n_experts).all()
    assert not records.qos[~went].any()
    assert rewards == records.qos.sum()  # what is not sent has no marginal QoS either
    nowhere = ~allowed[records.service, records.tenant].any(axis=1)
    assert np.isin(records.status[nowhere], (CONFINED, DROPPED, TOO_LONG)).all()


def test_who_may_go_nowhere_that_is_open_is_rejected_for_that_reason() -> None:
    scenario = labelled(small("edge6"))
    only = ServiceClass(name="only", confined_to=("here",))
    scenario = replace(scenario, classes=(only,), tenants=(Tenant(name="t", confined_to=("there",)),))
    simulation = Simulation(scenario, 1)
    simulation.start(0, 0)
    assert not simulation.view.action_mask[0, :-1].any()
    while not simulation.over[0]:
        simulation.step(HEURISTICS["join-shortest-queue"](simulation, np.random.default_rng(0)))
    records = simulation.records(0)
    assert (records.status == CONFINED).all()
    assert simulation.steps["rejected"][0] == 1


def test_a_drop_by_choice_is_no_rejection() -> None:
    scenario = replace(labelled(small("edge6")), classes=(ServiceClass(name="only", confined_to=("here",)),))
    simulation = Simulation(scenario, 1)
    simulation.start(0, 0)
    play(simulation, np.full(REQUESTS, 6))
    assert (simulation.records(0).status == DROPPED).all()


def test_scenarios_with_classes_are_read_as_they_are_written() -> None:
    scenario = replace(labelled(small("edge6")), classes=TWO, tenants=(Tenant(name="t", confined_to=("here",)),))
    assert parse_scenario(scenario.to_dict(), "here.yaml") == scenario
    assert scenario.fingerprint() != small("edge6").fingerprint()


def test_priorities_are_read_as_they_are_written() -> None:
    first, *rest = small("edge6").experts
    by_priority = replace(first, engine=replace(first.engine, scheduling="priority"))
    scenario = replace(small("edge6"), classes=(replace(TWO[0], priority=-3), TWO[1]))
    switched = replace(scenario, experts=(by_priority, *rest))
    assert parse_scenario(switched.to_dict(), "here.yaml") == switched
    plain = replace(scenario, classes=TWO)
    assert len({world.fingerprint() for world in (plain, scenario, switched)}) == 3
    assert all("priority" not in entry for entry in plain.to_dict()["classes"])


def test_what_a_scenario_does_not_use_it_does_not_name() -> None:
    data = load_scenario("edge6").to_dict()
    assert not {"classes", "tenants"} & data.keys()
    assert all("labels" not in expert and "scheduling" not in expert["engine"] for expert in data["experts"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "name 'a' is used more than once"),
        ({"classes": [{"name": "a", "share": 0}]}, "share is 0 in all of them"),
        ({"tenants": [{"name": "a", "confined_to": ["mars"]}]}, "no expert has this name or label"),
        ({"classes": [{"name": "a", "weight": 0}]}, "classes.0.weight"),
        ({"classes": [{"name": "a", "ttft_s": -1}]}, "classes.0.ttft_s"),
        ({"classes": [{"name": "a", "deadline": 1}]}, "classes.0.deadline"),
        ({"classes": [{"name": "a", "priority": 0.5}]}, "classes.0.priority"),
        ({"classes": [{"name": "a", "priority": 10**7}]}, "classes.0.priority"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_scenario(small("edge6").to_dict() | changes, "here.yaml")


@pytest.mark.parametrize("bundle", [SHIPPED_ROUTER, ANY_CLUSTER_ROUTER], ids=lambda path: path.name)
def test_trained_routers_keep_to_what_is_allowed(bundle: Path) -> None:
    """The decision itself, before the simulator could refuse it."""
    scenario = labelled(small("edge6"))
    scenario = replace(scenario, classes=TWO, tenants=(Tenant(name="a"), Tenant(name="b", confined_to=("there",))))
    decide, observation = build_router(parse_router(f"bundle:{bundle}"), scenario.observation)
    simulation = Simulation(replace(scenario, observation=observation), 4)
    simulation.start_all([1, 2, 3, 4])
    rng, confined = np.random.default_rng(0), 0
    while not simulation.over.all():
        actions = decide(simulation, rng)
        here = actions < scenario.n_experts // 2
        tenant = simulation.workload.user["tenant"][np.arange(4), np.minimum(simulation.cursor, REQUESTS - 1)]
        assert not (here & (tenant == 1) & ~simulation.over).any()
        confined += int(tenant.sum())
        simulation.step(actions)
    assert confined
    assert all((simulation.records(b).status != CONFINED).all() for b in range(4))
