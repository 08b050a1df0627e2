"""Small random clusters under every kind of pressure, episodes put in by hand, and experts stepped one iteration at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import rllib_envs.simulation
from rllib_envs.expert import Expert
from rllib_envs.network import Link, Network, Site
from rllib_envs.scenario import Faults, Observation, Reward, Scenario, Workload, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.service import ServiceClass
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.sim.reference import Arrival, Engine, Request
from rllib_envs.simulation import Simulation
from rllib_envs.view import View
from rllib_envs.workload.episode import Episode
from rllib_envs.workload.users import USER_STREAMS, draw_users

REQUESTS = 40
SCORE_GRID = 2.0**20

seeds = st.integers(0, 2**32 - 1)


def small(name: str, requests: int = REQUESTS, **changes: object) -> Scenario:
    """A preset with few requests and a capacity that needs no measurement."""
    scenario = load_scenario(name)
    return replace(with_workload(scenario, requests=requests), capacity_rps=3.0 * scenario.n_experts, **changes)  # type: ignore[arg-type]


def tight(scenario: Scenario) -> Scenario:
    """The scenario with so little KV memory, and so few seats, that requests wait, preempt each other and are turned away."""
    experts = tuple(
        replace(e, engine=replace(e.engine, kv_tokens=1040, max_model_len=1000, max_num_seqs=4, max_waiting=3))
        for e in scenario.experts
    )
    return replace(scenario, experts=experts)


def random_engine(rng: np.random.Generator, *, max_waiting: int | None = None) -> EngineProfile:
    """A small engine with few blocks, few seats, a small token budget or a short queue."""
    seats, length = int(rng.integers(1, 9)), int(rng.integers(4, 120))
    return EngineProfile(
        c0_ms=float(rng.uniform(0.5, 30)),
        b_ms=float(rng.choice([0.0, rng.uniform(0, 2)])),
        c_ms=float(rng.choice([0.0, 1e-4, 0.013])),
        a_ms=float(rng.uniform(0, 0.5)),
        n0_tokens=int(rng.integers(0, 64)),
        q_ms=float(rng.uniform(0, 1e-3)),
        c_mixed_ms=float(rng.choice([0.0, 0.02])),
        kv_tokens=(length + 15) // 16 * 16 + 16 + 16 * int(rng.integers(0, 16)),
        kv_bytes_per_token=1,
        max_num_seqs=seats,
        max_num_batched_tokens=int(rng.integers(seats, 130)),
        max_model_len=length,
        max_waiting=int(rng.choice([1, 3, REQUESTS])) if max_waiting is None else max_waiting,
        reuse_preempted_blocks=bool(rng.integers(2)),
        async_scheduling=bool(rng.integers(2)),
        handoff_s=float(rng.choice([0.0, 0.0, 0.0113, 0.217])),
    )


def scenario_of(
    engines: Sequence[EngineProfile],
    *,
    slo_s: float = 0.05,
    requests: int = REQUESTS,
    observation: Observation | None = None,
    reward: Reward | None = None,
    faults: Faults | None = None,
) -> Scenario:
    """Experts with these engines, made up otherwise."""
    experts = tuple(
        Expert(name=f"e{i}", model=f"m{i}", gpu="g", params_b=1, engine=engine, mean_score=0.5, mean_output_tokens=20)
        for i, engine in enumerate(engines)
    )
    return Scenario(
        name="made-up",
        experts=experts,
        slo_s_per_token=slo_s,
        capacity_rps=1.0,
        workload=Workload(load=1.0, requests=requests),
        observation=observation or Observation(),
        reward=reward or Reward(),
        faults=faults or Faults(),
    )


def random_world(
    rng: np.random.Generator,
    *,
    max_waiting: int | None = None,
    observation: Observation | None = None,
    reward: Reward | None = None,
    faults: Faults | None = None,
    several: bool = False,
) -> tuple[Scenario, Episode, NDArray[np.int64]]:
    """A scenario of small engines, an episode that presses on them, and a decision for each request (masked ones among them).

    With ``several`` requests are of several service classes, most engines schedule by priority, and there is a network without
    jitter.
    """
    engines = [random_engine(rng, max_waiting=max_waiting) for _ in range(int(rng.integers(2, 4)))]
    if several:
        engines = [replace(engine, scheduling="priority" if rng.random() < 0.7 else "fcfs") for engine in engines]
    slo_s = float(rng.choice([0.02, 0.06, 0.2]))
    scenario = scenario_of(engines, slo_s=slo_s, observation=observation, reward=reward, faults=faults)
    if several:
        scenario = random_network(replace(scenario, classes=random_classes(rng)), rng, jitter_log_sd=0.0)
    share = rng.dirichlet(np.full(len(engines) + 1, 0.7)) * 0.9 + 0.1 / (len(engines) + 1)
    return scenario, random_episode(scenario, rng), rng.choice(len(engines) + 1, REQUESTS, p=share)


def random_classes(rng: np.random.Generator) -> tuple[ServiceClass, ...]:
    """Two to four service classes of different weight and priority, each with some of the bounds or with none."""
    scales_s = {"per_token_s": 0.03, "ttft_s": 0.1, "tpot_s": 0.02, "e2e_s": 1.0}
    return tuple(
        ServiceClass(
            name=f"c{i}",
            share=float(rng.uniform(0.2, 1)),
            weight=float(rng.choice([0.25, 1.0, 3.5])),
            priority=int(rng.integers(-1, 2)),
            **{name: scale * float(np.exp(rng.normal())) for name, scale in scales_s.items() if rng.random() < 0.5},
        )
        for i in range(int(rng.integers(2, 5)))
    )


def random_network(scenario: Scenario, rng: np.random.Generator, jitter_log_sd: float = 0.4) -> Scenario:
    """The scenario with its experts at two sites, users at two sites, and links from next to nothing up to its bounds."""
    sites = ("s0", "s1")
    links = tuple(
        Link(users=u, experts=e, rtt_s=float(0.1 * np.exp(rng.normal())), mbit_per_s=float(rng.choice([0.01, 1.0])))
        for u in sites
        for e in sites
    )
    between = Network(sites=tuple(Site(name=name) for name in sites), links=links, jitter_log_sd=jitter_log_sd)
    experts = tuple(replace(e, site=str(rng.choice(sites))) for e in scenario.experts)
    return replace(scenario, experts=experts, network=between)


def random_expenses(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """The scenario with watts and prices, some of them 0, but not those of the first expert."""

    def draw(most: float) -> float:
        return float(rng.choice([0.0, rng.uniform(0, most)]))

    experts: list[Expert] = []
    for expert in scenario.experts:
        idle_w, prompt_price, output_price = draw(90), draw(2e3), draw(9e3)
        experts.append(
            replace(expert, idle_w=idle_w, active_w=idle_w + draw(300), prompt_price=prompt_price, output_price=output_price)
        )
    first = experts[0]
    experts[0] = replace(first, active_w=first.active_w + 1, prompt_price=first.prompt_price + 1)
    return replace(scenario, experts=tuple(experts))


def random_episode(scenario: Scenario, rng: np.random.Generator, count: int = REQUESTS) -> Episode:
    """Arrivals in clumps and with pauses, some at the same instant; some prompts too long; lengths told with large errors."""
    n, longest = scenario.n_experts, max(expert.engine.max_model_len for expert in scenario.experts)
    gaps_s = rng.choice([0.0, 0.002, 0.02, 0.1, 0.7], count) * rng.exponential(size=count)
    output = rng.integers(1, longest + 1, (count, n))
    return Episode(
        arrival_s=np.cumsum(gaps_s),
        prompt=rng.integers(1, rng.integers(2, longest + 3), count).astype(np.int32),
        score=random_scores((count, n), rng),
        output=output.astype(np.int32),
        predicted_score=random_scores((count, n), rng),
        predicted_tokens=np.clip(output * np.exp(0.5 * rng.standard_normal((count, n))), 1, 1e5).astype(np.float32),
        predicted_log_sd=np.full((count, n), 0.5, np.float32),
        predicted_log_median=np.zeros(n),
        judged=rng.random(count) < scenario.observation.judged_share,
        user=draw_users(scenario, np.cumsum(gaps_s), dict.fromkeys(USER_STREAMS, rng)),
        engines=(engines := tuple(expert.engine for expert in scenario.experts)),
        nominal=engines,
        telemetry_delay_s=scenario.faults.telemetry_delay_s,
    )


def random_scores(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Scores on the grid that makes their sums exact."""
    return (rng.integers(0, int(SCORE_GRID) + 1, shape) / SCORE_GRID).astype(np.float32)


