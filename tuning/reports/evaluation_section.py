"""Section of a report on an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tuning.metrics.episode import EXPENSES
from tuning.metrics.statistics import CONFIDENCE, Interval, family_interval, interquartile_mean
from tuning.output.tables import ABSENT, columns_with_figures, metric_title, show_bounds, show_interval
from tuning.reports.document import Block, Paragraph, Picture, Section, Table
from tuning.reports.evaluation_figures import (
    CLOSE,
    FAILURES,
    MOST_PANELS,
    draw_against_load,
    draw_distributions,
    draw_failures,
    draw_forest,
)
from tuning.reports.run_folders import Evaluation, RouterResult, TrainingRun, WorkloadResult
from tuning.reports.service_tables import confinement_tables, group_tables
from tuning.reports.training_section import named_arms
from tuning.specs.faults import NO_FAULT

_COLUMNS = (
    "violation_rate",
    "drop_rate",
    "rejected_rate",
    "confined_rate",
    "cancelled_rate",
    "failed_rate",
    "too_long_rate",
    "latency_per_token_p50_s",
    "latency_per_token_p99_s",
    "ttft_p50_s",
    "ttft_p99_s",
)
_GPU = "qos_per_gpu_s"
_CHECKPOINT = "checkpoint:"


def evaluation_section(
    run: Evaluation, trained: Sequence[TrainingRun], out: Path, number: int, rng: np.random.Generator
) -> Section:
    """Tables and figures of one evaluation.

    Args:
        run: the evaluation.
        trained: training runs of the same report: where the evaluation has several that differ in the seed alone, it is summed up
            over them.
        out: folder for the pictures.
        number: of the evaluation in the report, which its pictures are named by.
        rng: the bootstrap draws from it.
    """
    comparisons = sum(len(workload.routers) - 1 for workload in run.workloads)
    seeds = f"{len(run.seeds)} seeds ({run.seeds[0]:,} to {run.seeds[-1]:,})"
    about = (
        f"Scenario {run.scenario}, SLO {1e3 * run.slo_s_per_token:g} ms per token, {seeds}, {len(run.workloads)} workloads. Of "
        f"the {comparisons} differences to a baseline, each with an interval of its own, about "
        f"{comparisons * (1 - CONFIDENCE):.1f} would exclude zero if no router differed from it."
    )
    blocks: list[Block] = [Paragraph(text=text) for text in (about, *run.notes)]
    blocks += [_summary_table(run, i) for i in range(len(run.summaries))]
    blocks += _learner_table(run, trained, rng)
    blocks += confinement_tables(run)
    blocks += _evaluation_pictures(run, out, f"evaluation-{number}")
    for workload in run.workloads:
        blocks += [_workload_table(workload, len(run.seeds), len(run.workloads) > 1), *group_tables(workload)]
    return Section(title=f"Evaluation: {run.path}", blocks=blocks)


def _summary_table(run: Evaluation, index: int) -> Table:
    summary, n = run.summaries[index], len(run.seeds)
    rows = [
        [
            name,
            show_interval("qos", qos),
            _difference(summary.difference[name], n, len(summary.qos) - 1, is_baseline=name == summary.baseline),
            show_interval(_GPU, summary.qos_per_gpu_s[name]),
            *(show_interval(expense, values[name]) for expense, values in summary.expenses.items()),
        ]
        for name, qos in summary.qos.items()
    ]
    return Table(
        caption=f"Mean over {summary.title}, {n} seeds. Difference: to {summary.baseline}.",
        header=["router", "QoS", "difference", *map(metric_title, (_GPU, *summary.expenses))],
        rows=rows,
    )


def _workload_table(workload: WorkloadResult, n: int, folded: bool) -> Table:
    rate = "" if workload.rate_rps is None else f" ({workload.rate_rps:.2f} requests/s)"
    columns = columns_with_figures((*_COLUMNS, _GPU, *EXPENSES), [router.metrics for router in workload.routers])
    rows = [_router_row(router, workload, n, columns) for router in workload.routers]
    return Table(
        caption=f"{workload.name}{rate}, {n} seeds. Difference: QoS to {workload.baseline}.",
        header=["router", "QoS", "difference", *map(metric_title, columns)],
        rows=rows,
        folded=folded,
    )


def _router_row(router: RouterResult, workload: WorkloadResult, n: int, columns: Sequence[str]) -> list[str]:
    others = len(workload.routers) - 1
    return [
        router.ran_as,
        show_interval("qos", router.metrics["qos"]),
        _difference(router.difference, n, others, is_baseline=router.name == workload.baseline),
        *(show_interval(name, router.metrics[name]) for name in columns),
    ]


def _difference(interval: Interval, n: int, comparisons: int, *, is_baseline: bool) -> str:
    """With an asterisk where it is clear beside all others of its table."""
    if is_baseline:
        return ABSENT
    clear = family_interval(interval, n, max(comparisons, 1)).excludes_zero
    return show_interval("qos", interval, signed=True) + ("*" if clear else "")


def _learner_table(run: Evaluation, trained: Sequence[TrainingRun], rng: np.random.Generator) -> list[Block]:
    """Arms whose learner seeds were evaluated, two or more of one."""
    names = {router.name for router in run.workloads[0].routers}
    found = [
        (arm, [name for name in sorted(names) if any(_is_of(name, learner) for learner in group)])
        for arm, group in named_arms(trained)
    ]
    rows: list[list[str]] = []
    for arm, members in found:
        if len(members) > 1:
            qos = [[workload.router(name).metrics["qos"].mean for name in members] for workload in run.workloads]
            over = [[workload.router(name).difference.mean for name in members] for workload in run.workloads]
            bounds = [show_bounds(interquartile_mean(qos, rng)), show_bounds(interquartile_mean(over, rng), signed=True)]
            rows.append([arm, str(len(members)), *bounds])
    if not rows:
        return []
    caption = f"Arms over learner seeds: interquartile means over seeds and {len(run.workloads)} workloads, with their intervals."
    return [Table(caption=caption, header=["arm", "learner seeds", "QoS", "difference to the baselines"], rows=rows)]


def _is_of(router: str, run: TrainingRun) -> bool:
    """Whether a router is a checkpoint of the run."""
    path = Path(router.removeprefix(_CHECKPOINT)).resolve()
    return router.startswith(_CHECKPOINT) and run.path.resolve() in (path, *path.parents)


def _evaluation_pictures(run: Evaluation, out: Path, prefix: str) -> list[Block]:
    blocks: list[Block] = []
    interval = f"95 % intervals over {len(run.seeds)} seeds"
    clean = [workload for workload in run.workloads if workload.fault == NO_FAULT]
    for i, arrivals in enumerate(dict.fromkeys(workload.arrivals for workload in clean), start=1):
        points = [w for w in clean if w.arrivals == arrivals and w.share_of_capacity is not None]
        if len(points) > 1:
            file = out / f"{prefix}-load-{i}.png"
            draw_against_load(file, run, points)
            caption = f"QoS, and QoS per second that a GPU is busy, against the load, {arrivals} arrivals; bands: {interval}."
            blocks.append(Picture(file=file.name, caption=caption))
    few = run.workloads[:MOST_PANELS]
    which = "" if len(few) == len(run.workloads) else f" The first {len(few)} of {len(run.workloads)} workloads; tables have all."
    if any(len(workload.routers) > 1 for workload in few):
        draw_forest(out / f"{prefix}-differences.png", run, few)
        caption = (
            f"Difference of QoS of every router to the baseline, paired by seed, with {interval}; coloured where they exclude "
            f"zero. Where some are large, the axis is linear up to {CLOSE} on either side and logarithmic beyond.{which}"
        )
        blocks.append(Picture(file=f"{prefix}-differences.png", caption=caption))
    if any(router.metrics[name].mean > 0 for workload in few for router in workload.routers for name in FAILURES):
        draw_failures(out / f"{prefix}-failures.png", few)
        caption = f"Requests that were late, dropped by the router or refused by a full expert.{which}"
        blocks.append(Picture(file=f"{prefix}-failures.png", caption=caption))
    else:
        blocks.append(Paragraph(text=f"No request was late, dropped by the router or refused by a full expert.{which}"))
    if any(router.latency_quantiles_s for workload in few for router in workload.routers):
        draw_distributions(out / f"{prefix}-latency.png", run, few)
        caption = f"Requests that finished within each latency per token, and had their first token within each time.{which}"
        blocks.append(Picture(file=f"{prefix}-latency.png", caption=caption))
    return blocks
