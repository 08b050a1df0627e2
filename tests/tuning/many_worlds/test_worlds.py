"""Which worlds there are, and in what order."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from rllib_envs.scenarios.procedural import UNSEEN
from tuning.evaluation.matrix import EVALUATION_SEEDS, TUNING_SEEDS
from tuning.many_worlds.fleets import FIRST_SEED, FIXED, fleets, make_fleet
from tuning.many_worlds.worlds import ARRIVALS, LOADS, TOLD, worlds

FLEETS, CONDITIONS = 63, 36
ALL = worlds()


def uneven(values, among):
    """Between the most and the least frequent of ``among``."""
    counts = Counter(values)
    return max(counts[x] for x in among) - min(counts[x] for x in among)


def test_half_of_the_drawn_fleets_are_of_laws_that_training_does_not_have():
    kinds = Counter(fleet.kind for fleet in fleets())
    assert kinds == {"training": 30, "fixed": len(FIXED), **dict.fromkeys(UNSEEN, 6)}
    assert len({fleet.name for fleet in fleets()}) == FLEETS


def test_every_fleet_meets_every_condition_once():
    assert len(ALL) == len({world.name for world in ALL}) == FLEETS * CONDITIONS


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 6, 12])
def test_any_number_of_rounds_is_balanced(rounds):
    some = worlds(count=rounds * FLEETS)
    assert uneven((w.fleet.name for w in some), {f.name for f in fleets()}) == 0
    for kind, most in (("any", 2), ("training", 2), *((name, 2) for name in UNSEEN)):
        own = [w for w in some if kind in ("any", w.fleet.kind)]
        assert uneven((w.load for w in own), LOADS) <= most
        assert uneven((w.arrivals for w in own), ARRIVALS) <= most
        assert uneven((w.told for w in own), TOLD) <= most


@pytest.mark.parametrize("count", [12, 30, 100, 200])
def test_a_part_of_a_round_is_nearly_balanced_and_belongs_to_every_larger_one(count):
    some = worlds(count=count)
    assert some == ALL[:count]
    assert uneven((w.load for w in some), LOADS) <= 3
    assert uneven((w.arrivals for w in some), ARRIVALS) <= 3
    assert uneven((w.told for w in some), TOLD) <= 3


def test_other_kinds_come_in_addition_and_plain_worlds_stay_as_they_are():
    both = worlds(kinds=("plain", "edge"))
    assert [world for world in both if world.kind == "plain"] == ALL
    edge = [world for world in both if world.kind == "edge"]
    assert edge == worlds(kinds=("edge",))
    assert len(edge) == (FLEETS - len(FIXED)) * CONDITIONS
    assert len({world.name for world in both}) == len(both)
    start = worlds(count=40, kinds=("classes", "sites", "private", "edge"))
    assert Counter(world.kind for world in start) == dict.fromkeys(("classes", "sites", "private", "edge"), 10)
    assert len({world.fleet for world in start}) > 30
    first = edge[0]
    plain = replace(first, kind="plain")
    assert not set(first.seeds(5)) & set(plain.seeds(5))
    fleet = make_fleet(first.fleet, experts=3)
    made = first.scenario(fleet, 100)
    assert made == first.scenario(fleet, 100)
    assert replace(made, classes=(), tenants=(), network=None, experts=fleet.experts) == plain.scenario(fleet, 100)


def test_no_seed_is_one_of_training():
    assert min(fleet.seed for fleet in fleets()) == FIRST_SEED == 5000
    for world in ALL[::97]:
        assert all(EVALUATION_SEEDS.start + 5000 <= seed < EVALUATION_SEEDS.stop for seed in world.seeds(5))
        assert all(TUNING_SEEDS.start + 5000 <= seed < TUNING_SEEDS.stop for seed in world.tuning_seeds(5))


def test_fleets_and_worlds_have_seeds_of_their_own():
    assert len({fleet.seed for fleet in fleets()}) == FLEETS
    some = worlds(count=3 * FLEETS)
    assert len({seed for world in some for seed in world.seeds(2)}) == 2 * len(some)
    assert not {seed for world in some for seed in world.seeds(2)} & {s for w in worlds(9000)[:63] for s in w.seeds(2)}


def test_a_seed_fixes_a_fleet_and_fresh_seeds_give_fresh_fleets():
    first, again, other = fleets()[0], fleets()[0], fleets(7000)[0]
    assert make_fleet(first, experts=2) == make_fleet(again, experts=2)
    assert make_fleet(first, experts=2) != make_fleet(other, experts=2)


def test_fixed_fleets_are_those_of_their_names_whatever_the_seed():
    for fleet, fresh in zip(fleets(), fleets(9000), strict=True):
        if fleet.kind == "fixed":
            assert make_fleet(fleet) == make_fleet(fresh)
    assert make_fleet(next(f for f in fleets() if f.name == "two-tight")).slo_s_per_token == 0.03


@pytest.mark.parametrize("world", ALL[:CONDITIONS], ids=lambda world: re.sub(r"\W+", "-", world.name))
def test_a_world_is_its_fleet_at_its_share_of_the_capacity(world):
    fleet = next(make() for make in FIXED.values())
    scenario = world.scenario(replace(fleet, capacity_rps=20.0), 500)
    load, arrivals = scenario.workload.load, scenario.workload.arrivals
    assert load == pytest.approx({"light": 6, "moderate": 14, "heavy": 20, "150 %": 30}[world.load])
    assert scenario.experts == fleet.experts
    assert scenario.predictions.law == world.told
    assert arrivals.kind == {"poisson": "poisson", "bursty": "gamma", "long overload": "mmpp"}[world.arrivals]
    if arrivals.kind == "mmpp":
        assert np.isclose(arrivals.cycle_s, 0.5 * 500 / load)
