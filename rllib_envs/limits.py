"""Bounded numbers and names: what the fields of a scenario allow."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)  # strict: true and "1" are no numbers, 1.0 is no integer

# The bounds are far beyond any real cluster, and no product of figures overflows.
Positive = Annotated[float, Field(ge=1e-6, le=1e9)]
NonNegative = Annotated[float, Field(ge=0, le=1e9)]
Weight = Annotated[float, Field(ge=-1e6, le=1e6)]
Penalty = Annotated[float, Field(ge=0, le=1e6)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(ge=1e-6, le=1)]
InnerShare = Annotated[float, Field(ge=1e-6, le=1 - 1e-6)]
AtLeastOne = Annotated[float, Field(ge=1, le=1e6)]
LogDeviation = Annotated[float, Field(ge=0, le=10)]
Rate = Annotated[float, Field(ge=1e-6, le=1e6)]  # per second
Order = Annotated[int, Field(ge=-(10**4), le=10**4)]
Slots = Annotated[int, Field(ge=1, le=4096)]


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError(f"{name!r}: must be on one line, without control characters")
    return name


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)]
"""Characters that tables, figures, file names and terminals can show."""
