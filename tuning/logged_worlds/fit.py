"""Worlds fitted to a decision log: two scenarios, a file of requests and a trace of arrivals, which every command can read.

Both scenarios have the log's experts with their engine profiles, its classes with the shares that were seen, and its requests:
prompts, lengths and predictions, drawn request by request within a class. ``fitted.yaml`` has arrivals of a fitted process,
``replayed.yaml`` stretches of the log's own. The load of both is drawn from the rates that the log had, and somewhat beyond.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rllib_envs.capacity import capacity_rps
from rllib_envs.decision_log.promises import with_promises
from rllib_envs.decision_log.table import LoggedTable, expected_scores, lengths_of
from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.scenario import Arrivals, Catalogue, Faults, Predictions, Scenario, TraceFile, Workload
from rllib_envs.service import ServiceClass, Tenant
from tuning.logged_worlds.arrivals import fit_arrivals
from tuning.run_dir.atomic import write_text

_Entry = TypeVar("_Entry", ServiceClass, Tenant)

FITTED, REPLAYED, REQUESTS, ARRIVALS = "fitted.yaml", "replayed.yaml", "requests.jsonl", "arrivals.csv"
"""Files of a fit."""

LEAST_REQUESTS = 100
"""Of a log that worlds are fitted to."""

_ROWS, _MOST_COPIES = 4000, 8  # prompts to draw from: each request stands there some times, with other lengths that nobody saw
_STEPS = 4  # from one stretch that a rate is measured over to the next, as parts of it
_QUANTILES, _BEYOND = (0.05, 0.95), 1.25  # of the rates seen, and how far the loads of training go beyond them
_LEAST_STRETCH = 50  # requests of an episode


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedWorlds:
    """The worlds of a log."""

    fitted: Scenario
    replayed: Scenario
    said: tuple[str, ...]  # what was fitted, a line each


def fit_worlds(table: LoggedTable, scenario: Scenario, folder: Path, *, requests: int, seed: int) -> LoggedWorlds:
    """Fit worlds to a log, and write them.

    Args:
        table: the log, or the part of it to learn from.
        scenario: its cluster.
        folder: for the files, whose paths are in the scenarios.
        requests: in an episode; less where the log is short.
        seed: of the lengths that nobody saw.

    Raises:
        InputError: too few requests, or the folder cannot be written to.
    """
    count = len(table.requests)
    if count < LEAST_REQUESTS:
        raise InputError(f"the log has {count:,} requests to fit worlds to: at least {LEAST_REQUESTS} are needed")
    promised = with_promises(scenario, table.requests, table.service)
    scenario, table = promised.scenario, replace(table, service=promised.service)
    experts, columns = _told_apart(scenario.experts, table)
    classes = _with_shares(scenario.classes, table.service)
    tenants = _with_shares(scenario.tenants, table.tenant)
    names = [entry.name for entry in classes]
    write_text(folder / REQUESTS, _request_lines(table, replace(scenario, experts=experts), columns, names, seed))
    write_text(folder / ARRIVALS, _arrival_lines(table, names))
    process = fit_arrivals(table.arrival_s)
    episode = max(min(requests, count // 2), _LEAST_STRETCH)
    low, high = _rates(table.arrival_s, episode)
    world = replace(
        scenario,
        experts=experts,
        classes=classes,
        tenants=tenants,
        capacity_rps=None,
        predictions=Predictions(law="given"),
        faults=Faults(),
        variation=None,
        dynamics=None,
        workload=Workload(
            arrivals=process,
            load=1.0,
            requests=episode,
            catalogue=Catalogue(kind="file", path=str(folder / REQUESTS), split="all"),
        ),
    )
    capacity = capacity_rps(world)
    mixed = replace(world.workload, load="mixed", mixed_range=(low / _BEYOND / capacity, high * _BEYOND / capacity))
    fitted = replace(world, capacity_rps=capacity, workload=mixed)
    trace = TraceFile(
        path=str(folder / ARRIVALS), format="csv", time_column="time_s", class_column="class" if names else None, jitter=False
    )
    replayed = replace(fitted, workload=replace(mixed, arrivals=Arrivals(kind="trace", trace=trace, lengths="catalogue")))
    write_text(folder / FITTED, fitted.to_yaml())
    write_text(folder / REPLAYED, replayed.to_yaml())
    return LoggedWorlds(fitted=fitted, replayed=replayed, said=_said(table, fitted, (low, high), promised.rounded))


def _told_apart(experts: Sequence[Expert], table: LoggedTable) -> tuple[tuple[Expert, ...], list[int]]:
    """The experts, each with the name of its answers as model, and an expert for each of those names.

    Experts with one model have the same answers, unless other things were predicted for them.
    """
    first: dict[str, int] = {}
    found: list[Expert] = []
    for e, expert in enumerate(experts):
        f = first.setdefault(expert.model, e)
        alike = all(np.array_equal(x[:, e], x[:, f]) for x in (table.predicted_tokens, table.predicted_score))
        name = expert.model if alike else f"{expert.model} at {expert.name}"
        first.setdefault(name, e)
        found.append(replace(expert, model=name))
    models = [expert.model for expert in found]
    return tuple(found), [models.index(name) for name in dict.fromkeys(models)]


def _with_shares(entries: tuple[_Entry, ...], index: NDArray[np.int32]) -> tuple[_Entry, ...]:
    """Classes or tenants, with the shares that requests had."""
    counts = np.bincount(index, minlength=len(entries))
    return tuple(replace(entry, share=float(count)) for entry, count in zip(entries, counts, strict=False))


def _request_lines(table: LoggedTable, scenario: Scenario, columns: list[int], classes: Sequence[str], seed: int) -> str:
    """The file of requests (``rllib_envs.workload.prompt_files``)."""
    count = len(table.requests)
    rows = np.unique(np.linspace(0, count - 1, min(count, _ROWS)).astype(int))
    copies = min(max(_ROWS // rows.size, 1), _MOST_COPIES)
    score = expected_scores(table, table.predicted_score)
    rng = np.random.default_rng(seed)
    log_sd = [round(float(table.log_sd[e]), 6) for e in columns]
    service = table.service.tolist()
    lines = [json.dumps({"header": True, "models": [scenario.experts[e].model for e in columns]})]
    for copy in range(copies):
        lengths = lengths_of(table, scenario, rng)
        for i in rows.tolist():
            name = classes[service[i]] if classes else ""
            line = {
                "id": f"{i}.{copy}",
                "task": name,
                "prompt_tokens": int(table.prompt[i]),
                "correct": _digits(score[i, columns]),
                "out_tokens": lengths[i, columns].tolist(),
                "predicted_score": _digits(table.predicted_score[i, columns]),
                "predicted_tokens": _digits(table.predicted_tokens[i, columns]),
                "predicted_log_sd": log_sd,
            }
            lines.append(json.dumps(line | ({"class": name} if classes else {})))
    return "\n".join(lines) + "\n"


def _digits(values: NDArray[np.float64]) -> list[float]:
    return [round(value, 6) for value in values.tolist()]


def _arrival_lines(table: LoggedTable, classes: Sequence[str]) -> str:
    """The trace of arrivals."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["time_s", *(["class"] if classes else [])])
    for time_s, service in zip(table.arrival_s.tolist(), table.service.tolist(), strict=True):
        writer.writerow([f"{time_s:.6f}", *([classes[service]] if classes else [])])
    return text.getvalue()