OF_REQUESTS = (
    "arrival_s", "prompt", "score", "output", "predicted_score", "predicted_tokens", "predicted_log_sd", "judged", "user",
)  # fmt: skip
"""Fields of an ``Episode`` that have an entry for each request."""


def some_requests(episode: Episode, which: slice | NDArray[np.bool_]) -> Episode:
    """The episode with these of its requests alone."""
    return replace(episode, **{name: getattr(episode, name)[which] for name in OF_REQUESTS})


def first_requests(episode: Episode, count: int) -> Episode:
    """The episode cut after ``count`` requests."""
    return some_requests(episode, slice(count))


def begin(simulation: Simulation, cluster: int, episode: Episode) -> None:
    """Begin this very episode in one cluster."""

    def given(*_: object) -> Episode:  # a mock's own return_value takes longer than a short episode
        return episode

    with mock.patch.object(rllib_envs.simulation, "draw_episode", given):
        simulation.start(cluster, 0)


def simulation_of(scenario: Scenario, *episodes: Episode, show: bool = True) -> Simulation:
    """One cluster for each episode, at its first arrival."""
    simulation = Simulation(scenario, len(episodes), show=show)
    for cluster, episode in enumerate(episodes):
        begin(simulation, cluster, episode)
    return simulation


def play(simulation: Simulation, actions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Take the decisions (T,) of every cluster alike, or (T, B); the rewards (T, B)."""
    return np.array([simulation.step(np.broadcast_to(row, simulation.batch).copy()) for row in actions]).reshape(
        -1, simulation.batch
    )


def assert_same(one: View, other: View) -> None:
    """The views show the same, in every number."""
    for name, a, b in zip(View._fields, one, other, strict=True):
        if a.tobytes() != b.tobytes():  # many times as fast, and nearly always all that is needed
            np.testing.assert_array_equal(a, b, err_msg=name)


class Twin:
    """An expert in the reference stepper, stopped at any time: its iteration under way is composed and has yielded nothing."""

    def __init__(self, profile: EngineProfile) -> None:
        self.engine = Engine(profile)
        self.number: dict[Request, int] = {}  # of the requests it accepted, in the episode
        self._scheduled: dict[Request, int] = {}
        self._end_s = 0.0
        self._busy_s = 0.0  # of all iterations begun, each to its end

    @property
    def decoding(self) -> list[Request]:
        """The running requests that decode in the iteration under way."""
        return [request for request in self.engine.running if not request.prefilling]

    @property
    def present(self) -> list[Request]:
        """Running requests by admission, then waiting ones by place in the queue."""
        return [*self.engine.running, *self.engine.waiting]

    def completes(self, request: Request) -> bool:
        """Whether the iteration under way computes the last of the request's prompt."""
        return request.prefilling and self._scheduled.get(request) == request.tokens - request.computed

    def send(self, number: int, arrival: Arrival) -> bool:
        """Queue a request at its arrival; False where it is turned away."""
        self.advance(arrival.arrival_s)
        request = self.engine.arrive(arrival)
        if not request.rejected:
            self.number[request] = number
        return not request.rejected

    def busy_until(self, time_s: float) -> float:
        """Seconds in iterations by ``time_s``, to which it has been advanced."""
        return self._busy_s - (self._end_s - time_s if self._scheduled else 0.0)

    def advance(self, time_s: float) -> None:
        """Complete every iteration that ends by ``time_s``; one that would start just then is left open."""
        while True:
            if not self._scheduled:
                start_s = self.engine.ready_s(self._end_s)
                if start_s >= time_s:
                    return
                self._scheduled = self.engine.compose(start_s)
                self._end_s = start_s + self.engine._duration_s(self._scheduled)
                self._busy_s += self._end_s - start_s
            if self._end_s > time_s:
                return
            self.engine._produce(self._scheduled, self._end_s)
            self._scheduled = {}


def twins_at(scenario: Scenario, episode: Episode, actions: NDArray[np.int64], count: int, time_s: float) -> list[Twin]:
    """The experts at ``time_s``, after the first ``count`` decisions as far as they were taken by then."""
    twins = [Twin(engine) for engine in episode.engines]
    for r in range(count):
        e = int(actions[r])
        if e < scenario.n_experts and episode.arrival_s[r] <= time_s:
            classes = scenario.classes
            arrival = Arrival(
                arrival_s=float(episode.arrival_s[r]),
                prompt_tokens=int(episode.prompt[r]),
                output_tokens=int(episode.output[r, e]),
                priority=classes[episode.user["service"][r]].priority if classes else 0,
            )
            twins[e].send(r, arrival)
    for twin in twins:
        twin.advance(time_s)
    return twins
