"""Arrival processes against their laws, and the Azure fits against the traces they were fitted to.

Seeds are fixed; tolerances are confidence intervals (4 to 5 standard errors) or stated errors of fit.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from rllib_envs.errors import InputError
from rllib_envs.scenario import Arrivals, TraceFile
from rllib_envs.workload.arrival_processes import PROCESSES
from rllib_envs.workload.arrivals import arrival_times, draw_arrivals
from rllib_envs.workload.azure import azure_prompt_tokens
from rllib_envs.workload.traces import Trace, read_trace
from tests.draws import examples

AzureKind = Literal["azure-conversation", "azure-code"]
KINDS = list(PROCESSES)
AZURE_KINDS: list[AzureKind] = ["azure-conversation", "azure-code"]
AZURE_FILES = {"azure-conversation": "conv", "azure-code": "code"}


def counts(times: NDArray[np.float64], width_s: float) -> NDArray[np.int64]:
    """Arrivals in each whole window from 0 to the last arrival."""
    windows = int(times[-1] // width_s)
    return np.bincount((times[times < windows * width_s] / width_s).astype(np.int64), minlength=windows)[:windows]


def dispersion(times: NDArray[np.float64], width_s: float) -> float:
    """Index of dispersion of counts: variance over mean; 1 for a Poisson process."""
    inside = counts(times, width_s)
    return float(inside.var() / inside.mean())


def gap_cv(times: NDArray[np.float64]) -> float:
    gaps = np.diff(times)
    return float(gaps.std() / gaps.mean())


def assert_mean(values: Any, expected: float, slack: float = 0.0) -> None:
    """The mean of independent values is as expected, within 4.5 standard errors and a relative slack."""
    sample = np.asarray(values, dtype=np.float64)
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    assert abs(sample.mean() - expected) <= 4.5 * error + slack * expected, (sample.mean(), expected, error)


@pytest.mark.parametrize("kind", KINDS)
@examples(20)
@given(rate=st.floats(0.01, 1e4), n=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_times_ascend_and_a_seed_fixes_them_bit_for_bit(kind: str, rate: float, n: int, seed: int) -> None:
    arrivals = Arrivals(kind=kind)
    batch = draw_arrivals(arrivals, rate, n, np.random.default_rng(seed))
    again = draw_arrivals(arrivals, rate, n, np.random.default_rng(seed))
    assert batch.arrival_s.shape == (n,)
    assert batch.arrival_s.dtype == np.float64
    assert np.isfinite(batch.arrival_s).all()
    assert batch.arrival_s[0] >= 0
    assert (np.diff(batch.arrival_s) >= 0).all()
    assert batch.arrival_s.tobytes() == again.arrival_s.tobytes()
    assert batch.arrival_s.tobytes() == arrival_times(arrivals, rate, n, np.random.default_rng(seed)).tobytes()
    if batch.prompt_tokens is None:
        assert kind not in AZURE_KINDS
    else:
        assert batch.prompt_tokens.shape == (n,)
        assert batch.prompt_tokens.dtype == np.int32
        assert (batch.prompt_tokens >= 1).all()
        np.testing.assert_array_equal(batch.prompt_tokens, again.prompt_tokens)


@pytest.mark.parametrize("kind", KINDS)
@examples(20)
@given(factor=st.floats(0.01, 100), seed=st.integers(0, 2**32))
def test_a_faster_clock_is_a_higher_rate(kind: str, factor: float, seed: int) -> None:
    """Rate and the process's own times scaled together only scale the arrivals."""
    slow = Arrivals(kind=kind, cycle_s=20.0, period_s=100.0)
    fast = replace(slow, cycle_s=slow.cycle_s / factor, period_s=slow.period_s / factor)
    one = arrival_times(slow, 3.0, 200, np.random.default_rng(seed))
    other = arrival_times(fast, 3.0 * factor, 200, np.random.default_rng(seed))
    np.testing.assert_allclose(other * factor, one, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("kind", AZURE_KINDS)
def test_no_rate_is_the_native_rate(kind: AzureKind) -> None:
    native = draw_arrivals(Arrivals(kind=kind), None, 500, np.random.default_rng(1))
    asked = draw_arrivals(Arrivals(kind=kind), PROCESSES[kind].own_rate_rps, 500, np.random.default_rng(1))
    np.testing.assert_array_equal(native.arrival_s, asked.arrival_s)
    np.testing.assert_array_equal(native.prompt_tokens, asked.prompt_tokens)


def test_poisson_gaps_are_independent_and_exponential() -> None:
    gaps = np.diff(arrival_times(Arrivals(), 7.0, 100_000, np.random.default_rng(2)))
    assert stats.kstest(gaps, "expon", args=(0, 1 / 7.0)).pvalue > 1e-4
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4.5 / np.sqrt(len(gaps))


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0, 5.0])
def test_gamma_gaps_have_the_rate_and_cv_asked_for(cv: float) -> None:
    times = np.array(
        [arrival_times(Arrivals(kind="gamma", cv=cv), 4.0, 2000, np.random.default_rng(seed)) for seed in range(100)]
    )
    gaps = np.diff(times, prepend=0.0, axis=1)
    assert_mean(gaps.mean(axis=1), 1 / 4.0)
    assert_mean(((gaps - 1 / 4.0) ** 2).mean(axis=1), (cv / 4.0) ** 2)
    for quantile in (0.6, 0.9, 0.99):  # lower ones are below the resolution of a time in float64 where cv is large
        above = gaps > stats.gamma.ppf(quantile, cv**-2, scale=cv**2 / 4.0)
        assert_mean(above.ravel(), 1 - quantile)


