"""Section of a report on the replay of a decision log."""

from __future__ import annotations

from pathlib import Path

from tuning.metrics.statistics import CONFIDENCE
from tuning.output.tables import ABSENT, show_interval, show_known
from tuning.reports.document import Block, Paragraph, Picture, Section, Table
from tuning.reports.run_folders import LogReplay
from tuning.run_dir.atomic import write_bytes


def log_section(run: LogReplay, out: Path, number: int) -> Section:
    """What policies would have done, where they agree, and how near predicted times came.

    Args:
        run: the replay.
        out: folder for its picture.
        number: of the replay in the report, which the picture is named by.

    Raises:
        InputError: the picture cannot be written.
    """
    blocks: list[Block] = [Paragraph(text=note) for note in run.notes]
    blocks += [_simulated(run), _asked(run)]
    if run.times:
        blocks.append(_times(run))
    if run.picture is not None:
        file = out / f"log-{number}-{run.picture.name}"
        write_bytes(file, run.picture.read_bytes())
        blocks.append(Picture(file=file.name, caption="Predicted against measured times of the streams, by expert."))
    return Section(title=f"Log: {run.path}", blocks=blocks)


def _simulated(run: LogReplay) -> Table:
    rows = [
        [
            x.name,
            show_interval("qos", x.qos),
            ABSENT if i == 0 else show_interval("qos", x.difference, signed=True),
            *(show_known(100 * share, ".1f") for share in (x.late, x.agreement, x.impossible)),
        ]
        for i, x in enumerate(run.simulated)
    ]
    windows = max((x.windows for x in run.simulated), default=0)
    caption = (
        f"What would have been, in the simulator: each policy on the logged requests, with {CONFIDENCE:.0%} intervals over "
        f"{windows} windows of the log, paired. A choice that was not possible then became the logged one."
    )
    header = ["policy", "QoS", "to what was logged", "late, %", "as logged, %", "not possible then, %"]
    return Table(caption=caption, header=header, rows=rows)


def _asked(run: LogReplay) -> Table:
    rows = [
        [
            x.name,
            show_known(100 * x.agreement, ".1f"),
            show_interval("qos", x.qos) if x.drawn else ABSENT,
            show_interval("qos", x.difference, signed=True) if x.drawn else ABSENT,
            show_known(x.effective, ",.0f"),
        ]
        for x in run.asked
    ]
    drawn = max((x.drawn for x in run.asked), default=0)
    said = (
        f"{drawn:,} actions were drawn at random, so the log says what others would have got, request by request (doubly robust)."
        if drawn
        else "The log's policy drew no actions, so the log does not say what others would have got."
    )
    header = ["policy", "agrees, %", "QoS, doubly robust", "to what was logged", "effective requests"]
    return Table(caption=f"Agreement: each policy asked again where the log's was. {said}", header=header, rows=rows)


def _times(run: LogReplay) -> Table:
    rows = [
        [x.expert, x.kind.upper(), f"{x.count:,}", f"{x.ratio:.2f}", f"{100 * x.error:.0f}", f"{100 * x.within:.0f}"]
        for x in run.times
    ]
    header = ["expert", "time", "streams", "measured / predicted", "median error, %", "within a quarter, %"]
    return Table(caption="Predicted against measured times.", header=header, rows=rows, names=2)
