"""Predictions in a thread, where predictors are so slow that they would hold up the event loop, and no longer than a bound."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

from gateway.live import Told
from gateway.predicting import Predicting
from gateway.request import RouteRequest

_LOG = logging.getLogger(__name__)

Missed = Literal["late", "busy", "failed"]
"""Why predictors were not heard: they took too long, too many requests waited for them, or they broke."""

AT_ONCE_S = 0.002
"""Predictors that take longer for a text, in processor time, do not run in the event loop."""

BOUND_S, MOST_WAITING = 0.1, 8
"""How long a request waits for them, and most requests that do; others have each expert's means."""

_TRIALS = 3
_TEXT = "Why is a list that is sorted by two keys, one after the other, in the order of the second? Show it by an example. " * 10


class Heard(NamedTuple):
    """What predictors said."""

    told: Told | None  # None: they are fast, and the decider asks them itself
    missed: Missed | None = None  # why these are the experts' means


class Aside:
    """Asks predictors, in a thread if they are slow; one thread, so that a burst leaves processors to others.

    Args:
        predicting: warmed up, as its time is measured.

    Attributes:
        slow: whether they have a thread.
    """

    def __init__(self, predicting: Predicting) -> None:
        self._predicting, self._waiting = predicting, 0
        self.slow = predicting.reads_text and _time_s(predicting) > AT_ONCE_S
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="predictors") if self.slow else None

    async def of(self, request: RouteRequest) -> Heard:
        """What is predicted for a request."""
        if self._pool is None or not request.text:
            return Heard(None)
        if self._waiting >= MOST_WAITING:
            return self._usual(request, "busy")
        future = asyncio.get_running_loop().run_in_executor(self._pool, self._predicting.of, request)
        self._waiting += 1
        future.add_done_callback(self._done)
        try:
            async with asyncio.timeout(BOUND_S):  # it takes what has not begun out of the queue
                return Heard(await future)
        except TimeoutError:
            return self._usual(request, "late")
        except Exception:
            _LOG.exception("predictors failed")
            return self._usual(request, "failed")

    def close(self) -> None:
        """No more is asked."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _usual(self, request: RouteRequest, why: Missed) -> Heard:
        return Heard(self._predicting.usual(request), why)

    def _done(self, _: asyncio.Future[Told]) -> None:
        self._waiting -= 1


def _time_s(predicting: Predicting) -> float:
    """Processor time for an ordinary text, the least of some trials: what else the machine does is not in it."""
    request = RouteRequest(prompt_tokens=1, text=_TEXT)
    times_s: list[float] = []
    for _ in range(_TRIALS):
        began_s = time.thread_time()
        predicting.of(request)
        times_s.append(time.thread_time() - began_s)
    return min(times_s)
