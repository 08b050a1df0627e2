"""Timing shared by the benchmarks: CPU seconds, best of several runs."""

from __future__ import annotations

import time
from collections.abc import Callable

REPEATS = 5


def cpu_s(run: Callable[[], object], repeats: int = REPEATS, before: Callable[[], object] = lambda: None) -> float:
    """Least CPU seconds of ``repeats`` calls, after one that is not counted (compilation, caches).

    ``before`` prepares each call and is not timed. The least is what the code costs; a shared machine's noise only adds.
    """
    times = [_once(run, before) for _ in range(repeats + 1)]
    return min(times[1:])


def _once(run: Callable[[], object], before: Callable[[], object]) -> float:
    before()
    start = time.process_time()
    run()
    return time.process_time() - start
