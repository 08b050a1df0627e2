"""Strict JSON for user files and files read back: complete, UTF-8, no extensions of JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from rllib_envs.errors import InputError
from rllib_envs.text_files import read_text

MOST_BYTES = 2**26
"""Largest file that is read."""

_MOST_DIGITS = 40  # an integer: seeds have up to 39


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it cannot be read or is not JSON; names the file, and line and column where there is one.
    """
    return parse_json(read_text(path, MOST_BYTES), str(path))


def parse_json(text: str, where: str, first_line: int | None = None) -> Any:
    """Parse a JSON text.

    Args:
        text: the complete text.
        where: where it was read, for messages.
        first_line: number of its first line in the file, if it is only part of the file.

    Raises:
        InputError: it is not JSON, nested too deeply, has a key twice in one object, or a number that is not finite or too long.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_int=_integer, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}:{error.lineno + (first_line or 1) - 1}:{error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        at = where if first_line is None else f"{where}:{first_line}"
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise InputError(f"{at}: not JSON that is read here: {why}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {key!r} stands twice in one object")
        made[key] = value
    return made


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _integer(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"an integer of {len(text):,} digits: at most {_MOST_DIGITS} are read")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value
