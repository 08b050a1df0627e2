"""Drawn scenarios: a cluster, its requests and its arrivals from one generator, over the range that public measurements span.

``TRAINING`` is the law of the fleets that training draws. ``UNSEEN`` has other laws, for tests of a router in fleets that
training never draws. The engines' figures are drawn relative to the SLO, to each other or to the memory, as these ratios decide
what is scarce:

- an idle iteration takes .05 to .75 of the SLO, from an H100 with a small model to a T4 with one that is nearly too large;
- prefill, batch and attention costs relative to it span the measured pairs of ``rllib_envs.scenarios.fleet`` and twice as much;
- a context token costs 3e-5 ms (an H100 with grouped heads) to 2.5e-2 ms (``paper3``);
- the KV memory holds from barely one of the longest requests to hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rllib_envs.capacity import capacity_rps
from rllib_envs.expert import Expert
from rllib_envs.scenario import Arrivals, Catalogue, Predictions, Scenario, Workload, with_workload
from rllib_envs.sim.profile import EngineProfile

LOADS = (0.1, 1.8)
"""Range of the mean rate over the capacity."""

_LEAST_CARRIED_RPS = 0.01  # of an expert in the mean; a fleet that carries less is hardly ever in time, however it is used
_LEAST_CYCLE = 0.2  # requests of a cycle in the mean; arrival processes refuse half of it
_LONGEST = (1024, 2048, 4096, 8192)
_MOST_KV_TOKENS = 400_000
_MOST_ALONE = 0.85  # share of the SLO that a mean request takes on an idle engine, at most
_ANSWER_SHARE, _PROMPT_SHARE = 0.2, 0.2  # of the longest request, at most, in the mean


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetLaw:
    """How a fleet's experts are drawn. Pairs are ranges; a range of ratios or scales is drawn log-uniformly."""

    experts: tuple[int, int] = (2, 64)
    slo_s: tuple[float, float] = (0.015, 0.2)
    idle_share: tuple[float, float] = (0.08, 0.7)  # an idle iteration over the SLO: the middle of the fleet
    idle_spread: tuple[float, float] = (0.0, 0.6)  # log standard deviation between its experts
    context_ms: tuple[float, float] = (3e-5, 2.5e-2)  # per context token: the middle of the fleet
    kv_requests: tuple[float, float] = (1.05, 100.0)  # KV memory over the longest request: the middle of the fleet
    quality: tuple[float, float] = (0.2, 0.8)  # mean score: the middle of the fleet
    quality_spread: tuple[float, float] = (0.0, 0.8)  # standard deviation of its logit between the experts
    quality_of_slow: tuple[float, float] = (-0.3, 0.9)  # correlation between the logit and the log of the idle iteration
    answer_tokens: tuple[float, float] = (10.0, 1600.0)
    prompt_tokens: tuple[float, float] = (20.0, 1600.0)
    alike: bool = False  # all experts have the same figures
    giant: tuple[float, float] | None = None  # the first expert's idle iteration and KV memory over what was drawn for it


TRAINING = FleetLaw()

UNSEEN: Mapping[str, FleetLaw] = {
    "slow": FleetLaw(idle_share=(0.6, 0.75), idle_spread=(0.0, 0.1)),
    "tight": FleetLaw(kv_requests=(1.02, 1.5), answer_tokens=(200.0, 1600.0)),
    "giant": FleetLaw(experts=(4, 16), idle_share=(0.4, 0.7), kv_requests=(1.05, 4.0), giant=(0.2, 20.0)),
    "alike": FleetLaw(experts=(64, 64), alike=True, quality_spread=(0.0, 0.0)),
    "cloud": FleetLaw(experts=(3, 12), idle_share=(0.3, 0.6), quality=(0.2, 0.5), giant=(0.15, 40.0)),
}
"""Fleets of other laws: all slow, all with little KV memory, one giant among dwarfs, 64 alike, a better one in the cloud."""


