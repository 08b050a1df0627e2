"""B simulated clusters of one scenario: episodes in, one decision for each cluster a call, observations and records out.

The Gymnasium environments, the heuristic routers and the evaluation all drive this one class.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.footprint import check_footprint
from rllib_envs.observation import (
    PACE_GAINS,
    View,
    allocate_view,
    borrow_view,
    describe_engines,
    observe,
    update_gap_ema,
    update_work_ema,
)
from rllib_envs.reward import combine, paper_impact_all
from rllib_envs.scenario import Scenario
from rllib_envs.sim.calibration import Calibration, allocate_calibration, borrow_calibration, forget, learn
from rllib_envs.sim.cluster import (
    STEP,
    Workload,
    allocate_workload,
    begin,
    borrow_workload,
    clear_step,
    follow,
    route,
    true_marginals,
)
from rllib_envs.sim.jit import borrow, kernel
from rllib_envs.sim.kernels import borrow_state
from rllib_envs.sim.state import (
    DROPPED,
    FINISHED,
    PENDING,
    REJECTED,
    ROUTED,
    TOO_LONG,
    State,
    allocate,
    clear,
    engine_records,
)
from rllib_envs.sim.whatif import Scratch, borrow_scratch, predict_action, scratch_for
from rllib_envs.workload.episode import Episode, draw_episode
from rllib_envs.workload.replay import episode_requests

_MOST_TOKENS = 2**30

STATUS_NAMES = {
    PENDING: "pending",
    ROUTED: "routed",
    FINISHED: "finished",
    DROPPED: "dropped",
    REJECTED: "rejected",
    TOO_LONG: "too_long",
}


class World(NamedTuple):
    """Everything that the compiled step touches."""

    state: State
    late: State  # what telemetry shows, where it is late; else the state itself
    nominal: NDArray[np.void]  # (B, N) ENGINE, as the router was told, corrected by the calibration where that is asked for
    calibration: Calibration
    workload: Workload
    cursor: NDArray[np.int32]  # (B,) number of the request to route
    late_cursor: NDArray[np.int32]  # (B,) the same for ``late``
    delay_s: NDArray[np.float64]  # (B,) age of telemetry
    now_s: NDArray[np.float64]  # (B,)
    gaps: NDArray[np.float64]  # (B, 2) moving averages of the gaps between arrivals, seconds
    work: NDArray[np.float64]  # (B, 2) moving averages of what a request asks of an engine, seconds
    heeded: NDArray[np.int32]  # (B,) number of requests whose work is in them
    scratch: Scratch
    seen: View  # the observations (numba keeps the name ``view`` to itself)
    marginal: NDArray[np.float64]  # (B, N+1)


class Rules(NamedTuple):
    """The scenario's figures that the compiled step needs."""

    slo_s: float
    tau: float
    predict: bool  # write the what-if results
    track_future: int  # counterfactuals: 0 none, 1 of the action taken, 2 of all
    calibrate: bool  # learn from telemetry how far the figures are off


@kernel
def borrow_world(world):
    """The world without reference counting (``borrow``)."""
    return World(
        borrow_state(world.state),
        borrow_state(world.late),
        borrow(world.nominal),
        borrow_calibration(world.calibration),
        borrow_workload(world.workload),
        borrow(world.cursor),
        borrow(world.late_cursor),
        borrow(world.delay_s),
        borrow(world.now_s),
        borrow(world.gaps),
        borrow(world.work),
        borrow(world.heeded),
        borrow_scratch(world.scratch),
        borrow_view(world.seen),
        borrow(world.marginal),
    )


