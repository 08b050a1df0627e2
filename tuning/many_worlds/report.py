"""The files of the measurement: tables, every world as CSV, a summary as JSON, and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from models.envelope import Envelope
from tuning.many_worlds.figure import draw_differences
from tuning.many_worlds.measure import PLAIN, TUNED, UNTUNED, Size, WorldResult
from tuning.many_worlds.summary import (
    CLOSE,
    Bound,
    KindRow,
    beats_plain,
    best_plain,
    bounds,
    difference,
    groups,
    noise,
    summarise,
)
from tuning.output.literal import code
from tuning.output.tables import markdown_table, show_known
from tuning.run_dir.atomic import write_json, write_text
from tuning.run_dir.digests import code_digest

FORMAT = 1

_TITLES = {
    UNTUNED: "## Against impact-greedy with default parameters",
    TUNED: "## Against impact-greedy tuned for each world",
}


def write_report(
    out: Path, router: str, trained_on: Envelope | None, size: Size, first_seed: int, results: Sequence[WorldResult]
) -> None:
    """Print the tables, and write results.md, results.json, worlds.csv and differences.png.

    Args:
        out: folder.
        router: as the user named it.
        trained_on: its training range; None if it has none.
        size: how much was simulated.
        first_seed: of the fleets.
        results: one or more.

    Raises:
        InputError: a file cannot be written.
    """
    kinds = groups(results)
    rows = {baseline: [summarise(kind, own, baseline) for kind, own in kinds.items()] for baseline in _TITLES}
    judged, better = bounds(results), beats_plain(results)
    head = (
        f"{code(router)} in {len(results)} worlds of {len(better)} fleets, whose seeds begin at {first_seed}; "
        f"{size.episodes} episodes of {size.requests} requests in each. Difference: QoS per arrived request, on the same "
        "requests. Both versions of impact-greedy are calibrated."
    )
    tables = [part for baseline, title in _TITLES.items() for part in (title, _table(rows[baseline]))]
    plain = ["## Against plain heuristics", _plain(results)]
    ranges = [] if trained_on is None else ["## Training range", _ranges(trained_on)]
    text = "\n\n".join(["# Many worlds", head, *tables, *plain, "## Bounds", _judged(judged), *ranges])
    print(text)
    draw_differences(out / "differences.png", kinds)
    write_text(out / "results.md", f"{text}\n\n![differences.png](differences.png)\n")
    write_text(out / "worlds.csv", _csv(results))
    write_json(
        out / "results.json",
        {
            "format": FORMAT,
            "code": code_digest(),
            "router": router,
            "first_seed": first_seed,
            **asdict(size),
            "rows": {baseline: [asdict(row) for row in found] for baseline, found in rows.items()},
            "beats_plain": better,
            "bounds": [asdict(bound) for bound in judged],
        },
    )
    names = ("results.md", "results.json", "worlds.csv", "differences.png")
    print(f"\nWritten: {', '.join(str(out / name) for name in names)}")


def _table(rows: Sequence[KindRow]) -> str:
    known = ["worlds", "number", "mean", "standard error", "error of a world", "5th percentile"]
    header = [*known, f"{CLOSE:g} or more, %", "worst", "worst world"]
    cells = [
        [
            row.kind, str(row.worlds), f"{row.mean:+.4f}", show_known(row.error, ".4f"), show_known(row.noise, ".4f"),
            f"{row.low:+.4f}", f"{100 * row.close:.1f}", f"{row.worst:+.4f}", row.worst_world,
        ]
        for row in rows
    ]  # fmt: skip
    return markdown_table(header, cells)


def _plain(results: Sequence[WorldResult]) -> str:
    better = beats_plain(results)
    worlds = sum(difference(result, best_plain(result)) > 0 for result in results)
    lost = [fleet for fleet, held in better.items() if not held]
    where = f" Not in {', '.join(lost)}." if lost else ""
    return (
        f"Better than each of {', '.join(PLAIN)}: in {sum(better.values())} of {len(better)} fleets, in {worlds} of "
        f"{len(results)} worlds.{where}"
    )


def _judged(judged: Sequence[Bound]) -> str:
    rows = [[bound.text, bound.found, "held" if bound.held else "not held"] for bound in judged]
    return markdown_table(["bound", "found", "verdict"], rows)


def _ranges(trained_on: Envelope) -> str:
    return markdown_table(["input", "least", "greatest"], [list(row) for row in trained_on.rows()])


def _csv(results: Sequence[WorldResult]) -> str:
    players = (UNTUNED, TUNED, *PLAIN)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["fleet", "kind", "fleet_seed", "experts", "load", "arrivals", "told", "price", "shrink", "tau", "router", *players]
        + [f"{what}_{baseline}" for baseline in (UNTUNED, TUNED) for what in ("over", "noise_over")]
        + ["best_plain", "over_best_plain", "world_kind"]
    )
    for result in results:
        world, plain = result.world, best_plain(result)
        writer.writerow(
            [world.fleet.name, world.fleet.kind, world.fleet.seed, result.experts, world.load, world.arrivals, world.told]
            + [f"{result.parameters[name]:g}" for name in ("price", "shrink", "tau")]
            + [f"{np.mean(values):.6f}" for values in (result.router, *(result.baselines[name] for name in players))]
            + [f"{x(result, baseline):.6f}" for baseline in (UNTUNED, TUNED) for x in (difference, noise)]
            + [plain, f"{difference(result, plain):.6f}", world.kind]
        )
    return text.getvalue()
