"""Replay one episode of a trained router, with its predictions, scores and outcomes for every decision."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.export.bundle import bundle_router, load_bundle
from models.impact import Explanation
from models.router import Router
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario
from rllib_envs.sim.state import CANCELLED, CONFINED, FAILED, FINISHED, LOST, REJECTED, TOO_LONG
from rllib_envs.simulation import Records, Simulation
from rllib_envs.viewer import expert_status
from tuning.evaluation.matrix import EVALUATION_SEEDS
from tuning.specs.grammar import check_limits
from tuning.specs.workloads import NamedWorkload, TraceOptions, make_workloads

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

OUTCOMES = ("in time", "late", "rejected", "dropped", "too long", "cancelled", "failed")
"""What may become of a request: finished within the SLO or later; refused by the expert it was sent to; sent to none; longer
than any expert takes."""

_MINUTE_S = 60.0
_SPARE_MINUTES = 0.5  # of arrivals after the shown minute: its requests must not have the cluster to themselves
_CHUNK = 512  # decisions explained at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """The episode to replay.

    Attributes:
        bundle: folder of the router.
        router: its name, for the reader.
        scenario: the world.
        load: as ``make_workloads`` takes it.
        minute: the minute to look at, counted from 0.
        seed: of the episode.
    """

    bundle: Path
    router: str
    scenario: Scenario
    load: str
    minute: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EpisodeReplay:
    """An episode of M decisions with N experts, in order of arrival.

    Attributes:
        question: what was asked.
        workload: what was simulated.
        choice: (M,) expert, or N for a drop.
        predicted: predictions of the impact estimator for every expert, each (M, N).
        future: (M, N) effect of each choice on later requests, in QoS; an opportunity cost is negative.
        drop: (M,) score of a drop.
        possible: (M, N) experts that could take the request.
        marginal: (M, N) true marginal QoS of every expert.
        records: outcomes of the decisions.
        status: (M, N) what each expert was doing as each request arrived: index in ``viewer.STATUSES``.
    """

    question: Question
    workload: NamedWorkload
    choice: NDArray[np.int64]
    predicted: Explanation
    future: Floats
    drop: Floats
    possible: Flags
    marginal: Floats
    records: Records
    status: NDArray[np.int8]

    @property
    def experts(self) -> list[str]:
        """Their names."""
        return [expert.name for expert in self.workload.scenario.experts]

    @property
    def classes(self) -> list[str]:
        """Names of the service classes, if there are any."""
        return [entry.name for entry in self.workload.scenario.classes]

    @property
    def sent(self) -> Flags:
        """(M,) requests that went to an expert."""
        return self.choice < len(self.experts)

    @property
    def window_s(self) -> tuple[float, float]:
        """Begin and end of the minute."""
        return self.question.minute * _MINUTE_S, (self.question.minute + 1) * _MINUTE_S

    @property
    def in_window(self) -> Flags:
        """(M,) requests that arrived in the minute."""
        start_s, end_s = self.window_s
        return (self.records.arrival_s >= start_s) & (self.records.arrival_s < end_s)

    @property
    def outcome(self) -> NDArray[np.int64]:
        """(M,) indices of ``OUTCOMES``."""
        status, late = self.records.status, self.records.late
        away = np.isin(status, (REJECTED, CONFINED))
        failed = np.isin(status, (FAILED, LOST))
        known = [(status == FINISHED) & ~late, late, away, status == TOO_LONG, status == CANCELLED, failed]
        return np.select(known, [0, 1, 2, 4, 5, 6], 3)

    def expected(self, name: str) -> Floats:
        """(M, N) a field of ``predicted``."""
        values: Tensor = getattr(self.predicted, name)
        return values.double().numpy()

    def of_choice(self, values: Floats) -> Floats:
        """(M,) of values for each expert, (M, N), those of the expert chosen; NaN where the request was dropped."""
        column = np.where(self.sent, self.choice, 0)
        return np.where(self.sent, values[np.arange(column.size), column], np.nan)


def explains_itself(bundle: Path) -> bool:
    """Whether the router of a bundle has an impact estimator to explain its decisions.

    Raises:
        InputError: no bundle there, or a damaged one.
    """
    return isinstance(load_bundle(bundle).router, Router)


def replay_episode(question: Question) -> EpisodeReplay:
    """Run an episode until half a minute after the requested minute.

    Raises:
        InputError: a seed, minute or load that is not possible, a router that cannot be loaded or explains nothing, or arrivals
            of their own rate that end before the minute.
    """
    if question.seed not in EVALUATION_SEEDS:
        allowed = f"from {EVALUATION_SEEDS.start} to {EVALUATION_SEEDS.stop - 1}, which nothing is trained or tuned on"
        raise InputError(f"seed = {question.seed}: must be {allowed}")
    check_limits("minute", question.minute, 0, 10**6)
    workload = _workload(question)
    route, observation = bundle_router(question.bundle)
    router = load_bundle(question.bundle).router
    if not isinstance(router, Router):
        raise InputError(f"{question.bundle}: the paper's policy: it predicts no impact that could be shown")
    simulation = Simulation(replace(workload.scenario, observation=replace(observation, counterfactual=True)), 1)
    simulation.start(0, question.seed)
    rng = np.random.default_rng(question.seed)  # asked for by the interface; a trained router draws nothing
    seen: list[dict[str, NDArray[np.float32]]] = []
    explained: list[_Explained] = []
    choice: list[int] = []
    marginal: list[Floats] = []
    status: list[NDArray[np.int8]] = []
    while not simulation.over.all():
        seen.append({name: x[0].copy() for name, x in simulation.view._asdict().items() if x.size})
        marginal.append(simulation.marginal[0, :-1].copy())
        status.append(expert_status(simulation, 0))
        actions = route(simulation, rng)
        choice.append(int(actions[0]))
        simulation.step(actions)
        if len(seen) == _CHUNK or simulation.over.all():
            explained.append(_explain(router, seen))
            seen = []
    records = simulation.decisions(0)
    replay = EpisodeReplay(
        question=question,
        workload=workload,
        choice=np.array(choice),
        predicted=_joined(chunk.predicted for chunk in explained),
        future=np.concatenate([chunk.future for chunk in explained]),
        drop=np.concatenate([chunk.drop for chunk in explained]),
        possible=np.concatenate([chunk.possible for chunk in explained]),
        marginal=np.stack(marginal),
        records=records,
        status=np.stack(status),
    )
    if not replay.in_window.any():
        last_s = records.arrival_s[-1]
        raise InputError(f"minute = {question.minute}: nothing arrives in it; the last request comes at {last_s:.0f} s")
    return replay


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Explained:
    """Some decisions in a row, as in ``EpisodeReplay``."""

    predicted: Explanation
    future: Floats
    drop: Floats
    possible: Flags


def _explain(router: Router, seen: list[dict[str, NDArray[np.float32]]]) -> _Explained:
    observation = {name: torch.from_numpy(np.stack([x[name] for x in seen])) for name in seen[0]}
    with torch.inference_mode():
        parts = router.parts(observation)
        return _Explained(
            predicted=router.explain(observation),
            future=parts.future.double().numpy(),
            drop=parts.drop[..., 0].double().numpy(),
            possible=observation["action_mask"][..., :-1].numpy() > 0,
        )


def _joined(chunks: Iterable[Explanation]) -> Explanation:
    every = list(chunks)
    return Explanation(**{f.name: torch.cat([getattr(chunk, f.name) for chunk in every]) for f in fields(Explanation)})


def _workload(question: Question) -> NamedWorkload:
    """The load on the scenario, with as many requests as the minute needs where there is a nominal rate."""
    world = replace(question.scenario, variation=None)
    (workload,) = make_workloads(world, (question.load,), (), TraceOptions(), None)
    if workload.rate_rps is None:
        return workload
    requests = math.ceil(workload.rate_rps * _MINUTE_S * (question.minute + 1 + _SPARE_MINUTES))
    (workload,) = make_workloads(world, (question.load,), (), TraceOptions(), requests)
    return workload