def mmpp_dispersion(arrivals: Arrivals, rate: float, width_s: float) -> float:
    """Index of dispersion of a stationary two-state MMPP (Heffes and Lucantoni, 1986), from its exponential rate covariance."""
    share, ratio = arrivals.burst_share, arrivals.burst_ratio
    quiet = rate / (1 - share + share * ratio)
    variance = share * (1 - share) * (quiet * (ratio - 1)) ** 2
    memory_s = share * (1 - share) * arrivals.cycle_s
    return 1 + 2 * variance * memory_s / rate * (1 - memory_s / width_s * (1 - np.exp(-width_s / memory_s)))


@pytest.mark.parametrize(("ratio", "share", "cycle_s"), [(4.0, 0.25, 30.0), (20.0, 0.1, 10.0), (1.0, 0.5, 5.0)])
def test_mmpp_counts_have_the_dispersion_of_theory(ratio: float, share: float, cycle_s: float) -> None:
    arrivals = Arrivals(kind="mmpp", burst_ratio=ratio, burst_share=share, cycle_s=cycle_s)
    episodes = [arrival_times(arrivals, 5.0, 40_000, np.random.default_rng(seed)) for seed in range(40)]
    for width_s in (0.5, 5.0, 60.0):
        expected = mmpp_dispersion(arrivals, 5.0, width_s)
        assert expected > 1 or ratio == 1
        assert_mean([dispersion(times, width_s) for times in episodes], expected, slack=0.02)  # a finite mean is not the true one


@pytest.mark.parametrize("start_s", [0.0, 7.0, 40.0])
def test_mmpp_is_stationary_from_the_start(start_s: float) -> None:
    arrivals = Arrivals(kind="mmpp", burst_ratio=10.0, burst_share=0.2, cycle_s=30.0)
    episodes = (arrival_times(arrivals, 5.0, 1000, np.random.default_rng(seed)) for seed in range(3000))
    assert_mean([np.count_nonzero((times >= start_s) & (times < start_s + 2.0)) for times in episodes], 5.0 * 2.0)


def test_mmpp_switches_for_as_long_as_there_are_arrivals() -> None:
    arrivals = Arrivals(kind="mmpp", burst_ratio=3.0, burst_share=0.5, cycle_s=0.2)
    for seed in range(10):
        gaps = np.diff(arrival_times(arrivals, 5.0, 10_000, np.random.default_rng(seed)))
        assert_mean(gaps[-200:], 0.2)


