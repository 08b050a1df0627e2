"""Log an evaluation to a tracker: its tables, its figures, and the bundles that it compares."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from tuning.evaluation.comparison import Comparison
from tuning.evaluation.summary import summaries
from tuning.metrics.episode import METRICS
from tuning.metrics.statistics import Interval
from tuning.output.tracking import ROUTER, Tracker, bundle_name
from tuning.specs.routers import bundle_of

_OTHERS = [name for name in METRICS if name != "qos"]
_INTERVALS = ["qos", "qos_half_width", "difference", "difference_half_width"]
_CLOCK_S = 1.0  # some file systems know whole seconds alone


def track_evaluation(track: Tracker, comparisons: Sequence[Comparison], baseline: str | None, figures: Sequence[Path]) -> None:
    """Log the bundles, a table for each summary and workload, the mean QoS of each router, and the figures.

    Args:
        track: where to.
        comparisons: one for each workload.
        baseline: name of the router that differences are to; None where it was chosen.
        figures: PNG files.
    """
    for row in comparisons[0].rows:
        if (bundle := bundle_of(row.router)) is not None:
            track.use_artifact(bundle_name(bundle).reference, ROUTER)
    for summary, _ in summaries(comparisons, baseline):
        track.table(
            f"summary/{summary.title}",
            ["router", *_INTERVALS, "worst_difference", "on"],
            [
                [
                    row.router.name,
                    *_pair(row.qos),
                    *_pair(row.difference),
                    row.differences[row.worst].mean,
                    summary.workloads[row.worst],
                ]
                for row in summary.rows
            ],
        )
    for comparison in comparisons:
        track.table(
            f"comparison/{comparison.workload.name}",
            ["router", "ran_as", *_INTERVALS, *_OTHERS],
            [
                [
                    row.router.name,
                    row.router.text,
                    *_pair(row.metrics["qos"]),
                    *_pair(row.difference),
                    *(row.metrics[name].mean for name in _OTHERS),
                ]
                for row in comparison.rows
            ],
        )
    names = [row.router.name for row in comparisons[0].rows]
    track.summary({f"qos/{name}": fmean(c.row(name).metrics["qos"].mean for c in comparisons) for name in names})
    for figure in figures:
        track.image(f"figure/{figure.stem}", figure)


def figures_since(folder: Path, time_s: float) -> list[Path]:
    """The figures in a folder that are newer than the start; older ones belong to another evaluation."""
    return sorted(path for path in folder.glob("*.png") if path.stat().st_mtime >= time_s - _CLOCK_S)


def _pair(interval: Interval) -> tuple[float, float]:
    return interval.mean, interval.half_width
