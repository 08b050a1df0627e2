"""Tuned parameters of the heuristics: the file that tune-heuristics writes and evaluate reads; some are shipped, in presets/.

The file is JSON: ``{"format": 1, "scenario", "fingerprint", "predictions", "workloads": {WORKLOAD: {"arrivals",
"share_of_capacity", "parameters": {ROUTER: {PARAMETER: number}}}}}`` and, for the reader, how it came about.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

from rllib_envs.baselines import HEURISTICS
from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.json_files import read_json
from rllib_envs.scenario import LOAD_FRACTIONS, Faults, Predictions, Scenario, Workload
from tuning.evaluation.likeness import ALIKE, traffic_profile
from tuning.run_dir.digests import content_digest
from tuning.specs.grammar import format_spec, nearest
from tuning.specs.routers import parse_router
from tuning.specs.workloads import NamedWorkload, TraceOptions, is_process, make_workloads

FORMAT = 1

Parameters = dict[str, dict[str, float]]  # router -> parameter -> value


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Tuned parameters of one workload."""

    arrivals: str
    share_of_capacity: float | None  # of the nominal rate; None where an episode or a trace has its own rate
    parameters: Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The entry that a workload gets its parameters from."""

    entry: str | None  # name of the workload there; None where nothing there is alike
    parameters: Parameters  # of it
    why: str = ""  # the figures it was chosen or refused by, where that was not by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """Tuned parameters of a scenario's heuristics, by workload."""

    source: str  # where they were read, for messages and reports
    fingerprint: str
    predictions: str  # the law of the predictions that they were tuned for
    entries: dict[str, Entry]  # one or more

    def choose(self, workload: NamedWorkload) -> Choice:
        """Choose the parameters of a workload: its own, else those for the same arrivals, else for similar arrivals.

        Similarity counts burstiness, prompt lengths and answer lengths (``tuning.evaluation.likeness``). Among entries with the
        same or the most similar arrivals, the one at the nearest share of capacity is chosen. A load that is drawn for each
        episode counts as moderate. A workload with a fault counts as the one without, as nobody can tune for an unknown fault.

        Raises:
            InputError: a trace cannot be read.
        """
        if workload.clean_name in self.entries:
            return self._choice(workload.clean_name)
        if any(entry.arrivals == workload.arrivals for entry in self.entries.values()):
            return self._choice(self._at_nearest_load(workload, workload.arrivals))
        own = traffic_profile(_without_faults(workload.scenario))
        found = {name: own.distance(traffic_profile(scenario)) for name, scenario in self._scenarios(workload).items()}
        best = min(found, key=lambda name: found[name], default=None)
        if best is None or found[best] > ALIKE:
            nearest = "" if best is None else f"; the nearest, {best}, differs by a factor of {found[best]:.2g}"
            return Choice(entry=None, parameters={}, why=f"{own}{nearest}")
        return self._choice(best, f"{own}: within a factor of {found[best]:.2g}")

    def _choice(self, name: str, why: str = "") -> Choice:
        return Choice(entry=name, parameters=self.entries[name].parameters, why=why)

    def _at_nearest_load(self, workload: NamedWorkload, arrivals: str) -> str:
        moderate = LOAD_FRACTIONS["moderate"]
        share = _share_of_capacity(workload)

        def distance(name: str) -> float:
            return abs(math.log((self.entries[name].share_of_capacity or moderate) / share))

        return min((name for name, entry in self.entries.items() if entry.arrivals == arrivals), key=distance)

    def _scenarios(self, workload: NamedWorkload) -> dict[str, Scenario]:
        """For each arrival process, the entry at the nearest load with the workload's scenario under those arrivals.

        Entries for traces are left out, as their files are not known here.
        """
        base = replace(_without_faults(workload.scenario), capacity_rps=None)  # of other prompts
        scenarios: dict[str, Scenario] = {}
        for arrivals in dict.fromkeys(entry.arrivals for entry in self.entries.values() if is_process(entry.arrivals)):
            name = self._at_nearest_load(workload, arrivals)
            share = self.entries[name].share_of_capacity
            load = "moderate" if share is None else f"{100 * share}%"
            (made,) = make_workloads(base, (load,), (arrivals,), TraceOptions(), None)
            scenarios[name] = made.scenario
        return scenarios


