"""The cluster in front of which a gateway stands, in the simulator's own records: what policies look at.

One cluster (B = 1), whose request table is a window on the requests so far. ``rllib_envs.live`` writes the observation.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.later_prompts import LaterPrompts
from gateway.ledger import BASE_ROWS, LEFT, EndedRequest, Ledger
from gateway.ledger import FINISHED as ENDED
from gateway.request import Budgets
from rllib_envs.capacity import capacity_rps
from rllib_envs.decision import BEGIN, Rules, World
from rllib_envs.live import show
from rllib_envs.observation import PACE_GAINS, Pace
from rllib_envs.scenario import Scenario
from rllib_envs.service import ServiceClass
from rllib_envs.service_terms import experts_at_sites, terms_of
from rllib_envs.sim.calibration import allocate_calibration, calibrate, learnt, prefill_log, reset_calibration
from rllib_envs.sim.cluster import STEP, allocate_request_table
from rllib_envs.sim.demand import allocate_demand, update_foreseen_ema
from rllib_envs.sim.seen import Marks, Seen, prefill_s
from rllib_envs.sim.state import DROPPED, FINISHED, PENDING, ROUTED, allocate, allocate_views, engine_records
from rllib_envs.sim.terms import Service
from rllib_envs.sim.whatif import scratch_for
from rllib_envs.sim.worth import allocate_worth
from rllib_envs.view import allocate_rows, view_of
from rllib_envs.workload.catalogue import LENGTH_LOG_SD

_MOST_TOKENS = 2**30
_OWN_TERMS = 256  # sets of bounds of single requests that are kept
_COUNTED = -1  # in ``Calibration.counted``: the answer is over


class Told(NamedTuple):
    """Predictions for one request at N experts."""

    score: NDArray[np.float64]  # (N,) in [0, 1]
    tokens: NDArray[np.float64]  # (N,) >= 1: the expected length of the answer, if nothing cuts it
    log_sd: NDArray[np.float64]  # (N,) standard deviation of the log length
    most: float = math.inf  # tokens that the request asks for at most


class LiveCluster:
    """What a gateway knows of its cluster. Policies take it for a simulation of one cluster.

    Args:
        scenario: experts, service classes, and the observation that the policy needs; what-if results are always there.
        capacity: most rows of the request table; requests under way stay below it.
        log_sd: (N,) standard deviation of the log of an answer's length about its prediction; None: as for prompts in general.
        log_median: (N,) median of log(actual / predicted tokens) where predictions are right; None: of log-normal lengths.
        seen: by all gateways in front of these experts; None: this is the only one.
        me: number of this gateway among them.

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
        seen: Seen | None = None,
        me: int = 0,
    ) -> None:
        self.scenario = replace(scenario, observation=replace(scenario.observation, whatif=True, counterfactual=False))
        self.batch, self.cursor = 1, np.zeros(1, np.int64)
        spec, n = self.scenario.observation, scenario.n_experts
        profiles = [expert.engine for expert in scenario.experts]
        nominal = engine_records(profiles)[None]
        self.ledger = Ledger(n, capacity, nominal["c0_s"][0] + nominal["b_s"][0], seen, me)
        gateways = self.ledger.seen.rows.size
        room = capacity if gateways == 1 else capacity * (gateways + 1)  # for the requests of others, behind one's own
        state = allocate(nominal, room, plain=False)
        nothing_far = np.zeros((1, n))  # what the network takes is part of what is measured at the gateway
        terms = terms_of(scenario)
        service = Service(terms, np.ones((terms.size, 1, n), np.bool_), nothing_far, nothing_far)
        self.rows = allocate_rows(1, scenario.experts, spec)
        self.view = view_of(self.rows)
        self.world = World(
            state=state,
            late=state,
            nominal=nominal.copy(),
            calibration=allocate_calibration(1, room, n),
            workload=allocate_request_table(1, capacity, n)._replace(age_s=np.zeros((1, room))),  # of others' requests too
            cursor=np.zeros(1, np.int32),
            views=allocate_views(1, n),
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
            at_site=experts_at_sites(scenario),
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
            places=spec.places,
        )
        self._begin, self._steps = np.full(1, BEGIN), np.zeros(1, STEP)
        self._last_s, self._came = 0.0, 0
        self._marks = Marks(began_s=np.zeros(n), changes=np.full(n, -1), before_s=np.zeros(n), busy_s=np.zeros(n))
        self._finished = self._late = 0
        assert state.extras is not None
        self._user, self._extras = self.world.workload.user[0], state.extras[0]
        self._later = LaterPrompts(n, gateways)
        self._may_go = np.zeros((capacity, n), np.bool_)
        self._classes = max(len(scenario.classes), 1)
        self._own_terms: dict[tuple[int, Budgets], int] = {}  # the one that was used last is at the end
        self._class_of: dict[int, int] = {}  # row of such terms -> class
        self._new_record = np.zeros((), state.records.dtype)
        for name in ("first_scheduled_s", "first_token_s", "finish_s"):
            self._new_record[name] = np.nan

    @property
    def predicted_ttft_s(self) -> NDArray[np.float64]:
        """(N,) time to the first token of the request shown, if it went to each expert; inf: its queue is full."""
        return self.world.scratch.own_s[:, 0].copy()

    def predicted_tpot_s(self, told: Told) -> NDArray[np.float64]:
        """(N,) time per token after the first of the request shown, if as many come after it as of late. ``told``: of it."""
        own_s, tokens = self.world.scratch.own_s, np.floor(self.expected_tokens(told) + 0.5)
        left = 1 - self._later.share(float(self.world.now_s[0]))
        with np.errstate(invalid="ignore"):
            return np.where(np.isfinite(own_s[:, 1]), (own_s[:, 1] - own_s[:, 0]) / (np.maximum(tokens - 1, 1) * left), np.inf)

    def expected_tokens(self, told: Told) -> NDArray[np.float64]:
        """(N,) tokens of an answer, with what was learned of lengths, within the request's limit."""
        return np.maximum(np.minimum(told.tokens * self._length_factor(), told.most), 1)

    def _length_factor(self) -> NDArray[np.float64]:
        """(N,) by which predicted lengths are corrected; 1 for policies that were trained without."""
        return self.world.nominal["length_factor"][0].astype(np.float64)

    def _tokens(self, told: Told) -> NDArray[np.float64]:
        """(N,) the predictions, so bounded that they are not above the request's own limit once they are corrected."""
        return np.minimum(told.tokens, told.most / self._length_factor())

    def terms_for(self, service: int, budgets: Budgets) -> int:
        """The row of the terms that a request is judged by: of its class, or of the bounds that it brings itself.

        Only so many sets of bounds are kept; the one that was not used for longest gives its place to a new one.

        Raises:
            ValueError: a bound out of range.
        """
        if not budgets.given:
            return service
        key = service, budgets
        row = self._own_terms.pop(key, None)
        if row is None:
            terms = self._terms_of(service, budgets)
            if not self._own_terms:
                self._make_room_for_terms()
            full = len(self._own_terms) == _OWN_TERMS
            row = self._own_terms.pop(next(iter(self._own_terms))) if full else self._classes + len(self._own_terms)
            self.world.service.terms[row] = terms
        self._own_terms[key], self._class_of[row] = row, service
        return row

    def new_row(self) -> int:
        """The row of the next request; what has ended by now is entered first."""
        self._note_ended()
        if self.ledger.rows == self.ledger.capacity:
            self._compact()
        return self.ledger.take_row()

    def observe(self, prompt: int, told: Told, service: int, allowed: NDArray[np.bool_], now_s: float) -> int:
        """Show a request that has come; returns its row.

        Args:
            prompt: its tokens.
            told: what is predicted for it.
            service: row of its terms (``terms_for``).
            allowed: (N,) experts that it may go to now.
            now_s: the time, not before that of the request before it.
        """
        row, world = self.new_row(), self.world
        workload, state = world.workload, world.state
        world.now_s[0] = now_s
        workload.arrival_s[0, row], workload.prompt[0, row] = now_s, prompt
        workload.predicted_score[0, row], workload.predicted_tokens[0, row] = told.score, self._tokens(told)
        workload.predicted_log_sd[0, row] = told.log_sd
        self._user["service"][row] = service
        world.service.allowed[service, 0] = allowed
        record = state.records[0, row]
        state.records[0, row] = self._new_record
        record["status"], record["route"] = DROPPED, -1
        self._extras[row] = 0
        self._extras["service"][row] = service
        seen = self.ledger.seen
        came = int(seen.arrivals.sum())
        arrivals, finished, late = max(came - self._came, 1), self._finished, self._late
        gap_s = max(now_s - self._last_s, 0.0) / arrivals
        self._last_s, self._came = now_s, came
        self._finished = self._late = 0
        self.cursor[0] += 1
        news = row, came - 1, arrivals, gap_s, finished, late
        show(world, self._rules, seen, self.ledger.me, self._marks, *news, self._begin, self._steps)
        return row

    def send(
        self,
        key: str,
        row: int,
        expert: int,
        prompt: int,
        told: Told,
        may_go: NDArray[np.bool_],
        *,
        streams: bool = True,
    ) -> None:
        """The request that was shown last goes to an expert.

        Nothing is learned from the length of an answer that may end at a limit of tokens before its expected length.

        Args:
            key: of the request in the ledger.
            row: from ``observe``.
            expert: where it goes.
            prompt: its tokens there.
            told: what is predicted for it.
            may_go: (N,) experts that it may ever go to.
            streams: whether its tokens are seen one by one.

        Raises:
            ValueError: it may not go there.
        """
        if not may_go[expert]:
            raise ValueError(f"request {key}: may not go to expert {expert}")
        now_s = float(self.world.now_s[0])
        first_s, pace_s = np.nan, 0.0
        if not streams:
            ttft_s, tpot_s = self.predicted_ttft_s[expert], self.predicted_tpot_s(told)[expert]
            if np.isfinite(ttft_s):
                first_s, pace_s = now_s + ttft_s, max(tpot_s, 1e-6)
        self._later.note(expert, prefill_s(self.world.nominal[0, expert], prompt), now_s)
        if self._rules.demand:
            update_foreseen_ema(self.world.demand, 0, self.rows.whatif[0, expert]["own_success"])
        self._may_go[row] = may_go
        tokens = float(self._tokens(told)[expert])
        self._write(row, expert, prompt, told.score[expert], tokens, now_s)
        self.world.state.records["status"][0, row] = PENDING if tokens < told.tokens[expert] else ROUTED
        service = int(self._extras["service"][row])
        self.ledger.opened(
            key,
            row,
            expert,
            now_s,
            prompt,
            tokens,
            predicted_score=float(told.score[expert]),
            service=service if service < self._classes else self._class_of[service],
            first_s=first_s,
            pace_s=pace_s,
        )

    def move(self, key: str, expert: int, prompt: int, now_s: float) -> None:
        """A request whose expert failed before the first token goes to another one. Nothing for an unknown key.

        Raises:
            ValueError: it may not go there.
        """
        row = self.ledger.row_of(key)
        if row is None:
            return
        if not self._may_go[row, expert]:
            raise ValueError(f"request {key}: may not go to expert {expert}")
        workload = self.world.workload
        score, tokens = workload.predicted_score[0, row, expert], workload.predicted_tokens[0, row, expert]
        self._write(row, expert, prompt, score, tokens, workload.arrival_s[0, row])
        self.ledger.moved(key, expert, now_s, prompt, float(tokens), float(score))

    def take_over(self, old: LiveCluster, now_s: float) -> None:
        """Enter what is under way at an older view of the same experts, in order, with what was learned there.

        Raises:
            ValueError: it has other experts, or more under way than there is room for.
        """
        names, others = ([expert.name for expert in live.scenario.experts] for live in (self, old))
        if names != others:
            raise ValueError(f"experts {', '.join(names)}: must be those of before, {', '.join(others)}")
        keys = old.ledger.keys()
        if len(keys) >= self.ledger.capacity - self.ledger.rows:
            raise ValueError(f"{len(keys)} requests are under way: there is room for {self.ledger.capacity - self.ledger.rows}")
        mine, its = self.world, old.world
        for name in ("lengths", "scores", "steps", "prefills", "errors"):
            getattr(mine.calibration, name)[:] = getattr(its.calibration, name)
        for to, source in ((mine.pace, its.pace), (mine.worth, its.worth)):
            for a, b in zip(to, source, strict=True):
                a[:] = b
        mine.demand.records[:] = its.demand.records
        if self._rules.calibrate:
            for e in range(len(names)):
                learned = mine.calibration
                offsets = learnt(learned.lengths, 0, e), learnt(learned.scores, 0, e)
                step, prefill = learned.steps[0, e], learned.prefills[0, e]
                calibrate(*offsets, step["log"], prefill_log(prefill, step), learned.configured[0, e], mine.nominal[0, e])
        self.ledger.skip_rows(BASE_ROWS)  # averages are not begun anew
        self.cursor[:] = old.cursor
        for key in keys:
            row, before = self.ledger.take_row(), old.ledger.row_of(key)
            assert before is not None
            for name in ("arrival_s", "prompt", "predicted_score", "predicted_tokens", "predicted_log_sd"):
                getattr(mine.workload, name)[0, row] = getattr(its.workload, name)[0, before]
            service = min(old.ledger.service_of(key), self._classes - 1)
            self.world.state.records[0, row] = self._new_record
            self._extras[row] = 0
            self._extras["service"][row] = service
            expert, prompt = old.ledger.expert_of(key), old.ledger.prompt_of(key)
            request = its.state.requests[0, before]
            self._write(row, expert, prompt, request["predicted_score"], request["predicted_tokens"], request["arrival_s"])
            self._may_go[row] = old.may_go(before)
            self.world.state.records["status"][0, row] = PENDING  # what was counted of its length is not known
            self.ledger.copy_row(key, row, service, old.ledger)
        mine.pace.counted[0] = mine.worth.counted[0] = self.ledger.rows
        mine.calibration.first[0] = self.ledger.rows
        self._last_s, self._came = now_s, int(self.ledger.seen.arrivals.sum())

    def may_go(self, row: int) -> NDArray[np.bool_]:
        """(N,) the experts that the request of a row may ever go to."""
        return self._may_go[row]

    def _write(self, row: int, expert: int, prompt: int, score: float, tokens: float, arrival_s: float) -> None:
        state = self.world.state
        request, record = state.requests[0, row], state.records[0, row]
        request["arrival_s"], request["prompt"], request["output"] = arrival_s, prompt, _MOST_TOKENS
        request["predicted_score"], request["predicted_tokens"] = score, tokens
        record["route"] = expert
        extra = self._extras[row]
        extra["priority"] = self.world.service.terms["priority"][extra["service"]]

    def _note_ended(self) -> None:
        """Enter the requests that have ended since the last observation."""
        for ended in self.ledger.take_ended():
            request, record = self.world.state.requests[0, ended.row], self.world.state.records[0, ended.row]
            learn = ended.how == ENDED and ended.tokens > 0 and record["status"] == ROUTED  # else it says nothing of lengths
            record["status"], request["output"] = FINISHED if learn else DROPPED, ended.tokens
            if ended.how != LEFT and ended.tokens > 0:
                self._finished += 1
                self._late += not self._in_time(ended, int(self._extras["service"][ended.row]))

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
            world.state.requests, world.state.records, self._extras[None], world.calibration.grown, world.calibration.counted,
            workload.arrival_s, workload.prompt, workload.predicted_score, workload.predicted_tokens, workload.predicted_log_sd,
            workload.user,
            self._may_go[None],
        ):  # fmt: skip
            array[0, first : self.ledger.rows] = array[0, old]
        world.calibration.grown[0, self.ledger.rows :] = 0
        world.calibration.counted[0, self.ledger.rows :] = 0
        world.calibration.first[0] = first
        number = np.zeros(self.ledger.capacity, np.int32)  # those who run, as they are rebuilt for the last observation
        number[old] = np.arange(first, self.ledger.rows)
        running = world.state.running[0]
        mine = running < self.ledger.capacity
        running[mine] = number[running[mine]]
        world.pace.counted[0] = world.worth.counted[0] = self.ledger.rows

    def _terms_of(self, service: int, budgets: Budgets) -> Any:
        """TERMS of a class with some bounds replaced."""
        scenario = self.scenario
        own = scenario.classes[service] if scenario.classes else ServiceClass(name="all")
        if own.per_token_s is own.ttft_s is own.tpot_s is own.e2e_s is None:
            own = replace(own, per_token_s=scenario.slo_s_per_token)
        given = {name: bound for name, bound in asdict(budgets).items() if bound is not None}
        return terms_of(replace(scenario, classes=(replace(own, **given, confined_to=()),), tenants=()))[0]

    def _make_room_for_terms(self) -> None:
        """Longer tables of terms: until a request brings bounds of its own, those of the classes are all."""
        service = self.world.service
        longer = np.concatenate([service.terms, np.repeat(service.terms[:1], _OWN_TERMS)])
        allowed = np.ones((longer.size, *service.allowed.shape[1:]), np.bool_)
        longer_service = Service(longer, allowed, service.round_trip_s, service.prompt_s)
        self.world = self.world._replace(service=longer_service, scratch=self.world.scratch._replace(service=longer_service))
