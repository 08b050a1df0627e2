"""Predicted against measured times of a log's streams, and what that says of a request's QoS."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rllib_envs.decision_log.reader import DecisionLog, column
from rllib_envs.decision_log.records import LoggedBounds, LoggedRequest
from tuning.output.plot_style import COLOURS, GREY, head, log_axis, panels, save

KINDS = {"ttft": "time to first token, s", "tpot": "time per token, s"}
"""What is predicted: name -> label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How near the predictions of one expert came."""

    count: int
    ratio: float  # median of measured / predicted
    error: float  # median of |log(measured / predicted)|, as a share: exp(.) - 1
    within: float  # share of the measured times that are within a quarter of the predicted ones


Pairs = Mapping[str, NDArray[np.float64]]
"""Name of an expert -> (2, K) predicted and measured times."""


def pairs_of(log: DecisionLog, kind: str) -> Pairs:
    """Predicted and measured times of the streams that the expert of the decision answered at its first attempt, by expert.

    Args:
        log: with requests.
        kind: of KINDS.
    """
    n = log.scenario.n_experts
    found: list[list[tuple[float, float]]] = [[] for _ in range(n)]
    for request in log.sent:
        outcome = request.outcome
        assert outcome is not None
        measured = getattr(outcome, f"{kind}_s")
        predicted = float(column(getattr(request, f"predicted_{kind}_s"), n)[outcome.expert])
        if outcome.expert == request.expert and outcome.attempts == 1 and measured and predicted > 0:
            found[outcome.expert].append((predicted, measured))
    return {expert.name: np.array(rows).T for expert, rows in zip(log.scenario.experts, found, strict=True) if rows}


def accuracy_of(pairs: NDArray[np.float64]) -> Accuracy:
    """How near (2, K) predicted and measured times are."""
    logs = np.log(pairs[1] / pairs[0])
    return Accuracy(
        count=logs.size,
        ratio=float(np.exp(np.median(logs))),
        error=float(np.expm1(np.median(np.abs(logs)))),
        within=float((np.abs(logs) <= math.log(1.25)).mean()),
    )


def draw_latency(found: Mapping[str, Pairs], path: Path) -> None:
    """A picture of predicted against measured times, a panel for each kind.

    Args:
        found: kind -> pairs by expert.
        path: PNG file.
    """
    figure, every = panels(len(found), len(found), 4.4)
    for axes, (kind, pairs) in zip(every, found.items(), strict=True):
        for (name, points), colour in zip(pairs.items(), COLOURS * (1 + len(pairs) // len(COLOURS)), strict=False):
            axes.plot(*points, "o", markersize=3, alpha=0.35, color=colour, label=name, markeredgewidth=0)
        times = np.concatenate([points.ravel() for points in pairs.values()]) if pairs else np.array([0.1, 1.0])
        low, high = times.min() / 1.3, times.max() * 1.3
        axes.plot((low, high), (low, high), color=GREY, linewidth=1)
        log_axis(axes, low, high)
        log_axis(axes, low, high, vertical=True)
        axes.set(xlabel="predicted", ylabel="measured")
        head(axes, KINDS[kind])
    save(figure, every[-1], path)


def qos_of(request: LoggedRequest, weight: float, score: float) -> float | None:
    """The QoS that a request got: weight times quality if it was answered in time; None: nobody can say.

    Args:
        request: that went somewhere.
        weight: of its class.
        score: quality of its answer.
    """
    outcome = request.outcome
    if outcome is None or outcome.status not in ("finished", "exhausted", "broken", "idle", "first_byte", "answer"):
        return None
    return weight * score if outcome.status == "finished" and not outcome.violates else 0.0


def predicted_qos(request: LoggedRequest, weights: float, score: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) QoS that a request would get at each expert, by its predictions alone; 0 where its times are not predicted.

    Args:
        request: of the log.
        weights: of its class.
        score: (N,) predicted quality.
    """
    n = score.size
    ttft_s, tpot_s = column(request.predicted_ttft_s, n), column(request.predicted_tpot_s, n)
    tokens = column(request.predicted_tokens, n)
    return weights * score * _in_time(request.bounds, ttft_s, tpot_s, tokens)


def _in_time(
    bounds: LoggedBounds, ttft_s: NDArray[np.float64], tpot_s: NDArray[np.float64], tokens: NDArray[np.float64]
) -> NDArray[np.bool_]:
    e2e_s = ttft_s + tpot_s * (tokens - 1)
    kept = np.isfinite(e2e_s)
    for bound, times_s in (
        (bounds.ttft_s, ttft_s), (bounds.tpot_s, tpot_s), (bounds.e2e_s, e2e_s), (bounds.per_token_s, e2e_s / tokens),
    ):  # fmt: skip
        if bound is not None:
            kept &= times_s <= bound
    return kept
