"""The relative price: what it grows with, that no unit matters, and that no cluster makes it more than its bounds allow."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.features import arrived_column, expert_column, expert_time, predicted_marginal, whatif_column
from models.relative_price import TERMS, RelativePrice
from models.router import Router, RouterSpec
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario, with_workload
from rllib_envs.scenarios.procedural import TRAINING, UNSEEN, draw_scenario
from rllib_envs.sim.demand import expert_time_s
from rllib_envs.sim.rows import ARRIVED_FEATURES, DEMAND_FEATURES, EXPERT_FEATURES
from rllib_envs.simulation import Simulation
from tests.models.observed import busy, seen, world

DOUBLE = torch.float64
SPEC = RouterSpec(encoder="aggregates", price="relative", hidden=0, impact_hidden=0)


@pytest.fixture(scope="module")
def observation():
    return seen(busy(world(demand=True)), DOUBLE)


def price(observation, **changes):
    terms = torch.tensor([changes.get(name, term.prior) for name, term in TERMS.items()], dtype=DOUBLE)
    return RelativePrice()(observation, terms)


def changed(observation, part, name, change):
    features = {"experts": EXPERT_FEATURES, "demand": DEMAND_FEATURES}[part]
    values = observation[part].clone()
    values[..., features.index(name)] = change(values[..., features.index(name)])
    return {**observation, part: values}


def test_before_training_a_mean_request_at_full_use_and_full_load_costs_a_mean_quality(observation):
    one = observation
    for name in ("step_time", "kv_reserved"):  # half of the memory and half of the time: used = 1
        half = (1 + expert_column(one, "base_time")) / 2 if name == "step_time" else torch.full_like(one["experts"][..., 0], 0.5)
        one = changed(one, "experts", name, lambda _, half=half: half)
    for name in ("log_load_long_run", "log_load_recent"):
        one = changed(one, "demand", name, torch.zeros_like)
    ratio = price(one) / expert_column(one, "mean_score").mean(dim=-1, keepdim=True)
    torch.testing.assert_close(ratio, expert_time(one) / one["demand"][..., :1].exp(), rtol=1e-9, atol=0.0)


def test_expert_time_is_the_simulators():
    simulation = busy(world(demand=True))
    engines, workload = simulation.world.nominal, simulation.workload
    shown = expert_time(seen(simulation, DOUBLE))
    for b in range(simulation.batch):
        r = simulation.cursor[b]
        for e in range(engines.shape[1]):
            tokens, prompt = float(workload.predicted_tokens[b, r, e]), int(workload.prompt[b, r])
            taken_s = expert_time_s(engines[b, e], prompt, tokens, simulation.scenario.slo_s_per_token)
            assert shown[b, e].item() == pytest.approx(taken_s / simulation.scenario.slo_s_per_token, rel=1e-4)


def test_a_cluster_offered_what_it_can_do_in_expert_time_has_load_1():
    simulation = busy(world(load=1.0, demand=True), decisions=300)
    shown = simulation.view.demand[:, DEMAND_FEATURES.index("log_load_long_run")]
    doubled = busy(world(load=2.0, demand=True), decisions=300).view.demand[:, DEMAND_FEATURES.index("log_load_long_run")]
    np.testing.assert_allclose(doubled - shown, math.log(2), rtol=0.2)


@pytest.mark.parametrize("term", ["level", "floor", "experts"])
def test_a_greater_parameter_makes_it_dearer(term):
    large = seen(busy(world(12, demand=True)), DOUBLE)
    assert (price(large, **{term: TERMS[term].prior + 0.3}) > price(large)).all()


@pytest.mark.parametrize("name", ["log_load_long_run", "log_load_recent"])
def test_more_load_makes_it_dearer(observation, name):
    terms = {"load": 1.0, "rise": 0.5}
    assert (price(changed(observation, "demand", name, lambda x: x + 0.2), **terms) > price(observation, **terms)).all()


def test_a_long_overload_makes_it_dearer_than_a_flood_where_that_counts(observation):
    longer = changed(observation, "demand", "overload", lambda x: x + 0.5)
    torch.testing.assert_close(price(longer, overload=1.0), price(observation, overload=1.0) * math.exp(0.5))
    torch.testing.assert_close(price(longer), price(observation))


def test_room_elsewhere_makes_it_cheaper_where_that_counts(observation):
    first = torch.arange(observation["experts"].shape[1]) == 0
    fuller = changed(observation, "experts", "kv_reserved", lambda x: torch.where(first, x, x + 0.2))
    torch.testing.assert_close(price(fuller)[:, 0], price(observation)[:, 0])
    assert (price(fuller, use=0.5)[:, 0] > price(observation, use=0.5)[:, 0]).all()


def test_only_lateness_that_was_not_foreseen_makes_it_dearer(observation):
    late = changed(observation, "demand", "late", lambda x: torch.full_like(x, 0.3))
    foreseen = changed(late, "demand", "foreseen", lambda x: torch.full_like(x, 0.3))
    torch.testing.assert_close(price(foreseen, late=1.0), price(observation, late=0.0))
    assert (price(late, late=1.0) > 2 * price(foreseen, late=1.0)).all()
    torch.testing.assert_close(price(late, late=0.0), price(foreseen, late=0.0))


def test_what_a_request_takes_from_others_does_not_depend_on_its_own_quality_before_training(observation):
    better = {**observation, "arrived": observation["arrived"].clone()}
    better["arrived"][..., ARRIVED_FEATURES.index("predicted_score")] += 0.1
    torch.testing.assert_close(price(better), price(observation))
    assert (price(better, own=1.0) > price(observation, own=1.0)).all()


def test_softened_deadlines_count_as_far_as_their_weight(observation):
    def marginal(**terms):
        values = torch.tensor([terms.get(name, term.prior) for name, term in TERMS.items()], dtype=DOUBLE)
        return predicted_marginal(observation) + RelativePrice().adjustment(observation, values)

    own = arrived_column(observation, "predicted_score") * whatif_column(observation, "own_success_softened")
    softened = own + whatif_column(observation, "soft_change_softened")
    torch.testing.assert_close(marginal(soft=1.0), softened)
    torch.testing.assert_close(marginal(soft=0.25), 0.75 * predicted_marginal(observation) + 0.25 * softened)
    torch.testing.assert_close(marginal(soft=0.5, soft_error=100.0), predicted_marginal(observation))  # no answer has finished
    wrong = changed(observation, "demand", "length_error", lambda x: torch.full_like(x, 0.5))
    values = torch.tensor([{"soft_error": 2.0}.get(name, term.prior) for name, term in TERMS.items()], dtype=DOUBLE)
    found = predicted_marginal(wrong) + RelativePrice().adjustment(wrong, values)
    torch.testing.assert_close(found, 0.8 * predicted_marginal(wrong) + 0.2 * softened)


def test_length_errors_and_foreseen_lateness_are_shown_as_they_come():
    scenario = world(load=4.0, demand=True)
    seen_once = busy(replace(scenario, observation=replace(scenario.observation, calibrate=True)), decisions=300)
    shown = {name: seen_once.view.demand[:, i] for i, name in enumerate(DEMAND_FEATURES)}
    errors = seen_once.world.calibration.errors
    square = (errors["samples"] * errors["square"]).sum(axis=1) / errors["samples"].sum(axis=1)
    np.testing.assert_allclose(shown["length_error"], np.sqrt(square), rtol=1e-6)
    assert ((shown["foreseen"] > 0) & (shown["foreseen"] < 1)).all()
    uncalibrated = busy(scenario, decisions=300).view.demand
    assert not uncalibrated[:, DEMAND_FEATURES.index("length_error")].any()


def test_trust_changes_nothing_at_1_and_leaves_the_means_at_0(observation):
    terms = torch.tensor([TERMS[name].prior for name in TERMS], dtype=DOUBLE)
    assert not RelativePrice()(observation, terms).isnan().any()
    torch.testing.assert_close(RelativePrice().adjustment(observation, terms), torch.zeros_like(observation["whatif"][..., 0]))
    terms[list(TERMS).index("trust")] = 0.0
    own = (arrived_column(observation, "predicted_score")) * whatif_column(observation, "own_success")
    means = expert_column(observation, "mean_score") * whatif_column(observation, "own_success")
    torch.testing.assert_close(own + RelativePrice().adjustment(observation, terms), means)


def test_the_part_of_a_score_that_all_experts_share_is_trusted_on_its_own(observation):
    def trusted(one, **terms):
        values = torch.tensor([terms.get(name, term.prior) for name, term in TERMS.items()], dtype=DOUBLE)
        own = arrived_column(one, "predicted_score") * whatif_column(one, "own_success")
        return (own + RelativePrice().adjustment(one, values)) / whatif_column(one, "own_success")

    better = {**observation, "arrived": observation["arrived"].clone()}
    better["arrived"][..., ARRIVED_FEATURES.index("predicted_score")] += 0.1  # at each expert alike
    one_better = {**observation, "arrived": observation["arrived"].clone()}
    one_better["arrived"][:, 0, ARRIVED_FEATURES.index("predicted_score")] += 0.1
    count = observation["experts"].shape[1]
    torch.testing.assert_close(
        trusted(better, common=0.5) - trusted(observation, common=0.5), torch.full_like(better["arrived"][..., 0], 0.15)
    )
    one_more = trusted(one_better, common=0.5) - trusted(observation, common=0.5)
    torch.testing.assert_close(one_more[:, 0], torch.full_like(one_more[:, 0], 0.1 + 0.05 / count))
    torch.testing.assert_close(one_more[:, 1:], torch.full_like(one_more[:, 1:], 0.05 / count))
    torch.testing.assert_close(trusted(better, common=0.0), trusted(better))


def test_lateness_softens_deadlines_and_counts_less_where_lengths_err_if_the_search_says_so(observation):
    late = changed(observation, "demand", "late", lambda x: torch.full_like(x, 0.3))
    late = changed(late, "demand", "foreseen", torch.zeros_like)
    wrong = changed(late, "demand", "length_error", lambda x: torch.full_like(x, 0.9))
    torch.testing.assert_close(price(wrong, late=1.0), price(late, late=1.0))
    torch.testing.assert_close(price(wrong, late=1.0, late_error=-2.0), price(wrong, late=0.0))
    on_time = changed(late, "demand", "late", torch.zeros_like)
    values = torch.tensor([{"soft_late": 10.0}.get(name, term.prior) for name, term in TERMS.items()], dtype=DOUBLE)
    all_soft = torch.tensor([{"soft": 1.0}.get(name, term.prior) for name, term in TERMS.items()], dtype=DOUBLE)
    torch.testing.assert_close(RelativePrice().adjustment(late, values), RelativePrice().adjustment(late, all_soft))
    assert not RelativePrice().adjustment(on_time, values).any()


def test_parameters_for_each_cluster_are_as_good_as_each_alone(observation):
    count = len(observation["cluster"])
    prior = [term.prior for term in TERMS.values()]
    rows = torch.tensor([prior if i % 2 else [x + 0.3 for x in prior] for i in range(count)], dtype=DOUBLE)
    both = RelativePrice()(observation, rows)
    torch.testing.assert_close(both[1::2], RelativePrice()(observation, rows[1])[1::2])
    torch.testing.assert_close(both[::2], RelativePrice()(observation, rows[0])[::2])


def in_other_units(scenario: Scenario, factor: float) -> Scenario:
    """The same world with a second that is ``factor`` as long."""
    experts = tuple(
        replace(x, engine=replace(x.engine, overhead=factor * x.engine.overhead), name=x.name) for x in scenario.experts
    )
    assert isinstance(scenario.workload.load, float)
    assert scenario.capacity_rps is not None
    slower = replace(
        scenario,
        experts=experts,
        slo_s_per_token=factor * scenario.slo_s_per_token,
        capacity_rps=scenario.capacity_rps / factor,
    )
    return with_workload(slower, load=scenario.workload.load / factor)


def test_the_unit_of_time_does_not_matter():
    router, fast = Router(SPEC), world(demand=True)
    with torch.no_grad():
        scores = [router(seen(busy(in_other_units(fast, factor)))) for factor in (1.0, 4.0)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("law", [TRAINING, *UNSEEN.values()], ids=["training", *UNSEEN])
def test_in_any_cluster_it_is_finite_and_goes_with_the_experts(law):
    for seed in range(2):
        drawn = draw_scenario(np.random.default_rng([seed]), law=law, experts=3, requests=40)
        simulation = Simulation(replace(drawn, observation=replace(drawn.observation, whatif=True, demand=True)), 2)
        simulation.start_all([0, 1])
        rng = np.random.default_rng(seed)
        for _ in range(30):
            observation = seen(simulation, DOUBLE)
            cost = price(observation, floor=0.1, queue=0.2)
            assert torch.isfinite(cost).all()
            assert (cost >= 0).all()
            order = [2, 0, 1]
            turned = {k: x[:, order] if k in ("experts", "arrived", "whatif") else x for k, x in observation.items()}
            torch.testing.assert_close(price(turned, floor=0.1, queue=0.2), cost[:, order])
            simulation.step(rng.integers(0, 4, 2))


def test_a_router_of_this_price_alone_is_impact_greedy_less_the_price(observation):
    router = Router(SPEC).double()
    scores = router(observation)
    marginal = arrived_column(observation, "predicted_score") * whatif_column(observation, "own_success")
    value = marginal + whatif_column(observation, "soft_change") - RelativePrice().double()(observation)
    allowed = observation["action_mask"][..., :-1] > 0
    torch.testing.assert_close(scores[..., :-1][allowed], value[allowed])
    assert not scores[..., -1].any()
    assert not list(router.parameters())


def test_without_what_late_requests_need_it_is_refused():
    with pytest.raises(InputError, match=r"observation\.demand = False"):
        Router(SPEC)(seen(busy(world(), decisions=1)))
    with pytest.raises(InputError, match="price = 'dear'"):
        RouterSpec(price="dear")  # type: ignore[arg-type]


def test_overload_counts_up_and_passes():
    scenario = world(load=40.0, demand=True)
    simulation = busy(scenario, decisions=200)
    column = DEMAND_FEATURES.index("overload")
    full = simulation.view.demand[:, column].copy()
    assert (full > 0.2).all()
    calm = busy(world(load=0.5, demand=True), decisions=200)
    assert not calm.view.demand[:, column].any()
    simulation.start_all([7, 8, 9, 10])
    assert not simulation.view.demand[:, column].any()


def test_without_networks_the_shorter_way_to_the_scores_is_the_same(observation):
    router = Router(SPEC).double()
    terms = torch.tensor([term.prior + 0.1 for term in TERMS.values()], dtype=DOUBLE).expand(len(observation["cluster"]), -1)
    assert torch.equal(router(observation), router.scores(observation, router.parts(observation)))
    assert torch.equal(router(observation, terms), router.scores(observation, router.parts(observation, terms)))