@pytest.mark.parametrize("amplitude", [0.3, 1.0])
def test_diurnal_counts_follow_the_curve(amplitude: float) -> None:
    arrivals = Arrivals(kind="diurnal", amplitude=amplitude, period_s=100.0)
    times = arrival_times(arrivals, 50.0, 200_000, np.random.default_rng(3)) / 100.0  # in days
    times = times[times < np.floor(times[-1])]  # whole days
    harmonic = np.exp(-2j * np.pi * np.outer([1, 2], times)).mean(axis=1)  # of density 1 + a*sin(2 pi (t + offset)): a/2 and 0
    assert abs(2 * abs(harmonic[0]) - amplitude) < 4.5 * np.sqrt(2 / len(times))
    assert abs(harmonic[1]) < 4.5 / np.sqrt(len(times))
    offset = (np.angle(harmonic[0]) + np.pi / 2) / (2 * np.pi)
    edges = np.linspace(0, 1, 49)
    cumulated = edges - amplitude * np.cos(2 * np.pi * (edges + offset)) / (2 * np.pi)
    observed = np.histogram(times % 1.0, edges)[0]
    assert stats.chisquare(observed, np.diff(cumulated) * len(times), ddof=1).pvalue > 1e-4


def test_diurnal_starts_at_any_time_of_day() -> None:
    arrivals = Arrivals(kind="diurnal", amplitude=0.9, period_s=100.0)
    first = [np.count_nonzero(arrival_times(arrivals, 5.0, 300, np.random.default_rng(seed)) < 10.0) for seed in range(2000)]
    assert_mean(first, 5.0 * 10.0)
    assert np.var(first) > 5 * np.mean(first)  # a fixed time of day would leave Poisson counts


def test_processes_without_burst_or_curve_are_poisson() -> None:
    poisson = arrival_times(Arrivals(), 3.0, 1000, np.random.default_rng(4))
    flat = arrival_times(Arrivals(kind="diurnal", amplitude=0.0), 3.0, 1000, np.random.default_rng(4))
    level = arrival_times(Arrivals(kind="mmpp", burst_ratio=1.0), 3.0, 1000, np.random.default_rng(4))
    np.testing.assert_allclose(flat, poisson, rtol=1e-6)
    np.testing.assert_allclose(level, poisson, rtol=1e-6)


@pytest.fixture(scope="module", params=AZURE_KINDS)
def azure(request: pytest.FixtureRequest, data_dir: Path) -> tuple[AzureKind, Trace]:
    path = data_dir / "azure_llm_2023" / f"AzureLLMInferenceTrace_{AZURE_FILES[request.param]}.csv.gz"
    return request.param, read_trace(TraceFile(path=str(path)))


def test_azure_rates_are_those_of_the_traces(azure: tuple[AzureKind, Trace]) -> None:
    kind, trace = azure
    assert PROCESSES[kind].own_rate_rps == pytest.approx(trace.rate_rps, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "n", "episodes"), [("azure-conversation", 50, 8000), ("azure-code", 20_000, 100)])
def test_azure_fits_have_exactly_the_rate_asked_for(kind: AzureKind, n: int, episodes: int) -> None:
    rng = np.random.default_rng(7)
    assert_mean([arrival_times(Arrivals(kind=kind), 3.0, n, rng)[-1] for _ in range(episodes)], n / 3.0)


@pytest.mark.slow
def test_azure_conversation_wanders_from_its_first_request_on() -> None:
    rng = np.random.default_rng(8)
    times = np.array([arrival_times(Arrivals(kind="azure-conversation"), 1.0, 4000, rng) for _ in range(600)])
    early, late = times[:, 300] - times[:, 0], times[:, -1] - times[:, -301]
    assert 0.67 < early.var() / late.var() < 1.5  # equal in law; a pace that starts at its mean gives 0.1


