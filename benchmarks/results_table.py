"""Tables of docs/results.md from the results of evaluations: differences of routers to a heuristic, workload by workload.

Run ``python -m benchmarks.results_table --to impact-greedy NAME=ROUTER ... runs/a/results.json runs/b/results.json`` from the
repository root: a column for each NAME, with the difference of ROUTER, as the evaluation named it, to the heuristic on the same
seeds (mean and half width of the 95 % t-interval), the mean over all workloads, and the worst. ``--relative`` gives per cent of
the heuristic's QoS. The heuristic ``plain`` is the best one, on each workload, of those that predict no impact. Takes no time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tuning.metrics.statistics import mean_interval, paired_difference, relative_difference
from tuning.output.tables import markdown_table

PLAIN = "plain"
ABSENT = "–"


def qos_of(comparison: dict[str, Any], router: str) -> list[float] | None:
    """QoS by seed; None where the router took no part."""
    if router == PLAIN:
        router = comparison["plain"]
    found = [row["metrics"]["qos"]["values"] for row in comparison["routers"] if row["router"] == router]
    return found[0] if found else None


def difference(ours: list[float], theirs: list[float], relative: bool) -> str:
    if relative:
        interval = relative_difference(ours, theirs)
        return f"{100 * interval.mean:+.1f} % ± {100 * interval.half_width:.1f}"
    interval = paired_difference(ours, theirs)
    return f"{interval.mean:+.4f} ± {interval.half_width:.4f}"


def table(comparisons: list[dict[str, Any]], to: str, columns: dict[str, str], relative: bool) -> str:
    """The table in Markdown."""
    rows: list[list[str]] = []
    for comparison in comparisons:
        base = qos_of(comparison, to)
        if base is None:
            continue
        name = f"{comparison['workload']} ({comparison['plain']})" if to == PLAIN else comparison["workload"]
        cells = [qos_of(comparison, router) for router in columns.values()]
        rows.append(
            [
                name,
                f"{mean_interval(base).mean:.4f}",
                *(ABSENT if cell is None else difference(cell, base, relative) for cell in cells),
            ]
        )
    met = {column: [c for c in comparisons if qos_of(c, router) and qos_of(c, to)] for column, router in columns.items()}
    alike = len({len(c["routers"][0]["metrics"]["qos"]["values"]) for c in comparisons}) == 1  # an average is over the same seeds
    if len(rows) > 1 and alike and not relative:
        overall, worst = ["mean over all", ""], ["worst mean", ""]
        for column, router in columns.items():
            ours, theirs = (np.array([qos_of(c, name) for c in met[column]]) for name in (router, to))
            if not len(ours):
                overall.append(ABSENT)
                worst.append(ABSENT)
                continue
            overall.append(difference(ours.mean(axis=0).tolist(), theirs.mean(axis=0).tolist(), relative))
            worst.append(f"{(ours - theirs).mean(axis=1).min():+.4f}")
        rows += [overall, worst]
    return markdown_table(["workload", f"{to}, QoS", *columns], rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, help="heuristic that differences are to")
    parser.add_argument("--relative", action="store_true", help="in per cent")
    parser.add_argument("arguments", nargs="+", metavar="NAME=ROUTER | results.json")
    given = parser.parse_args()
    columns = dict(argument.split("=", 1) for argument in given.arguments if not argument.endswith(".json"))
    files = [Path(argument) for argument in given.arguments if argument.endswith(".json")]
    comparisons = [c for file in files for c in json.loads(file.read_text(encoding="utf-8"))["comparisons"]]
    print(table(comparisons, given.to, columns, given.relative))


if __name__ == "__main__":
    main()
