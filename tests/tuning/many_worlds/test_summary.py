"""What the differences of many worlds say: kinds, errors and bounds."""

from dataclasses import replace

import numpy as np
import pytest

from rllib_envs.scenarios.procedural import UNSEEN
from tuning.many_worlds.measure import PLAIN, TUNED, UNTUNED, WorldResult
from tuning.many_worlds.summary import beats_plain, bounds, difference, groups, noise, summarise
from tuning.many_worlds.worlds import worlds

COUNT = 252


def results(over_untuned=0.01, over_tuned=0.002, over_plain=0.1, count=COUNT):
    """A router that is better than each opponent by this much in every world."""
    found = []
    for i, world in enumerate(worlds(count=count)):
        router = [0.5 + 0.001 * (i % 7), 0.6]
        qos = {UNTUNED: over_untuned, TUNED: over_tuned} | dict.fromkeys(PLAIN, over_plain)
        baselines = {name: [x - less for x in router] for name, less in qos.items()}
        found.append(WorldResult(world=world, experts=3, parameters={}, baselines=baselines, router=router))
    return found


def held(found):
    return {bound.text: bound.held for bound in bounds(found)}


def worse(result, baseline, by):
    """The result with the router behind a baseline by this much."""
    return replace(result, baselines=result.baselines | {baseline: [x + by for x in result.router]})


def test_a_better_router_holds_every_bound_and_a_worse_one_none():
    good = held(results())
    assert len(good) == 9
    assert all(good.values())
    assert not any(held(results(-0.02, -0.02, -0.02)).values())


def test_a_router_level_with_its_baselines_holds_all_but_the_first_and_the_last():
    lost = [text for text, is_held in held(results(0.0, 0.0, 0.0)).items() if not is_held]
    assert lost == ["untuned: the mean difference is above 0", "better than each plain heuristic in every fleet"]


def test_one_bad_world_breaks_the_bound_of_each_world_alone():
    found = results()
    drawn = next(i for i, result in enumerate(found) if result.world.fleet.kind != "fixed")
    found[drawn] = worse(found[drawn], UNTUNED, 0.02)
    assert [text for text, is_held in held(found).items() if not is_held] == ["untuned: -0.01 or more in each"]
    row = summarise("all", found, UNTUNED)
    assert (row.worst, row.worst_world) == (pytest.approx(-0.02), found[drawn].world.name)


def test_six_per_cent_of_small_losses_break_the_shares_alone():
    found = results()
    drawn = [i for i, result in enumerate(found) if result.world.fleet.kind != "fixed"]
    for i in drawn[:: len(drawn) // 15]:
        found[i] = worse(worse(found[i], UNTUNED, 0.006), TUNED, 0.006)
    assert [text for text, is_held in held(found).items() if not is_held] == [
        "untuned: -0.003 or more in 95 % of the worlds",
        "tuned: the 5th percentile is -0.005 or more",
    ]


def test_a_fixed_fleet_has_a_bound_of_its_own():
    found = [worse(r, UNTUNED, 0.004) if r.world.fleet.name == "paper3" else r for r in results()]
    assert [text for text, is_held in held(found).items() if not is_held] == ["untuned: -0.003 or more, fixed: paper3"]


def test_one_plain_heuristic_that_is_better_in_one_fleet_is_enough():
    found = [worse(r, PLAIN[3], 0.001) if r.world.fleet.name == "tight-2" else r for r in results()]
    assert [fleet for fleet, better in beats_plain(found).items() if not better] == ["tight-2"]
    assert not held(found)["better than each plain heuristic in every fleet"]


def test_every_world_is_in_the_kinds_that_it_belongs_to():
    found = groups(results())
    fixed = sum(len(own) for kind, own in found.items() if kind.startswith("fixed"))
    assert fixed == COUNT * 3 // 63
    for prefix, total in (("all", COUNT - fixed), ("load", COUNT - fixed), ("arrivals", COUNT - fixed), ("told", COUNT - fixed)):
        assert sum(len(own) for kind, own in found.items() if kind.startswith(prefix)) == total
    laws = {kind: own for kind, own in found.items() if kind.startswith("law")}
    assert list(laws) == [f"law: {name}" for name in UNSEEN]
    assert sum(map(len, laws.values())) == len(found["other laws"]) == len(found["training law"])


def test_worlds_of_a_fleet_count_as_one_for_the_error():
    rng = np.random.default_rng(0)
    once = [worse(result, UNTUNED, rng.normal()) for result in results(count=63)]
    values = [difference(result, UNTUNED) for result in once]
    plain = summarise("", once, UNTUNED).error
    assert plain == pytest.approx(np.std(values, ddof=1) / np.sqrt(63))
    assert summarise("", once * 4, UNTUNED).error == pytest.approx(plain)
    assert np.isnan(summarise("", once[:1] * 3, UNTUNED).error)


def test_the_noise_of_a_world_is_that_of_its_episodes():
    result = replace(results(count=1)[0], router=[0.5, 0.7], baselines={UNTUNED: [0.4, 0.4]})
    assert difference(result, UNTUNED) == pytest.approx(0.2)
    assert noise(result, UNTUNED) == summarise("", [result] * 3, UNTUNED).noise == pytest.approx(0.1)
    assert np.isnan(noise(replace(result, router=[0.5], baselines={UNTUNED: [0.4]}), UNTUNED))