@pytest.mark.slow
def test_azure_fits_are_as_bursty_as_the_traces(azure: tuple[AzureKind, Trace]) -> None:
    """Over simulated hours, the median of each figure is within 20 % of the trace's (gap CV: 5 %)."""
    kind, trace = azure
    m = len(trace.arrival_s)
    hours = [arrival_times(Arrivals(kind=kind), None, m, np.random.default_rng(seed)) for seed in range(100)]
    assert np.median([gap_cv(times) for times in hours]) == pytest.approx(trace.gap_cv, rel=0.05)
    for width_s in (1.0, 60.0):
        simulated = [dispersion(times, width_s) for times in hours]
        real = dispersion(trace.arrival_s, width_s)
        assert np.median(simulated) == pytest.approx(real, rel=0.2)
        assert np.quantile(simulated, 0.025) < real < np.quantile(simulated, 0.975)
    busiest = [counts(times, 1.0).max() for times in hours]
    assert np.median(busiest) == pytest.approx(counts(trace.arrival_s, 1.0).max(), rel=0.2)
    idle = np.median([(counts(times, 1.0) == 0).mean() for times in hours])
    assert idle == pytest.approx((counts(trace.arrival_s, 1.0) == 0).mean(), abs=0.03)


def test_azure_prompts_are_distributed_as_in_the_traces(azure: tuple[AzureKind, Trace]) -> None:
    kind, trace = azure
    assert trace.prompt_tokens is not None
    drawn = azure_prompt_tokens(kind, 100_000, np.random.default_rng(5))
    grid = np.arange(trace.prompt_tokens.max() + 1)
    below = [np.searchsorted(np.sort(tokens), grid, side="right") / len(tokens) for tokens in (drawn, trace.prompt_tokens)]
    assert np.abs(below[0] - below[1]).max() < 0.045  # 0.04 of interpolation, the rest of sampling
    assert drawn.mean() == pytest.approx(trace.prompt_tokens.mean(), rel=0.02)
    assert drawn.std() == pytest.approx(trace.prompt_tokens.std(), rel=0.03)
    assert drawn.min() >= trace.prompt_tokens.min()
    assert drawn.max() <= trace.prompt_tokens.max()


@pytest.fixture
def recorded(tmp_path: Path) -> TraceFile:
    path = tmp_path / "trace.csv"
    path.write_text("timestamp,prompt\n10,5\n12,6\n12,7\n16,8\n18,9\n")
    return TraceFile(path=str(path), format="csv", prompt_column="prompt")


def test_a_replay_of_all_is_the_trace_and_draws_nothing(recorded: TraceFile) -> None:
    rng = np.random.default_rng(6)
    before = rng.bit_generator.state
    whole = draw_arrivals(Arrivals(kind="trace", trace=recorded), None, 100, rng)
    np.testing.assert_array_equal(whole.arrival_s, [0, 2, 2, 6, 8])
    np.testing.assert_array_equal(whole.prompt_tokens, [5, 6, 7, 8, 9])
    later = draw_arrivals(Arrivals(kind="trace", trace=replace(recorded, start_s=1.0, duration_s=6.0)), None, 100, rng)
    np.testing.assert_array_equal(later.arrival_s, [1, 1, 5])  # from the start of the window
    np.testing.assert_array_equal(later.prompt_tokens, [6, 7, 8])
    untold = draw_arrivals(Arrivals(kind="trace", trace=replace(recorded, prompt_column=None)), None, 100, rng)
    assert untold.prompt_tokens is None
    assert rng.bit_generator.state == before


def test_fewer_requests_than_a_window_holds_are_consecutive_ones_from_anywhere_in_it(recorded: TraceFile) -> None:
    arrivals = Arrivals(kind="trace", trace=recorded)
    times, prompts = np.array([0, 2, 2, 6, 8]), [5, 6, 7, 8, 9]
    seen = set()
    for seed in range(60):
        part = draw_arrivals(arrivals, None, 3, np.random.default_rng(seed))
        assert part.prompt_tokens is not None
        first = prompts.index(int(part.prompt_tokens[0]))
        assert part.prompt_tokens.tolist() == prompts[first : first + 3]
        np.testing.assert_array_equal(part.arrival_s, times[first : first + 3] - times[first])
        seen.add(first)
    assert seen == {0, 1, 2}


