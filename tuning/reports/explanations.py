"""Explain notable decisions in words: why a request went to its expert, from the router's predictions for all experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tuning.metrics.groups import latency_over_bound
from tuning.reports.episode_replay import OUTCOMES, EpisodeReplay, Flags, Floats

_MOST = 4  # of a kind
_ALSO = 0.3  # a second reason is named if it has this share of the first one's weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision with its explanation."""

    time_s: float
    choice: str  # name of the expert, or "drop"
    outcome: str  # of OUTCOMES
    in_time: float  # predicted probability; NaN for a drop, as the next three
    latency_slo: float  # predicted latency in units of the SLO: per token, or with service classes the largest over its bound
    realised_slo: float  # realised; NaN also if it never finished
    service: str  # name of its service class; "" if there are none
    newly_late: float  # in-flight requests predicted to miss the SLO because of it
    qos: float  # realised
    why: str


def notable_decisions(replay: EpisodeReplay) -> list[Decision]:
    """The most notable decisions of the minute, of three kinds, in order of arrival.

    The kinds are: an expert chosen although another had a much better predicted answer; a drop although some expert could have
    taken the request, with the greatest loss of answer quality; a request that was late although predicted to be in time.
    """
    found = {i: why(i) for pick, why in _kinds(replay) for i in pick}
    return [_decision(replay, i, found[i]) for i in sorted(found)]


def _kinds(replay: EpisodeReplay) -> list[tuple[list[int], Callable[[int], str]]]:
    sent, window = replay.sent, replay.in_window
    quality = np.where(replay.possible, replay.expected("quality"), -np.inf)
    best = quality.max(axis=1)
    forgone = best - replay.of_choice(replay.expected("quality"))
    in_time = replay.of_choice(replay.expected("in_time"))
    late = replay.outcome == OUTCOMES.index("late")
    return [
        (_largest(forgone, window & sent & (forgone > 0)), lambda i: _why_not_the_best(replay, i, int(quality[i].argmax()))),
        (_largest(best, window & ~sent), lambda i: _why_dropped(replay, i)),
        (_largest(in_time, window & late), lambda i: _how_late(replay, i)),
    ]


def _largest(values: Floats, among: Flags) -> list[int]:
    """The indices of the few largest values."""
    indices = np.flatnonzero(among)
    return indices[np.argsort(-values[indices], kind="stable")[:_MOST]].tolist()


def _why_not_the_best(replay: EpisodeReplay, i: int, better: int) -> str:
    """Reasons for the chosen expert and against the one with the best predicted score."""
    chosen = int(replay.choice[i])
    quality, in_time = replay.expected("quality")[i], replay.expected("in_time")[i]
    others, newly_late = replay.expected("others")[i], replay.expected("newly_late")[i]
    correction, future = replay.expected("correction")[i], replay.future[i]
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
    names = replay.experts
    answers = f"{quality[better]:.2f} against {quality[chosen]:.2f}"
    return f"Not to {names[better]}, whose answer would be better ({answers}): {'; '.join(told)}."


def _why_dropped(replay: EpisodeReplay, i: int) -> str:
    possible = replay.possible[i]
    if not possible.any():
        return "No expert could take it."
    score = np.where(possible, replay.expected("marginal")[i] + replay.future[i], -np.inf)
    best = int(score.argmax())
    own, others = replay.expected("own")[i, best], replay.expected("others")[i, best]
    correction, future = replay.expected("correction")[i, best], replay.future[i, best]
    return (
        f"Even {replay.experts[best]}, the best choice, is worth less than a drop: {own:z.3f} QoS to expect of the request, "
        f"{others:+z.3f} from those present, {correction:+z.3f} by the learned correction and {future:+z.3f} from those to come "
        f"make {score[best]:+z.3f}; a drop has {replay.drop[i]:+z.3f}."
    )


def _how_late(replay: EpisodeReplay, i: int) -> str:
    slo_ms = 1e3 * replay.workload.scenario.slo_s_per_token
    chosen = int(replay.choice[i])
    in_time, latency = replay.expected("in_time")[i, chosen], replay.expected("latency")[i, chosen]
    told, true = replay.records.predicted_tokens[i], replay.records.output_tokens[i]
    preempted = replay.records.preemptions[i]
    times = "once" if preempted == 1 else f"{preempted} times"
    if replay.classes:
        took = latency_over_bound(replay.workload.scenario, replay.records)[i]
        late = f"Late at {took:.2f} of its bound; expected were {latency:.2f}"
    else:
        took_ms = 1e3 * replay.records.latency_per_token_s[i]
        late = f"Late with {took_ms:.1f} ms per token, the SLO is {slo_ms:g}; expected were {latency * slo_ms:.1f} ms"
    return (
        f"{late} and a chance of {in_time:.0%} to be in time. It was told to have {told:.0f} tokens and had {true}"
        f"{f', and was preempted {times}' if preempted else ''}."
    )


def _decision(replay: EpisodeReplay, i: int, why: str) -> Decision:
    def of_choice(name: str) -> float:
        return float(replay.of_choice(replay.expected(name))[i])

    return Decision(
        time_s=float(replay.records.arrival_s[i]),
        choice=[*replay.experts, "drop"][replay.choice[i]],
        outcome=OUTCOMES[replay.outcome[i]],
        in_time=of_choice("in_time"),
        latency_slo=of_choice("latency"),
        realised_slo=float(latency_over_bound(replay.workload.scenario, replay.records)[i]),
        service=replay.classes[replay.records.service[i]] if replay.classes else "",
        newly_late=of_choice("newly_late"),
        qos=float(replay.records.qos[i]),
        why=why,
    )
