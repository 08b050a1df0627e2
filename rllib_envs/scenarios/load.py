"""Scenarios by name: a preset, a generated fleet or a user's YAML file, and the messages for one that is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from rllib_envs.errors import InputError
from rllib_envs.scenario import TRACE, Scenario
from rllib_envs.scenarios.fleet import generate_fleet
from rllib_envs.workload.arrival_processes import PROCESSES
from rllib_envs.yaml_files import parse_yaml, read_mapping

_ADAPTER: TypeAdapter[Scenario] = TypeAdapter(Scenario)


def parse_scenario(data: Any, where: str) -> Scenario:
    """Build a scenario from parsed YAML; ``where`` says where it was read, for messages.

    Raises:
        InputError: unknown key, wrong type or impossible value; one line for each, with the field's path. Arrivals of a user's
            own code: a user who loads a file has not agreed to run code.
    """
    try:
        scenario = _ADAPTER.validate_json(json.dumps(data, default=str))  # JSON lists are read as tuples; other types stay strict
    except ValidationError as error:
        raise InputError("\n".join(explain(error, where, "scenario"))) from None
    if scenario.workload.arrivals.is_own:
        raise InputError(
            f"{where}: workload.arrivals.kind = {scenario.workload.arrivals.kind!r}: code is run only where the command line "
            f"(--arrivals) or Python names it, never from a file; allowed are {', '.join(PROCESSES)}, {TRACE}"
        )
    return scenario


Location = tuple[int | str, ...]


def explain(error: ValidationError, where: str, whole: str, place: Callable[[Location], Location] = lambda at: at) -> list[str]:
    """A line for each mistake: where it was read, the field, what is allowed, and what was given.

    Args:
        error: from pydantic.
        where: file or other source.
        whole: name for the whole input, if no field is to blame.
        place: maps a field's location in the record to that in the user's input.
    """
    return [f"{where}: {'.'.join(map(str, place(e['loc']))) or whole}: {_what(e)}" for e in error.errors()]


_HINTS = {"bool_type": ", true or false"}


def _what(mistake: ErrorDetails) -> str:
    """What is allowed and what was given; our own checks name both."""
    if mistake["type"] == "value_error":
        return mistake["msg"].removeprefix("Value error, ")
    return f"{mistake['msg']}{_HINTS.get(mistake['type'], '')} (got {_short(mistake['input'])})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def load_scenario(name_or_path: str | os.PathLike[str]) -> Scenario:
    """Load a preset (a YAML file here, or generated ``edgeN``) or a YAML file. A path object is always a file.

    Raises:
        InputError: no such preset or file, or its content is not a scenario.
        TypeError: neither text nor a path.
    """
    if not isinstance(name_or_path, str):
        if not isinstance(name_or_path, os.PathLike):  # pyright: ignore[reportUnnecessaryIsInstance] (not all callers check types)
            raise TypeError(f"scenario of type {type(name_or_path).__name__}: must be a str, a Path or a Scenario")
        return _read_scenario(Path(name_or_path))
    if name_or_path in preset_names():
        return _preset(name_or_path)
    generated = re.fullmatch(r"edge([0-9]{1,9})", name_or_path)
    if generated:
        return generate_fleet(int(generated[1]))
    path = Path(name_or_path)
    if "\0" in name_or_path or not path.exists():
        raise InputError(
            f"scenario {name_or_path!r}: neither a preset ({', '.join(preset_names())}, edgeN with N from 2 to 256) nor a file"
        )
    return _read_scenario(path)


def as_scenario(scenario: Scenario | str | os.PathLike[str]) -> Scenario:
    """Return a scenario unchanged, or load it by name; errors as for ``load_scenario``."""
    return scenario if isinstance(scenario, Scenario) else load_scenario(scenario)


def _read_scenario(path: Path) -> Scenario:
    return parse_scenario(read_mapping(path, "a scenario's fields"), str(path))


@cache  # to parse one takes as long as a short episode, and nobody can change a scenario
def _preset(name: str) -> Scenario:
    text = (resources.files("rllib_envs") / "scenarios" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_scenario(parse_yaml(text, f"preset {name}"), f"preset {name}")


@cache
def preset_names() -> tuple[str, ...]:
    """Names of the presets that are files."""
    folder = resources.files("rllib_envs") / "scenarios"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))