def _rates(arrival_s: NDArray[np.float64], episode: int) -> tuple[float, float]:
    """Low and high quantile of the rates of stretches of the log that are as long as an episode, requests/s."""
    starts = np.arange(0, arrival_s.size - episode, max(episode // _STEPS, 1))
    spans_s = arrival_s[starts + episode] - arrival_s[starts]
    rates = episode / spans_s[spans_s > 0]
    if not rates.size:
        raise InputError("the requests of the log all come at once: no load can be fitted to them")
    low, high = np.quantile(rates, _QUANTILES)
    return float(low), float(high)


def _said(table: LoggedTable, world: Scenario, rates: tuple[float, float], rounded: int) -> tuple[str, ...]:
    arrivals, (low, high) = world.workload.arrivals, rates
    process = (
        f"gaps of coefficient of variation {arrivals.cv:.2f}"
        if arrivals.kind == "gamma"
        else f"bursts of {arrivals.burst_ratio:.1f} times the quiet rate in {arrivals.burst_share:.0%} of the time, every "
        f"{arrivals.cycle_s:.0f} s"
    )
    share = low / (world.capacity_rps or 1), high / (world.capacity_rps or 1)
    lines = [
        f"Arrivals: {low:.3g} to {high:.3g} requests/s ({share[0]:.0%} to {share[1]:.0%} of the capacity), {process}",
        f"Lengths: predicted ones err by a log standard deviation of {table.log_sd.min():.2f} to {table.log_sd.max():.2f}",
        f"Quality: {int(table.judged.sum()):,} answers were judged, the others count as predicted",
    ]
    if len(world.classes) > 1:
        total = sum(entry.share for entry in world.classes)
        most = sorted(world.classes, key=lambda entry: -entry.share)[:5]
        lines.append("Classes: " + "; ".join(f"{x.name} {x.share / total:.0%}" for x in most if x.share))
    if rounded:
        lines.append(f"{rounded:,} requests brought bounds too many to keep apart: they have the nearest others")
    return tuple(lines)