@given(rate=st.floats(1e-3, 1e3))
def test_replay_reaches_another_rate_by_scaling_time(tmp_path_factory: pytest.TempPathFactory, rate: float) -> None:
    path = tmp_path_factory.getbasetemp() / "scaled.csv"
    if not path.exists():
        path.write_text("timestamp\n0\n2\n2\n6\n8\n")
    arrivals = Arrivals(kind="trace", trace=TraceFile(path=str(path), format="csv"))
    times = arrival_times(arrivals, rate, 100, np.random.default_rng(0))
    assert (len(times) - 1) / (times[-1] - times[0]) == pytest.approx(rate)
    np.testing.assert_allclose(times / times[-1], np.array([0, 2, 2, 6, 8]) / 8, rtol=1e-12)
    for seed in range(5):  # a part comes at that rate too, however slow or fast it is in the file
        part = arrival_times(arrivals, rate, 4, np.random.default_rng(seed))
        assert 3 / (part[-1] - part[0]) == pytest.approx(rate)


def test_a_replayed_batch_may_be_changed_without_changing_the_next(recorded: TraceFile) -> None:
    arrivals = Arrivals(kind="trace", trace=recorded)
    batch = draw_arrivals(arrivals, None, 5, np.random.default_rng(0))
    assert batch.prompt_tokens is not None
    batch.arrival_s[:] = -1
    batch.prompt_tokens[:] = 0
    again = draw_arrivals(arrivals, None, 5, np.random.default_rng(0))
    assert again.arrival_s[-1] == 8
    assert again.prompt_tokens is not None
    assert again.prompt_tokens[0] == 5


@pytest.mark.parametrize(
    ("options", "rate", "n", "said"),
    [
        ({}, None, 5, "rate_rps = None with arrivals.kind = 'poisson'"),
        ({}, 0.0, 5, "rate_rps = 0.0: must be a positive"),
        ({"kind": "azure-code"}, float("nan"), 5, "rate_rps = nan: must be a positive"),
        ({}, float("inf"), 5, "rate_rps = inf: must be a positive"),
        ({}, 1.0, 0, "n = 0: an episode has at least 1"),
        ({"kind": "gamma", "cv": 1e3}, 1.0, 5, "arrivals.cv = 1000.0: must be from 0.01 to 100"),
        ({"kind": "gamma", "cv": 1e-3}, 1.0, 5, "arrivals.cv = 0.001: must be from 0.01 to 100"),
        ({"kind": "mmpp", "cycle_s": 0.01}, 2.0, 5, "arrivals.cycle_s = 0.01 at rate_rps = 2.0: must be at least"),
        ({"kind": "diurnal", "period_s": 0.01}, 2.0, 5, "arrivals.period_s = 0.01 at rate_rps = 2.0: must be at least"),
    ],
)
def test_refuses_what_no_process_can_give(options: dict[str, Any], rate: float | None, n: int, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        draw_arrivals(Arrivals(**options), rate, n, np.random.default_rng(0))
    assert said in str(refusal.value)


def test_refuses_to_rescale_a_trace_at_one_time(recorded: TraceFile) -> None:
    arrivals = Arrivals(kind="trace", trace=replace(recorded, start_s=2.0, duration_s=1.0))
    assert arrival_times(arrivals, None, 5, np.random.default_rng(0)).tolist() == [0, 0]
    with pytest.raises(InputError, match=r"trace\.csv: .* no rate to rescale to rate_rps = 3\.0"):
        draw_arrivals(arrivals, 3.0, 5, np.random.default_rng(0))


@pytest.mark.parametrize("kind", KINDS)
def test_drawing_takes_well_under_a_microsecond_an_arrival(kind: str) -> None:
    n, seconds = 200_000, []
    for seed in range(3):
        started = time.process_time()
        arrival_times(Arrivals(kind=kind), 5.0, n, np.random.default_rng(seed))
        seconds.append(time.process_time() - started)
    assert min(seconds) / n < 0.6e-6  # a Python loop over arrivals takes more; measured: 0.01 to 0.2
