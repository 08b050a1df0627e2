"""Metrics of an episode, by which routers are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.sim.state import CANCELLED, CONFINED, DROPPED, FAILED, FINISHED, REJECTED, ROUTED, TOO_LONG
from rllib_envs.simulation import Records, Simulation

Values = NDArray[np.floating[Any]]

_LEVELS = 201  # of quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric of an episode: its meaning, and how tables show it."""

    label: str
    unit: str = ""
    scale: float = 1.0  # shown value = scale * value
    digits: int = 3
    larger_is_better: bool = False


METRICS: dict[str, Metric] = {
    "qos": Metric(label="QoS per arrived request", digits=4, larger_is_better=True),  # score if in time, else 0; drops 0
    "violation_rate": Metric(label="late", unit="%", scale=100, digits=2),  # finished late, per arrived request
    "drop_rate": Metric(label="dropped", unit="%", scale=100, digits=2),  # by the router, per arrived request
    "rejected_rate": Metric(label="rejected", unit="%", scale=100, digits=2),  # by a full expert, per arrived request
    "confined_rate": Metric(label="confined", unit="%", scale=100, digits=2),  # rejected: none may take it that can; likewise
    "cancelled_rate": Metric(label="cancelled", unit="%", scale=100, digits=2),  # by clients that gave up, per arrived request
    "failed_rate": Metric(label="failed", unit="%", scale=100, digits=2),  # with their expert, and not sent again; likewise
    "retried_rate": Metric(label="retried", unit="%", scale=100, digits=2),  # sent again, after their expert had failed; likewise
    "too_long_rate": Metric(label="too long", unit="%", scale=100, digits=2),  # prompts that no expert holds, per request of all
    "completion_rate": Metric(label="finished", unit="%", scale=100, digits=2, larger_is_better=True),
    "mean_score": Metric(label="score of finished", digits=4, larger_is_better=True),  # true quality, in time or not
    "latency_per_token_mean_s": Metric(label="latency/token mean", unit="ms", scale=1e3, digits=1),
    "latency_per_token_p50_s": Metric(label="latency/token p50", unit="ms", scale=1e3, digits=1),
    "latency_per_token_p90_s": Metric(label="latency/token p90", unit="ms", scale=1e3, digits=1),
    "latency_per_token_p99_s": Metric(label="latency/token p99", unit="ms", scale=1e3, digits=1),
    "ttft_mean_s": Metric(label="TTFT mean", unit="s"),
    "ttft_p50_s": Metric(label="TTFT p50", unit="s"),
    "ttft_p99_s": Metric(label="TTFT p99", unit="s"),
    "tpot_mean_s": Metric(label="TPOT mean", unit="ms", scale=1e3, digits=1),
    "tpot_p99_s": Metric(label="TPOT p99", unit="ms", scale=1e3, digits=1),
    "preemptions_per_request": Metric(label="preemptions per request"),
    "qos_per_gpu_s": Metric(label="QoS per busy GPU-second", digits=3, larger_is_better=True),
    "qos_per_kv_gb_s": Metric(label="QoS per GB-second of KV", digits=3, larger_is_better=True),
    "energy_j_per_request": Metric(
        label="energy per request", unit="J", digits=1
    ),  # of all experts, idle too, per arrived request
    "qos_per_kj": Metric(label="QoS per kJ", digits=3, larger_is_better=True),
    "active_j_per_request": Metric(label="active energy per request", unit="J", digits=1),  # the part while iterations run
    "cost_per_1000": Metric(label="cost per 1,000 requests", digits=3),  # of all tokens of those sent, per 1,000 arrived
    "arrival_rps": Metric(label="arrivals", unit="/s", digits=2),
    "duration_s": Metric(label="duration", unit="s", digits=1),  # from time 0 until the cluster is empty
    "longest_wait_s": Metric(label="longest wait", unit="s", digits=2),  # from arrival to the first iteration: starvation
    "class_fairness": Metric(label="Jain, classes", digits=3, larger_is_better=True),  # of the share in time; 1: all alike
    "tenant_fairness": Metric(label="Jain, tenants", digits=3, larger_is_better=True),
}
"""The figures of ``episode_metrics``. "Arrived" are the requests that some expert can hold: those with longer prompts are counted
by ``too_long_rate`` alone, and in ``arrival_rps``. Latencies are over finished requests; NaN where there is none."""

EXPENSES = ("energy_j_per_request", "qos_per_kj", "cost_per_1000")
"""Figures of scenarios whose experts have watts, or prices; NaN in others."""

