"""The cells of a log of answers, checked."""

from __future__ import annotations

import math
from typing import Any

from rllib_envs.workload.answer_rows import AnswerRow
from rllib_envs.workload.trace_clocks import number
from rllib_envs.workload.trace_formats import short

MOST_TEXT = 2**20
"""Characters of a cell."""

_TRUTH = {"true": 1.0, "false": 0.0}  # as pandas writes them


class Malformed(Exception):
    """What is wrong with a cell: column, value, what is allowed."""


def text_in(row: AnswerRow, column: str, *, empty: bool = False) -> str:
    """Text; of ids and names a whole number is one too.

    Raises:
        Malformed: it is none.
    """
    value = row.cells[column]
    if isinstance(value, int) and not isinstance(value, bool) and column != "prompt":
        value = str(value)
    if not isinstance(value, str) or not (value or empty):
        raise Malformed(f"column {row.names[column]!r}: {_shown(value)} must be text{'' if empty else ', not empty'}")
    if len(value) > MOST_TEXT:
        raise Malformed(
            f"column {row.names[column]!r}: {short(value)!r} has {len(value):,} characters: must be {MOST_TEXT:,} at most"
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Malformed(
            f"column {row.names[column]!r}: {short(value)!r} holds half a character: must be whole Unicode text"
        ) from None
    return value


def number_in(row: AnswerRow, column: str, high: int) -> float:
    """A number from 0 to ``high``, NaN where there is none. A score may be true or false.

    Raises:
        Malformed: it is something else.
    """
    value = row.cells[column]
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if isinstance(value, str):
        found = _TRUTH.get(value.strip().lower()) if column == "score" else None
        found = number(value) if found is None else found
    else:
        found = value if isinstance(value, int | float) and (column == "score" or not isinstance(value, bool)) else None
    if found is None or not 0 <= found <= high:
        raise Malformed(
            f"column {row.names[column]!r}: {_shown(value)} must be a number from 0 to {high}, or empty where there is none"
        )
    return float(found)


def _shown(value: Any) -> str:
    return "nothing" if value is None else short(repr(value))
