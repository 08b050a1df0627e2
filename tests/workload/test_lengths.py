"""Output lengths that come with the arrivals: their law, every expert's share of them, and the scores that go with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from rllib_envs.capacity import expert_capacities
from rllib_envs.scenario import Arrivals, Catalogue, Scenario, TraceFile, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.arrivals import draw_arrivals
from rllib_envs.workload.azure import AzureKind, azure_lengths, azure_prompt_tokens
from rllib_envs.workload.catalogue import draw_requests
from rllib_envs.workload.episode import draw_episode
from rllib_envs.workload.lengths import LENGTH_NOISE_LOG_SD, GivenLengths, given_lengths
from rllib_envs.workload.replay import recorded

EDGE6 = load_scenario("edge6")
AZURE = {"azure-conversation": "conv", "azure-code": "code"}
RATIOS = np.array([e.mean_output_tokens for e in EDGE6.experts]) / np.mean([e.mean_output_tokens for e in EDGE6.experts])


def azure_file(data_dir: Path, kind: str) -> TraceFile:
    return TraceFile(path=str(data_dir / "azure_llm_2023" / f"AzureLLMInferenceTrace_{AZURE[kind]}.csv.gz"))


def at_mean_length(scenario: Scenario) -> Scenario:
    """The scenario with answers of the mean length from every expert."""
    return replace(scenario, experts=tuple(replace(e, mean_output_tokens=100.0) for e in scenario.experts))


def replayed(file: TraceFile, **workload: object) -> Scenario:
    return with_workload(EDGE6, arrivals=Arrivals(kind="trace", trace=file), load="native", **workload)


def log_normal(n: int, mean: float = 300.0, log_sd: float = 0.8) -> NDArray[np.int32]:
    draws = np.random.default_rng(3).standard_normal(n)
    return np.maximum(np.rint(mean * np.exp(log_sd * draws - log_sd**2 / 2)), 1).astype(np.int32)


@pytest.mark.parametrize("kind", AZURE)
def test_a_replay_has_the_lengths_of_its_trace(data_dir: Path, kind: str) -> None:
    """At an expert of mean length; at the others in proportion to their means."""
    scenario = replayed(azure_file(data_dir, kind))
    truth = recorded(scenario.workload.arrivals).lengths
    assert truth is not None
    output = draw_episode(at_mean_length(scenario), 1.0, 1).output
    assert np.median(output) == pytest.approx(np.median(truth.tokens), rel=0.05)
    np.testing.assert_allclose(output.mean(axis=0), truth.tokens.mean(), rtol=0.03)
    own = draw_episode(scenario, 1.0, 1).output
    np.testing.assert_allclose(own.mean(axis=0), truth.tokens.mean() * RATIOS, rtol=0.03)
    for tokens in own.T:
        assert np.corrcoef(truth.tokens, tokens)[0, 1] >= 0.9
    assert np.corrcoef(truth.tokens, own.mean(axis=1))[0, 1] >= 0.97


@given(length=st.integers(1, 3000), ratio=st.floats(0.3, 3.0), seed=st.integers(0, 2**32 - 1))
def test_rounding_and_noise_move_no_mean(length: int, ratio: float, seed: int) -> None:
    """The expectation over noise and rounding is the trace's length times the expert's ratio, or the one token of any answer."""
    n = 4000
    rng = np.random.default_rng(seed)
    mean_tokens = np.array([ratio, 2 - ratio if ratio < 2 else 1.0])  # of two experts
    given_ = GivenLengths(tokens=np.full(n, length, np.int32), law=np.array([length], np.int32))
    tokens = given_.at_experts(mean_tokens, rng.standard_normal((n, 2)), rng.random((n, 2)))
    expected = np.maximum(length * mean_tokens / mean_tokens.mean(), 1)
    spread = LENGTH_NOISE_LOG_SD * 1.1 * expected + 0.5
    assert tokens.min() >= 1
    assert (np.abs(tokens.mean(axis=0) - expected) < 6 * spread / np.sqrt(n)).all()


def test_answers_of_no_token_have_one() -> None:
    assert given_lengths(np.array([0, 3, 0])).tokens.tolist() == [1, 3, 1]


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=40), seed=st.integers(0, 2**32 - 1))
def test_levels_order_the_lengths_and_are_uniform(lengths: list[int], seed: int) -> None:
    tokens = np.array(lengths, np.int32)
    within = np.random.default_rng(seed).random(tokens.size)
    levels = given_lengths(tokens).levels(within)
    assert ((levels >= 0) & (levels <= 1)).all()
    assert (np.diff(levels[np.argsort(tokens, kind="stable")][np.diff(np.sort(tokens), prepend=0) > 0]) > 0).all()
    share = [(tokens < value).mean() for value in tokens]
    np.testing.assert_allclose(levels, share + within * [(tokens == value).mean() for value in tokens])


@pytest.mark.parametrize("source", ["log-normal", *AZURE])
def test_scores_go_with_given_lengths_as_in_the_catalogue(source: str, request: pytest.FixtureRequest) -> None:
    """Rank correlation of the chance of a right answer and the length, at each expert; mean scores as stated."""
    n = 60_000
    if source == "log-normal":
        lengths = given_lengths(log_normal(n))
    else:
        trace = recorded(Arrivals(kind="trace", trace=azure_file(request.getfixturevalue("data_dir"), source))).lengths
        assert trace is not None
        lengths = trace.at(np.random.default_rng(0).integers(0, trace.tokens.size, n))
    own = draw_requests(EDGE6, n, np.random.default_rng(1))
    joint = draw_requests(EDGE6, n, np.random.default_rng(1), None, lengths)
    for e, expert in enumerate(EDGE6.experts):
        expected, found = (stats.spearmanr(batch.probability[:, e], batch.output_tokens[:, e])[0] for batch in (own, joint))
        assert found == pytest.approx(expected, abs=0.03)
        assert joint.score[:, e].mean() == pytest.approx(expert.mean_score, abs=0.01)
        noise = np.log(joint.output_tokens[:, e] / lengths.tokens)[lengths.tokens > 50]
        assert noise.std() == pytest.approx(LENGTH_NOISE_LOG_SD, rel=0.05)


def test_lengths_that_are_all_the_same_say_nothing_of_scores() -> None:
    n = 20_000
    joint = draw_requests(EDGE6, n, np.random.default_rng(1), None, given_lengths(np.full(n, 200)))
    for e, expert in enumerate(EDGE6.experts):
        assert abs(stats.spearmanr(joint.probability[:, e], joint.output_tokens[:, e])[0]) < 0.03
        assert joint.score[:, e].mean() == pytest.approx(expert.mean_score, abs=0.015)


def test_experts_of_one_model_give_the_same_answer() -> None:
    twins = replace(EDGE6, experts=(EDGE6.experts[0], replace(EDGE6.experts[0], name="twin"), *EDGE6.experts[2:]))
    batch = draw_requests(twins, 500, np.random.default_rng(0), None, given_lengths(log_normal(500)))
    np.testing.assert_array_equal(batch.output_tokens[:, 0], batch.output_tokens[:, 1])
    np.testing.assert_array_equal(batch.score[:, 0], batch.score[:, 1])


def test_a_file_of_prompts_keeps_its_scores_and_their_law_with_lengths(data_dir: Path) -> None:
    path = str(data_dir / "zeroeval" / "zeroeval_gsm_crux_math.jsonl.gz")
    scenario = with_workload(EDGE6, catalogue=Catalogue(kind="file", path=path))
    n = 40_000
    own = draw_requests(scenario, n, np.random.default_rng(1))
    lengths = given_lengths(log_normal(n))
    joint = draw_requests(scenario, n, np.random.default_rng(1), None, lengths)
    np.testing.assert_allclose(joint.score.mean(axis=0), own.score.mean(axis=0), atol=0.015)  # every prompt as likely as before
    ratios = own.output_tokens.mean(axis=0) / own.output_tokens.mean()
    np.testing.assert_allclose(joint.output_tokens.mean(axis=0), lengths.tokens.mean() * ratios, rtol=0.04)
    of_scores = [[stats.spearmanr(own.score[:, e], own.output_tokens[:, k])[0] for k in range(6)] for e in range(6)]
    found = [stats.spearmanr(joint.score[:, e], lengths.tokens)[0] for e in range(6)]
    np.testing.assert_allclose(found, np.mean(of_scores, axis=1), atol=0.03)
    for tokens in joint.output_tokens.T:
        assert np.corrcoef(lengths.tokens, tokens)[0, 1] >= 0.9


@pytest.mark.parametrize("kind", AZURE)
def test_the_fits_have_the_lengths_of_the_traces_joint_with_the_prompts(data_dir: Path, kind: AzureKind) -> None:
    truth = recorded(Arrivals(kind="trace", trace=azure_file(data_dir, kind)))
    assert truth.lengths is not None
    assert truth.prompt_tokens is not None
    rng = np.random.default_rng(2)
    prompts = azure_prompt_tokens(kind, 200_000, rng)
    drawn = azure_lengths(kind, prompts, rng)
    real = truth.lengths.tokens
    assert drawn.tokens.mean() == pytest.approx(real.mean(), rel=0.03)
    assert np.median(drawn.tokens) == pytest.approx(np.median(real), rel=0.01)
    assert drawn.tokens.std() == pytest.approx(real.std(), rel=0.05)
    grid = np.arange(real.max() + 1)
    below = [np.searchsorted(np.sort(tokens), grid, side="right") / tokens.size for tokens in (drawn.tokens, real)]
    assert np.abs(below[0] - below[1]).max() < 0.04
    ranges = ((1, 181), (181, 372), (372, 710), (984, 1190), (1316, 2735), (2735, 20_000))
    for low, high in ranges if kind == "azure-conversation" else ():  # given the prompt
        means = [t[(p >= low) & (p < high)].mean() for t, p in ((drawn.tokens, prompts), (real, truth.prompt_tokens))]
        assert means[0] == pytest.approx(means[1], rel=0.12)
    spearman = [stats.spearmanr(p, t)[0] for t, p in ((drawn.tokens, prompts), (real, truth.prompt_tokens))]
    assert spearman[0] == pytest.approx(spearman[1], abs=0.04)
    np.testing.assert_allclose(np.quantile(drawn.law, [0.1, 0.5, 0.9]), np.quantile(real, [0.1, 0.5, 0.9]), rtol=0.08)


@pytest.mark.parametrize("kind", AZURE)
@pytest.mark.parametrize("catalogue", [Catalogue(), Catalogue(scores="binary")])
def test_lengths_of_the_catalogue_are_drawn_as_if_the_arrivals_had_none(kind: AzureKind, catalogue: Catalogue) -> None:
    """To the last bit: the streams of an episode meet the same calls in the same order."""
    scenario = with_workload(EDGE6, arrivals=Arrivals(kind=kind, lengths="catalogue"), requests=300, catalogue=catalogue)
    episode = draw_episode(scenario, 10.0, 7)
    arrivals, requests = (np.random.default_rng(np.random.SeedSequence(7, spawn_key=(i,))) for i in (1, 2))
    batch = draw_arrivals(scenario.workload.arrivals, 0.7 * 10.0, 300, arrivals)
    assert batch.lengths is None
    plain = draw_requests(scenario, 300, requests, batch.prompt_tokens)
    np.testing.assert_array_equal(episode.output, plain.output_tokens)
    np.testing.assert_array_equal(episode.arrival_s, batch.arrival_s)
    np.testing.assert_array_equal(episode.prompt, batch.prompt_tokens)


@pytest.mark.parametrize("kind", AZURE)
def test_the_switch_leaves_arrivals_and_prompts_alone(kind: AzureKind) -> None:
    ours, theirs = (
        draw_episode(with_workload(EDGE6, arrivals=Arrivals(kind=kind, lengths=lengths), requests=300), 10.0, 7)
        for lengths in ("trace", "catalogue")
    )
    np.testing.assert_array_equal(ours.arrival_s, theirs.arrival_s)
    np.testing.assert_array_equal(ours.prompt, theirs.prompt)
    assert ours.output.mean() < 0.8 * theirs.output.mean()  # edge6: 366 tokens, the traces 211 and 28


def test_a_trace_without_output_lengths_takes_the_catalogues(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("timestamp,n\n" + "".join(f"{i},{10 + i}\n" for i in range(30)))
    arrivals = Arrivals(kind="trace", trace=TraceFile(path=str(file), format="csv", prompt_column="n"))
    scenario = with_workload(EDGE6, arrivals=arrivals, load="native")
    plain = with_workload(EDGE6, arrivals=replace(arrivals, lengths="catalogue"), load="native")
    np.testing.assert_array_equal(draw_episode(scenario, 1.0, 3).output, draw_episode(plain, 1.0, 3).output)


def test_capacity_follows_from_the_whole_window_and_its_lengths(tmp_path: Path) -> None:
    """Its slow head and its fast tail count alike; prompts and outputs of one row stay together."""
    edge2 = load_scenario("edge2")

    def capacity(name: str, rows: list[tuple[int, int]], **arrivals: object) -> NDArray[np.float64]:
        file = tmp_path / name
        file.write_text("timestamp,p,d\n" + "".join(f"{i},{p},{d}\n" for i, (p, d) in enumerate(rows)))
        trace = TraceFile(path=str(file), format="csv", prompt_column="p", output_column="d")
        return expert_capacities(with_workload(edge2, arrivals=Arrivals(kind="trace", trace=trace, **arrivals)))  # type: ignore[arg-type]

    small, large = [(50, 60)] * 1500, [(1500, 500)] * 1500
    head_first, tail_first = capacity("a.csv", small + large), capacity("b.csv", large + small)
    only_small, only_large = capacity("c.csv", small), capacity("d.csv", large)
    assert (only_small > 3 * only_large).all()
    assert (head_first < 0.8 * only_small).all()
    np.testing.assert_allclose(head_first, tail_first, rtol=0.25)
    assert (capacity("e.csv", [(50, 500)] * 50) < capacity("e.csv", [(50, 500)] * 50, lengths="catalogue")).all()