ACTIVE_J = "active_j_per_request"
"""The part of the energy that requests have to themselves: classes and tenants share the rest."""

USUALLY_ZERO = ("confined_rate", "cancelled_rate", "failed_rate", "retried_rate", "too_long_rate")
"""Figures that tables show where any router, or workload, has them."""


def metrics_of(scenario: Scenario) -> list[str]:
    """Names of the metrics that say something in this scenario.

    Fairness is between several classes, or tenants. Energy needs watts, and cost needs prices.
    """
    says = {
        "class_fairness": len(scenario.classes) > 1,
        "tenant_fairness": len(scenario.tenants) > 1,
        "energy_j_per_request": scenario.has_watts,
        "qos_per_kj": scenario.has_watts,
        ACTIVE_J: scenario.has_watts,
        "cost_per_1000": scenario.has_prices,
    }
    return [name for name in METRICS if says.get(name, True)]


def episode_metrics(simulation: Simulation, cluster: int) -> dict[str, float]:
    """Compute the ``METRICS`` of a cluster whose episode is over."""
    records = simulation.records(cluster)
    experts = simulation.state.experts[cluster]
    kv_bytes = np.array([expert.engine.kv_bytes_per_token for expert in simulation.scenario.experts])
    qos = float(records.qos.sum())
    duration_s = float(simulation.now_s[cluster])
    energy_j = _energy_j(simulation.scenario, duration_s, experts["busy_s"])
    return {
        **request_metrics(records),
        "qos_per_gpu_s": _ratio(qos, float(experts["busy_s"].sum())),
        "qos_per_kv_gb_s": _ratio(qos, float((experts["kv_token_s"] * kv_bytes).sum()) / 1e9),
        "energy_j_per_request": _ratio(energy_j, _arrived(records)),
        "qos_per_kj": _ratio(qos, energy_j / 1e3),
        ACTIVE_J: active_j_per_request(simulation.scenario, records, np.ones_like(records.late), experts["busy_s"]),
        "cost_per_1000": cost_per_1000(simulation.scenario, records),
        "arrival_rps": _ratio(records.qos.size, float(records.arrival_s[-1])),
        "duration_s": duration_s,
    }


def request_metrics(records: Records) -> dict[str, float]:
    """Compute the metrics that follow from the requests alone."""
    arrived = _arrived(records)
    finished = records.status == FINISHED
    latency = records.latency_per_token_s[finished]
    ttft, tpot = records.ttft_s[finished], records.tpot_s[finished]
    tpot = tpot[~np.isnan(tpot)]  # one-token answers have none
    return {
        "qos": mean_qos(records),
        "violation_rate": _ratio(int(np.count_nonzero(records.late)), arrived),
        "drop_rate": _ratio(int(np.count_nonzero(records.status == DROPPED)), arrived),
        "rejected_rate": _ratio(int(np.count_nonzero(records.status == REJECTED)), arrived),
        "confined_rate": _ratio(int(np.count_nonzero(records.status == CONFINED)), arrived),
        "cancelled_rate": _ratio(int(np.count_nonzero(records.status == CANCELLED)), arrived),
        "failed_rate": _ratio(int(np.count_nonzero(records.status == FAILED)), arrived),
        "retried_rate": _ratio(int(np.count_nonzero(records.retries)), arrived),
        "too_long_rate": (records.qos.size - arrived) / records.qos.size,
        "completion_rate": _ratio(int(np.count_nonzero(finished)), arrived),
        "mean_score": _mean(records.score[finished]),
        "latency_per_token_mean_s": _mean(latency),
        **{f"latency_per_token_p{q}_s": _quantile(latency, q) for q in (50, 90, 99)},
        "ttft_mean_s": _mean(ttft),
        **{f"ttft_p{q}_s": _quantile(ttft, q) for q in (50, 99)},
        "tpot_mean_s": _mean(tpot),
        "tpot_p99_s": _quantile(tpot, 99),
        "preemptions_per_request": _ratio(float(records.preemptions.sum()), arrived),
        "longest_wait_s": _largest(records.first_scheduled_s - records.arrival_s),
        "class_fairness": fairness(records, records.service),
        "tenant_fairness": fairness(records, records.tenant),
    }


def mean_qos(records: Records) -> float:
    """QoS per arrived request (see ``METRICS``)."""
    return _ratio(float(records.qos.sum()), _arrived(records))


