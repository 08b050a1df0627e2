"""Futures of a cluster, drawn from what a router may know of it: requests in flight, the arrived one, and those to come."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllib_envs.copies import append_requests, copy_cluster
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario
from rllib_envs.sim.cluster import RequestTable
from rllib_envs.simulation import Simulation
from tuning.headroom.arrivals import FutureArrivals
from tuning.headroom.beliefs import SAMPLE, Beliefs
from tuning.headroom.hidden import replace_truth, tell_generated


class Futures:
    """Draws futures of clusters of one scenario."""

    def __init__(self, scenario: Scenario, capacity_rps: float, seed: int, *, horizon: int) -> None:
        """Learn the law of the scenario's requests.

        Args:
            scenario: the world.
            capacity_rps: of its fleet.
            seed: of the sample of requests, see ``Beliefs``.
            horizon: requests that still arrive in a future.

        Raises:
            InputError: faults, variation, or arrivals whose future is not known.
        """
        for name, value, none in (("faults", scenario.faults, type(scenario.faults)()), ("variation", scenario.variation, None)):
            if value != none:
                raise InputError(f"{name}: roll-outs take the engines as they are told, so the world must have none")
        self.horizon = horizon
        self.beliefs = Beliefs(scenario, capacity_rps, seed)
        self._arrivals = FutureArrivals(scenario, self.beliefs.sample.arrival_s)

    def spread(
        self, simulation: Simulation, cluster: int, copies: Simulation, of_future: NDArray[np.int64], rng: np.random.Generator
    ) -> None:
        """Make copies of a cluster as it is now, with futures in place of what is hidden.

        Args:
            simulation: where the cluster is.
            cluster: its number.
            copies: for the result, see ``copy_cluster``.
            of_future: (B,) number of the future of each copy; copies with the same one differ in nothing.
            rng: of the futures.
        """
        copy_cluster(simulation, cluster, copies)
        self._replace_in_flight(copies, of_future, rng)
        self._replace_arrived(copies, of_future, rng)
        self._append(copies, of_future, rng)

    def _replace_in_flight(self, copies: Simulation, of_future: NDArray[np.int64], rng: np.random.Generator) -> None:
        state, now_s = copies.state, float(copies.now_s[0])
        shape = state.requests.shape
        generated = np.empty(shape[1], np.int32)
        tell_generated(state, 0, now_s, generated)
        present = np.flatnonzero(generated >= 0)
        expert = state.records["route"][0, present]
        table = copies.workload
        told = table.predicted_score[0, present, expert], table.predicted_tokens[0, present, expert]
        log_sd = table.predicted_log_sd[0, present, expert]
        uniform = rng.random((int(of_future.max()) + 1, present.size))
        so_far = generated[present].astype(np.int64)
        tokens, expected = self.beliefs.draw((*told, log_sd), expert.astype(np.int64), so_far, uniform)
        output, score = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        output[:, present], score[:, present] = tokens[of_future], expected[of_future]
        replace_truth(state, table, copies.world.service, now_s, output, score)

    def _replace_arrived(self, copies: Simulation, of_future: NDArray[np.int64], rng: np.random.Generator) -> None:
        table, r = copies.workload, int(copies.cursor[0])
        told = (table.predicted_score[0, r], table.predicted_tokens[0, r], table.predicted_log_sd[0, r])
        experts = np.arange(told[0].size)
        # The same place in the law of every expert's length: actions are compared under errors that are alike.
        uniform = np.repeat(rng.random((int(of_future.max()) + 1, 1)), experts.size, axis=1)
        tokens, expected = self.beliefs.draw(told, experts, np.zeros_like(experts), uniform)
        table.output[:, r], table.score[:, r] = tokens[of_future], expected[of_future]

    def _append(self, copies: Simulation, of_future: NDArray[np.int64], rng: np.random.Generator) -> None:
        past_s = copies.workload.arrival_s[0, : int(copies.cursor[0]) + 1]
        shape = int(of_future.max()) + 1, self.horizon
        arrival_s = past_s[-1] + np.cumsum(self._arrivals.gaps_s(past_s, shape, rng), axis=1)
        rows = rng.integers(0, SAMPLE, shape)[of_future]
        sample = self.beliefs.sample
        append_requests(
            copies,
            RequestTable(
                total=np.full(of_future.size, self.horizon, np.int32),
                arrival_s=arrival_s[of_future],
                prompt=sample.prompt[rows],
                score=self.beliefs.expected_score[rows],
                output=sample.output[rows],
                predicted_score=sample.predicted_score[rows],
                predicted_tokens=sample.predicted_tokens[rows],
                predicted_log_sd=sample.predicted_log_sd[rows],
                judged=sample.judged[rows],
                user=sample.user[rows],
                age_s=np.zeros_like(arrival_s[of_future]),
            ),
        )
