"""Signatures of plug-in functions: positional arguments by convention, and keyword-only numbers of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

REQUIRED = inspect.Parameter.empty
"""The default of a keyword that has none."""


def keywords(function: Callable[..., Any], positional: tuple[str, ...]) -> dict[str, Any]:
    """Keyword-only parameters of a function with their defaults, or ``REQUIRED``.

    Raises:
        TypeError: it takes another number of positional arguments, or ``*args`` or ``**kwargs``.
    """
    signature = inspect.signature(function)
    kinds = [p.kind for p in signature.parameters.values()]
    place = [kind for kind in kinds if kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    own = {name: p.default for name, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}
    if len(place) != len(positional) or len(place) + len(own) != len(kinds):
        name = getattr(function, "__name__", type(function).__name__)
        raise TypeError(f"{name}{signature}: must take ({', '.join(positional)}), and after a * numbers with defaults")
    return own
