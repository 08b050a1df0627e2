"""What episodes draw anew: within its ranges, as often as asked, from a stream of its own."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import given

from rllib_envs.scenario import Arrivals, Faults, Observation, Predictions, Scenario, Variation, with_workload
from rllib_envs.simulation import Simulation
from rllib_envs.workload.episode import Episode, draw_episode
from rllib_envs.workload.variation import FAULT_KINDS, vary
from tests.draws import examples
from tests.worlds import play, seeds, small

PLAIN = small("edge6", 60, predictions=Predictions(score_sd=0.0, length_log_sd=0.0))
VARIED = replace(PLAIN, variation=Variation())
CAPACITY_RPS = 12.0
FIGURES = [name for kind in FAULT_KINDS for name in kind]


def differing(one: Episode, other: Episode) -> set[str]:
    """Fields in which two episodes differ."""
    return {field.name for field in fields(Episode) if not np.array_equal(getattr(one, field.name), getattr(other, field.name))}


def drawn(scenario: Scenario, seed: int) -> Scenario:
    return vary(scenario, np.random.default_rng(seed))


def figures(scenario: Scenario) -> dict[str, float]:
    """The values of all figures that may vary, burst_ratio apart."""
    values = asdict(scenario.faults) | asdict(scenario.predictions)
    return {name: values[name] for name in FIGURES}


def kinds(scenario: Scenario) -> set[tuple[str, ...]]:
    """The kinds of faults in which a scenario differs from the plain one."""
    plain, found = figures(PLAIN), figures(scenario)
    return {kind for kind in FAULT_KINDS if any(found[name] != plain[name] for name in kind)}


def never(**changes: object) -> Variation:
    """A variation whose every range is the plain scenario's value, but for the changes."""
    still = {name: (value, value) for name, value in figures(PLAIN).items()}
    return Variation(**({"fault_share": 1, "each": 1, "burst_share": 0} | still | changes))  # type: ignore[arg-type]


def test_every_range_is_of_a_figure_that_is_drawn() -> None:
    ranges = {field.name for field in fields(Variation)} - {"fault_share", "each", "burst_share"}
    assert sorted(ranges) == sorted([*FIGURES, "burst_ratio"])


def test_without_variation_a_scenario_is_itself() -> None:
    assert vary(PLAIN, np.random.default_rng(0)) is PLAIN


@examples(300)
@given(seeds)
def test_what_is_drawn_lies_in_its_range_and_nothing_else_changes(seed: int) -> None:
    scenario = drawn(VARIED, seed)
    variation, plain = Variation(), figures(PLAIN)
    for name, value in figures(scenario).items():
        low, high = getattr(variation, name)
        assert value == plain[name] or low <= value <= high
    arrivals = scenario.workload.arrivals
    if arrivals != PLAIN.workload.arrivals:
        assert arrivals == replace(PLAIN.workload.arrivals, kind="mmpp", burst_ratio=arrivals.burst_ratio)
        assert 2 <= arrivals.burst_ratio <= 6
    same = replace(
        scenario,
        faults=replace(scenario.faults, **{f.name: getattr(PLAIN.faults, f.name) for f in fields(Faults)}),
        predictions=replace(scenario.predictions, **{n: plain[n] for n in FIGURES if hasattr(PLAIN.predictions, n)}),
        workload=PLAIN.workload,
    )
    assert same == PLAIN


@pytest.mark.slow
def test_faults_and_bursts_come_as_often_as_asked() -> None:
    varied = replace(PLAIN, variation=Variation(fault_share=0.6, each=0.2, burst_share=0.3))
    worlds = [drawn(varied, seed) for seed in range(2000)]
    counts = np.array([len(kinds(world)) for world in worlds])
    bursts = np.array([world.workload.arrivals.kind == "mmpp" for world in worlds])

    def close(found: float, expected: float, n: int = 2000) -> bool:
        return bool(abs(found - expected) < 4.5 * np.sqrt(expected * (1 - expected) / n))  # a false alarm in 7 of a million

    none, one = 0.8**9, 9 * 0.2 * 0.8**8
    assert close((counts > 0).mean(), 0.6)
    assert close((counts == 1).mean(), 0.6 * (one + none))  # a faulty episode has one at least
    assert close(bursts.mean(), 0.3)
    assert close(bursts[counts == 0].mean(), 0.3, int((counts == 0).sum()))
    for kind in FAULT_KINDS:
        share = np.mean([kind in kinds(world) for world in worlds])
        assert close(share, 0.6 * (0.2 + none / 9))


def test_factors_are_even_in_their_logarithm_and_the_rest_as_they_are() -> None:
    varied = replace(PLAIN, variation=Variation(fault_share=1, each=1, burst_share=1))
    worlds = [drawn(varied, seed) for seed in range(400)]
    for name in (*FIGURES, "burst_ratio"):
        low, high = getattr(varied.variation, name)
        values = [w.workload.arrivals.burst_ratio if name == "burst_ratio" else figures(w)[name] for w in worlds]
        factor = name.endswith(("_factor", "_ratio"))
        place = np.log(np.array(values) / low) / np.log(high / low) if factor else (np.array(values) - low) / (high - low)
        # Uniform on [0, 1]: the Kolmogorov distance of 400 draws exceeds 0.12 in fewer than 3 of 100,000 samples.
        assert np.abs(np.sort(place) - (np.arange(400) + 0.5) / 400).max() < 0.12, name


