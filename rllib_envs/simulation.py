"""B simulated clusters of one scenario: takes episodes and one decision per cluster and call; returns observations and records.

The Gymnasium environments, the heuristic routers and the evaluation all use this class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_envs.capacity import capacity_rps
from rllib_envs.decision import BEGIN, WAIT, Rules, World, step_all, step_living
from rllib_envs.errors import InputError
from rllib_envs.expenses import meter_all, meter_of, reset_meter
from rllib_envs.footprint import check_footprint
from rllib_envs.observation import PACE_GAINS, Pace
from rllib_envs.reward import combine, paper_impact_all
from rllib_envs.scenario import Scenario
from rllib_envs.service_terms import experts_at_sites, service_of
from rllib_envs.sim.calibration import allocate_calibration, reset_calibration
from rllib_envs.sim.cluster import STEP, allocate_request_table, begin
from rllib_envs.sim.demand import allocate_demand, reset_demand
from rllib_envs.sim.living import EVENT, Living, allocate_living, reset_lives
from rllib_envs.sim.state import (
    AT_ONCE,
    CANCELLED,
    CONFINED,
    DROPPED,
    FAILED,
    FINISHED,
    FOLLOWED,
    HELD,
    LATE,
    LOST,
    PENDING,
    REJECTED,
    ROUTED,
    TOO_LONG,
    allocate,
    allocate_views,
    clear,
    engine_records,
)
from rllib_envs.sim.whatif import scratch_for
from rllib_envs.sim.worth import allocate_worth, reset_worth
from rllib_envs.view import allocate_rows, view_of
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
    CONFINED: "confined",
    CANCELLED: "cancelled",
    FAILED: "failed",
    LOST: "lost",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Outcomes of the M requests of an episode, in order of arrival. Times in seconds, NaN if the event never happened."""

    arrival_s: NDArray[np.float64]  # the first, of a request that was sent again
    route: NDArray[np.int32]  # expert index, N = dropped or too long; the last, of a request that was sent again
    status: NDArray[np.int32]  # keys of STATUS_NAMES
    first_scheduled_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]  # true, at the expert it was sent to (cut at max_model_len); generated, if cancelled
    predicted_tokens: NDArray[np.float64]
    score: NDArray[np.float64]  # true, at the expert it was sent to; 0 for a drop
    predicted_score: NDArray[np.float64]
    preemptions: NDArray[np.int32]
    qos: NDArray[np.float64]  # weight of its class times score if finished within the SLO, else 0
    late: NDArray[np.bool_]  # finished, but later than the SLO allows
    service: NDArray[np.int32]  # service class: index in the scenario's classes
    tenant: NDArray[np.int32]  # index in the scenario's tenants
    network_s: NDArray[np.float64]  # time of the network between user and expert; it counts in every latency
    retries: NDArray[np.int32]  # how often the request was sent again, after its expert had failed

    @property
    def latency_per_token_s(self) -> NDArray[np.float64]:
        """(finish - arrival + network) / output tokens."""
        return (self.finish_s - self.arrival_s + self.network_s) / self.output_tokens

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Time to first token."""
        return self.first_token_s - self.arrival_s + self.network_s

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
        rows: the observations as named records, overwritten by every ``start`` and ``step``.
        view: the same memory as float32 columns, which networks read.
        marginal: (B, N+1) true marginal QoS of every action, if ``observation.counterfactual`` is set.
        now_s: (B,) time of the present decision; after the last one, of the end of the drain.
        meter: energy and requests counted so far, where some expert has watts or a price; else None.
        living: what changes within the episodes (``rllib_envs.sim.living``), if the scenario has dynamics; else None.
    """

    def __init__(self, scenario: Scenario, batch: int, *, show: bool = True, variants: Sequence[Scenario] = ()) -> None:
        """Set up empty clusters; ``show=False`` skips the observations (for routers that need none).

        ``variants`` has a scenario for each cluster, if their episodes are drawn differently. They may differ in arrivals, loads,
        predictions, faults, dynamics or variations. All else must equal ``scenario``.

        Raises:
            ValueError: batch < 1, or not one variant for each cluster.
            InputError: variants that differ in more, a trace that cannot be read, or more memory than the machine has. Or the
                reward counts energy or money, and no expert says what it takes.
        """
        if batch < 1:
            raise ValueError(f"batch = {batch}: must be >= 1")
        _check_reward(scenario)
        self.scenario = scenario
        self.variants = tuple(variants) or (scenario,) * batch
        _check_variants(scenario, self.variants, batch)
        self.batch = batch
        self.capacity_rps = capacity_rps(scenario)
        spec, n = scenario.observation, scenario.n_experts
        dynamics = [variant.dynamics for variant in self.variants if variant.dynamics is not None]
        attempts = max((each.most_attempts for each in dynamics), default=1)
        self._requests = max(episode_requests(variant.workload) for variant in self.variants)
        m = self._rows = attempts * self._requests
        check_footprint(scenario, batch, m)
        nominal = np.tile(engine_records([expert.engine for expert in scenario.experts]), (batch, 1))
        service = service_of(scenario)
        self.state = allocate(nominal.copy(), m, plain=service.plain and not dynamics)
        self.workload = allocate_request_table(batch, m, n)
        self.cursor = np.zeros(batch, np.int32)
        self.now_s = np.zeros(batch)
        self.rows = allocate_rows(batch, scenario.experts, spec)
        self.view = view_of(self.rows)
        self.marginal = np.zeros((batch, n + 1))
        self.steps = np.zeros(batch, STEP)
        self._impact = np.zeros(batch)
        self.meter = meter_of(scenario, batch)
        self.living = allocate_living(batch, m, n) if dynamics else None
        self._show = show
        self.world = World(
            state=self.state,
            late=self.state,
            nominal=nominal,
            calibration=allocate_calibration(batch, m, n),
            workload=self.workload,
            cursor=self.cursor,
            views=allocate_views(batch, n),
            delay_s=np.zeros(batch),
            now_s=self.now_s,
            pace=Pace(
                gaps=np.zeros((batch, len(PACE_GAINS))),
                work=np.zeros((batch, len(PACE_GAINS))),
                counted=np.zeros(batch, np.int32),
            ),
            worth=allocate_worth(batch, n),
            demand=allocate_demand(batch),
            scratch=scratch_for(self.state, service),
            rows=self.rows,
            marginal=self.marginal,
            service=service,
            at_site=experts_at_sites(scenario),
        )
        self.rules = Rules(
            tau=spec.whatif_tau,
            predict=spec.whatif,
            track_future=2 if spec.counterfactual else int(scenario.reward.marginal_qos != 0),
            calibrate=spec.calibrate,
            inform=spec.information,
            demand=spec.demand,
            places=spec.places,
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without ``view``, which would become separate memory."""
        return {name: value for name, value in vars(self).items() if name != "view"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied state."""
        vars(self).update(state)
        self.view = view_of(self.rows)

    def start(self, cluster: int, seed: int | np.random.SeedSequence) -> None:
        """Begin the episode fixed by ``seed`` in one cluster, and show its first arrival.

        Raises:
            InputError: a trace or catalogue cannot be read; the answers have more tokens than the iteration counter can hold.
        """
        self.start_episode(cluster, draw_episode(self.variants[cluster], self.capacity_rps, seed))

    def start_episode(self, cluster: int, episode: Episode) -> None:
        """Begin a given episode in one cluster, and show its first arrival.

        Raises:
            ValueError: it has more requests than the scenario's episodes.
            InputError: its answers have more tokens than the iteration counter can hold.
        """
        _check_length(episode, self.variants[cluster])
        count = episode.arrival_s.size
        if count > self._requests:
            raise ValueError(f"an episode of {count:,} requests: the scenario's have at most {self._requests:,}")
        w = self.workload
        w.total[cluster] = count
        for name in ("arrival_s", "prompt", "score", "output", "predicted_score", "predicted_tokens", "predicted_log_sd"):
            getattr(w, name)[cluster, :count] = getattr(episode, name)
        for name in ("judged", "user"):
            getattr(w, name)[cluster, :count] = getattr(episode, name)
        w.age_s[cluster] = 0
        self.state.engines[cluster] = engine_records(episode.engines)
        log_sd = np.sqrt(np.square(episode.predicted_log_sd, dtype=np.float64).mean(axis=0))
        reset_calibration(self.world.calibration, cluster, episode.nominal, episode.predicted_log_median, log_sd)
        self.world.nominal[cluster] = self.world.calibration.configured[cluster]
        clear(self.state, cluster)
        if self.living is not None:
            self.living = _disturb(self.living, cluster, episode, self.state.engines)
        self._start_telemetry(cluster, episode)
        self.steps[cluster] = np.zeros((), STEP)
        if self.meter is not None:
            reset_meter(self.meter, cluster)
        begin(self.state, w, self.cursor, self.now_s, cluster)
        self.world.pace.gaps[cluster] = 1 / self.capacity_rps  # before the first gap
        self.world.pace.counted[cluster] = 0
        reset_demand(self.world.demand, cluster)
        reset_worth(self.world.worth, cluster)
        actions = np.full(self.batch, WAIT)
        actions[cluster] = BEGIN
        self._step(actions, show=True)

    def _start_telemetry(self, cluster: int, episode: Episode) -> None:
        """Set up telemetry of a new episode in one cluster; the first that is not at once allocates its state."""
        changing = episode.disturbances
        kind = LATE if episode.telemetry_delay_s > 0 else AT_ONCE
        if changing is not None and kind == LATE:
            kind = FOLLOWED
        elif changing is not None and changing.hides:
            kind = HELD
        if kind != AT_ONCE and self.world.late is self.state:
            late = allocate(self.state.engines.copy(), self._rows, plain=self.state.extras is None)
            self.world = self.world._replace(late=late)
        if self.world.late is not self.state:
            self.world.late.engines[cluster] = self.state.engines[cluster]
            clear(self.world.late, cluster)
        self.world.views.kind[cluster] = kind
        self.world.views.held[cluster] = kind in (LATE, FOLLOWED)
        self.world.views.first_pending[cluster] = 0
        self.world.views.view_s[cluster] = 0
        self.world.delay_s[cluster] = episode.telemetry_delay_s

    def start_all(self, seeds: list[int] | list[np.random.SeedSequence]) -> None:
        """``start`` in every cluster."""
        for cluster, seed in enumerate(seeds):
            self.start(cluster, seed)

    @property
    def over(self) -> NDArray[np.bool_]:
        """(B,) clusters whose episode has ended."""
        return self.cursor >= self.workload.total

    def step(self, actions: NDArray[np.int64]) -> NDArray[np.float64]:
        """Take one decision in every cluster, (B,) expert indices or N = drop; returns the rewards (B,).

        ``steps`` (STEP records) has the details of the step, ``view`` the next observations.

        Raises:
            ValueError: not one action for each cluster, or an action that does not exist.
        """
        self._check(actions)
        weights = self.scenario.reward
        if weights.paper_impact > 0:
            paper_impact_all(self.state, self.workload, self.world.service.terms, self.cursor, self.now_s, actions, self._impact)
        self._step(actions, show=self._show)
        if self.meter is not None:
            meter_all(self.state, self.cursor, self.now_s, self.meter, self.steps)
        return combine(weights, self.steps, self._impact)

    def _step(self, actions: NDArray[np.int64], *, show: bool) -> None:
        """The compiled step, with the code for changes within the episode only where there may be any."""
        if self.living is None:
            step_all(actions, self.steps, show, self.world, self.rules)
        else:
            step_living(actions, self.steps, show, self.world, self.rules, self.living)

    def _check(self, actions: NDArray[np.int64]) -> None:
        """Refuse actions that would be addresses outside the arrays of the compiled code."""
        drop = self.scenario.n_experts
        if actions.shape != (self.batch,):
            raise ValueError(f"actions of shape {actions.shape}: must be ({self.batch},), one for each cluster")
        if actions.min() < 0 or actions.max() > drop:
            wrong = actions[(actions < 0) | (actions > drop)][0]
            raise ValueError(f"action {wrong}: must be an expert's index or {drop} = drop, from 0 to {drop}")

    def records(self, cluster: int) -> Records:
        """Outcomes of the requests of the cluster's episode so far; the last one, of a request that was sent again."""
        decided = self.decisions(cluster)
        if self.living is None:
            return decided
        origin = self.living.origin[cluster, : decided.status.size]
        last = np.flatnonzero(decided.status != LOST)
        last = last[np.argsort(origin[last], kind="stable")]
        return replace(decided, **{field.name: getattr(decided, field.name)[last] for field in fields(decided)})

    def decisions(self, cluster: int) -> Records:
        """The outcome of each decision of the cluster's episode, in order.

        A request that was sent again has several, all with its first arrival. But for its last, their status is LOST.
        """
        count = self.workload.total[cluster]
        requests, records = self.state.requests[cluster, :count], self.state.records[cluster, :count]
        finished = records["status"] == FINISHED
        in_time = records["finish_s"] - requests["arrival_s"] <= records["budget_s"]
        worth = score = records["score"].astype(np.float64)
        service = np.zeros(count, np.int32)
        if self.state.extras is not None:
            extras = self.state.extras[cluster, :count]
            in_time &= records["first_token_s"] - requests["arrival_s"] <= extras["ttft_s"]
            in_time &= records["finish_s"] - records["first_token_s"] <= extras["generation_s"]
            worth, service = extras["worth"], extras["service"].copy()
        living, arrival_s, retries = self.living, requests["arrival_s"].copy(), np.zeros(count, np.int32)
        if living is not None:
            arrival_s = _first_arrivals(arrival_s, living.origin[cluster, :count])
            retries = living.attempts[cluster, :count].copy()
        return Records(
            arrival_s=arrival_s,
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
            qos=np.where(finished & in_time, worth, 0.0),
            late=finished & ~in_time,
            service=service,
            tenant=self.workload.user["tenant"][cluster, :count].copy(),
            network_s=self._network_s(cluster, count),
            retries=retries,
        )

    def _network_s(self, cluster: int, count: int) -> NDArray[np.float64]:
        """(count,) time of the network of the first requests; 0 where they went to no expert."""
        prompt, user, service = self.workload.prompt[cluster, :count], self.workload.user[cluster, :count], self.world.service
        route = self.state.records["route"][cluster, :count]
        sent = (route >= 0) & (route < self.scenario.n_experts)
        pair = user["site"], np.where(sent, route, 0)
        took_s = service.round_trip_s[pair] * user["jitter"] + service.prompt_s[pair] * prompt
        return np.where(sent, took_s, 0.0)


def _disturb(living: Living, cluster: int, episode: Episode, engines: NDArray[np.void]) -> Living:
    """Set up what changes in an episode; the lists of events grow where it has more of them than any before."""
    changing, count = episode.disturbances, episode.arrival_s.size
    living.base[cluster] = engines[cluster]
    living.first_token_s[cluster], living.total_s[cluster] = np.inf, np.inf
    living.thermal[cluster] = np.zeros((), living.thermal.dtype)
    living.thermal["every_s"][cluster] = np.inf
    living.retries[cluster] = 0
    never = np.zeros((), EVENT)
    never["at_s"] = np.inf
    if changing is not None:
        living = living._replace(
            events=_longer(living.events, max(map(len, changing.events)), never),
            losses=_longer(living.losses, max(map(len, changing.losses)), np.array(np.inf)),
        )
        living.first_token_s[cluster, :count], living.total_s[cluster, :count] = changing.first_token_s, changing.total_s
        living.thermal[cluster] = changing.thermal
        living.retries[cluster] = changing.retries
    living.events[cluster], living.losses[cluster] = never, np.inf
    if changing is not None:
        for e, (events, losses) in enumerate(zip(changing.events, changing.losses, strict=True)):
            living.events[cluster, e, : len(events)] = events
            living.losses[cluster, e, : len(losses)] = losses
    reset_lives(living, cluster)
    return living


def _longer(lists: NDArray[Any], length: int, fill: NDArray[Any]) -> NDArray[Any]:
    """(B, N, K) lists with room for ``length`` entries, filled up at their ends."""
    batch, n_experts, present = lists.shape
    if length <= present:
        return lists
    longer = np.full((batch, n_experts, length), fill)
    longer[:, :, :present] = lists
    return longer


def _first_arrivals(arrival_s: NDArray[np.float64], origin: NDArray[np.int32]) -> NDArray[np.float64]:
    """For each row the first arrival of its request: that of the first row with the same ``origin``."""
    first_s = np.zeros(origin.max() + 1)
    first_s[origin[::-1]] = arrival_s[::-1]  # the first row of each is assigned last
    return first_s[origin]


def _check_length(episode: Episode, scenario: Scenario) -> None:
    """Check the token count: an expert counts iterations in 32 bits, and may get every request, as often as it is sent."""
    longest = [engine.max_model_len for engine in episode.engines]
    tokens = int(np.minimum(episode.output, longest).max(axis=1).sum(dtype=np.int64))
    tokens *= 1 if scenario.dynamics is None else scenario.dynamics.most_attempts
    if tokens > _MOST_TOKENS:
        raise InputError(
            f"an episode of {episode.arrival_s.size:,} requests with {tokens:,} output tokens: at most {_MOST_TOKENS:,}; "
            "ask for fewer requests, shorter answers (mean_output_tokens) or a smaller max_model_len"
        )


def _check_reward(scenario: Scenario) -> None:
    """Refuse terms of the reward that would always be 0."""
    for term, known, needed in (
        ("energy", scenario.has_watts, "active_w"),
        ("cost", scenario.has_prices, "prompt_price or output_price"),
    ):
        weight = getattr(scenario.reward, term)
        if weight and not known:
            raise InputError(
                f"scenario {scenario.name}: reward.{term} = {weight:g}: no expert has {needed}, so it would always be 0: give "
                "the experts theirs, or leave it out"
            )


def _check_variants(scenario: Scenario, variants: Sequence[Scenario], batch: int) -> None:
    if len(variants) != batch:
        raise ValueError(f"variants has {len(variants)} entries: must have one for each of the {batch} clusters")
    for i, variant in enumerate(variants):
        same = {name: getattr(scenario, name) for name in ("name", "workload", "predictions", "faults", "dynamics", "variation")}
        if replace(variant, **same) != scenario or variant.workload.requests != scenario.workload.requests:
            raise InputError(
                f"variants[{i}] ({variant.name}): only arrivals, load, catalogue, predictions, faults, dynamics and variation "
                f"may differ from those of {scenario.name}"
            )
