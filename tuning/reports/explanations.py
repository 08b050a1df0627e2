"""Decisions that stand out, in words: why a request went where it did, from what the router expected of every expert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tuning.reports.episode_replay import OUTCOMES, Flags, Floats, Traffic

_MOST = 4  # of a kind
_ALSO = 0.3  # a second reason counts if it is worth this share of the first


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision, for the reader."""

    time_s: float
    choice: str  # name of the expert, or "drop"
    outcome: str  # of OUTCOMES
    in_time: float  # predicted chance; NaN for a drop, as the next three
    latency_slo: float  # predicted latency per token, in units of the SLO
    realised_slo: float  # that came of it; NaN also where it never finished
    newly_late: float  # how many of those present were expected to miss the SLO because of it
    qos: float  # realised
    why: str


def notable_decisions(traffic: Traffic) -> list[Decision]:
    """Of the minute's decisions, in order of arrival, those of three kinds that stand out most.

    Requests that went to an expert though another would have given a much better answer; those that were dropped though some
    expert could have taken them, at the greatest expense of answer quality; and those that came late against expectation.
    """
    found = {i: why(i) for pick, why in _kinds(traffic) for i in pick}
    return [_decision(traffic, i, found[i]) for i in sorted(found)]


def _kinds(traffic: Traffic) -> list[tuple[list[int], Callable[[int], str]]]:
    sent, window = traffic.sent, traffic.in_window
    quality = np.where(traffic.possible, traffic.expected("quality"), -np.inf)
    best = quality.max(axis=1)
    forgone = best - traffic.of_choice(traffic.expected("quality"))
    in_time = traffic.of_choice(traffic.expected("in_time"))
    late = traffic.outcome == OUTCOMES.index("late")
    return [
        (_largest(forgone, window & sent & (forgone > 0)), lambda i: _why_not_the_best(traffic, i, int(quality[i].argmax()))),
        (_largest(best, window & ~sent), lambda i: _why_dropped(traffic, i)),
        (_largest(in_time, window & late), lambda i: _how_late(traffic, i)),
    ]


def _largest(values: Floats, among: Flags) -> list[int]:
    """The indices of the few largest values."""
    indices = np.flatnonzero(among)
    return indices[np.argsort(-values[indices], kind="stable")[:_MOST]].tolist()


def _why_not_the_best(traffic: Traffic, i: int, better: int) -> str:
    """What spoke for the expert chosen and against the one that was told to answer best."""
    chosen = int(traffic.choice[i])
    quality, in_time = traffic.expected("quality")[i], traffic.expected("in_time")[i]
    others, newly_late = traffic.expected("others")[i], traffic.expected("newly_late")[i]
    correction, future = traffic.expected("correction")[i], traffic.future[i]
    late = f", {newly_late[better]:.0f} of whom would come late" if newly_late[better] >= 1 else ""
    reasons = [
        (
            quality[better] * (in_time[chosen] - in_time[better]),
            f"its chance to be in time is {in_time[better]:.0%} there, {in_time[chosen]:.0%} here",
        ),
        (
            others[chosen] - others[better],
            f"there it would cost those present {-others[better]:z.2f} QoS{late}, here {-others[chosen]:z.2f}",
        ),
        (
            correction[chosen] - correction[better],
            f"the learned correction of the estimate is {correction[better]:+z.2f} there, {correction[chosen]:+z.2f} here",
        ),
        (
            future[chosen] - future[better],
            f"the place it takes there is worth {-future[better]:z.2f} QoS to those to come, here {-future[chosen]:z.2f}",
        ),
    ]
    reasons.sort(key=lambda reason: -reason[0])
    told = [text for worth, text in reasons if worth > _ALSO * reasons[0][0]][:2]
    names = traffic.experts
    answers = f"{quality[better]:.2f} against {quality[chosen]:.2f}"
    return f"Not to {names[better]}, whose answer would be better ({answers}): {'; '.join(told)}."


def _why_dropped(traffic: Traffic, i: int) -> str:
    possible = traffic.possible[i]
    if not possible.any():
        return "No expert could take it."
    score = np.where(possible, traffic.expected("marginal")[i] + traffic.future[i], -np.inf)
    best = int(score.argmax())
    own, others = traffic.expected("own")[i, best], traffic.expected("others")[i, best]
    correction, future = traffic.expected("correction")[i, best], traffic.future[i, best]
    return (
        f"Even {traffic.experts[best]}, the best choice, is worth less than a drop: {own:z.3f} QoS to expect of the request, "
        f"{others:+z.3f} from those present, {correction:+z.3f} by the learned correction and {future:+z.3f} from those to come "
        f"make {score[best]:+z.3f}; a drop has {traffic.drop[i]:+z.3f}."
    )


def _how_late(traffic: Traffic, i: int) -> str:
    slo_ms = 1e3 * traffic.workload.scenario.slo_s_per_token
    chosen = int(traffic.choice[i])
    in_time, latency = traffic.expected("in_time")[i, chosen], traffic.expected("latency")[i, chosen]
    took_ms = 1e3 * traffic.records.latency_per_token_s[i]
    told, true = traffic.records.told_tokens[i], traffic.records.output_tokens[i]
    preempted = traffic.records.preemptions[i]
    times = "once" if preempted == 1 else f"{preempted} times"
    return (
        f"Late with {took_ms:.1f} ms per token, the SLO is {slo_ms:g}; expected were {latency * slo_ms:.1f} ms and a chance of "
        f"{in_time:.0%} to be in time. It was told to have {told:.0f} tokens and had {true}"
        f"{f', and was preempted {times}' if preempted else ''}."
    )


def _decision(traffic: Traffic, i: int, why: str) -> Decision:
    def of_choice(name: str) -> float:
        return float(traffic.of_choice(traffic.expected(name))[i])

    slo_s = traffic.workload.scenario.slo_s_per_token
    return Decision(
        time_s=float(traffic.records.arrival_s[i]),
        choice=[*traffic.experts, "drop"][traffic.choice[i]],
        outcome=OUTCOMES[traffic.outcome[i]],
        in_time=of_choice("in_time"),
        latency_slo=of_choice("latency"),
        realised_slo=float(traffic.records.latency_per_token_s[i]) / slo_s,
        newly_late=of_choice("newly_late"),
        qos=float(traffic.records.qos[i]),
        why=why,
    )
