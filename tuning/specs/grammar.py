"""The name grammar of the command line: ``name`` or ``name:key=value,key=value``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from rllib_envs.errors import InputError

MOST_SEED = 10**18 - 1
"""Greatest seed: what YAML and JSON are read to."""


def parse_spec(
    text: str, what: str, parameters: Mapping[str, Iterable[str]], *, given: str | None = None
) -> tuple[str, dict[str, float]]:
    """Parse a name with numeric parameters.

    Args:
        text: what to read.
        what: what it names, for messages.
        parameters: the names there are, each with the parameters it takes.
        given: what the user gave, where that was more than ``text``.

    Raises:
        InputError: unknown name or parameter (with the nearest ones), or a value that is no number.
    """
    where = f"{what} {given or text!r}"
    name, colon, rest = text.partition(":")
    if name not in parameters:
        raise InputError(f"{where}: there is no {name!r}; {nearest(name, parameters)}")
    values: dict[str, float] = {}
    for item in rest.split(",") if colon else []:
        key, equals, number = item.partition("=")
        allowed = sorted(parameters[name])
        if not allowed:
            raise InputError(f"{where}: {name} takes no parameters")
        if key not in allowed:
            raise InputError(f"{where}: {name} has no parameter {key!r}; {nearest(key, allowed)}")
        if key in values:
            raise InputError(f"{where}: {key} is given twice")
        values[key] = _number(number if equals else "", f"{where}: {key}")
    return name, values


def format_spec(name: str, values: Mapping[str, float]) -> str:
    """Format a name and its values so that ``parse_spec`` reads them back."""
    return name + (":" + ",".join(f"{key}={_shortest(value)}" for key, value in values.items()) if values else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known names for an unknown one."""
    names = list(known)
    matches = get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, matches))}?" if matches else f"allowed are {', '.join(names)}"


def check_limits(option: str, value: float | None, low: float, high: float) -> None:
    """Check the limits of a numeric option; None stands for its default and always passes.

    Args:
        option: its name as a field.
        value: what was given.
        low: the least that is allowed.
        high: the greatest.

    Raises:
        InputError: it is not a number within these.
    """
    if value is not None and not low <= value <= high:
        raise InputError(f"{option.replace('_', '-')} = {value}: must be from {low:,} to {high:,}")


def _shortest(value: float) -> str:
    text = f"{value:g}"
    return text if float(text) == value else repr(value)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value):
        raise InputError(f"{where} = {text!r}: must be a number, as in key=0.5")
    return value
