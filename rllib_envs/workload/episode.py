"""One episode: all its random values, drawn from one seed through named streams.

A change in the use of one stream (more noise, another arrival process) does not change the draws of the others. So two scenarios
that differ in one thing are compared on the same requests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import LOAD_FRACTIONS, Faults, Scenario
from rllib_envs.sim.profile import BLOCK_TOKENS, EngineProfile, within_limits
from rllib_envs.sim.terms import SCORE_GRID
from rllib_envs.workload.arrivals import draw_arrivals
from rllib_envs.workload.catalogue import draw_requests
from rllib_envs.workload.disturbances import DYNAMIC_STREAMS, Disturbances, draw_disturbances
from rllib_envs.workload.predictions import predict
from rllib_envs.workload.replay import episode_requests
from rllib_envs.workload.users import USER_STREAMS, draw_users
from rllib_envs.workload.variation import vary

_STREAMS = (
    "load", "arrivals", "requests", "predictions", "faults", "variation", "judgements", *USER_STREAMS, *DYNAMIC_STREAMS,
)  # fmt: skip
_COEFFICIENTS = ("c0_ms", "b_ms", "c_ms", "a_ms", "q_ms", "c_mixed_ms")  # each errs independently; c0_mixed_ms errs as c0_ms does


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """The data of one episode of M requests on N experts."""

    arrival_s: NDArray[np.float64]  # (M,) ascending
    prompt: NDArray[np.int32]  # (M,)
    score: NDArray[np.float32]  # (M, N) true
    output: NDArray[np.int32]  # (M, N) true tokens
    predicted_score: NDArray[np.float32]  # (M, N)
    predicted_tokens: NDArray[np.float32]  # (M, N) means
    predicted_log_sd: NDArray[np.float32]  # (M, N) standard deviation of the log length about its prediction
    predicted_log_median: NDArray[np.float64]  # (N,) median of log(true / predicted tokens) if nothing is wrong
    judged: NDArray[np.bool_]  # (M,) whether the score of the answer becomes known when it has finished
    user: NDArray[np.void]  # (M,) USER
    engines: tuple[EngineProfile, ...]  # (N,) the actual engines
    nominal: tuple[EngineProfile, ...]  # (N,) as given to the router
    telemetry_delay_s: float
    disturbances: Disturbances | None = None  # None: nothing changes


def draw_episode(scenario: Scenario, capacity_rps: float, seed: int | np.random.SeedSequence) -> Episode:
    """Draw one episode; named loads are fractions of ``capacity_rps``.

    Raises:
        InputError: a trace or catalogue file cannot be read.
    """
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    # Children by key rather than spawn(): the same sequence passed twice gives the same episode.
    streams = {
        name: np.random.default_rng(np.random.SeedSequence(root.entropy, spawn_key=(*root.spawn_key, i)))
        for i, name in enumerate(_STREAMS)
    }
    if scenario.variation is not None:
        scenario = vary(scenario, streams["variation"])
    nominal = tuple(_with_kv_share(expert.engine, scenario.faults.kv_factor) for expert in scenario.experts)
    rate = _rate_rps(scenario, capacity_rps, streams["load"])
    arrivals = draw_arrivals(scenario.workload.arrivals, rate, episode_requests(scenario.workload), streams["arrivals"])
    user = draw_users(scenario, arrivals.arrival_s, streams, arrivals.classes)
    requests = draw_requests(
        scenario, arrivals.arrival_s.size, streams["requests"], arrivals.prompt_tokens, arrivals.lengths, user["service"]
    )
    predicted = predict(scenario.predictions, requests, streams["predictions"])
    return Episode(
        arrival_s=arrivals.arrival_s,
        prompt=requests.prompt_tokens,
        score=(np.rint(requests.score * SCORE_GRID) / SCORE_GRID).astype(np.float32),
        output=requests.output_tokens,
        predicted_score=predicted.score.astype(np.float32),
        predicted_tokens=predicted.output_tokens.astype(np.float32),
        predicted_log_sd=predicted.log_sd.astype(np.float32),
        predicted_log_median=predicted.median,
        judged=streams["judgements"].random(arrivals.arrival_s.size) < scenario.observation.judged_share,
        user=user,
        engines=_true_engines(nominal, scenario.faults, streams["faults"]),
        nominal=nominal,
        telemetry_delay_s=scenario.faults.telemetry_delay_s,
        disturbances=draw_disturbances(scenario, arrivals.arrival_s, streams),
    )


def _rate_rps(scenario: Scenario, capacity_rps: float, rng: np.random.Generator) -> float | None:
    """Mean arrival rate of the episode; None = the trace's own."""
    load = scenario.workload.load
    if load == "native":
        return None
    if load == "mixed":
        low, high = np.log(scenario.workload.mixed_range)
        return capacity_rps * float(np.exp(rng.uniform(low, high)))
    if isinstance(load, str):
        return capacity_rps * LOAD_FRACTIONS[load]
    return load


def _with_kv_share(engine: EngineProfile, share: float) -> EngineProfile:
    """The engine with this share of its KV blocks, but at least as many as one longest request needs."""
    if share == 1:
        return engine
    blocks = max(int(share * engine.usable_blocks), math.ceil(engine.max_model_len / BLOCK_TOKENS))
    return replace(engine, kv_tokens=(blocks + 1) * BLOCK_TOKENS)  # one is the server's null block


def _true_engines(configured: tuple[EngineProfile, ...], faults: Faults, rng: np.random.Generator) -> tuple[EngineProfile, ...]:
    """The actual engines, if the figures given to the router are wrong."""
    normal = rng.standard_normal(len(configured))
    signs = rng.choice([-1.0, 1.0], size=(len(configured), len(_COEFFICIENTS)))
    if (faults.engine_factor, faults.engine_expert_log_sd, faults.engine_coefficient_factor) == (1, 0, 1):
        return configured
    common = faults.engine_factor * np.exp(faults.engine_expert_log_sd * normal)
    factors = common[:, None] * faults.engine_coefficient_factor**signs
    return tuple(
        replace(
            engine,
            c0_mixed_ms=within_limits("c0_mixed_ms", engine.c0_mixed_ms * float(row[0])),
            **{name: within_limits(name, getattr(engine, name) * float(f)) for name, f in zip(_COEFFICIENTS, row, strict=True)},
        )
        for engine, row in zip(configured, factors, strict=True)
    )
