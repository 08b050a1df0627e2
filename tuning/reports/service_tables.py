"""Tables of a report on service classes and tenants: how each fares, and what it costs in QoS that some are confined."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuning.metrics.groups import GROUP_METRICS
from tuning.metrics.statistics import Interval, mean_interval, paired_difference
from tuning.output.tables import columns_with_figures, metric_title, show_interval
from tuning.reports.document import Block, Table
from tuning.reports.run_folders import Evaluation, RouterResult, WorkloadResult
from tuning.specs.faults import NO_FAULT, UNCONFINED


def group_tables(workload: WorkloadResult) -> list[Table]:
    """A table for each service class and tenant of a workload, folded."""
    found: list[Table] = []
    for title in workload.routers[0].groups:
        means = [{name: _mean(router.groups[title][name]) for name in router.groups[title]} for router in workload.routers]
        known = [name for name in GROUP_METRICS if all(name in of_one for of_one in means)]
        columns = columns_with_figures(known, means)
        rows = [
            [router.ran_as, *(show_interval(name, of_one[name]) for name in columns)]
            for router, of_one in zip(workload.routers, means, strict=True)
        ]
        header = ["router", *map(metric_title, columns)]
        found.append(Table(caption=f"{workload.name}: {title}", header=header, rows=rows, folded=True))
    return found


def confinement_tables(run: Evaluation) -> list[Block]:
    """A table for each workload that was also run unconfined: QoS that confinement costs, in all and of each group."""
    by_place = {(w.arrivals, w.load, w.fault): w for w in run.workloads}
    found: list[Block] = []
    for workload in run.workloads:
        free = by_place.get((workload.arrivals, workload.load, UNCONFINED))
        if workload.fault == NO_FAULT and free is not None:
            found.append(_confinement_table(workload, free, len(run.seeds)))
    return found


def _confinement_table(workload: WorkloadResult, free: WorkloadResult, n: int) -> Table:
    titles = list(workload.routers[0].groups)
    rows = [_confinement_row(router, free.router(router.name), titles) for router in workload.routers]
    caption = (
        f"{workload.name}: what confinement costs, {n} seeds. QoS where requests are confined less QoS where each may go to "
        "every expert, paired by seed; then the requests that were rejected because nothing allowed could take them."
    )
    header = ["router", "QoS", "without confinement", "difference", *titles, metric_title("confined_rate")]
    return Table(caption=caption, header=header, rows=rows)


def _confinement_row(router: RouterResult, free: RouterResult, titles: Sequence[str]) -> list[str]:
    own = [(router.qos, free.qos), *((router.groups[title]["qos"], free.groups[title]["qos"]) for title in titles)]
    return [
        router.ran_as,
        show_interval("qos", router.metrics["qos"]),
        show_interval("qos", free.metrics["qos"]),
        *(show_interval("qos", paired_difference(values, others), signed=True) for values, others in own),
        show_interval("confined_rate", router.metrics["confined_rate"]),
    ]


def _mean(values: Sequence[float]) -> Interval:
    """The mean alone, as the table of a group has no room for more."""
    return Interval(mean=mean_interval(values).mean, half_width=math.nan)
