"""Opening sections of a report: its runs, and how to read its intervals."""

from __future__ import annotations

from collections.abc import Sequence

from tuning.metrics.statistics import CONFIDENCE, RESAMPLES
from tuning.output.tables import ABSENT
from tuning.reports.document import Paragraph, Section, Table
from tuning.reports.run_folders import Evaluation, LogReplay, Run, Sweep, TrainingRun

_FEW_SEEDS = 5


def overview(runs: Sequence[Run]) -> Section:
    """List every run and its kind."""
    rows = [[str(run.path), *_about(run)] for run in runs]
    table = Table(caption="What this report is made from.", header=["run", "kind", "scenario", "what"], rows=rows, names=4)
    return Section(title="Runs", blocks=[table])


def _about(run: Run) -> list[str]:
    match run:
        case TrainingRun():
            steps = f"{run.records[-1].steps:,} steps in {len(run.records)} iterations" if run.records else "no iteration yet"
            what = f"{run.options.get('algo')}, load {run.options.get('load')}, seed {run.seed}, {steps}"
            return ["training", run.scenario, what]
        case Evaluation():
            routers = {router.name for workload in run.workloads for router in workload.routers}
            return ["evaluation", run.scenario, f"{len(routers)} routers, {len(run.workloads)} workloads, {len(run.seeds)} seeds"]
        case LogReplay():
            return ["replay of a log", run.scenario, f"{run.requests:,} requests, {len(run.simulated) - 1} policies"]
        case Sweep():
            best = "" if run.best is None else f", best {run.best}"
            return ["sweep", ABSENT, f"{run.name}: {len(run.trials)} trials{best}"]


def reading() -> Section:
    """Explain the intervals."""
    texts = [
        f"Figures of evaluations are means over episodes, one for each seed, ± half of their {CONFIDENCE:.0%} interval "
        "(Student's t). All routers meet the same episodes, and differences are taken within seeds before they are averaged.",
        "Each interval misses what it estimates once in twenty times, so of many that are looked at together some do. A "
        "difference with an asterisk excludes zero even when the intervals of all differences of its table are widened so far "
        "that they hold together with that confidence (Bonferroni). One without should not be picked out as a finding because "
        "it alone looks clear.",
        "Over learner seeds, figures are interquartile means with percentile bootstrap intervals "
        f"({RESAMPLES:,} draws, within each task; Agarwal et al. 2021, arXiv 2108.13264), written with their ends in brackets. "
        f"With fewer than {_FEW_SEEDS} seeds they are too narrow and no more than a hint; of one seed there is none.",
        "QoS is the score of an answer that comes within the SLO, and 0 for one that comes later or not at all.",
    ]
    return Section(title="How to read the intervals", blocks=[Paragraph(text=text) for text in texts])
