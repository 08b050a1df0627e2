"""Sections of a report on the replay of an episode."""

from __future__ import annotations

from math import nan
from pathlib import Path

from tuning.output.tables import show_known
from tuning.reports.document import Block, Paragraph, Picture, Section, Table
from tuning.reports.episode_replay import OUTCOMES, EpisodeReplay
from tuning.reports.explanations import notable_decisions
from tuning.reports.replay_figures import draw_calibration, draw_shares_over_time, draw_timeline

_ENDINGS = range(len(OUTCOMES))


def replay_sections(replay: EpisodeReplay, out: Path) -> list[Section]:
    """The replay of an episode, and how accurate the router's predictions were.

    Args:
        replay: the episode.
        out: folder for the pictures.
    """
    question, rate_rps = replay.question, replay.workload.rate_rps
    rate = "" if rate_rps is None else f" ({rate_rps:.2f} requests/s)"
    share = [f"{100 * float((replay.outcome == i).mean()):.2f} % {name}" for i, name in enumerate(OUTCOMES)]
    about = (
        f"{question.router} on {replay.workload.scenario.name}, {replay.workload.name}{rate}, seed {question.seed:,}: "
        f"{replay.choice.size:,} requests, {', '.join(share)}; mean QoS {float(replay.records.qos.mean()):.4f}."
    )
    draw_shares_over_time(out / "routing-shares.png", replay)
    draw_timeline(out / "timeline.png", replay)
    draw_calibration(out / "calibration.png", replay)
    start_s, end_s = replay.window_s
    timeline = (
        f"Minute {question.minute}, from {start_s:.0f} s to {end_s:.0f} s: a bar for each request, from its arrival to its "
        "finish, at the expert that it was sent to. Bars above one another are requests that are there at the same time. A strip "
        "above them has what the expert was doing when requests arrived."
    )
    classes: list[Block] = []
    if replay.classes:
        draw_timeline(out / "timeline-classes.png", replay, by_class=True)
        caption = "The same minute, coloured by service class."
        classes = [Picture(file="timeline-classes.png", caption=caption), _classes_table(replay)]
    calibration = (
        "Left: what the impact estimator expected an action to add to the QoS of all requests present, against what it would "
        "add with the true lengths and scores if nobody else arrived; means of groups of equal size. Where those chosen lie "
        "lower than all, it is because who takes the best of several estimates takes the most hopeful ones. Right: of the "
        "requests that were sent, the share in time by the predicted chance of it; those who come later may make a request late "
        "that would have been in time. Decisions of one episode are not independent: the intervals are somewhat too narrow."
    )
    return [
        Section(
            title="A minute of traffic",
            blocks=[
                Paragraph(text=about),
                Picture(file="routing-shares.png", caption="Share of the arrivals that each expert got, and of those dropped."),
                Picture(file="timeline.png", caption=timeline),
                *classes,
                _decisions_table(replay),
            ],
        ),
        Section(title="Calibration of the impact estimator", blocks=[Picture(file="calibration.png", caption=calibration)]),
    ]


def _classes_table(replay: EpisodeReplay) -> Table:
    """What became of the requests of each service class, over the episode."""
    records = replay.records
    rows: list[list[str]] = []
    for i, name in enumerate(replay.classes):
        own = records.service == i
        shares = [show_known(100 * float((replay.outcome[own] == k).mean()) if own.any() else nan, ".2f") for k in _ENDINGS]
        qos = show_known(float(records.qos[own].mean()) if own.any() else nan, ".4f")
        rows.append([name, f"{int(own.sum()):,}", *shares, qos])
    header = ["class", "requests", *(f"{OUTCOMES[k]}, %" for k in _ENDINGS), "QoS"]
    return Table(caption="The service classes over the episode.", header=header, rows=rows)


def _decisions_table(replay: EpisodeReplay) -> Table:
    slo = 100.0 if replay.classes else 1e3 * replay.workload.scenario.slo_s_per_token
    unit = ", % of its bound" if replay.classes else " ms/token"
    rows = [
        [
            f"{d.time_s:.2f}",
            d.choice,
            d.outcome,
            *([d.service] if replay.classes else []),
            d.why,
            show_known(100 * d.in_time, ".0f"),
            show_known(slo * d.latency_slo, ".1f"),
            show_known(slo * d.realised_slo, ".1f"),
            show_known(d.newly_late, ".0f"),
            f"{d.qos:.3f}",
        ]
        for d in notable_decisions(replay)
    ]
    caption = (
        "Decisions of this minute that stand out, in the router's own terms: the largest losses of answer quality that it "
        "accepted, the best answers that it dropped, and requests that came late against its expectation."
    )
    names = ["time, s", "sent to", "outcome", *(["class"] if replay.classes else []), "why"]
    figures = ["chance in time, %", f"expected{unit}", f"realised{unit}", "others late by it", "QoS"]
    return Table(caption=caption, header=[*names, *figures], rows=rows, names=len(names))
