"""Show what a decision log says: other policies on the same requests, and how near the predictions came.

LOG is the folder that `edgeroute serve` logs its decisions to, or one of its files. Policies run on the logged requests in the
simulator, in windows, paired. They are also asked again in each place that the log's policy was in: that shows where they agree,
and, of a policy that drew its actions, what theirs would have got. Example:

    edgeroute replay decisions --routers impact-greedy bundle:runs/mine/best --out runs/replay
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from gateway.policies import load_policy
from gateway.proof.again import decide_again
from gateway.proof.latency import KINDS, Accuracy, accuracy_of, draw_latency, pairs_of, predicted_qos, qos_of
from gateway.proof.off_policy import OffPolicy, doubly_robust
from rllib_envs.decision_log.promises import with_promises
from rllib_envs.decision_log.reader import DecisionLog, read_log
from rllib_envs.decision_log.table import LoggedTable, table_of
from rllib_envs.errors import InputError
from tuning.logged_worlds.compare import PolicyOnLog, compare_on_log, windows_of
from tuning.metrics.statistics import Interval
from tuning.output.literal import printable
from tuning.output.tables import markdown_table
from tuning.reports.run_folders import REPLAY, REPLAY_FORMAT, REPLAY_PICTURE
from tuning.run_dir.atomic import write_json, write_text
from tuning.specs.grammar import MOST_SEED, check_limits
from tuning.specs.routers import NamedRouter, parse_routers

_MOST_WINDOWS = 1000
_SIMULATED = (
    "The cluster is empty as the log begins. Lengths and quality of answers that nobody saw are as predicted, with the errors "
    "that the log shows."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    log: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LOG")]
    """Folder of a decision log, or one of its files."""
    routers: tuple[str, ...] = ("impact-greedy", "least-work", "round-robin")
    """Policies: heuristics, perhaps with parameters, or bundle:PATH."""
    windows: int = 20
    """Windows that the log is cut into, of at least 50 requests; intervals are over them."""
    seed: int = 0
    """Seed of the lengths of answers that nobody saw."""
    out: Path | None = None
    """Folder for replay.md, replay.json and the picture of predicted against measured times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Anew:
    """A policy asked again in the places of the log."""

    name: str
    agreement: float  # with what was decided
    estimate: OffPolicy | None  # None: the log's policy drew no actions


def run(options: Options) -> None:
    """Read the log, replay it, print the report, and write the files asked for.

    Raises:
        InputError: no log, a line that is none, a policy that cannot be loaded, an option that is out of range.
    """
    check_limits("windows", options.windows, 2, _MOST_WINDOWS)
    check_limits("seed", options.seed, 0, MOST_SEED)
    routers = parse_routers(options.routers)
    log = read_log(options.log)
    for router in routers:  # before anything long
        load_policy(router.text, log.scenario.observation)
    table = table_of(log)
    if not table.requests:
        raise InputError(f"log {options.log}: no request of it went to an expert")
    windows = windows_of(len(table.requests), options.windows)
    compared = compare_on_log(table, log.scenario, routers, windows, options.seed)
    anew = [_anew(router, log, table, options.seed) for router in routers]
    pairs = {kind: pairs_of(log, kind) for kind in KINDS}
    accuracy = {kind: {name: accuracy_of(points) for name, points in found.items()} for kind, found in pairs.items()}
    report = "\n\n".join([*_head(log, table), *_simulated(compared), *_again(log, anew), *_latency(accuracy)])
    print(report)
    if options.out is not None:
        write_text(options.out / "replay.md", report + f"\n\n![predicted against measured times]({REPLAY_PICTURE})\n")
        write_json(options.out / REPLAY, _as_json(log, table, compared, anew, accuracy))
        draw_latency(pairs, options.out / REPLAY_PICTURE)
        print(f"Written: {options.out / 'replay.md'}, {REPLAY} and {REPLAY_PICTURE}")


def _anew(router: NamedRouter, log: DecisionLog, table: LoggedTable, seed: int) -> Anew:
    actions = decide_again(table, log.scenario, router.text, seed)
    decided = np.array([-1 if x.expert is None else x.expert for x in table.requests])
    free = np.array([not x.pinned for x in table.requests])
    agreement = float((actions == decided)[free].mean()) if free.any() else float("nan")
    weights = [entry.weight for entry in log.scenario.classes] or [1.0]
    rows: list[tuple[float, float, bool, float, float]] = []
    for i, request in enumerate(table.requests):
        weight = weights[int(table.service[i])]
        got = qos_of(request, weight, float(table.score[i, table.expert[i]]))
        if got is None or request.probability is None or request.pinned or request.expert is None:
            continue
        model = predicted_qos(request, weight, table.predicted_score[i])
        same = bool(actions[i] == request.expert)
        rows.append((got, request.probability, same, float(model[request.expert]), float(model[actions[i]])))
    if not rows:
        return Anew(name=router.text, agreement=agreement, estimate=None)
    reward, probability, same, taken, other = (np.array(x) for x in zip(*rows, strict=True))
    return Anew(name=router.text, agreement=agreement, estimate=doubly_robust(reward, probability, same, taken, other))


