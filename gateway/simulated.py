"""Simulated engines as a gateway sees them: it sends requests, and tokens come back, iteration by iteration.

They run on the simulator's own kernels. A plan is cut to one iteration, after which each decoding request has one more token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.kernels import commit, cut_at, push, schedule, work_of
from rllib_envs.sim.state import FINISHED, ROUTED, State, allocate, engine_records
from rllib_envs.sim.terms import promise
from rllib_envs.workload.episode import Episode


class Iteration(NamedTuple):
    """The end of an iteration of an expert."""

    time_s: float
    expert: int
    got: tuple[int, ...]  # requests that got a token
    ended: tuple[int, ...]  # those of them that are complete


class SimulatedEngines:
    """The engines of an episode, with its true lengths.

    Args:
        episode: its requests, by number.
        terms: (C,) TERMS of the service classes.
    """

    def __init__(self, episode: Episode, terms: NDArray[np.void]) -> None:
        self.episode, self._terms = episode, terms
        count = episode.arrival_s.size
        self.state: State = allocate(engine_records(episode.engines)[None].copy(), count)
        self.state.requests["arrival_s"][0] = episode.arrival_s
        self.state.requests["prompt"][0] = episode.prompt
        self.state.records["service"][0] = episode.user["service"]
        self._work: list[Any] = [work_of(self.state, 0, e) for e in range(len(episode.engines))]

    def send(self, r: int, expert: int) -> bool:
        """Send request r to an expert as it arrives, to which time all engines have been run; False: its queue is full."""
        request, record = self.state.requests[0, r], self.state.records[0, r]
        request["output"], record["score"] = self.episode.output[r, expert], self.episode.score[r, expert]
        record["priority"] = self._terms["priority"][record["service"]]
        record["route"] = expert
        if not push(self.state.engines[0, expert], self.state.experts[0, expert], self._work[expert], r, request["arrival_s"]):
            return False
        record["status"] = ROUTED
        promise(record, self._terms[record["service"]], request["output"], 0.0)
        return True

    def run(self, until_s: float) -> Iterator[Iteration]:
        """Run all engines; the iterations that end by ``until_s``, in the order of time."""
        found = [iteration for e in range(len(self.episode.engines)) for iteration in self._run_one(e, until_s)]
        return iter(sorted(found, key=lambda iteration: iteration.time_s))

    def _run_one(self, e: int, until_s: float) -> Iterator[Iteration]:
        engine, expert, work = self.state.engines[0, e], self.state.experts[0, e], self._work[e]
        running = self.state.running[0, e]
        while True:
            if expert["plan_steps"] == 0:
                if expert["n_run"] + expert["n_wait"] == 0 or expert["clock_s"] >= until_s:
                    return
                schedule(engine, expert, work)
                cut_at(expert, expert["clock_s"])
            if expert["plan_end_s"] > until_s:
                return
            decoding = running[: expert["n_dec"]].tolist()
            in_prefill = running[expert["n_dec"] : expert["n_run"]].tolist()
            idle = int(expert["idle"])
            commit(engine, expert, work)
            started = [r for r in in_prefill if not np.isnan(self.state.records["first_token_s"][0, r])]
            got = decoding[: len(decoding) - idle] + started
            ended = [r for r in got if self.state.records["status"][0, r] == FINISHED]
            yield Iteration(float(expert["clock_s"]), e, tuple(got), tuple(ended))

    def qos(self) -> float:
        """Mean QoS of all requests, once all have ended."""
        return float(self.state.experts["qos"].sum() / self.episode.arrival_s.size)