@kernel
def look(world, rules, b):
    """Write the observation of cluster b, the what-if results and the counterfactuals where asked for."""
    state, workload, scratch, view = world.state, world.workload, world.scratch, world.seen
    now_s = world.now_s[b]
    source, view_s, first_pending = state, now_s, world.cursor[b]
    if world.delay_s[b] > 0.0:
        view_s = max(now_s - world.delay_s[b], 0.0)
        follow(state, world.late, world.cursor, world.late_cursor, b, rules.slo_s, view_s)
        source, first_pending = world.late, world.late_cursor[b]
    if rules.calibrate:
        learn(world.calibration, world.nominal, source, state, b, first_pending, view_s)
    if rules.calibrate or world.cursor[b] == 0:
        describe_engines(world.nominal, world.calibration.records, b, rules.slo_s, view)
    if world.heeded[b] <= world.cursor[b] < workload.total[b]:  # once, however often one looks
        update_work_ema(world.work, world.nominal, workload, b, world.cursor[b])
        world.heeded[b] = world.cursor[b] + 1
    observe(
        source,
        state,
        world.nominal,
        workload,
        world.cursor,
        b,
        first_pending,
        view_s,
        now_s,
        rules.slo_s,
        world.gaps,
        world.work,
        view,
    )
    r = world.cursor[b]
    if r == workload.total[b]:
        view.whatif[b] = 0.0
        world.marginal[b] = 0.0
        return
    if rules.predict:
        for e in range(view.experts.shape[1]):
            predict_action(
                source, state, b, e, first_pending, r, scratch, world.nominal[b, e], view_s, now_s, rules.slo_s,
                rules.tau, workload.prompt[b, r], workload.predicted_score[b, r, e], workload.predicted_tokens[b, r, e],
                view.whatif[b, e],
            )  # fmt: skip
    if rules.track_future == 2:
        true_marginals(state, workload, world.cursor, world.now_s, b, scratch, rules.slo_s, world.marginal[b])


@kernel
def _look_all(only, world, rules):
    """``look`` at the clusters of the mask ``only``, (B,)."""
    world = borrow_world(world)
    for b in range(only.size):
        if only[b]:
            look(world, rules, b)


@kernel
def _step_all(actions, steps, show, world, rules):
    """One decision in every cluster that has a request to route, then its next observation."""
    world = borrow_world(world)
    for b in range(actions.size):
        if world.cursor[b] == world.workload.total[b]:
            clear_step(steps[b])
            continue
        route(
            world.state, world.workload, world.cursor, world.now_s, b, actions[b], rules.track_future, world.marginal[b],
            world.scratch, rules.slo_s, steps[b],
        )  # fmt: skip
        if world.cursor[b] < world.workload.total[b]:
            update_gap_ema(world.gaps, b, world.cursor[b], steps[b].dt_s)
        if show:
            look(world, rules, b)


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What became of the M requests of an episode, in order of arrival. Times in seconds, NaN where it never came to that."""

    arrival_s: NDArray[np.float64]
    route: NDArray[np.int32]  # expert index, N = dropped or too long
    status: NDArray[np.int32]  # keys of STATUS_NAMES
    first_scheduled_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]  # true, at the expert it was sent to (cut at max_model_len)
    predicted_tokens: NDArray[np.float64]
    score: NDArray[np.float64]  # true, at the expert it was sent to; 0 for a drop
    predicted_score: NDArray[np.float64]
    preemptions: NDArray[np.int32]
    qos: NDArray[np.float64]  # score if finished within the SLO, else 0
    late: NDArray[np.bool_]  # finished, but later than the SLO allows

    @property
    def latency_per_token_s(self) -> NDArray[np.float64]:
        """(finish - arrival) / output tokens."""
        return (self.finish_s - self.arrival_s) / self.output_tokens

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Time to first token."""
        return self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> NDArray[np.float64]:
        """Time per output token after the first; NaN for one-token answers."""
        return np.where(
            self.output_tokens > 1, (self.finish_s - self.first_token_s) / np.maximum(self.output_tokens - 1, 1), np.nan
        )


