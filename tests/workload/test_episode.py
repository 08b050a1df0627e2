"""One seed, one episode; each named stream drawn for itself."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest

from rllib_envs.errors import InputError
from rllib_envs.scenario import (
    LOAD_FRACTIONS,
    Arrivals,
    Catalogue,
    Faults,
    Observation,
    Predictions,
    Scenario,
    TraceFile,
    with_workload,
)
from rllib_envs.sim.profile import BLOCK_TOKENS
from rllib_envs.workload.episode import Episode, draw_episode
from tests.worlds import small

CAPACITY_RPS = 12.0
ARRIVALS, REQUESTS, TOLD = {"arrival_s"}, {"prompt", "score", "output"}, {"predicted_score", "predicted_tokens"}
ALL_TOLD = TOLD | {"predicted_log_sd"}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return small("edge6", 500)


def draw(scenario: Scenario, seed: int | np.random.SeedSequence = 9) -> Episode:
    return draw_episode(scenario, CAPACITY_RPS, seed)


def differing(one: Episode, other: Episode) -> set[str]:
    """Fields in which two episodes differ."""
    return {field.name for field in fields(Episode) if not np.array_equal(getattr(one, field.name), getattr(other, field.name))}


def test_the_same_seed_gives_the_same_episode_and_another_one_another(scenario: Scenario) -> None:
    assert differing(draw(scenario), draw(scenario)) == set()
    assert differing(draw(scenario, 9), draw(scenario, 10)) == ARRIVALS | REQUESTS | ALL_TOLD


def test_a_seed_sequence_may_be_handed_in_twice(scenario: Scenario) -> None:
    """Drawing spawns nothing from it: its state would change, and the second episode with it."""
    sequence = np.random.SeedSequence(9)
    assert differing(draw(scenario, sequence), draw(scenario, sequence)) == set()
    assert differing(draw(scenario, sequence), draw(scenario, 9)) == set()
    children = sequence.spawn(2)
    assert differing(draw(scenario, children[0]), draw(scenario, children[1])) == ARRIVALS | REQUESTS | ALL_TOLD
    assert "arrival_s" in differing(draw(scenario, children[0]), draw(scenario, sequence))


@pytest.mark.parametrize(
    ("changes", "fields_changed"),
    [
        ({"predictions": Predictions(score_sd=0.4, length_log_sd=0.9)}, TOLD),
        ({"predictions": Predictions(hidden_share=0.5)}, {"predicted_tokens"}),
        ({"predictions": Predictions(law="means")}, ALL_TOLD | {"predicted_log_median"}),
        ({"predictions": Predictions(score_bias=0.1)}, {"predicted_score"}),
        ({"faults": Faults(engine_factor=1.5)}, {"engines"}),
        ({"faults": Faults(engine_expert_log_sd=0.2)}, {"engines"}),
        ({"faults": Faults(engine_coefficient_factor=1.3)}, {"engines"}),
        ({"faults": Faults(telemetry_delay_s=1)}, {"telemetry_delay_s"}),
        ({"faults": Faults(kv_factor=0.5)}, {"engines", "nominal"}),
        ({"slo_s_per_token": 0.1}, set()),
    ],
)
def test_a_change_in_one_stream_leaves_the_others_alone(
    scenario: Scenario, changes: dict[str, object], fields_changed: set[str]
) -> None:
    assert differing(draw(scenario), draw(replace(scenario, **changes))) == fields_changed  # type: ignore[arg-type]


def test_other_arrivals_bring_the_same_requests(scenario: Scenario) -> None:
    for change in ({"load": 5.0}, {"load": "mixed"}, {"arrivals": Arrivals(kind="gamma")}, {"arrivals": Arrivals(kind="mmpp")}):
        assert differing(draw(scenario), draw(with_workload(scenario, **change))) == ARRIVALS


def test_other_requests_come_at_the_same_times_on_the_same_engines(scenario: Scenario) -> None:
    faulty = replace(scenario, faults=Faults(engine_expert_log_sd=0.2))
    other = with_workload(faulty, catalogue=Catalogue(prompt_tokens_mean=100))
    assert differing(draw(faulty), draw(other)).isdisjoint({"arrival_s", "engines"})
    assert "prompt" in differing(draw(faulty), draw(other))


def test_judged_answers_have_a_stream_of_their_own_and_more_of_them_include_the_fewer(scenario: Scenario) -> None:
    some, more = (replace(scenario, observation=Observation(judged_share=share)) for share in (0.2, 0.6))
    none, fewer, judged = draw(scenario), draw(some), draw(more)
    assert differing(none, fewer) == differing(none, judged) == {"judged"}
    assert not none.judged.any()
    assert not (fewer.judged & ~judged.judged).any()
    assert fewer.judged.mean() == pytest.approx(0.2, abs=0.08)
    assert judged.judged.mean() == pytest.approx(0.6, abs=0.1)


def test_shapes_kinds_and_ranges(scenario: Scenario) -> None:
    episode = draw(scenario)
    m, n = 500, 6
    shapes = {
        "arrival_s": (m,),
        "prompt": (m,),
        **dict.fromkeys(("score", "output", "predicted_score", "predicted_tokens"), (m, n)),
    }
    kinds = {"arrival_s": "f8", "prompt": "i4", "output": "i4", "score": "f4", "predicted_score": "f4", "predicted_tokens": "f4"}
    for name, shape in shapes.items():
        array = getattr(episode, name)
        assert (array.shape, array.dtype) == (shape, np.dtype(kinds[name])), name
    assert (np.diff(episode.arrival_s) >= 0).all()
    assert episode.arrival_s[0] >= 0
    assert min(episode.prompt.min(), episode.output.min(), episode.predicted_tokens.min()) >= 1
    for scores in (episode.score, episode.predicted_score):
        assert (scores.min(), scores.max()) >= (0, 0)
        assert scores.max() <= 1


def test_true_scores_lie_on_a_grid_where_sums_are_exact(scenario: Scenario) -> None:
    score = draw(scenario).score
    steps = score.astype(np.float64) * 2**20
    np.testing.assert_array_equal(steps, np.rint(steps))
    flat = score.astype(np.float64).ravel()
    assert flat.sum() == flat[::-1].cumsum()[-1] == np.random.default_rng(0).permutation(flat).cumsum()[-1]


def test_loads_scale_the_same_arrivals(scenario: Scenario) -> None:
    unit = draw(with_workload(scenario, load=1.0)).arrival_s
    np.testing.assert_allclose(draw(with_workload(scenario, load=4.0)).arrival_s, unit / 4, rtol=1e-12)
    for name, fraction in LOAD_FRACTIONS.items():
        arrival_s = draw(with_workload(scenario, load=name)).arrival_s
        np.testing.assert_allclose(arrival_s, unit / (CAPACITY_RPS * fraction), rtol=1e-12)


def test_a_mixed_load_is_log_uniform_over_its_range(scenario: Scenario) -> None:
    low, high = 0.2, 1.2
    unit, mixed = with_workload(scenario, load=1.0, requests=2), with_workload(scenario, load="mixed", requests=2)
    shares = np.array([draw(unit, s).arrival_s[0] / draw(mixed, s).arrival_s[0] / CAPACITY_RPS for s in range(400)])
    place = np.log(shares / low) / np.log(high / low)
    assert -1e-9 < place.min() < 0.05
    assert 0.95 < place.max() < 1 + 1e-9
    # Uniform on [0, 1]: the Kolmogorov distance of 400 draws exceeds 0.12 in fewer than 3 of 100,000 samples.
    assert np.abs(np.sort(place) - (np.arange(400) + 0.5) / 400).max() < 0.12
    fixed = with_workload(mixed, mixed_range=(0.5, 0.5))
    assert draw(fixed).arrival_s[0] == pytest.approx(draw(unit).arrival_s[0] / (0.5 * CAPACITY_RPS))


def test_without_faults_the_engines_are_those_of_the_scenario(scenario: Scenario) -> None:
    engines = tuple(expert.engine for expert in scenario.experts)
    assert draw(scenario).engines == draw(replace(scenario, faults=Faults(telemetry_delay_s=2))).engines == engines
    wrong = draw(replace(scenario, faults=Faults(engine_factor=2)))
    assert draw(scenario).nominal == wrong.nominal == engines != wrong.engines


@pytest.mark.parametrize("share", [0.01, 0.35, 0.6, 0.999])
def test_less_memory_is_there_as_told_and_holds_one_longest_request(scenario: Scenario, share: float) -> None:
    episode = draw(replace(scenario, faults=Faults(kv_factor=share)))
    assert episode.engines == episode.nominal
    for engine, expert in zip(episode.nominal, scenario.experts, strict=True):
        least, whole = math.ceil(engine.max_model_len / BLOCK_TOKENS), expert.engine.usable_blocks
        assert engine.usable_blocks == max(math.floor(share * whole), least) <= whole
        assert replace(engine, kv_tokens=expert.engine.kv_tokens) == expert.engine
    assert {engine.usable_blocks for engine in episode.engines} != {expert.engine.usable_blocks for expert in scenario.experts}


def test_what_is_wrong_of_an_engine_is_so_whatever_memory_it_has(scenario: Scenario) -> None:
    wrong = Faults(engine_expert_log_sd=0.3, engine_coefficient_factor=1.2)
    one, other = (draw(replace(scenario, faults=faults)) for faults in (wrong, replace(wrong, kv_factor=0.5)))
    for engine, smaller, told in zip(one.engines, other.engines, other.nominal, strict=True):
        assert smaller == replace(engine, kv_tokens=told.kv_tokens)


def ratios(scenario: Scenario, faults: Faults, seed: int = 9) -> dict[str, np.ndarray]:
    """(N,) true over told value of each figure of the engines, where the told one is not 0."""
    true = draw(replace(scenario, faults=faults), seed).engines
    numbers = [name for name, value in asdict(true[0]).items() if not isinstance(value, str)]
    figures: dict[str, list[float]] = {name: [] for name in numbers}
    for engine, expert in zip(true, scenario.experts, strict=True):
        assert engine.scheduling == expert.engine.scheduling
        for name in numbers:
            value = getattr(engine, name)
            told = getattr(expert.engine, name)
            figures[name].append(1.0 if value == told == 0 else value / told)
    return {name: np.array(values) for name, values in figures.items()}


TIMES = {"c0_ms", "b_ms", "c_ms", "a_ms", "q_ms", "c_mixed_ms"}


def test_faults_change_times_and_no_limits(scenario: Scenario) -> None:
    for faults in (Faults(engine_factor=1.5), Faults(engine_expert_log_sd=0.3), Faults(engine_coefficient_factor=1.4)):
        found = ratios(scenario, faults)
        for name in found.keys() - TIMES:
            assert (found[name] == 1).all(), name
        assert (found["c0_ms"] != 1).all()


def test_a_factor_holds_for_every_expert_and_coefficient(scenario: Scenario) -> None:
    found = ratios(scenario, Faults(engine_factor=1.5))
    for name in ("c0_ms", "b_ms", "c_ms", "a_ms", "q_ms"):
        np.testing.assert_allclose(found[name], 1.5, rtol=1e-12)


def test_an_experts_own_factor_holds_for_all_its_coefficients(scenario: Scenario) -> None:
    found = ratios(scenario, Faults(engine_expert_log_sd=0.3))
    assert len(set(found["c0_ms"])) == scenario.n_experts
    for name in ("b_ms", "c_ms", "a_ms", "q_ms"):
        np.testing.assert_allclose(found[name], found["c0_ms"], rtol=1e-12)
    logs = np.log([ratios(scenario, Faults(engine_expert_log_sd=0.3), seed)["c0_ms"] for seed in range(60)]).ravel()
    # 360 normals: mean and spread within 4.5 standard errors (a false alarm in 7 of a million each)
    assert abs(logs.mean()) < 4.5 * 0.3 / np.sqrt(360)
    assert abs(logs.std() - 0.3) < 4.5 * 0.3 / np.sqrt(720)


def test_a_coefficient_is_multiplied_or_divided_by_its_factor(scenario: Scenario) -> None:
    found = ratios(scenario, Faults(engine_coefficient_factor=1.25))
    table = np.array([found[name] for name in ("c0_ms", "b_ms", "c_ms", "a_ms", "q_ms")])
    up = np.isclose(table, 1.25, rtol=1e-12)
    assert (up | np.isclose(table, 1 / 1.25, rtol=1e-12)).all()
    assert 0 < up.sum() < up.size


def test_a_trace_comes_at_its_own_times_and_may_end_early(scenario: Scenario, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("timestamp,tokens\n" + "".join(f"{10 + 0.5 * i},{i + 1}\n" for i in range(20)))
    trace = TraceFile(path=str(path), format="csv", prompt_column="tokens")
    replayed = with_workload(scenario, arrivals=Arrivals(kind="trace", trace=trace), load="native")
    episode = draw(replayed)
    np.testing.assert_allclose(episode.arrival_s, 0.5 * np.arange(20))
    assert episode.prompt.tolist() == list(range(1, 21))
    assert episode.score.shape == (20, 6)
    assert draw(with_workload(replayed, requests=7)).arrival_s.size == 7
    path.unlink()
    with pytest.raises(InputError, match=r"trace\.csv"):
        draw(with_workload(replayed, arrivals=Arrivals(kind="trace", trace=replace(trace, start_s=1.0))))
