"""Ends a request whose client went away, or for which somebody takes too long."""

from __future__ import annotations

import asyncio
from typing import Literal

from gateway.server.replies import Receive

Why = Literal["client_gone", "first_byte", "idle", "client_slow", "answer", "shutdown"]
"""Why a request was ended. idle: the expert sends nothing more; client_slow: the client takes nothing more."""


class Watch:
    """Cancels the task of one request, and remembers why. Whoever catches the cancellation asks ``taken``.

    One timer serves all limits: a limit that is set anew for every chunk only moves a number.
    """

    __slots__ = ("_armed_s", "_deadline_s", "_limit", "_listener", "_loop", "_task", "_timer", "why")

    def __init__(self, receive: Receive) -> None:
        """``receive``: of the request, whose body has been read."""
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer: asyncio.TimerHandle | None = None
        self._armed_s = self._deadline_s = float("inf")
        self._limit: Why = "idle"
        self.why: Why | None = None
        self._listener = self._loop.create_task(self._listen(receive))

    def limit(self, why: Why, seconds: float) -> None:
        """The one limit from now on."""
        self._limit = why
        self._deadline_s = deadline = self._loop.time() + seconds
        if deadline < self._armed_s:
            self._arm()

    def end(self, why: Why) -> None:
        """End the request."""
        if self.why is None:
            self.why = why
            self._task.cancel()

    def taken(self) -> Why | None:
        """Why the cancellation that was just caught came, which is over then; None: it is not ours."""
        why, self.why = self.why, None
        if why is not None:
            self._task.uncancel()
        return why

    def close(self) -> None:
        """The request is over."""
        self._listener.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self.why = "client_gone"  # nothing ends what is over

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_s = self._deadline_s
        self._timer = self._loop.call_at(self._deadline_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._armed_s = float("inf")
        if self._loop.time() >= self._deadline_s:
            self.end(self._limit)
        elif self._deadline_s < float("inf"):
            self._arm()

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end("client_gone")