def test_other_ranges_leave_the_kinds_and_the_quantiles() -> None:
    narrow = replace(PLAIN, variation=replace(Variation(), engine_factor=(1.2, 1.3), score_sd=(0.2, 0.4)))
    for seed in range(50):
        one, other = drawn(VARIED, seed), drawn(narrow, seed)
        assert kinds(one) == kinds(other)
        found, changed = figures(one), figures(other)
        assert {name for name in FIGURES if found[name] != changed[name]} <= {"engine_factor", "score_sd"}


def test_the_same_seed_gives_the_same_episode_and_another_one_another() -> None:
    varied = replace(PLAIN, variation=Variation(fault_share=1, each=1))
    assert differing(draw_episode(varied, CAPACITY_RPS, 9), draw_episode(varied, CAPACITY_RPS, 9)) == set()
    assert len(differing(draw_episode(varied, CAPACITY_RPS, 9), draw_episode(varied, CAPACITY_RPS, 10))) > 6


@pytest.mark.parametrize("variation", [Variation(fault_share=0, burst_share=0), never()], ids=["no faults", "no range"])
def test_where_nothing_is_drawn_episodes_are_the_plain_ones(variation: Variation) -> None:
    for seed in range(5):
        varied = draw_episode(replace(PLAIN, variation=variation), CAPACITY_RPS, seed)
        assert differing(draw_episode(PLAIN, CAPACITY_RPS, seed), varied) == set()


@pytest.mark.parametrize(
    ("changes", "fields_changed"),
    [
        ({"engine_factor": (1.1, 1.2)}, {"engines"}),
        ({"engine_expert_log_sd": (0.1, 0.2)}, {"engines"}),
        ({"engine_coefficient_factor": (1.1, 1.2)}, {"engines"}),
        ({"kv_factor": (0.5, 0.6)}, {"engines", "nominal"}),
        ({"telemetry_delay_s": (0.1, 0.2)}, {"telemetry_delay_s"}),
        ({"length_factor": (0.6, 0.7)}, {"predicted_tokens"}),
        ({"length_log_sd": (0.5, 0.6)}, {"predicted_tokens"}),
        ({"hidden_share": (0.5, 0.6)}, {"predicted_tokens"}),
        ({"score_sd": (0.5, 0.6)}, {"predicted_score"}),
        ({"burst_share": 1}, {"arrival_s"}),
    ],
)
def test_each_fault_changes_its_part_of_the_episode(changes: dict[str, object], fields_changed: set[str]) -> None:
    varied = draw_episode(replace(PLAIN, variation=never(**changes)), CAPACITY_RPS, 3)
    assert differing(draw_episode(PLAIN, CAPACITY_RPS, 3), varied) == fields_changed


def test_clusters_in_different_worlds_do_as_each_would_alone() -> None:
    """Late and not, short of memory and not, side by side: as in a simulation of the world that was drawn."""
    observation = Observation(whatif=True, counterfactual=True, calibrate=True)
    varied = replace(VARIED, observation=observation, variation=Variation(fault_share=0.7, each=0.4))
    picked = [1, 2, 3, 4, 5, 6]
    together = Simulation(varied, len(picked))
    actions = np.random.default_rng(0).integers(7, size=60)
    for _ in range(2):  # the second time in clusters that have been used
        together.start_all(picked[::-1])
        play(together, actions[:25])
    together.start_all(picked)
    play(together, actions[:45])
    delays = together.world.delay_s
    assert 0 < (delays > 0).sum() < len(picked)
    assert len(set(together.world.calibration.configured["blocks"][:, 0])) > 1
    for cluster, seed in enumerate(picked):
        stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(5,)))
        world = vary(varied, stream)
        assert world.faults.telemetry_delay_s == delays[cluster]
        alone = Simulation(world, 1)
        alone.start(0, seed)
        play(alone, actions[:45])
        for name, shown in together.view._asdict().items():
            np.testing.assert_array_equal(shown[cluster], getattr(alone.view, name)[0], err_msg=name)
        np.testing.assert_array_equal(together.marginal[cluster], alone.marginal[0])


def test_predictions_and_arrivals_that_are_not_drawn_stay_the_scenarios_own() -> None:
    own = replace(PLAIN, predictions=Predictions(score_bias=0.1, length_buckets=(8, 64)), variation=Variation(each=1))
    own = with_workload(own, arrivals=Arrivals(kind="gamma", cv=1.5, cycle_s=7))
    for seed in range(20):
        world = drawn(own, seed)
        assert (world.predictions.score_bias, world.predictions.length_buckets) == (0.1, (8, 64))
        assert (world.workload.arrivals.cv, world.workload.arrivals.cycle_s) == (1.5, 7)
