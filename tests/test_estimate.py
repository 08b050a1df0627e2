"""Estimating an engine from records of requests, or from its log of iterations, where the engine is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.calibration import ENGINES, load, served, settings
from gateway.calibration.design import Planned
from rllib_envs.errors import InputError
from rllib_envs.profiles.estimate import busy_periods, estimate_profile, predicted_run
from rllib_envs.profiles.fit import compare_run, fit_batches
from rllib_envs.profiles.iteration_log import read_iteration_log
from rllib_envs.profiles.records import RequestRecord, as_run
from rllib_envs.profiles.replay import replay_requests
from rllib_envs.sim.reference import Arrival, Engine, simulate
from tests.draws import examples
from tests.sim.engine_runs import runs

GPU, VLLM_CPU, LLAMA = ENGINES.values()
CPU = replace(VLLM_CPU, async_scheduling=False)


@pytest.mark.parametrize("engine", [GPU, VLLM_CPU, LLAMA], ids=["gpu", "vllm-cpu", "llama.cpp"])
def test_held_out_requests_are_predicted_where_times_have_three_per_cent_of_noise(engine):
    run = served(engine, load(engine), 0.03, 1)
    estimate = estimate_profile(run, settings(engine, engine.async_scheduling))
    assert np.median(np.abs(estimate.unseen.e2e)) < 0.05
    assert np.median(np.abs(estimate.unseen.ttft)) < 0.06
    other = served(engine, load(engine, seed=5), 0.0, 0)  # other arrivals, as the engine serves them without noise
    errors = compare_run(other, *(other.arrival_s + part for part in predicted_run(other, estimate.profile)))
    assert np.median(np.abs(errors.e2e)) < 0.04
    first, last = estimate.latency_interval(256, 32, 4)
    assert first.low <= first.mean <= first.high < last.low <= last.mean <= last.high


def test_more_noise_makes_wider_intervals():
    widths = []
    for noise in (0.01, 0.1):
        _, last = estimate_profile(served(CPU, load(CPU), noise, 1), settings(CPU, False)).latency_interval(256, 64)
        widths.append(last.high - last.low)
    assert widths[0] < widths[1]


def test_hiccups_of_the_machine_move_little():
    run = served(CPU, load(CPU), 0.03, 1)
    late = run.last_token_s + np.where(np.random.default_rng(3).random(run.last_token_s.size) < 0.05, 3.0, 0.0)
    estimate = estimate_profile(replace(run, last_token_s=late), settings(CPU, False))
    other = served(CPU, load(CPU, seed=5), 0.0, 0)
    errors = compare_run(other, *(other.arrival_s + part for part in predicted_run(other, estimate.profile)))
    assert np.median(np.abs(errors.e2e)) < 0.04


def test_a_fit_is_the_same_each_time_and_for_records_in_any_order():
    run = served(CPU, load(CPU)[:8], 0.03, 1)
    records = [
        RequestRecord(*row)
        for row in zip(
            run.arrival_s.tolist(), run.prompt_tokens.tolist(), run.output_tokens.tolist(),
            run.first_token_s.tolist(), run.last_token_s.tolist(), strict=True,
        )
    ]  # fmt: skip
    limits = {"max_num_seqs": run.max_num_seqs, "max_num_batched_tokens": run.max_num_batched_tokens}
    profiles = [estimate_profile(as_run(rows, **limits), settings(CPU, False)).profile for rows in (records, records[::-1])]
    assert profiles[0] == profiles[1]


def test_too_few_records_are_refused():
    run = served(CPU, [[Planned(0.0, 32, 4)]] * 3, 0.0, 0)
    with pytest.raises(InputError, match="3 records of requests: at least 20 are needed"):
        estimate_profile(run, settings(CPU))
    many = served(CPU, [[Planned(0.0, 32, 4)]] * 30, 0.0, 0)
    with pytest.raises(InputError, match="limits of the server: max_num_batched_tokens = 2: must be >= max_num_seqs"):
        estimate_profile(many, replace(settings(CPU), max_num_batched_tokens=2))


@examples(60)
@given(runs())
def test_a_replay_is_what_the_reference_engine_does(drawn):
    engine, arrivals = drawn
    columns = zip(*((a.arrival_s, a.prompt_tokens, a.output_tokens) for a in arrivals), strict=True)
    arrival_s, prompts, outputs = (np.array(column) for column in columns)
    first_come = replace(engine, scheduling="fcfs")
    times = replay_requests([first_come, first_come], arrival_s.astype(float), prompts, outputs)
    one_class = [replace(arrival, priority=0) for arrival in arrivals]
    outcomes = simulate(first_come, one_class).outcomes
    for k in (0, 1):
        np.testing.assert_allclose(times.finish_s[k], [o.finish_s for o in outcomes], rtol=1e-9)
        np.testing.assert_allclose(times.first_token_s[k], [o.first_token_s for o in outcomes], rtol=1e-9)


@examples(100)
@given(st.lists(st.tuples(st.floats(0.01, 3.0), st.floats(0.01, 5.0)), min_size=1, max_size=20))
def test_nothing_is_in_flight_between_busy_periods(drawn):
    arrival_s = np.cumsum([gap for gap, _ in drawn])
    records = [RequestRecord(at, 1, 2, at + stay / 2, at + stay) for at, (_, stay) in zip(arrival_s.tolist(), drawn, strict=True)]
    run = as_run(records, max_num_seqs=1, max_num_batched_tokens=1)
    period = busy_periods(run)
    for i in range(1, period.size):
        in_flight = (run.last_token_s[:i] >= run.arrival_s[i]).any()
        assert period[i] - period[i - 1] == (0 if in_flight else 1)


def vllm_log(engine, arrivals):
    """The log of a vLLM server that runs as the engine does, in its own words."""
    arguments = {
        "model": "acme/model",
        "max_num_seqs": engine.max_num_seqs,
        "max_num_batched_tokens": engine.max_num_batched_tokens,
        "async_scheduling": engine.async_scheduling,
    }
    lines = [
        f"(APIServer pid=1) INFO 11-27 10:00:00 [api_utils.py:286] non-default args: {arguments}",
        f"INFO 11-27 10:00:09 [kv_cache_utils.py:2327] GPU KV cache size: {engine.kv_tokens:,} tokens, "
        f"Maximum concurrency for {engine.max_model_len:,} tokens per request: 8.00x",
    ]
    composed = []

    class Watched(Engine):
        def compose(self, start_s):
            scheduled = super().compose(start_s)
            prompts = [new for request, new in scheduled.items() if request.prefilling]
            composed.append((len(prompts), sum(prompts), len(scheduled) - len(prompts)))
            return scheduled

    ends = []

    def note(at):
        prompts, tokens, decodes = composed[-1]
        usage = 100 * 16 * sum(len(request.blocks) for request in at.running) / engine.kv_tokens
        ms = 1e3 * (at.busy_s - (ends[-1] if ends else 0.0))
        ends.append(at.busy_s)
        lines.append(
            f"INFO 11-27 10:00:10 [loggers.py:199] Engine 000: Iteration({len(ends)}): {prompts} context requests, {tokens} "
            f"context tokens, {decodes} generation requests, {decodes} generation tokens, iteration elapsed time: {ms:.2f} ms, "
            f"GPU KV cache usage: {usage:.1f}%"
        )

    simulate(engine, arrivals, engine=Watched(engine), after_step=note)
    return "\n".join(lines)


def test_the_log_of_iterations_gives_the_engine_back(tmp_path):
    waves, start_s, arrivals = load(CPU), 0.0, []
    for wave in waves:
        arrivals += [
            Arrival(arrival_s=start_s + p.after_s, prompt_tokens=p.prompt_tokens, output_tokens=p.output_tokens) for p in wave
        ]
        start_s += 1e3
    engine = replace(CPU, handoff_s=0.0)
    (tmp_path / "vllm.log").write_text(vllm_log(engine, arrivals))
    log = read_iteration_log(tmp_path / "vllm.log")
    assert (log.kv_tokens, log.model, log.async_scheduling) == (engine.kv_tokens, "acme/model", False)
    assert log.limits == {"max_num_seqs": 16, "max_num_batched_tokens": 512, "max_model_len": 2048}
    limits = {name: getattr(engine, name) for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len")}
    fitted, unseen = fit_batches(log.batches, "log", kv_tokens=engine.kv_tokens, kv_bytes_per_token=1, **limits)
    assert np.median(np.abs(unseen.fitted_ms / unseen.measured_ms - 1)) < 0.02
    run = served(engine, waves, 0.0, 0)
    profile = replace(fitted.profile, async_scheduling=False)
    errors = compare_run(run, *(run.arrival_s + part for part in predicted_run(run, profile)))
    assert np.median(np.abs(errors.e2e)) < 0.03


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("INFO nothing here", "no line of an iteration: start the server with --enable-logging-iteration-details"),
        (
            "Iteration(1): 0 context requests, 0 context tokens, 1 generation requests, 1 generation tokens, "
            "iteration elapsed time: 5.00 ms",
            "an iteration without KV cache usage",
        ),
        (
            "Iteration(1): 0 context requests, 0 context tokens, 1 generation requests, 1 generation tokens, "
            "iteration elapsed time: 5.00 ms, GPU KV cache usage: 1.0%",
            "no line 'KV cache size'",
        ),
    ],
)
def test_a_log_without_what_is_needed_is_named(tmp_path, text, message):
    (tmp_path / "x.log").write_text(text)
    with pytest.raises(InputError, match=message):
        read_iteration_log(tmp_path / "x.log")