def cost_per_1000(scenario: Scenario, records: Records) -> float:
    """Price of all prompt and output tokens of the requests that were sent, per 1,000 arrived ones; NaN without prices.

    A cancelled request costs the tokens that it got. One that went down with its expert costs nothing there.
    """
    if not scenario.has_prices:
        return float("nan")
    sent = np.isin(records.status, (ROUTED, FINISHED, CANCELLED))
    price = np.array([(expert.prompt_price, expert.output_price) for expert in scenario.experts])[records.route[sent]]
    cost = (price * np.stack([records.prompt_tokens[sent], records.output_tokens[sent]], axis=1)).sum() / 1e6
    return 1e3 * _ratio(float(cost), _arrived(records))


def active_j_per_request(scenario: Scenario, records: Records, among: NDArray[np.bool_], busy_s: Values) -> float:
    """Energy of experts while iterations run, for each of some requests, joules; NaN without watts.

    The energy of an expert is divided between the requests that were sent there, in proportion to their output tokens.

    Args:
        scenario: has the watts.
        records: of all requests of the episode.
        among: (M,) the requests to count.
        busy_s: (N,) time that each expert ran iterations.
    """
    if not scenario.has_watts:
        return float("nan")
    n = scenario.n_experts
    sent = np.isin(records.status, (ROUTED, FINISHED))
    all_tokens, own_tokens = (
        np.bincount(records.route[which], records.output_tokens[which], n) for which in (sent, sent & among)
    )
    active_j = np.array([expert.active_w for expert in scenario.experts]) * busy_s
    arrived = int(np.count_nonzero(among & (records.status != TOO_LONG)))
    return _ratio(float((active_j * own_tokens / np.maximum(all_tokens, 1)).sum()), arrived)


def _energy_j(scenario: Scenario, duration_s: float, busy_s: Values) -> float:
    """Idle watts all the time, and the rest up to the active watts while iterations run, (N,) seconds; NaN without watts."""
    if not scenario.has_watts:
        return float("nan")
    idle_w, active_w = np.array([(expert.idle_w, expert.active_w) for expert in scenario.experts]).T
    return float((idle_w * duration_s + (active_w - idle_w) * busy_s).sum())


def fairness(records: Records, group: NDArray[np.int32]) -> float:
    """Jain's index over groups of requests, (M,) numbers: of the share of each group's arrived requests that are in time.

    ``sum(x)**2 / (n * sum(x**2))``, from 1 / n (one group has all) to 1 (Jain, Chiu and Hawe 1984). 1 where all have none.
    """
    arrived = records.status != TOO_LONG
    in_time = (records.status == FINISHED) & ~records.late
    numbers = np.unique(group[arrived])
    shares = np.array([in_time[arrived & (group == number)].mean() for number in numbers])
    return float(shares.sum()) ** 2 / (shares.size * float((shares**2).sum())) if shares.any() else 1.0


def routing_shares(scenario: Scenario, records: Records) -> list[float]:
    """(N+1,) share of the arrived requests sent to each expert, then dropped; NaN if none arrived (see ``METRICS``)."""
    routes = records.route[records.status != TOO_LONG]
    if routes.size == 0:
        return [float("nan")] * (scenario.n_experts + 1)
    return (np.bincount(routes, minlength=scenario.n_experts + 1) / routes.size).tolist()


def latency_quantiles(records: Sequence[Records], levels: int = _LEVELS) -> list[float]:
    """Quantiles of the latency per token, s, of all finished requests, at evenly spaced levels from 0 to 1; [] if none."""
    return _quantiles([r.latency_per_token_s[r.status == FINISHED] for r in records], levels)


def ttft_quantiles(records: Sequence[Records], levels: int = _LEVELS) -> list[float]:
    """The same of the time to first token, s."""
    return _quantiles([r.ttft_s[r.status == FINISHED] for r in records], levels)


def _quantiles(samples: Sequence[Values], levels: int) -> list[float]:
    values = np.concatenate(samples)
    return np.quantile(values, np.linspace(0, 1, levels)).tolist() if values.size else []


def _arrived(records: Records) -> int:
    """Number of requests that some expert can hold."""
    return int(np.count_nonzero(records.status != TOO_LONG))


def _mean(values: Values) -> float:
    return float(values.mean()) if values.size else float("nan")


def _largest(values: Values) -> float:
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else float("nan")


def _quantile(values: Values, percent: float) -> float:
    return float(np.quantile(values, percent / 100)) if values.size else float("nan")


def _ratio(value: float, per: float) -> float:
    return value / per if per > 0 else float("nan")
