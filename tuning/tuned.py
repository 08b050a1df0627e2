"""Tuned parameters of the heuristics: the file that tune-heuristics writes and evaluate reads; some are shipped, in presets/.

The file is JSON: ``{"format": 1, "scenario", "fingerprint", "workloads": {WORKLOAD: {"arrivals", "share_of_capacity",
"parameters": {ROUTER: {PARAMETER: number}}}}}`` and, for the reader, how it came about.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.scenario import LOAD_FRACTIONS, Scenario
from rllib_envs.scenario import Workload as WorkloadSpec
from tuning.digests import content_digest
from tuning.routers import HEURISTICS, parse_router
from tuning.spec import format_spec, nearest
from tuning.storage import read_json
from tuning.workloads import Workload

FORMAT = 1

Parameters = dict[str, dict[str, float]]  # router -> parameter -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What was found on one workload."""

    arrivals: str
    share_of_capacity: float | None  # of the nominal rate; None where an episode or a trace has its own rate
    parameters: Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """Tuned parameters of a scenario's heuristics, by workload."""

    source: str  # where they were read, for messages and reports
    fingerprint: str
    entries: dict[str, Entry]  # one or more

    def nearest(self, workload: Workload) -> str:
        """The workload here that comes nearest: itself, or else the same arrivals, or else any, at the nearest share of capacity.

        A workload without a nominal rate counts as one at moderate load. One with a fault counts as the one without: nobody
        can tune for a fault that has yet to show.
        """
        if workload.clean_name in self.entries:
            return workload.clean_name
        moderate = LOAD_FRACTIONS["moderate"]

        def distance(name: str) -> tuple[bool, float]:
            entry = self.entries[name]
            ratio = (entry.share_of_capacity or moderate) / (workload.share_of_capacity or moderate)
            return entry.arrivals != workload.arrivals, abs(math.log(ratio))

        return min(self.entries, key=distance)

    def at(self, workload: Workload) -> Parameters:
        """The parameters of the workload that comes nearest."""
        return self.entries[self.nearest(workload)].parameters


def world_fingerprint(scenario: Scenario) -> str:
    """Sixteen hex digits of what tuned parameters hold for: experts, SLO, catalogue and capacity.

    Predictions, faults and variation are left out: parameters are tuned before anybody knows how wrong the figures are. Arrivals
    and load are named beside the parameters. Capacity counts to three digits, so that it does not matter whether it was stated or
    measured; a file of prompts counts by its content, wherever it lies.
    """
    catalogue = replace(scenario.workload.catalogue, split="train")
    capacity = capacity_rps(replace(scenario, workload=WorkloadSpec(catalogue=catalogue)))
    prompts = None if catalogue.path is None else content_digest([Path(catalogue.path)])
    world = {
        "experts": [asdict(expert) for expert in scenario.experts],
        "slo_s_per_token": scenario.slo_s_per_token,
        "catalogue": asdict(catalogue) | {"path": prompts},
        "capacity_rps": float(f"{capacity:.3g}"),
    }
    return hashlib.sha256(json.dumps(world, sort_keys=True).encode()).hexdigest()[:16]


def read_tuned(path: Path, scenario: Scenario) -> Tuned:
    """Read a file for use with a scenario.

    Raises:
        InputError: it cannot be read, is not such a file, was tuned for another world, or holds an unknown router or parameter.
    """
    tuned = _parse(read_json(path), str(path))
    if tuned.fingerprint != world_fingerprint(scenario):
        raise InputError(
            f"{path}: tuned for another world than scenario {scenario.name!r} (fingerprint {tuned.fingerprint}, here "
            f"{world_fingerprint(scenario)}): run edgeroute tune-heuristics for it"
        )
    return tuned


def shipped_tuned(scenario: Scenario) -> Tuned | None:
    """The parameters shipped for this world, if there are any."""
    folder = resources.files("tuning") / "presets"
    files = (
        sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda entry: entry.name)
        if folder.is_dir()
        else []
    )
    for file in files:
        tuned = _parse(json.loads(file.read_text(encoding="utf-8")), f"presets/{file.name}")
        if tuned.fingerprint == world_fingerprint(scenario):
            return tuned
    return None


def _parse(data: Any, where: str) -> Tuned:
    if not isinstance(data, dict) or cast(dict[str, Any], data).get("format") != FORMAT:
        raise InputError(f"{where}: not a file of tuned parameters of format {FORMAT}")
    content = cast(dict[str, Any], data)
    try:
        entries = {str(name): _entry(entry) for name, entry in content["workloads"].items()}
        tuned = Tuned(source=where, fingerprint=str(content["fingerprint"]), entries=entries)
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: must hold fingerprint and workloads, as tune-heuristics writes them ({error!r})") from None
    if not entries:
        raise InputError(f"{where}: workloads is empty")
    for name, entry in entries.items():
        for router, values in entry.parameters.items():
            try:
                _check(router, values)
            except InputError as error:
                raise InputError(f"{where}: {name}: {error}") from None
    return tuned


def _entry(data: dict[str, Any]) -> Entry:
    share = data["share_of_capacity"]
    return Entry(
        arrivals=str(data["arrivals"]),
        share_of_capacity=None if share is None else float(share),
        parameters={
            router: {key: float(value) for key, value in values.items()} for router, values in data["parameters"].items()
        },
    )


def _check(router: str, values: dict[str, float]) -> None:
    if router not in HEURISTICS:
        raise InputError(f"router {router!r}: unknown; {nearest(router, HEURISTICS)}")
    parse_router(format_spec(router, values))
