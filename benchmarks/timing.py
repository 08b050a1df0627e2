"""Timing shared by the benchmarks: CPU seconds, best of several runs."""

from __future__ import annotations

import time
from collections.abc import Callable

REPEATS = 5


def cpu_s(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Least CPU seconds of ``repeats`` calls, after one that is not counted (compilation, caches).

    The least is what the code costs; the rest of a shared machine's noise only adds.
    """
    run()
    return min(_once(run) for _ in range(repeats))


def _once(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start
