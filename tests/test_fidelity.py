"""The simulated engine against a measured vLLM server, and the fitted cost form against the measured layer times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fidelity import MODELS, RUN, replay, run_profile, table_errors
from rllib_envs.profiles.fit import SERVER_MIXED_MS, RunErrors, compare_run
from rllib_envs.profiles.measurements import MeasuredRun, read_run
from rllib_envs.sim.profile import EngineProfile

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(data_dir: Path) -> MeasuredRun:
    return read_run(data_dir / "llmservingsim" / "vllm_runs", RUN)


@pytest.fixture(scope="module")
def profile(data_dir: Path, run: MeasuredRun) -> EngineProfile:
    return run_profile(data_dir, run)


@pytest.fixture(scope="module")
def errors(run: MeasuredRun, profile: EngineProfile) -> RunErrors:
    return compare_run(run, *replay(run, profile))


@pytest.mark.parametrize(
    ("quantity", "median", "bias", "tail"),
    [("e2e", 0.0115, 0.0115, 0.04), ("tpot", 0.018, 0.0135, 0.06), ("ttft", 0.031, 0.012, 0.18)],
)
def test_the_replayed_run_takes_the_time_it_took(
    errors: RunErrors, quantity: str, median: float, bias: float, tail: float
) -> None:
    error = getattr(errors, quantity)
    assert np.median(np.abs(error)) <= median
    assert abs(np.mean(error)) <= bias
    assert np.quantile(np.abs(error), 0.9) <= tail


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model[0])
def test_the_fitted_form_serves_as_the_layer_times_do(data_dir: Path, run: MeasuredRun, model: tuple[str, int, int, int]) -> None:
    """Also where no run is at hand and KV blocks are short: held against the interpolated times."""
    errors = table_errors(data_dir, run, model)
    for error in (errors.e2e, errors.tpot):
        assert np.median(np.abs(error)) <= 0.017
        assert abs(np.mean(error)) <= 0.017


def test_the_order_in_which_requests_finish_is_kept(run: MeasuredRun, profile: EngineProfile) -> None:
    simulated, measured = replay(run, profile)[1], run.last_token_s
    apart = np.abs(measured[:, None] - measured) > 2.0  # s
    agree = (simulated[:, None] > simulated) == (measured[:, None] > measured)
    assert agree[apart].mean() > 0.99


def test_the_server_is_slower_than_its_kernels(run: MeasuredRun, profile: EngineProfile) -> None:
    """Without what the server adds to iterations with prefill the replay is too fast: the figure stands for something there."""
    kernels = replace(profile, c0_mixed_ms=profile.c0_mixed_ms - SERVER_MIXED_MS)
    kernels_alone = compare_run(run, *replay(run, kernels))
    assert np.mean(kernels_alone.e2e) < -0.03
    assert np.mean(kernels_alone.tpot) < -0.02
