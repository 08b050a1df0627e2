"""The ledger: what a gateway has sent where, and what came back. It is all that a decision knows of the engines.

Requests have rows in the order in which they were decided, in arrays of bounded size. When the rows are used up, those that still
count move together (``compact``). Times are seconds of one monotonic clock.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.seen import NOWHERE, Seen

BASE_ROWS = 256
"""Least rows in use after those in use have moved together: moving averages of so many requests no longer count them."""

LEFT, FINISHED, CUT = 0, 1, 2
"""How a request has ended: without an answer to learn from, by itself, at a limit of tokens."""


class ExpertLoad(NamedTuple):
    """What is under way at an expert."""

    waiting: int  # requests without a token so far
    running: int
    prompt_tokens: int  # of those that wait
    tokens_left: float  # predicted output tokens still to come, of all


class EndedRequest(NamedTuple):
    """A request that has ended."""

    row: int
    expert: int
    how: int  # LEFT, FINISHED or CUT
    tokens: int  # output tokens
    sent_s: float
    first_s: float  # NaN: there was no token
    ended_s: float


class Ledger:
    """Requests under way at N experts, by key.

    Args:
        n_experts: N.
        capacity: most rows, M; so many requests can be under way, less one.
        iteration_s: (N,) time of a short iteration of each engine: tokens closer together than a quarter of it are of one.

    Raises:
        ValueError: a capacity below 2 * BASE_ROWS.
    """

    def __init__(self, n_experts: int, capacity: int, iteration_s: NDArray[np.float64]) -> None:
        if capacity < 2 * BASE_ROWS:
            raise ValueError(f"capacity = {capacity}: must be >= {2 * BASE_ROWS}")
        self.capacity = capacity
        self.rows = 0  # in use: the next request gets this one
        self.seen = Seen(
            expert=np.full(capacity, NOWHERE, np.int32),
            tokens=np.zeros(capacity, np.int32),
            sent_s=np.zeros(capacity),
            first_s=np.full(capacity, np.nan),
            pace_s=np.zeros(capacity),
            began_s=np.full(n_experts, -np.inf),
            before_s=np.full(n_experts, -np.inf),
        )
        self.prompt = np.zeros(capacity, np.int32)
        self.predicted_tokens = np.zeros(capacity)
        self.follower: Ledger | None = None  # another view of the same cluster, which is told what comes back too
        self._row_of: dict[str, int] = {}
        self._present = [0] * n_experts
        self._ended: list[EndedRequest] = []
        self._same_s = [float(x) / 4 for x in iteration_s]
        # Memory views: to write one number through them takes a third of the time that NumPy takes.
        self._tokens: memoryview[int] = _numbers(self.seen.tokens)
        self._expert: memoryview[int] = _numbers(self.seen.expert)
        self._first_s: memoryview[float] = _numbers(self.seen.first_s)
        self._began_s: memoryview[float] = _numbers(self.seen.began_s)
        self._before_s: memoryview[float] = _numbers(self.seen.before_s)

    def __len__(self) -> int:
        """Requests under way."""
        return len(self._row_of)

    def __contains__(self, key: object) -> bool:
        """Whether the request is under way."""
        return key in self._row_of

    def take_row(self) -> int:
        """The row of the next request; there must be one left (``compact``)."""
        row = self.rows
        self.rows += 1
        self._expert[row] = NOWHERE
        return row

    def opened(
        self,
        key: str,
        row: int,
        expert: int,
        now_s: float,
        prompt: int,
        predicted_tokens: float,
        *,
        first_s: float = math.nan,
        pace_s: float = 0.0,
    ) -> None:
        """A request is sent to an expert.

        Args:
            key: of the request.
            row: its own (``take_row``).
            expert: where it goes.
            now_s: the time.
            prompt: its tokens there.
            predicted_tokens: of its answer there.
            first_s: predicted time of its first token, if its tokens are not seen until the end; NaN: they are.
            pace_s: predicted time per token likewise; 0: they are seen.
        """
        self.seen.sent_s[row] = now_s
        self._row_of[key] = row
        self._send(row, expert, now_s, prompt, predicted_tokens, first_s, pace_s)

    def streamed(self, key: str, tokens: int, now_s: float) -> None:
        """So many more tokens of the answer have come; the first call is the first token. Nothing for an unknown key."""
        if self.follower is not None:
            self.follower.streamed(key, tokens, now_s)
        row = self._row_of.get(key)
        if row is None or tokens <= 0:
            return
        expert, so_far = self._expert[row], self._tokens[row]
        if so_far == 0:
            self._first_s[row] = now_s
        self._tokens[row] = so_far + tokens
        last_s = self._began_s[expert]
        if now_s - last_s > self._same_s[expert]:  # else a token of the same iteration
            self._before_s[expert] = last_s
        self._began_s[expert] = now_s

    def finished(
        self, key: str, now_s: float, prompt_tokens: int | None = None, output_tokens: int | None = None, *, cut: bool = False
    ) -> None:
        """The answer is complete.

        Args:
            key: of the request; nothing happens for an unknown one.
            now_s: the time.
            prompt_tokens: as the engine counts them; None: not told.
            output_tokens: the same; None: as many as were streamed.
            cut: it ended at a limit of tokens, not by itself.
        """
        if self.follower is not None:
            self.follower.finished(key, now_s, prompt_tokens, output_tokens, cut=cut)
        row = self._row_of.get(key)
        if row is None:
            return
        if prompt_tokens is not None:
            self.prompt[row] = prompt_tokens
        if output_tokens is not None:
            missing = output_tokens - int(self._tokens[row])
            if missing > 0:
                self.streamed(key, missing, now_s)
            self._tokens[row] = output_tokens
        self._end(key, row, now_s, CUT if cut else FINISHED)

    def cancelled(self, key: str, now_s: float) -> None:
        """Who asked has gone, and the engine has been told."""
        if self.follower is not None:
            self.follower.cancelled(key, now_s)
        self._leave(key, now_s)

    def failed(self, key: str, now_s: float) -> None:
        """The engine failed, refused, or took too long."""
        if self.follower is not None:
            self.follower.failed(key, now_s)
        self._leave(key, now_s)

    def moved(self, key: str, expert: int, now_s: float, prompt: int, predicted_tokens: float) -> None:
        """The request goes to another expert, as the first one failed before the first token. Nothing for an unknown key.

        It keeps the time at which it was decided. Where its tokens are not seen, it is now taken to wait.
        """
        row = self._row_of.get(key)
        if row is not None:
            self._present[self._expert[row]] -= 1
            self._send(row, expert, now_s, prompt, predicted_tokens, math.nan, 0.0)

    def row_of(self, key: str) -> int | None:
        """The row of a request under way."""
        return self._row_of.get(key)

    def take_ended(self) -> list[EndedRequest]:
        """The requests that have ended since the last call, in order."""
        ended, self._ended = self._ended, []
        return ended

    def loads(self) -> list[ExpertLoad]:
        """What is under way at each expert."""
        seen, used = self.seen, slice(self.rows)
        expert, tokens = seen.expert[used], seen.tokens[used]
        left = np.maximum(self.predicted_tokens[used] - tokens, 1)
        found: list[ExpertLoad] = []
        for e in range(seen.began_s.size):
            mine = expert == e
            waits = mine & (tokens == 0)
            found.append(
                ExpertLoad(
                    waiting=int(waits.sum()),
                    running=int(mine.sum() - waits.sum()),
                    prompt_tokens=int(self.prompt[used][waits].sum()),
                    tokens_left=float(left[mine].sum()),
                )
            )
        return found

    def compact(self, kept: NDArray[np.bool_]) -> tuple[NDArray[np.intp], int]:
        """Move the rows that still count together, in their order.

        Args:
            kept: (rows,) rows that count beyond those of requests under way.

        Returns:
            The old numbers of these rows, and the new number of the first of them. They end before row ``rows``.
        """
        old = np.flatnonzero(kept | (self.seen.expert[: self.rows] != NOWHERE))
        rows = max(BASE_ROWS, old.size)
        first = rows - old.size
        for array in (*self.seen[:5], self.prompt, self.predicted_tokens):
            array[first:rows] = array[old]
        self.seen.expert[:first] = NOWHERE
        self.seen.expert[rows:] = NOWHERE
        number = dict(zip(old.tolist(), range(first, rows), strict=True))
        self._row_of = {key: number[row] for key, row in self._row_of.items()}
        self._ended = [outcome._replace(row=number[outcome.row]) for outcome in self._ended if outcome.row in number]
        self.rows = rows
        return old, first

    def _send(
        self, row: int, expert: int, now_s: float, prompt: int, predicted_tokens: float, first_s: float, pace_s: float
    ) -> None:
        if self._present[expert] == 0:
            self._began_s[expert] = self._before_s[expert] = now_s
        self._present[expert] += 1
        self.prompt[row], self.predicted_tokens[row] = prompt, predicted_tokens
        self.seen.pace_s[row] = pace_s
        self._tokens[row], self._first_s[row] = 0, first_s
        self._expert[row] = expert

    def _leave(self, key: str, now_s: float) -> None:
        row = self._row_of.get(key)
        if row is not None:
            self._end(key, row, now_s, LEFT)

    def _end(self, key: str, row: int, now_s: float, how: int) -> None:
        outcome = EndedRequest(
            row=row,
            expert=int(self._expert[row]),
            how=how,
            tokens=int(self._tokens[row]),
            sent_s=float(self.seen.sent_s[row]),
            first_s=float(self._first_s[row]),
            ended_s=now_s,
        )
        self._ended.append(outcome)
        self._present[outcome.expert] -= 1
        self._expert[row] = NOWHERE
        del self._row_of[key]


def _numbers(array: NDArray[Any]) -> memoryview[Any]:
    """The numbers of an array, in its memory."""
    return memoryview(cast(Any, array))
