"""Names of columns in files of earlier versions, which are still read."""

from __future__ import annotations

from typing import Any, cast

_FORMER = {
    "told_score": "predicted_score",
    "told_length": "predicted_length",
    "own_success_loose": "own_success_softened",
    "soft_change_loose": "soft_change_softened",
    "log_gap_slow": "log_gap_long_run",
    "log_gap_fast": "log_gap_recent",
    "log_load_slow": "log_load_long_run",
    "log_load_fast": "log_load_recent",
}


def current_name(name: Any) -> Any:
    """The name that a column has now; what is no name of a column stays as it is."""
    return _FORMER.get(name, name) if isinstance(name, str) else name


def current_names(names: Any) -> Any:
    """The same for each of a list; what is no list stays as it is."""
    return [current_name(name) for name in cast(list[Any], names)] if isinstance(names, list) else names