def draw_fleet(rng: np.random.Generator, law: FleetLaw = TRAINING, experts: int | None = None) -> Scenario:
    """Draw a cluster and its requests; the arrivals are Poisson at moderate load.

    Args:
        rng: source of the draws.
        law: how they are drawn.
        experts: number of experts; None to draw it.
    """
    n = experts if experts is not None else round(_log_uniform(rng, *law.experts))
    slo_s = _round(_log_uniform(rng, *law.slo_s))
    longest = int(rng.choice(_LONGEST))
    answer = min(_log_uniform(rng, *law.answer_tokens), _ANSWER_SHARE * longest)
    prompt = min(_log_uniform(rng, *law.prompt_tokens), _PROMPT_SHARE * longest)
    own = np.zeros((5, n)) if law.alike else rng.standard_normal((5, n))
    idle_sd, quality_sd = rng.uniform(*law.idle_spread), rng.uniform(*law.quality_spread)
    idle = np.clip(_log_uniform(rng, *law.idle_share) * np.exp(idle_sd * own[0]), 0.05, 0.75)
    correlation = rng.uniform(*law.quality_of_slow)
    tilt = correlation * own[0] + math.sqrt(1 - correlation**2) * own[1]
    middle = rng.uniform(*law.quality)
    score = 1 / (1 + np.exp(-(math.log(middle / (1 - middle)) + quality_sd * tilt)))
    answers = np.clip(answer * np.exp(rng.uniform(0, 0.4) * own[2]), 4, 0.3 * longest)
    context_ms = _log_uniform(rng, *law.context_ms) * np.exp(0.6 * own[3])
    kv = longest * _log_uniform(rng, *law.kv_requests) * np.exp(0.6 * own[4])
    if law.giant is not None:
        idle[0], kv[0], score[0] = law.giant[0] * idle[0], law.giant[1] * kv[0], max(score.max(), 0.5) + 0.1
    seqs = int(rng.choice((32, 64, 128, 256, 256)))
    budget = int(rng.choice((512, 2048, 2048, 8192)))
    prefill, batch, attention = (_log_uniform(rng, *limits) for limits in ((2.5e-3, 1.2e-2), (8e-4, 5e-3), (3e-5, 1.5e-4)))
    hinge = round(_log_uniform(rng, 16, 256))
    fleet: list[Expert] = []
    for i in range(n):
        c0_ms = 1e3 * slo_s * idle[i]
        room_ms = 1e3 * slo_s * _MOST_ALONE - c0_ms
        c_ms = min(context_ms[i], 0.9 * room_ms / (prompt + answers[i]))
        engine = EngineProfile(
            c0_ms=_round(c0_ms), b_ms=_round(batch * c0_ms), c_ms=_round(c_ms), a_ms=_round(prefill * c0_ms), n0_tokens=hinge,
            q_ms=_round(attention * prefill * c0_ms), kv_tokens=int(np.clip(kv[i], longest + 64, _MOST_KV_TOKENS)),
            kv_bytes_per_token=131_072, max_num_seqs=seqs, max_num_batched_tokens=max(budget, seqs), max_model_len=longest,
        )  # fmt: skip
        fleet.append(
            Expert(
                name=f"expert-{i + 1}", model=f"drawn-{i + 1}", gpu="drawn", params_b=8.0, engine=engine,
                mean_score=round(float(np.clip(score[i], 0.05, 0.95)), 3), mean_output_tokens=_round(float(answers[i])),
            )
        )  # fmt: skip
    catalogue = Catalogue(prompt_tokens_mean=_round(prompt), prompt_tokens_cv=round(rng.uniform(0.5, 1.5), 2))
    return Scenario(name="drawn", experts=tuple(fleet), slo_s_per_token=slo_s, workload=Workload(catalogue=catalogue))


def draw_able_fleet(rng: np.random.Generator, law: FleetLaw = TRAINING, experts: int | None = None) -> Scenario:
    """``draw_fleet`` with its capacity measured; drawn again while it carries next to nothing."""
    while True:
        fleet = draw_fleet(rng, law, experts)
        carried_rps = capacity_rps(fleet)
        if carried_rps >= _LEAST_CARRIED_RPS * fleet.n_experts:
            return replace(fleet, capacity_rps=_round(carried_rps))


def draw_conditions(rng: np.random.Generator, rate_rps: float, requests: int) -> tuple[Arrivals, Predictions]:
    """Draw arrivals and predictions for an episode of ``requests`` requests at a mean rate of ``rate_rps``.

    A cycle of a fluctuating process is at most half the episode: a longer one would be another load. It is no shorter than the
    time of a fifth of a request, as an arrival process must be.
    """
    shortest_s, longest_s = _LEAST_CYCLE / rate_rps, 0.5 * requests / rate_rps
    kind = rng.choice(("poisson", "gamma", "mmpp", "floods", "diurnal"), p=(0.4, 0.1, 0.3, 0.1, 0.1))
    if kind == "poisson":
        arrivals = Arrivals()
    elif kind == "gamma":
        arrivals = Arrivals(kind="gamma", cv=_round(rng.uniform(1.5, 4.0)))
    elif kind == "mmpp":
        cycle_s = min(max(_log_uniform(rng, 5, 300), shortest_s), longest_s)
        ratio, share = _round(rng.uniform(2, 10)), _round(rng.uniform(0.1, 0.4))
        arrivals = Arrivals(kind="mmpp", burst_ratio=ratio, burst_share=share, cycle_s=_round(cycle_s))
    elif kind == "floods":
        cycle_s = min(max(_log_uniform(rng, 5, 60), shortest_s), longest_s)
        arrivals = Arrivals(kind="mmpp", burst_ratio=_round(rng.uniform(10, 30)), burst_share=0.05, cycle_s=_round(cycle_s))
    else:
        period_s = min(max(_log_uniform(rng, 60, 600), shortest_s), 2 * longest_s)
        arrivals = Arrivals(kind="diurnal", period_s=_round(period_s), amplitude=_round(rng.uniform(0.3, 0.9)))
    return arrivals, INFORMATION[int(rng.integers(len(INFORMATION)))]


INFORMATION = (
    Predictions(law="means"),
    Predictions(law="measured"),
    Predictions(law="oracle-noise"),
    Predictions(law="oracle-noise", score_sd=0.03, length_log_sd=0.1),
)
"""Predictions from the least to the most informative: those of an expert's means up to nearly the truth."""


def draw_scenario(
    rng: np.random.Generator, *, law: FleetLaw = TRAINING, experts: int | None = None, requests: int = 1000
) -> Scenario:
    """Draw a fleet and its conditions: one of the worlds that training meets.

    Args:
        rng: source of the draws.
        law: that of the fleet.
        experts: number of experts; None to draw it.
        requests: arrivals in an episode.
    """
    fleet = draw_able_fleet(rng, law, experts)
    load = _log_uniform(rng, *LOADS)
    rate_rps = _round(load * capacity_rps(fleet))
    arrivals, predictions = draw_conditions(rng, rate_rps, requests)
    return replace(with_workload(fleet, arrivals=arrivals, load=rate_rps, requests=requests), predictions=predictions)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _round(value: float) -> float:
    """Three significant digits: more would claim too much, and these read well."""
    return float(f"{value:.3g}")