class Simulation:
    """B clusters of one scenario.

    ``start`` begins an episode in one cluster, ``step`` takes one decision in each. A cluster whose episode is over ignores its
    action. All random draws come from the seeds given to ``start``.

    Attributes:
        view: the observations, overwritten by every ``start`` and ``step``.
        marginal: (B, N+1) true marginal QoS of every action, where the scenario's ``observation.counterfactual`` asks for it.
        now_s: (B,) time of the present decision; after the last one, of the end of the drain.
    """

    def __init__(self, scenario: Scenario, batch: int, *, show: bool = True, worlds: Sequence[Scenario] = ()) -> None:
        """Set up empty clusters; ``show=False`` skips the observations (for routers that need none).

        ``worlds`` has a scenario for each cluster, where their episodes are drawn differently: from other arrivals, loads,
        predictions, faults or variations. In all else they are as ``scenario``.

        Raises:
            ValueError: batch < 1, or not one world for each cluster.
            InputError: worlds that differ in more, a trace that cannot be read, or more memory than the machine has.
        """
        if batch < 1:
            raise ValueError(f"batch = {batch}: must be >= 1")
        self.scenario = scenario
        self.worlds = tuple(worlds) or (scenario,) * batch
        _check_worlds(scenario, self.worlds, batch)
        self.batch = batch
        self.capacity_rps = capacity_rps(scenario)
        spec, n = scenario.observation, scenario.n_experts
        m = self._requests = max(episode_requests(world.workload) for world in self.worlds)
        check_footprint(scenario, batch, m)
        nominal = np.tile(engine_records([expert.engine for expert in scenario.experts]), (batch, 1))
        self.state = allocate(nominal.copy(), m)
        self.workload = allocate_workload(batch, m, n)
        self.cursor = np.zeros(batch, np.int32)
        self.now_s = np.zeros(batch)
        self.view = allocate_view(batch, scenario.experts, spec)
        self.marginal = np.zeros((batch, n + 1))
        self.steps = np.zeros(batch, STEP)
        self._impact = np.zeros(batch)
        self._show = show
        self.world = World(
            state=self.state,
            late=self.state,
            nominal=nominal,
            calibration=allocate_calibration(batch, n),
            workload=self.workload,
            cursor=self.cursor,
            late_cursor=np.zeros(batch, np.int32),
            delay_s=np.zeros(batch),
            now_s=self.now_s,
            gaps=np.zeros((batch, len(PACE_GAINS))),
            work=np.zeros((batch, len(PACE_GAINS))),
            heeded=np.zeros(batch, np.int32),
            scratch=scratch_for(self.state),
            seen=self.view,
            marginal=self.marginal,
        )
        self.rules = Rules(
            slo_s=scenario.slo_s_per_token,
            tau=spec.whatif_tau,
            predict=spec.whatif,
            track_future=2 if spec.counterfactual else int(scenario.reward.marginal_qos != 0),
            calibrate=spec.calibrate,
        )

    def start(self, cluster: int, seed: int | np.random.SeedSequence) -> None:
        """Begin the episode that ``seed`` fixes in one cluster, and show its first arrival.

        Raises:
            InputError: a trace or catalogue that cannot be read; answers of more tokens than iterations can be counted.
        """
        episode = draw_episode(self.worlds[cluster], self.capacity_rps, seed)
        _check_length(episode)
        count = episode.arrival_s.size
        w = self.workload
        w.total[cluster] = count
        for name in ("arrival_s", "prompt", "score", "output", "predicted_score", "predicted_tokens"):
            getattr(w, name)[cluster, :count] = getattr(episode, name)
        self.state.engines[cluster] = engine_records(episode.engines)
        forget(self.world.calibration, cluster, episode.nominal)
        self.world.nominal[cluster] = self.world.calibration.told[cluster]
        clear(self.state, cluster)
        self._start_telemetry(cluster, episode.telemetry_delay_s)
        self.steps[cluster] = np.zeros((), STEP)
        begin(self.state, w, self.cursor, self.now_s, cluster, self.scenario.slo_s_per_token)
        self.world.gaps[cluster] = 1 / self.capacity_rps  # before the first gap is seen
        self.world.heeded[cluster] = 0
        only = np.zeros(self.batch, np.bool_)
        only[cluster] = True
        _look_all(only, self.world, self.rules)

    def _start_telemetry(self, cluster: int, delay_s: float) -> None:
        """Telemetry of a new episode in one cluster; the first one that is late makes room for what it shows."""
        if delay_s > 0 and self.world.late is self.state:
            self.world = self.world._replace(late=allocate(self.state.engines, self._requests))
        if self.world.late is not self.state:
            clear(self.world.late, cluster)
        self.world.late_cursor[cluster] = 0
        self.world.delay_s[cluster] = delay_s

    def start_all(self, seeds: list[int] | list[np.random.SeedSequence]) -> None:
        """``start`` in every cluster."""
        for cluster, seed in enumerate(seeds):
            self.start(cluster, seed)

    @property
    def over(self) -> NDArray[np.bool_]:
        """(B,) clusters whose episode has ended."""
        return self.cursor >= self.workload.total

    def step(self, actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take one decision in every cluster, (B,) expert indices or N = drop; the rewards (B,).

        Details of the step are in ``steps`` (STEP records), the next observations in ``view``.

        Raises:
            ValueError: not one action for each cluster, or an action that does not exist.
        """
        self._check(actions)
        weights = self.scenario.reward
        if weights.paper_impact > 0:
            paper_impact_all(
                self.state, self.workload, self.cursor, self.now_s, actions, self.scenario.slo_s_per_token, self._impact
            )
        _step_all(actions, self.steps, self._show, self.world, self.rules)
        return combine(weights, self.steps, self._impact)

    def _check(self, actions: NDArray[np.int64]) -> None:
        """Refuse what the compiled code would take for an address outside its arrays."""
        drop = self.scenario.n_experts
        if actions.shape != (self.batch,):
            raise ValueError(f"actions of shape {actions.shape}: must be ({self.batch},), one for each cluster")
        if actions.min() < 0 or actions.max() > drop:
            wrong = actions[(actions < 0) | (actions > drop)][0]
            raise ValueError(f"action {wrong}: must be an expert's index or {drop} = drop, from 0 to {drop}")

    def records(self, cluster: int) -> Records:
        """What became of the requests of the cluster's episode so far."""
        count = self.workload.total[cluster]
        requests, records = self.state.requests[cluster, :count], self.state.records[cluster, :count]
        finished = records["status"] == FINISHED
        in_time = records["finish_s"] - requests["arrival_s"] <= self.scenario.slo_s_per_token * requests["output"]
        score = records["score"].astype(np.float64)
        return Records(
            arrival_s=requests["arrival_s"].copy(),
            route=records["route"].copy(),
            status=records["status"].copy(),
            first_scheduled_s=records["first_scheduled_s"].copy(),
            first_token_s=records["first_token_s"].copy(),
            finish_s=records["finish_s"].copy(),
            prompt_tokens=requests["prompt"].copy(),
            output_tokens=requests["output"].copy(),
            predicted_tokens=requests["predicted_tokens"].astype(np.float64),
            score=score,
            predicted_score=requests["predicted_score"].astype(np.float64),
            preemptions=records["preemptions"].copy(),
            qos=np.where(finished & in_time, score, 0.0),
            late=finished & ~in_time,
        )


def _check_length(episode: Episode) -> None:
    """An expert's iterations are counted in 32 bits, and every answer may go to the same one."""
    longest = [engine.max_model_len for engine in episode.engines]
    tokens = int(np.minimum(episode.output, longest).max(axis=1).sum(dtype=np.int64))
    if tokens > _MOST_TOKENS:
        raise InputError(
            f"an episode of {episode.arrival_s.size:,} requests with {tokens:,} output tokens: at most {_MOST_TOKENS:,}; "
            "ask for fewer requests, shorter answers (mean_output_tokens) or a smaller max_model_len"
        )


def _check_worlds(scenario: Scenario, worlds: Sequence[Scenario], batch: int) -> None:
    if len(worlds) != batch:
        raise ValueError(f"worlds has {len(worlds)} entries: must have one for each of the {batch} clusters")
    for i, world in enumerate(worlds):
        same = {name: getattr(scenario, name) for name in ("name", "workload", "predictions", "faults", "variation")}
        if replace(world, **same) != scenario or world.workload.requests != scenario.workload.requests:
            raise InputError(
                f"worlds[{i}] ({world.name}): only arrivals, load, catalogue, predictions, faults and variation may differ from "
                f"those of {scenario.name}"
            )
