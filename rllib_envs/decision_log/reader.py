"""Reads a decision log: a folder or a file of it, line by line, each line checked."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from rllib_envs.decision_log.records import LINES, PATTERN, LoggedFeedback, LoggedLine, LoggedRequest, LoggedStart, Values
from rllib_envs.errors import InputError
from rllib_envs.json_files import MOST_BYTES
from rllib_envs.scenario import Scenario
from rllib_envs.scenarios.load import explain
from rllib_envs.text_files import read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionLog:
    """What a log has about its last cluster."""

    source: Path
    scenario: Scenario
    requests: tuple[LoggedRequest, ...]  # in order of arrival
    feedback: dict[str, float]  # score by id of the request; the last one said counts
    elsewhere: int  # requests about other clusters, which are left out
    cut: int  # lines at the ends of files that a killed process left unfinished

    @property
    def sent(self) -> tuple[LoggedRequest, ...]:
        """The requests that went to an expert and were answered to the end."""
        return tuple(x for x in self.requests if x.outcome is not None and x.outcome.status == "finished")


def read_log(path: Path) -> DecisionLog:
    """Read a log.

    Args:
        path: the folder that a gateway logs to, or one of its files.

    Raises:
        InputError: no such log, or a line that is none of a log: file, line, field, value and what is allowed.
    """
    files = sorted(path.glob(PATTERN)) if path.is_dir() else [path]
    if not files:
        raise InputError(f"log {path}: has no files {PATTERN}")
    starts: list[tuple[LoggedStart, list[LoggedRequest]]] = []  # of several processes one after the other
    feedback: dict[str, float] = {}
    cut = 0
    for file in files:
        for line in _lines(file):
            if line is None:
                cut += 1
            elif isinstance(line, LoggedStart):
                starts.append((line, []))
            elif isinstance(line, LoggedFeedback):
                feedback[line.id] = line.score
            else:
                starts[-1][1].append(line)
    started = [(start, found) for start, found in starts if found]
    if not started:
        raise InputError(f"log {path}: has no requests")
    scenario = max(started, key=lambda entry: entry[0].time)[0].scenario
    last = asdict(scenario)
    requests = [request for start, found in started if asdict(start.scenario) == last for request in found]
    elsewhere = sum(len(found) for _, found in started) - len(requests)
    requests.sort(key=lambda request: request.time)
    return DecisionLog(source=path, scenario=scenario, requests=tuple(requests), feedback=feedback, elsewhere=elsewhere, cut=cut)


def column(values: Values, n: int) -> NDArray[np.float64]:
    """(n,) logged numbers as an array, NaN where they are not known."""
    return np.array([math.nan if x is None else x for x in values]) if values else np.full(n, math.nan)


def _lines(file: Path) -> Iterator[LoggedLine | None]:
    """The lines of a file; None for the last one, if its end is missing."""
    scenario: Scenario | None = None
    lines = read_text(file, MOST_BYTES).split("\n")
    for number, text in enumerate(lines, 1):
        if not text:
            continue
        where = f"{file}:{number}"
        if number == len(lines):  # nothing ends it
            yield None
            return
        try:
            line = LINES.validate_json(text)
        except ValidationError as error:
            raise InputError(_explained(error, where, text)) from None
        if isinstance(line, LoggedStart):
            scenario = line.scenario
        elif scenario is None:
            raise InputError(f"{where}: a log begins with a line of kind 'start'; this one is of kind {line.kind!r}")
        elif isinstance(line, LoggedRequest):
            _check_places(line, scenario, where)
        yield line


def _explained(error: ValidationError, where: str, text: str) -> str:
    """One line: the first mistake."""
    try:
        json.loads(text)
    except ValueError as wrong:
        return f"{where}: not JSON: {wrong}"
    return explain(error, where, "line")[0]


def _check_places(line: LoggedRequest, scenario: Scenario, where: str) -> None:
    n = scenario.n_experts
    places = [*line.candidates, *(x for x in (line.expert, line.outcome and line.outcome.expert) if x is not None)]
    known = [entry.name for entry in scenario.classes]
    if known and line.service not in known:
        raise InputError(f"{where}: service {line.service!r}: the log's cluster has the classes {', '.join(known)}")
    if line.shadow is not None and line.shadow.expert is not None:
        places.append(line.shadow.expert)
    if places and max(places) >= n:
        raise InputError(f"{where}: expert {max(places)}: the log's cluster has {n}, from 0 to {n - 1}")
    for name, sizes in (
        ("prompt_tokens", (n,)), ("predicted_score", (0, n)), ("predicted_tokens", (0, n)), ("predicted_ttft_s", (0, n)),
        ("predicted_tpot_s", (0, n)), ("scores", (0, n + 1)),
    ):  # fmt: skip
        if len(getattr(line, name)) not in sizes:
            raise InputError(f"{where}: {name} has {len(getattr(line, name))} entries: must have {sizes[-1]}")
    names = [entry.name for entry in scenario.classes] or ["default"]
    if line.service not in names:
        raise InputError(f"{where}: service = {line.service!r}: the log's cluster has {', '.join(names)}")
    if (line.outcome is None) != (line.expert is None):
        raise InputError(f"{where}: outcome and expert: both or neither must be null")
