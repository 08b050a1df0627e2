"""The cluster in front of which a gateway stands, in the simulator's own records: what policies look at.

One cluster (B = 1), whose request table is a window on the requests so far. ``rllib_envs.live`` writes the observation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.ledger import FINISHED as ENDED
from gateway.ledger import EndedRequest, Ledger
from rllib_envs.capacity import capacity_rps
from rllib_envs.decision import BEGIN, Rules, World
from rllib_envs.live import show
from rllib_envs.observation import PACE_GAINS, Pace
from rllib_envs.scenario import Scenario
from rllib_envs.service_terms import terms_of
from rllib_envs.sim.calibration import allocate_calibration, reset_calibration
from rllib_envs.sim.cluster import STEP, allocate_request_table
from rllib_envs.sim.demand import allocate_demand, update_foreseen_ema
from rllib_envs.sim.state import DROPPED, FINISHED, ROUTED, allocate, engine_records
from rllib_envs.sim.terms import make_service
from rllib_envs.sim.whatif import scratch_for
from rllib_envs.sim.worth import allocate_worth
from rllib_envs.view import allocate_rows, view_of
from rllib_envs.workload.catalogue import LENGTH_LOG_SD

_MOST_TOKENS = 2**30
_COUNTED = -1  # in ``Calibration.counted``: the answer is over


class Told(NamedTuple):
    """Predictions for one request at N experts."""

    score: NDArray[np.float64]  # (N,) in [0, 1]
    tokens: NDArray[np.float64]  # (N,) >= 1: the expected length of the answer
    log_sd: NDArray[np.float64]  # (N,) standard deviation of the log length


class LiveCluster:
    """What a gateway knows of its cluster. Policies take it for a simulation of one cluster.

    Args:
        scenario: experts, service classes, and the observation that the policy needs; what-if results are always there.
        capacity: most rows of the request table; requests under way stay below it.
        log_sd: (N,) standard deviation of the log of an answer's length about its prediction; None: as for prompts in general.
        log_median: (N,) median of log(actual / predicted tokens) where predictions are right; None: of log-normal lengths.

    Attributes:
        ledger: the requests under way.
        scenario: as given, with the what-if results.
        batch: 1.
        cursor: (1,) requests so far.
        rows: the observation as records.
        view: the same as columns.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        capacity: int,
        log_sd: NDArray[np.float64] | None = None,
        log_median: NDArray[np.float64] | None = None,
    ) -> None:
        self.scenario = replace(scenario, observation=replace(scenario.observation, whatif=True, counterfactual=False))
        self.batch, self.cursor = 1, np.zeros(1, np.int64)
        spec, n = self.scenario.observation, scenario.n_experts
        profiles = [expert.engine for expert in scenario.experts]
        nominal = engine_records(profiles)[None]
        self.ledger = Ledger(n, capacity, nominal["c0_s"][0] + nominal["b_s"][0])
        state = allocate(nominal, capacity)
        nothing_far = np.zeros((1, n))  # what the network takes is part of what is measured at the gateway
        terms = terms_of(scenario)
        service = make_service(terms, np.ones((terms.size, 1, n), np.bool_), nothing_far, nothing_far)
        self.rows = allocate_rows(1, scenario.experts, spec)
        self.view = view_of(self.rows)
        self.world = World(
            state=state,
            late=state,
            nominal=nominal.copy(),
            calibration=allocate_calibration(1, capacity, n),
            workload=allocate_request_table(1, capacity, n),
            cursor=np.zeros(1, np.int32),
            late_cursor=np.zeros(1, np.int32),
            delay_s=np.zeros(1),
            now_s=np.zeros(1),
            pace=Pace(
                gaps=np.full((1, len(PACE_GAINS)), 1 / capacity_rps(scenario)),
                work=np.zeros((1, len(PACE_GAINS))),
                counted=np.zeros(1, np.int32),
            ),
            worth=allocate_worth(1, n),
            demand=allocate_demand(1),
            scratch=scratch_for(state, service),
            rows=self.rows,
            marginal=np.zeros((1, n + 1)),
            service=service,
        )
        sd = np.full(n, LENGTH_LOG_SD) if log_sd is None else log_sd
        reset_calibration(self.world.calibration, 0, profiles, -np.square(sd) / 2 if log_median is None else log_median, sd)
        self._rules = Rules(
            tau=spec.whatif_tau,
            predict=True,
            track_future=0,
            calibrate=spec.calibrate,
            inform=spec.information,
            demand=spec.demand,
        )
        self._begin, self._steps = np.full(1, BEGIN), np.zeros(1, STEP)
        self._last_s = 0.0
        self._finished = self._late = 0
        self._user = self.world.workload.user[0]
        self._new_record = np.zeros((), state.records.dtype)
        for name in ("first_scheduled_s", "first_token_s", "finish_s"):
            self._new_record[name] = np.nan

    @property
    def predicted_ttft_s(self) -> NDArray[np.float64]:
        """(N,) time to the first token of the request shown, if it went to each expert; inf: its queue is full."""
        return self.world.scratch.own_s[:, 0].copy()

    def predicted_tpot_s(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N,) time per token after the first of the request shown, of whose answer so many are expected."""
        own_s = self.world.scratch.own_s
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(own_s[:, 1]), (own_s[:, 1] - own_s[:, 0]) / np.maximum(tokens - 1, 1), np.inf)

    def observe(self, prompt: int, told: Told, service: int, allowed: NDArray[np.bool_], now_s: float) -> int:
        """Show a request that has come; returns its row.

        Args:
            prompt: its tokens.
            told: what is predicted for it.
            service: its service class.
            allowed: (N,) experts that it may go to.
            now_s: the time, not before that of the request before it.
        """
        self._note_ended()
        if self.ledger.rows == self.ledger.capacity:
            self._compact()
        row = self.ledger.take_row()
        world = self.world
        workload, state = world.workload, world.state
        world.now_s[0] = now_s
        workload.arrival_s[0, row], workload.prompt[0, row] = now_s, prompt
        workload.predicted_score[0, row], workload.predicted_tokens[0, row] = told.score, told.tokens
        workload.predicted_log_sd[0, row] = told.log_sd
        self._user["service"][row] = service
        world.service.allowed[service, 0] = allowed
        record = state.records[0, row]
        state.records[0, row] = self._new_record
        record["status"], record["route"], record["service"] = DROPPED, -1, service
        show(
            world,
            self._rules,
            self.ledger.seen,
            row,
            1,
            now_s - self._last_s,
            self._finished,
            self._late,
            self._begin,
            self._steps,
        )
        self._last_s = now_s
        self._finished = self._late = 0
        self.cursor[0] += 1
        return row

    def send(self, key: str, row: int, expert: int, prompt: int, told: Told, now_s: float, *, streams: bool) -> None:
        """The request that was shown last goes to an expert.

        Args:
            key: of the request in the ledger.
            row: from ``observe``.
            expert: where it goes.
            prompt: its tokens there.
            told: what is predicted for it.
            now_s: the time.
            streams: whether its tokens are seen one by one.
        """
        first_s, pace_s = np.nan, 0.0
        if not streams:
            ttft_s, tpot_s = self.predicted_ttft_s[expert], self.predicted_tpot_s(told.tokens)[expert]
            if np.isfinite(ttft_s):
                first_s, pace_s = now_s + ttft_s, max(tpot_s, 1e-6)
        if self._rules.demand:
            update_foreseen_ema(self.world.demand, 0, self.rows.whatif[0, expert]["own_success"])
        self._write(row, expert, prompt, told.score[expert], told.tokens[expert], now_s)
        self.ledger.opened(key, row, expert, now_s, prompt, float(told.tokens[expert]), first_s=first_s, pace_s=pace_s)

    def move(self, key: str, expert: int, prompt: int, now_s: float) -> None:
        """A request whose expert failed before the first token goes to another one. Nothing for an unknown key."""
        row = self.ledger.row_of(key)
        if row is None:
            return
        workload = self.world.workload
        score, tokens = workload.predicted_score[0, row, expert], workload.predicted_tokens[0, row, expert]
        self._write(row, expert, prompt, score, tokens, workload.arrival_s[0, row])
        self.ledger.moved(key, expert, now_s, prompt, float(tokens))

    def _write(self, row: int, expert: int, prompt: int, score: float, tokens: float, arrival_s: float) -> None:
        state = self.world.state
        request, record = state.requests[0, row], state.records[0, row]
        request["arrival_s"], request["prompt"], request["output"] = arrival_s, prompt, _MOST_TOKENS
        request["predicted_score"], request["predicted_tokens"] = score, tokens
        record["status"], record["route"] = ROUTED, expert
        record["priority"] = self.world.service.terms["priority"][record["service"]]

    def _note_ended(self) -> None:
        """Enter the requests that have ended since the last observation."""
        for ended in self.ledger.take_ended():
            request, record = self.world.state.requests[0, ended.row], self.world.state.records[0, ended.row]
            if ended.how != ENDED or ended.tokens < 1:
                record["status"] = DROPPED  # it says nothing of lengths
                continue
            record["status"], request["output"] = FINISHED, ended.tokens
            self._finished += 1
            self._late += not self._in_time(ended, int(record["service"]))

    def _in_time(self, ended: EndedRequest, service: int) -> bool:
        terms: Any = self.world.service.terms[service]
        stay_s, first_s = ended.ended_s - ended.sent_s, ended.first_s - ended.sent_s
        return bool(
            stay_s <= min(ended.tokens * terms["slo_s"], terms["e2e_s"])
            and first_s <= terms["ttft_s"]
            and stay_s - first_s <= terms["tpot_s"] * (ended.tokens - 1)
        )

    def _compact(self) -> None:
        """Make room in the request table: only requests under way, and answers still to learn from, stay."""
        world, rows = self.world, self.ledger.rows
        finished = world.state.records["status"][0, :rows] == FINISHED
        old, first = self.ledger.compact(finished & (world.calibration.counted[0, :rows] != _COUNTED) & self._rules.calibrate)
        workload = world.workload
        for array in (
            world.state.requests, world.state.records, world.calibration.grown, world.calibration.counted, workload.arrival_s,
            workload.prompt, workload.predicted_score, workload.predicted_tokens, workload.predicted_log_sd, workload.user,
        ):  # fmt: skip
            array[0, first : self.ledger.rows] = array[0, old]
        world.calibration.grown[0, self.ledger.rows :] = 0
        world.calibration.counted[0, self.ledger.rows :] = 0
        world.calibration.first[0] = first
        world.pace.counted[0] = world.worth.counted[0] = self.ledger.rows
