"""The price of congestion: what it grows with, and that it fits clusters of any size."""

import math

import pytest
import torch

from models.features import congestion, expert_column, units, whatif_column
from models.price import TERMS, Price
from rllib_envs.sim.rows import CLUSTER_FEATURES, EXPERT_FEATURES
from tests.models.observed import BARE_PRICE, busy, seen, world

DOUBLE = torch.float64
NAMES = list(TERMS)


@pytest.fixture(scope="module")
def observation():
    return seen(busy(world()), DOUBLE)


def terms(**changes):
    """The parameters before training, changed."""
    return torch.tensor([changes.get(name, term.prior) for name, term in TERMS.items()], dtype=DOUBLE)


def price(observation, **changes):
    return Price()(observation, terms(**changes))


def with_expert(observation, name, change):
    experts = observation["experts"].clone()
    experts[..., EXPERT_FEATURES.index(name)] = change(experts[..., EXPERT_FEATURES.index(name)])
    return {**observation, "experts": experts}


def with_load(observation, load, fast=None):
    cluster = observation["cluster"].clone()
    for span, value in (("long_run", load), ("recent", load if fast is None else fast)):
        cluster[..., CLUSTER_FEATURES.index(f"log_load_{span}")] = torch.tensor(value, dtype=DOUBLE).log()
    return {**observation, "cluster": cluster}


def test_with_level_and_load_alone_it_goes_by_congestion_and_a_power_of_the_load(observation):
    at_half = with_load(observation, 0.5)
    ratio = price(at_half, **BARE_PRICE) / congestion(at_half)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.9).exp(), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(price(with_load(observation, 0.25), **BARE_PRICE), price(at_half, **BARE_PRICE) / 4)
    torch.testing.assert_close(
        price(with_load(observation, 50.0), **BARE_PRICE), price(at_half, **BARE_PRICE) * 4
    )  # not beyond a full load


def test_own_parameters_are_those_before_training(observation):
    torch.testing.assert_close(Price().double()(observation), price(observation), rtol=1e-6, atol=0.0)


def test_parameters_for_each_cluster_are_as_good_as_each_alone(observation):
    other = terms(level=2.0, power=2.0, floor=0.3, queue=1.0, memory=0.5, size=0.2, rise=0.4, context_time=-1.0)
    count = len(observation["cluster"])
    rows = torch.stack([terms() if i % 2 else other for i in range(count)])
    both = Price()(observation, rows)
    torch.testing.assert_close(both[1::2], Price()(observation, terms())[1::2])
    torch.testing.assert_close(both[::2], Price()(observation, other)[::2])


@pytest.mark.parametrize(
    ("term", "change"),
    [
        ("level", {}),
        ("memory", {}),
        ("floor", {}),
        ("queue", {"waiting": lambda x: x + 0.5}),
        ("mean_score", {"mean_score": lambda x: 0.6 + 0 * x}),
        ("kv_capacity", {"kv_capacity": lambda x: 0.4 + 0 * x}),
    ],
)
def test_a_greater_parameter_makes_it_dearer(observation, term, change):
    now = observation
    for name, function in change.items():
        now = with_expert(now, name, function)
    assert (price(now, **{term: TERMS[term].prior + 0.3}) > price(now)).all()


def test_arrivals_that_come_faster_than_usual_make_it_dearer_where_that_counts(observation):
    rising, falling = with_load(observation, 0.3, fast=0.6), with_load(observation, 0.3, fast=0.1)
    assert (price(rising, rise=1.5) > price(rising, rise=0.5)).all()
    assert (price(falling, rise=1.5) < price(falling, rise=0.5)).all()


@pytest.mark.parametrize("n", [2, 6, 32])
def test_it_goes_by_a_power_of_the_number_of_experts(n):
    observation = seen(busy(world(n)), DOUBLE)
    ratio = price(observation, experts=-0.5) / price(observation, experts=0.0)
    torch.testing.assert_close(ratio, torch.full_like(ratio, n / 6) ** -0.5)


@pytest.mark.parametrize("term", ["level", "prefill_time", "memory", "size", "power"])
def test_a_flood_changes_a_parameter_by_the_logarithm_of_what_comes_too_much(observation, term):
    prior, flooded = TERMS[term].prior, f"overload_{term}"
    for load, fast, times in ((0.9, 0.99, 0.0), (0.5, math.e, 1.0), (0.9, math.e**2, 2.0), (0.9, 100.0, math.log(8))):
        changed = price(with_load(observation, load, fast), **{flooded: 0.1})
        same = price(with_load(observation, load, fast), **{term: prior + 0.1 * times, flooded: 0.0})
        torch.testing.assert_close(changed, same)


def test_deadlines_are_the_looser_the_more_the_load_swings(observation):
    marginal = {
        name: observation["arrived"][..., 1] * whatif_column(observation, f"own_success{name}")
        + whatif_column(observation, f"soft_change{name}")
        for name in ("", "_softened")
    }
    looser = marginal["_softened"] - marginal[""]
    assert looser.abs().max() > 0.01
    for load, fast, times in (
        (0.5, 0.6, 0.0),
        (0.5, 0.4, 0.0),
        (0.1, 0.1 * math.e, 0.7),
        (0.5, 0.5 / math.e, 0.7),
        (0.1, 8.0, 1 / 0.6),
    ):
        got = Price().adjustment(with_load(observation, load, fast), terms(softening=0.6))
        torch.testing.assert_close(got, 0.6 * times * looser, rtol=1e-5, atol=1e-9)
    assert not Price().adjustment(with_load(observation, 0.1, 8.0), terms(softening=0.0)).any()


def test_the_exponents_tell_full_from_empty_and_large_from_small(observation):
    reserved, size = expert_column(observation, "kv_reserved"), units(observation)[0]
    bare, steeper, larger = (price(observation, **BARE_PRICE | changed) for changed in ({}, {"power": 2.0}, {"size": 0.5}))
    torch.testing.assert_close(steeper / bare, reserved.clamp(min=1e-3))
    torch.testing.assert_close(larger / bare, (size.clamp(min=1e-5) / 0.1).sqrt())


def test_it_is_never_below_zero_and_finite_whatever_the_parameters(observation):
    draws = torch.Generator().manual_seed(0)
    for _ in range(50):
        found = Price()(observation, 5 * torch.randn(len(NAMES), generator=draws, dtype=DOUBLE))
        assert found.isfinite().all()
        assert (found >= 0).all()


def test_permuting_the_experts_permutes_it(observation):
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    moved = {key: x if key in ("cluster", "action_mask") else x[:, order] for key, x in observation.items()}
    changed = {name: TERMS[name].prior + 0.5 for name in NAMES}
    torch.testing.assert_close(price(moved, **changed), price(observation, **changed)[:, order])


def test_gradients_leave_it_alone():
    assert not list(Price().parameters())
    assert torch.equal(Price().state_dict()["terms"], terms().float())
