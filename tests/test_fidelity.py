"""The simulated engine against a measured vLLM server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fidelity import RUN, replay, run_profile
from rllib_envs.measurements import MeasuredRun, read_run
from rllib_envs.profile_fit import RunErrors, compare_run
from rllib_envs.sim.profile import EngineProfile


@pytest.fixture(scope="module")
def run(data_dir: Path) -> MeasuredRun:
    return read_run(data_dir / "llmservingsim" / "vllm_runs", RUN)


@pytest.fixture(scope="module")
def profile(data_dir: Path, run: MeasuredRun) -> EngineProfile:
    return run_profile(data_dir, run)


@pytest.fixture(scope="module")
def errors(run: MeasuredRun, profile: EngineProfile) -> RunErrors:
    return compare_run(run, *replay(run, profile))


@pytest.mark.parametrize("quantity", ["e2e", "tpot"])
def test_latency_and_time_per_token_are_within_four_percent(errors: RunErrors, quantity: str) -> None:
    error = getattr(errors, quantity)
    assert np.median(np.abs(error)) <= 0.04
    assert abs(np.mean(error)) <= 0.04
    assert np.quantile(np.abs(error), 0.9) <= 0.08


def test_the_order_in_which_requests_finish_is_kept(run: MeasuredRun, profile: EngineProfile) -> None:
    simulated, measured = replay(run, profile)[1], run.last_token_s
    apart = np.abs(measured[:, None] - measured) > 2.0  # s
    agree = (simulated[:, None] > simulated) == (measured[:, None] > measured)
    assert agree[apart].mean() > 0.99


def test_the_server_is_slower_than_its_kernels(run: MeasuredRun, profile: EngineProfile) -> None:
    """Without the overhead factor the replay is too fast: the factor stands for something that is there."""
    kernels_alone = compare_run(run, *replay(run, replace(profile, overhead=1.0)))
    assert np.mean(kernels_alone.e2e) < 0
    assert np.mean(kernels_alone.tpot) < 0
