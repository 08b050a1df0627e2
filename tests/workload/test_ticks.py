"""Coarse clocks are found from a trace's times, and arrivals spread within their ticks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from rllib_envs.errors import InputError
from rllib_envs.scenario import Arrivals, TraceFile
from rllib_envs.workload.arrivals import draw_arrivals
from rllib_envs.workload.ticks import grid_tick_s, is_quantised, spread
from rllib_envs.workload.traces import read_trace
from tests.draws import examples

TICK_MS = 3000


def poisson(rate_rps: float, n: int, seed: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate_rps, n))


@examples(60)
@given(tick_s=st.floats(0.05, 60), per_tick=st.floats(0.5, 20), seed=st.integers(0, 2**32 - 1))
def test_a_coarse_clock_is_found_and_a_fine_one_left_alone(tick_s: float, per_tick: float, seed: int) -> None:
    times = poisson(per_tick / tick_s, 600, seed)
    coarse = np.floor(times / tick_s) * tick_s
    assert is_quantised(coarse)
    assert grid_tick_s(coarse) == pytest.approx(tick_s, rel=0.01)
    assert not is_quantised(times)


def test_an_uneven_clock_and_odd_gaps_are_a_clock_all_the_same() -> None:
    rng = np.random.default_rng(5)
    ticks = 3.0 * np.arange(300) + rng.uniform(-0.003, 0.003, 300)  # as Mooncake's
    times = np.sort(np.concatenate([np.repeat(ticks, 8), rng.uniform(0, 900, 6)]))
    assert is_quantised(times)
    assert grid_tick_s(times) == pytest.approx(3.0, rel=1e-3)


@pytest.mark.parametrize(
    "times",
    [
        [4.0],
        [4.0, 4.0, 4.0],
        0.5 * np.arange(100),  # regular, but no two at once
        np.repeat(poisson(1.0, 50, 3), 2),  # twins, but on no grid
        1e-3 * np.arange(100).repeat(2),  # finer than matters
    ],
    ids=["one", "one time", "regular", "twins", "fine"],
)
def test_what_is_no_coarse_clock(times: list[float]) -> None:
    assert not is_quantised(np.array(times))


def mooncake(folder: Path) -> TraceFile:
    """Forty requests a tick, for 25 ticks, each with a prompt of its own."""
    rows = [f'{{"timestamp": {TICK_MS * (i // 40)}, "input_length": {i + 1}, "output_length": 5}}\n' for i in range(1000)]
    path = folder / "trace.jsonl"
    path.write_text("".join(rows))
    return TraceFile(path=str(path), format="mooncake")


def test_a_replay_spreads_arrivals_within_their_ticks(tmp_path: Path) -> None:
    spec = mooncake(tmp_path)
    arrivals = Arrivals(kind="trace", trace=spec)
    batch = draw_arrivals(arrivals, None, 1000, np.random.default_rng(1))
    assert batch.prompt_tokens is not None
    assert (np.diff(batch.arrival_s) >= 0).all()
    np.testing.assert_array_equal(np.floor(batch.arrival_s / 3), np.repeat(np.arange(25), 40))
    np.testing.assert_array_equal(batch.prompt_tokens, np.arange(1, 1001))
    assert kstest(batch.arrival_s % 3 / 3, "uniform").pvalue > 1e-3
    again = draw_arrivals(arrivals, None, 1000, np.random.default_rng(1))
    np.testing.assert_array_equal(batch.arrival_s, again.arrival_s)
    other = draw_arrivals(arrivals, None, 1000, np.random.default_rng(2))
    assert (batch.arrival_s != other.arrival_s).all()
    slower = draw_arrivals(arrivals, 1.0, 1000, np.random.default_rng(1)).arrival_s  # the ticks are scaled with the times
    np.testing.assert_allclose(slower / batch.arrival_s, slower[0] / batch.arrival_s[0], rtol=1e-12)


def test_without_jitter_a_replay_is_the_file_and_draws_nothing(tmp_path: Path) -> None:
    arrivals = Arrivals(kind="trace", trace=replace(mooncake(tmp_path), jitter=False))
    rng = np.random.default_rng(1)
    before = rng.bit_generator.state
    np.testing.assert_array_equal(draw_arrivals(arrivals, None, 1000, rng).arrival_s, np.repeat(3.0 * np.arange(25), 40))
    assert rng.bit_generator.state == before


def test_jitter_that_is_asked_for_needs_a_grid_alone(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    spec = TraceFile(path=str(path), format="csv", jitter=True)
    path.write_text("timestamp\n0\n1\n3\n")  # too little to tell a coarse clock by
    assert read_trace(replace(spec, jitter=None)).tick_s is None
    assert read_trace(spec).tick_s == 1
    path.write_text("timestamp\n" + "".join(f"{t}\n" for t in poisson(1.0, 50, 0)))
    with pytest.raises(InputError, match=r"trace\.csv: jitter = True, but .* no grid .* leave jitter out"):
        read_trace(spec)


@given(tick_s=st.floats(0.01, 100), counts=st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_spreading_never_leaves_a_tick_or_changes_the_order(tick_s: float, counts: list[int]) -> None:
    times = tick_s * np.repeat(np.arange(len(counts)), counts)
    later = spread(times, tick_s, np.random.default_rng(0)) - times
    assert (later >= -1e-9 * tick_s).all()
    assert (later <= (1 + 1e-9) * tick_s).all()


def test_mooncake_is_quantised_and_azure_is_not(data_dir: Path) -> None:
    moon = TraceFile(path=str(data_dir / "mooncake" / "conversation_trace.jsonl.gz"), format="mooncake")
    assert read_trace(moon).tick_s == pytest.approx(3.0, rel=1e-3)
    azure = TraceFile(path=str(data_dir / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv.gz"))
    assert read_trace(azure).tick_s is None
