"""The ledger: what a gateway has sent where, and what came back. It is all that a decision knows of the engines.

Requests have rows in the order in which they were decided, in arrays of bounded size. When the rows are used up, those that still
count move together (``compact``). Times are seconds of one monotonic clock. Several gateways in front of the same experts keep
their rows in shared memory (``gateway.shared``), so that each sees what all have sent.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.seen import NOWHERE, Seen, clear_seen, seen_fields

BASE_ROWS = 256
"""Least rows in use after those in use have moved together: moving averages of so many requests no longer count them."""

_OF_REQUESTS = Seen._fields.index("pace_s") + 1  # so many fields of ``Seen`` have an entry for each request

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
        seen: of all gateways in front of these experts; None: this is the only one.
        me: number of this gateway among them.

    Raises:
        ValueError: a capacity below 2 * BASE_ROWS, or another one than that of ``seen``.
    """

    def __init__(
        self, n_experts: int, capacity: int, iteration_s: NDArray[np.float64], seen: Seen | None = None, me: int = 0
    ) -> None:
        if capacity < 2 * BASE_ROWS:
            raise ValueError(f"capacity = {capacity}: must be >= {2 * BASE_ROWS}")
        if seen is not None and seen.expert.shape[1] != capacity:
            raise ValueError(f"capacity = {capacity}: must be {seen.expert.shape[1]}, as in what the gateways share")
        self.capacity = capacity
        self.rows = 0  # in use: the next request gets this one
        self.seen, self.me = seen_by_one(capacity, n_experts) if seen is None else seen, me
        clear_seen(self.seen, me)
        self._own = Seen(*[array[me] for array in self.seen])
        self.follower: Ledger | None = None  # another view of the same cluster, which is told what comes back too
        self._row_of: dict[str, int] = {}
        self._ended: list[EndedRequest] = []
        self._same_s = [float(x) / 4 for x in iteration_s]
        # Memory views: to write one number through them takes a third of the time that NumPy takes.
        self._tokens: memoryview[int] = _numbers(self._own.tokens)
        self._expert: memoryview[int] = _numbers(self._own.expert)
        self._present: memoryview[int] = _numbers(self._own.present)
        self._changes: memoryview[int] = _numbers(self._own.changes)
        self._first_s: memoryview[float] = _numbers(self._own.first_s)
        self._began_s: memoryview[float] = _numbers(self._own.began_s)
        self._before_s: memoryview[float] = _numbers(self._own.before_s)

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
        self.seen.rows[self.me] = self.rows
        self.seen.arrivals[self.me] += 1
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
        predicted_score: float = 0.0,
        service: int = 0,
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
            predicted_score: of its answer there.
            service: its service class.
            first_s: predicted time of its first token, if its tokens are not seen until the end; NaN: they are.
            pace_s: predicted time per token likewise; 0: they are seen.
        """
        own = self._own
        own.sent_s[row], own.service[row] = now_s, service
        own.first_s[row], own.pace_s[row] = first_s, pace_s
        self._row_of[key] = row
        self._send(row, expert, now_s, prompt, predicted_tokens, predicted_score)

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
            self._changes[expert] += 1
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
            self._own.prompt[row] = prompt_tokens
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

    def moved(
        self, key: str, expert: int, now_s: float, prompt: int, predicted_tokens: float, predicted_score: float = 0.0
    ) -> None:
        """The request goes to another expert, as the first one failed before the first token. Nothing for an unknown key.

        It keeps the time at which it was decided. Where its tokens are not seen, it is now taken to wait.
        """
        row = self._row_of.get(key)
        if row is not None:
            self._gone_from(self._expert[row])
            self._expert[row] = NOWHERE
            self._own.first_s[row], self._own.pace_s[row] = math.nan, 0.0
            self._send(row, expert, now_s, prompt, predicted_tokens, predicted_score)

    def keys(self) -> list[str]:
        """The requests under way, in order."""
        return sorted(self._row_of, key=self._row_of.__getitem__)

    def skip_rows(self, rows: int) -> None:
        """Leave so many rows empty, from the first."""
        self.rows = rows
        self.seen.rows[self.me] = rows

    def copy_row(self, key: str, row: int, service: int, other: Ledger) -> None:
        """Enter a request that is under way in another ledger of the same experts."""
        own, its, before = self._own, other._own, other._row_of[key]
        expert = int(its.expert[before])
        for name in ("prompt", "predicted_tokens", "predicted_score", "tokens", "sent_s", "first_s", "pace_s"):
            getattr(own, name)[row] = getattr(its, name)[before]
        own.service[row] = service
        own.began_s[expert], own.before_s[expert] = its.began_s[expert], its.before_s[expert]
        self._present[expert] += 1
        self._row_of[key] = row
        self._expert[row] = expert

    def expert_of(self, key: str) -> int:
        """Where a request under way is."""
        return int(self._own.expert[self._row_of[key]])

    def service_of(self, key: str) -> int:
        """The service class of a request under way."""
        return int(self._own.service[self._row_of[key]])

    def prompt_of(self, key: str) -> int:
        """The prompt tokens of a request under way."""
        return int(self._own.prompt[self._row_of[key]])

    def tokens_of(self, key: str) -> int:
        """The tokens of a request under way that have come back."""
        return int(self._own.tokens[self._row_of[key]])

    def row_of(self, key: str) -> int | None:
        """The row of a request under way."""
        return self._row_of.get(key)

    def take_ended(self) -> list[EndedRequest]:
        """The requests that have ended since the last call, in order."""
        ended, self._ended = self._ended, []
        return ended

    def loads(self) -> list[ExpertLoad]:
        """What is under way at each expert."""
        own, used = self._own, slice(self.rows)
        expert, tokens = own.expert[used], own.tokens[used]
        left = np.maximum(own.predicted_tokens[used] - tokens, 1)
        found: list[ExpertLoad] = []
        for e in range(own.present.size):
            mine = expert == e
            waits = mine & (tokens == 0)
            found.append(
                ExpertLoad(
                    waiting=int(waits.sum()),
                    running=int(mine.sum() - waits.sum()),
                    prompt_tokens=int(own.prompt[used][waits].sum()),
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
        own = self._own
        old = np.flatnonzero(kept | (own.expert[: self.rows] != NOWHERE))
        rows = max(BASE_ROWS, old.size)
        first = rows - old.size
        for array in own[:_OF_REQUESTS]:
            array[first:rows] = array[old]
        own.expert[:first] = NOWHERE
        own.expert[rows:] = NOWHERE
        number = dict(zip(old.tolist(), range(first, rows), strict=True))
        self._row_of = {key: number[row] for key, row in self._row_of.items()}
        self._ended = [outcome._replace(row=number[outcome.row]) for outcome in self._ended if outcome.row in number]
        self.rows = rows
        self.seen.rows[self.me] = rows
        return old, first

    def _send(self, row: int, expert: int, now_s: float, prompt: int, predicted_tokens: float, predicted_score: float) -> None:
        if not self.seen.present[:, expert].any():
            self._began_s[expert] = self._before_s[expert] = now_s
        self._present[expert] += 1
        self._changes[expert] += 1
        own = self._own
        own.prompt[row], own.predicted_tokens[row], own.predicted_score[row] = prompt, predicted_tokens, predicted_score
        self._tokens[row] = 0
        self._expert[row] = expert  # last: from now on others see it

    def _gone_from(self, expert: int) -> None:
        self._present[expert] -= 1
        self._changes[expert] += 1

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
            sent_s=float(self._own.sent_s[row]),
            first_s=float(self._first_s[row]),
            ended_s=now_s,
        )
        self._ended.append(outcome)
        self._gone_from(outcome.expert)
        self._expert[row] = NOWHERE
        del self._row_of[key]


def seen_by_one(rows: int, n_experts: int) -> Seen:
    """What a single gateway sees, in its own memory."""
    return Seen(**{name: np.zeros(shape, kind) for name, (shape, kind) in seen_fields(1, rows, n_experts).items()})


def _numbers(array: NDArray[Any]) -> memoryview[Any]:
    """The numbers of an array, in its memory."""
    return memoryview(cast(Any, array))
