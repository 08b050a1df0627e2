"""Simulated engines as a gateway sees them: it sends requests, and tokens come back, iteration by iteration.

They run on the simulator's own kernels. A plan is cut to one iteration, after which each decoding request has one more token.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from gateway.ledger import Ledger
from gateway.live import LiveCluster, Told
from gateway.policies import LivePolicy
from rllib_envs.capacity import capacity_rps
from rllib_envs.scenario import Scenario
from rllib_envs.service_terms import allowed_experts, terms_of
from rllib_envs.sim.jit import kernel
from rllib_envs.sim.kernels import commit, push, schedule, work_of
from rllib_envs.sim.plan import cut_at
from rllib_envs.sim.seen import Seen, clear_seen, seen_fields
from rllib_envs.sim.state import FINISHED, ROUTED, State, allocate, engine_records
from rllib_envs.sim.terms import promise
from rllib_envs.simulation import Simulation
from rllib_envs.workload.episode import Episode, draw_episode


class EngineIteration(NamedTuple):
    """The end of an iteration of an expert."""

    time_s: float
    expert: int
    got: tuple[int, ...]  # requests that got a token
    ended: tuple[int, ...]  # those of them that are complete


@kernel
def _push(state, terms, e, r):
    """Send request r to expert e as it arrives, with what its class promises; False: the queue is full."""
    request, extra = state.requests[0, r], state.extras[0, r]
    extra.priority = terms[extra.service].priority
    if not push(state.engines[0, e], state.experts[0, e], work_of(state, 0, e), r, request.arrival_s):
        return False
    promise(state.records[0, r], state.extras[0], r, terms[extra.service], request.output, 0.0)
    return True


@kernel
def _plan_one(state, e):
    """Plan the next iteration of expert e, and no more than that one."""
    expert = state.experts[0, e]
    schedule(state.engines[0, e], expert, work_of(state, 0, e))
    cut_at(expert, expert.clock_s)


@kernel
def _end_plan(state, e):
    """Carry out the plan of expert e."""
    work = work_of(state, 0, e)
    commit(state.engines[0, e], state.experts[0, e], work, work.extras)


class SimulatedEngines:
    """The engines of an episode, with its true lengths.

    Args:
        episode: its requests, by number.
        terms: (C,) TERMS of the service classes.
    """

    def __init__(self, episode: Episode, terms: NDArray[np.void]) -> None:
        self.episode, self._terms = episode, terms
        count = episode.arrival_s.size
        self.state: State = allocate(engine_records(episode.engines)[None].copy(), count, plain=False)
        self.state.requests["arrival_s"][0] = episode.arrival_s
        self.state.requests["prompt"][0] = episode.prompt
        assert self.state.extras is not None
        self.state.extras["service"][0] = episode.user["service"]

    def send(self, r: int, expert: int) -> bool:
        """Send request r to an expert as it arrives, to which time all engines have been run; False: its queue is full."""
        request, record = self.state.requests[0, r], self.state.records[0, r]
        request["output"], record["score"] = self.episode.output[r, expert], self.episode.score[r, expert]
        record["route"] = expert
        if not _push(self.state, self._terms, expert, r):
            return False
        record["status"] = ROUTED
        return True

    def run(self, until_s: float) -> Iterator[EngineIteration]:
        """Run all engines; the iterations that end by ``until_s``, in the order of time."""
        found = [iteration for e in range(len(self.episode.engines)) for iteration in self._run_one(e, until_s)]
        return iter(sorted(found, key=lambda iteration: iteration.time_s))

    def _run_one(self, e: int, until_s: float) -> Iterator[EngineIteration]:
        expert = self.state.experts[0, e]
        running = self.state.running[0, e]
        while True:
            if expert["plan_steps"] == 0:
                if expert["n_run"] + expert["n_wait"] == 0 or expert["clock_s"] >= until_s:
                    return
                _plan_one(self.state, e)
            if expert["plan_end_s"] > until_s:
                return
            decoding = running[: expert["n_dec"]].tolist()
            in_prefill = running[expert["n_dec"] : expert["n_run"]].tolist()
            idle = int(expert["idle"])
            _end_plan(self.state, e)
            started = [r for r in in_prefill if not np.isnan(self.state.records["first_token_s"][0, r])]
            got = decoding[: len(decoding) - idle] + started
            ended = [r for r in got if self.state.records["status"][0, r] == FINISHED]
            yield EngineIteration(float(expert["clock_s"]), e, tuple(got), tuple(ended))

    def qos(self) -> float:
        """Mean QoS of all requests, once all have ended."""
        return float(self.state.experts["qos"].sum() / self.episode.arrival_s.size)


Look = Callable[[LiveCluster, Simulation], None]


def compare_actions(scenario: Scenario, policy: LivePolicy, seed: int, look: Look = lambda live, simulation: None) -> float:
    """The share of a simulation's decisions that the policy takes alike when it sees what a gateway sees.

    Args:
        scenario: without a network.
        policy: decides in the simulation.
        seed: of the episode.
        look: called at each decision, with both of them at it.
    """
    scenario = replace(scenario, observation=policy.observation)
    simulation = Simulation(scenario, 1)
    simulation.start(0, seed)
    run = _Run(scenario, draw_episode(scenario, simulation.capacity_rps, seed), gateways=1, share=False)
    same, rng = 0, np.random.default_rng(seed)
    live = run.clusters[0]
    for r in range(run.episode.arrival_s.size):
        row = run.arrive(r, 0)
        look(live, simulation)
        mine = policy.decide(live, rng).action
        action = policy.decide(cast(LiveCluster, simulation), rng).action
        same += mine == action
        run.send(r, row, 0, action)
        simulation.step(np.array([action]))
    return same / run.episode.arrival_s.size


def serve(
    scenario: Scenario, policy: LivePolicy, seed: int, *, gateways: int = 1, share: bool = False, streams: bool = True
) -> float:
    """Mean QoS of an episode where gateways decide.

    Args:
        scenario: without a network.
        policy: of each of them.
        seed: of the episode, and of which gateway gets a request.
        gateways: how many get an equal share of the requests, at random.
        share: whether each sees what all have under way.
        streams: whether tokens are seen one by one.
    """
    scenario = replace(scenario, observation=policy.observation)
    run = _Run(scenario, draw_episode(scenario, capacity_rps(scenario), seed), gateways=gateways, share=share, streams=streams)
    rng = np.random.default_rng(seed)
    for r in range(run.episode.arrival_s.size):
        gateway = int(rng.integers(gateways))
        row = run.arrive(r, gateway)
        run.send(r, row, gateway, policy.decide(run.clusters[gateway], rng).action)
    run.advance(np.inf)
    return run.engines.qos()


class _Run:
    """An episode between gateways and simulated engines."""

    def __init__(self, scenario: Scenario, episode: Episode, *, gateways: int, share: bool, streams: bool = True) -> None:
        self.episode, self._streams = episode, streams
        self.engines = SimulatedEngines(episode, terms_of(scenario))
        rows = max(episode.arrival_s.size, 1024)
        fields = seen_fields(gateways, rows, scenario.n_experts)
        seen = Seen(**{name: np.zeros(shape, kind) for name, (shape, kind) in fields.items()}) if share else None
        if seen is not None:
            for gateway in range(gateways):
                clear_seen(seen, gateway)
        log_sd = np.sqrt(np.square(episode.predicted_log_sd, dtype=np.float64).mean(axis=0))
        self.clusters = [
            LiveCluster(
                scenario,
                capacity=rows,
                log_sd=log_sd,
                log_median=episode.predicted_log_median,
                seen=seen,
                me=gateway if share else 0,
            )
            for gateway in range(gateways)
        ]
        self._ledger_of: dict[int, Ledger] = {}
        self._allowed = allowed_experts(scenario)

    def advance(self, until_s: float) -> None:
        """Run the engines, and tell the ledgers what comes back."""
        output = self.engines.state.requests["output"][0]
        for iteration in self.engines.run(until_s):
            if self._streams:
                for r in iteration.got:
                    self._ledger_of[r].streamed(str(r), 1, iteration.time_s)
            for r in iteration.ended:
                self._ledger_of.pop(r).finished(str(r), iteration.time_s, output_tokens=int(output[r]))

    def arrive(self, r: int, gateway: int) -> int:
        """Request r comes to a gateway; its row there."""
        episode = self.episode
        self.advance(episode.arrival_s[r])
        user = episode.user[r]
        allowed = self._allowed[user["service"], user["tenant"]]
        return self.clusters[gateway].observe(
            int(episode.prompt[r]), self._told(r), int(user["service"]), allowed, float(episode.arrival_s[r])
        )

    def send(self, r: int, row: int, gateway: int, action: int) -> None:
        """The gateway sends it, unless it drops it or the engine has no room."""
        n = self.episode.output.shape[1]
        if action == n or not self.engines.send(r, action):
            return
        live = self.clusters[gateway]
        live.send(str(r), row, action, int(self.episode.prompt[r]), self._told(r), np.ones(n, np.bool_), streams=self._streams)
        self._ledger_of[r] = live.ledger

    def _told(self, r: int) -> Told:
        episode = self.episode
        return Told(episode.predicted_score[r], episode.predicted_tokens[r], episode.predicted_log_sd[r])
