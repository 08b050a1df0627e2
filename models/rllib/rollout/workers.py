"""Fault-tolerant calls to rollout workers that may die, hang or raise."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import ray
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from models.rllib.errors import WorkersFailed
from models.rllib.rollout.runner import VectorEnvRunner

if TYPE_CHECKING:
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

_ROUNDS = 3  # in which every worker fails, until it is no accident
_FACTOR = 2  # how many times as long as the first one another may take beside the patience
_ALL_GONE = 20  # patiences until nobody is waited for any more
_POLL_S = 0.1

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """The answer of a worker that failed."""

    error: str  # kind and message


@dataclass(slots=True, kw_only=True)
class _Round(Generic[T]):
    """The state of one request to all workers."""

    answers: dict[int, T] = field(default_factory=dict[int, T])  # by the workers' numbers
    failures: list[str] = field(default_factory=list[str])


class Workers:
    """Calls all rollout workers at once, and continues without those that fail.

    - Ray restarts one that died, on another node if necessary; it takes part again when it is up.
    - One whose environment raises builds its environments anew.
    - One that takes much longer than the others is not waited for, and gets no request until it has answered. That answer is
      dropped, as it comes from old weights. As long as nobody has answered a round, it joins that round.

    Each request carries the weights and the number of steps sampled so far. So a restarted worker neither acts with initial
    weights nor repeats the first episodes.

    Args:
        group: the workers. A single local one is called directly, as nothing can replace it.
        patience_s: how much longer than twice the time of the first one another may take.
    """

    def __init__(self, group: EnvRunnerGroup, patience_s: float) -> None:
        self._group, self._patience_s = group, patience_s
        self._manager: Any = group._worker_manager  # pyright: ignore[reportPrivateUsage] (the group tells no worker from another)
        self._unanswered: dict[int, str] = {}  # worker -> tag of its request
        self._requests = 0
        logging.getLogger("ray.rllib.utils.actor_manager").setLevel(logging.CRITICAL)  # it reports what is reported here

    def ask(self, function: Callable[[VectorEnvRunner], T], *, steps: int) -> list[T]:
        """Call a function on each worker; results in the order of their numbers, without failed ones.

        Args:
            function: what to do, in the worker's process.
            steps: environment steps that all workers together have sampled.

        Raises:
            WorkersFailed: no worker has answered, also after repeated calls.
        """
        if not self._manager.num_actors():
            return [_alone(cast(VectorEnvRunner, self._group.local_env_runner), function)]
        failures: list[str] = []
        for _ in range(_ROUNDS):
            found = self._round(function, steps)
            if found.answers:
                return [found.answers[number] for number in sorted(found.answers)]
            failures = found.failures
        raise WorkersFailed(f"every rollout worker failed, {_ROUNDS} times in a row; the last time: {'; '.join(failures)}")

    def restore(self) -> list[int]:
        """Take back workers that Ray has restarted, almost without waiting; returns their numbers."""
        back: list[int] = self._group.probe_unhealthy_env_runners() if self._manager.num_actors() else []
        for number in back:
            _log.warning("rollout worker %d is back", number)
        return back

    def abandon(self) -> None:
        """End the processes of workers that do not answer."""
        for number in self._unanswered:
            ray.kill(self._manager.remove_actor(number))
        self._unanswered.clear()

    def _round(self, function: Callable[[VectorEnvRunner], T], steps: int) -> _Round[T]:
        found = _Round[T]()
        local: Any = self._group.local_env_runner
        state = local.get_state(components=COMPONENT_RL_MODULE)
        shared = ray.put({**state, NUM_ENV_STEPS_SAMPLED_LIFETIME: steps})
        request = partial(_attempt, function=function, state=shared)
        self._requests += 1
        tag = f"request {self._requests}"
        left = self._send(request, tag, self._free())
        begin_s = time.monotonic()
        until_s = begin_s + _ALL_GONE * self._patience_s
        while left and time.monotonic() < until_s:
            if not found.answers:  # those asked may all hang: whoever comes free stands in for them
                left |= self._send(request, tag, self._back())
            for number, answer in self._answers(tag):
                left.discard(number)
                if isinstance(answer, Failure):
                    _log.warning("rollout worker %d failed, its sample is lost: %s", number, answer.error)
                    found.failures.append(f"worker {number}: {answer.error}")
                    continue
                if not found.answers:
                    now_s = time.monotonic()
                    until_s = min(until_s, now_s + (_FACTOR - 1) * (now_s - begin_s) + self._patience_s)
                found.answers[number] = answer
        for number in sorted(left):
            took_s = time.monotonic() - begin_s
            _log.warning("rollout worker %d has not answered for %.0f s: training goes on without it", number, took_s)
            found.failures.append(f"worker {number}: no answer for {took_s:.0f} s")
        return found

    def _send(self, request: Callable[[VectorEnvRunner], Any], tag: str, numbers: list[int]) -> set[int]:
        """Send a request to these workers; their numbers."""
        if numbers:
            self._manager.foreach_actor_async(request, tag=tag, remote_actor_ids=numbers)
            self._unanswered |= dict.fromkeys(numbers, tag)
        return set(numbers)

    def _back(self) -> list[int]:
        """Take back those that have answered an earlier request since; their numbers."""
        tags = set(self._unanswered.values()) - {f"request {self._requests}"}
        back = [number for number, _ in self._answers(*tags, timeout_s=0.0) if self._manager.is_actor_healthy(number)]
        for number in back:
            _log.warning("rollout worker %d answers again", number)
        return sorted(back)

    def _free(self) -> list[int]:
        """Workers that are alive and have answered; waits for one.

        Raises:
            WorkersFailed: there is none for long.
        """
        until_s = time.monotonic() + _ALL_GONE * self._patience_s
        while time.monotonic() < until_s:
            self._back()
            free = [number for number in self._manager.healthy_actor_ids() if number not in self._unanswered]
            if free:
                return free
            time.sleep(_POLL_S)
            self.restore()
        raise WorkersFailed(f"no rollout worker is left: none of {self._manager.num_actors()} answers or comes back")

    def _answers(self, *tags: str, timeout_s: float = _POLL_S) -> list[tuple[int, Any]]:
        """Answers to requests, by the numbers of the workers; a process that died has answered with a failure."""
        if not tags:
            return []
        results: Any = self._manager.fetch_ready_async_reqs(tags=list(tags), timeout_seconds=timeout_s)
        for result in results:
            self._unanswered.pop(result.actor_id, None)
        return [(result.actor_id, result.get() if result.ok else Failure(error="its process died")) for result in results]


def _attempt(runner: VectorEnvRunner, *, function: Callable[[VectorEnvRunner], T], state: Any) -> T | Failure:
    """Runs in a worker's process: an exception that left it would end the process."""
    try:
        runner.prepare(ray.get(state))
        return function(runner)
    except Exception as error:
        runner.broken = True
        return Failure(error=_described(error))


def _alone(runner: VectorEnvRunner, function: Callable[[VectorEnvRunner], T]) -> T:
    try:
        return function(runner)
    except Exception as error:
        raise WorkersFailed(f"sampling failed: {_described(error)}") from error


def _described(error: BaseException) -> str:
    """Kind and message of an error, or of what it was raised from if it says nothing itself."""
    if not error.args and error.__cause__ is not None:
        return _described(error.__cause__)
    return f"{type(error).__name__}: {error}"