def _share_of_capacity(workload: NamedWorkload) -> float:
    """The load as a share of the capacity; for a trace at its own rate, the measured one."""
    share, rate_rps = workload.share_of_capacity, math.nan
    if share is None and workload.load == "native":
        rate_rps = traffic_profile(_without_faults(workload.scenario)).rate_rps
    if share is not None:
        return share
    return LOAD_FRACTIONS["moderate"] if math.isnan(rate_rps) else rate_rps / capacity_rps(workload.scenario)


def _without_faults(scenario: Scenario) -> Scenario:
    """The scenario without faults and prediction errors; its requests and arrivals stay."""
    return replace(scenario, predictions=Predictions(), faults=Faults(), variation=None)


def tuning_fingerprint(scenario: Scenario) -> str:
    """Fingerprint of what tuned parameters depend on, sixteen hex digits: experts, SLO, catalogue and capacity.

    Service classes, tenants and the network count where there are any. Predictions, faults and variation are left out: tuning
    does not know how wrong the figures are. Arrivals and load are named beside the parameters. Capacity counts to three digits,
    so that it does not matter whether it was stated or measured; a file of prompts counts by its content, wherever it lies.
    """
    catalogue = replace(scenario.workload.catalogue, split="train")
    capacity = capacity_rps(replace(scenario, workload=Workload(catalogue=catalogue)))
    prompts = None if catalogue.path is None else content_digest([Path(catalogue.path)])
    whole = scenario.to_dict()
    counts = {
        "experts": whole["experts"],
        "slo_s_per_token": scenario.slo_s_per_token,
        "catalogue": asdict(catalogue) | {"path": prompts},
        "capacity_rps": float(f"{capacity:.3g}"),
        **{part: whole[part] for part in ("classes", "tenants", "network") if part in whole},
    }
    return hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:16]


def read_tuned(path: Path, scenario: Scenario) -> Tuned:
    """Read tuned parameters for a scenario.

    Raises:
        InputError: it cannot be read, is not such a file, was tuned for another scenario, or names no router or parameter.
    """
    tuned = _parse(read_json(path), str(path))
    if tuned.fingerprint != tuning_fingerprint(scenario):
        raise InputError(
            f"{path}: tuned for another scenario than {scenario.name!r} (fingerprint {tuned.fingerprint}, here "
            f"{tuning_fingerprint(scenario)}): run edgeroute tune-heuristics for it"
        )
    return tuned


def shipped_tuned(scenario: Scenario) -> Tuned | None:
    """The parameters shipped for this scenario, if there are any."""
    folder = resources.files("tuning") / "presets"
    files = (
        sorted((entry for entry in folder.iterdir() if entry.name.endswith(".json")), key=lambda entry: entry.name)
        if folder.is_dir()
        else []
    )
    for file in files:
        tuned = _parse(json.loads(file.read_text(encoding="utf-8")), f"presets/{file.name}")
        if tuned.fingerprint == tuning_fingerprint(scenario):
            return tuned
    return None


def _parse(data: Any, where: str) -> Tuned:
    if not isinstance(data, dict) or cast(dict[str, Any], data).get("format") != FORMAT:
        raise InputError(f"{where}: not a file of tuned parameters of format {FORMAT}")
    content = cast(dict[str, Any], data)
    try:
        entries = {str(name): _entry(entry) for name, entry in content["workloads"].items()}
        law = str(content.get("predictions", "oracle-noise"))  # a file without it was written when there was no other law
        tuned = Tuned(source=where, fingerprint=str(content["fingerprint"]), predictions=law, entries=entries)
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