def _head(log: DecisionLog, table: LoggedTable) -> list[str]:
    first, last = log.requests[0].time, log.requests[-1].time
    policies = sorted({x.policy for x in log.requests if x.policy})
    lines = [
        f"{printable(str(log.source))}: {len(log.requests):,} requests in {last - first:,.0f} s, decided by "
        f"{printable(', '.join(policies) or 'nobody')}; {len(log.requests) - len(table.requests):,} went nowhere, "
        f"{len(log.feedback):,} answers were judged."
    ]
    if log.elsewhere:
        lines.append(f"{log.elsewhere:,} earlier requests are of other clusters, and are left out.")
    if log.cut:
        lines.append(f"{log.cut:,} lines have no end, and are left out.")
    shadows = [x for x in log.requests if x.shadow is not None and x.expert is not None]
    rounded = with_promises(log.scenario, table.requests, table.service).rounded
    if rounded:
        lines.append(
            f"{rounded:,} requests brought bounds too many to keep apart; in the simulator they have the nearest others."
        )
    if shadows:
        names = sorted({x.shadow.policy for x in shadows if x.shadow is not None})
        agreed = sum(x.shadow is not None and x.shadow.expert == x.expert for x in shadows)
        lines.append(
            f"The shadow, {printable(', '.join(names))}, agreed in {agreed / len(shadows):.1%} of {len(shadows):,} requests."
        )
    return lines


def _simulated(compared: Sequence[PolicyOnLog]) -> list[str]:
    rows = [
        [
            x.name,
            _shown(x.mean),
            "–" if i == 0 else _shown(x.difference, signed=True),
            f"{100 * x.violations:.1f}",
            f"{100 * x.agreement:.1f}",
            f"{100 * x.impossible:.1f}",
        ]
        for i, x in enumerate(compared)
    ]
    header = ["policy", "QoS", "to what was logged", "late, %", "as logged, %", "not possible then, %"]
    windows = len(compared[0].qos)
    return [
        f"## In the simulator\n\nThe logged requests again. {_SIMULATED} 95 % intervals over {windows} windows, paired.",
        markdown_table(header, rows),
    ]


def _again(log: DecisionLog, anew: Sequence[Anew]) -> list[str]:
    rows = [
        [
            x.name,
            f"{100 * x.agreement:.1f}",
            "–" if x.estimate is None else _shown(x.estimate.estimate),
            "–" if x.estimate is None else _shown(x.estimate.difference, signed=True),
            "–" if x.estimate is None else f"{x.estimate.effective:,.0f}",
        ]
        for x in anew
    ]
    header = ["policy", "agrees, %", "QoS, doubly robust", "to what was logged", "effective requests"]
    drawn = next((x.estimate for x in anew if x.estimate is not None), None)
    said = (
        "The log's policy did not draw its actions at random, so the log cannot tell what others would have got."
        if drawn is None
        else f"{drawn.requests:,} actions were drawn at random. The estimate is of each request alone: all else as it was."
    )
    return [
        f"## In the same places\n\nEach policy is asked again where the log's policy was. {said}",
        markdown_table(header, rows),
    ]


def _latency(accuracy: dict[str, dict[str, Accuracy]]) -> list[str]:
    rows = [
        [name, kind.upper(), f"{x.count:,}", f"{x.ratio:.2f}", f"{100 * x.error:.0f}", f"{100 * x.within:.0f}"]
        for kind, found in accuracy.items()
        for name, x in found.items()
    ]
    if not rows:
        return ["## Predicted against measured\n\nNo stream of the log has both."]
    header = ["expert", "time", "streams", "measured / predicted", "median error, %", "within a quarter, %"]
    return ["## Predicted against measured", markdown_table(header, rows, names=2)]


def _shown(interval: Interval, *, signed: bool = False) -> str:
    mean = f"{interval.mean:{'+' if signed else ''}.4f}"
    return mean if np.isnan(interval.half_width) else f"{mean} ± {interval.half_width:.4f}"


def _as_json(
    log: DecisionLog,
    table: LoggedTable,
    compared: Sequence[PolicyOnLog],
    anew: Sequence[Anew],
    accuracy: dict[str, dict[str, Accuracy]],
) -> dict[str, Any]:
    return {
        "format": REPLAY_FORMAT,
        "scenario": log.scenario.name,
        "requests": len(table.requests),
        "notes": _head(log, table),
        "simulated": [asdict(x) for x in compared],
        "again": [asdict(x) for x in anew],
        "latency": {kind: {name: asdict(x) for name, x in found.items()} for kind, found in accuracy.items()},
    }
