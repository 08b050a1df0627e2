"""Decide where a request goes: by the policy, else by the fallback chain, never where it may not go."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.confinement import Confinement
from gateway.decision import Fallback, Refusal, RouteDecision, ShadowChoice
from gateway.ledger import BASE_ROWS, Ledger
from gateway.live import LiveCluster, Told
from gateway.policies import IMPACT_GREEDY, LEAST_WORK, LivePolicy, Verdict, best_of, load_policy, without_drop
from gateway.predicting import Predicting
from gateway.range_watch import RangeWatch
from gateway.request import RouteRequest
from gateway.shared import create_shared, map_shared
from gateway.slowness import Slowness
from models.predictors.served import Predictors
from rllib_envs.errors import InputError
from rllib_envs.heuristic import arrived_feature, present, whatif_feature
from rllib_envs.scenario import Scenario
from rllib_envs.sim.seen import Seen

_LOG = logging.getLogger(__name__)

Send = Callable[[LiveCluster, int], None]
"""Sends a request, in a row of the table of a cluster."""

_WARM_UP = 20  # decisions after which nothing is done for the first time
_PINNED = "pinned"


def share_ledgers(path: Path, scenario: Scenario, gateways: int, capacity: int = 4096) -> None:
    """Write the file that so many gateways share, before they start (``create_shared``).

    Args:
        path: of the file.
        scenario: of all of them.
        gateways: their number.
        capacity: most requests under way at each, as each of their deciders is told.

    Raises:
        OSError: it cannot be written, or is there already.
    """
    create_shared(path, gateways, 2 * max(capacity, BASE_ROWS), scenario.n_experts)


class _Choice(NamedTuple):
    """Who chose what."""

    verdict: Verdict
    policy: str
    version: str
    fallback: Fallback | None
    why: str


class Decider:
    """Decides for one cluster, and keeps account of what is under way.

    Args:
        scenario: experts with their engine profiles, classes, tenants and service level.
        policy: who decides (``load_policy``), or such a policy.
        fallback: who decides where the policy does not; after it comes the least work.
        shadow: a policy that decides after the acting one, in the same place, and of which nothing comes; None: none.
        predictors: of quality and length, from a request's text; None: each expert's means.
        may_drop: (C,) classes whose requests the policy may drop; (): none.
        capacity: most requests under way.
        seed: of what is drawn, as for ties.
        clock: seconds, to measure decisions by.
        shared: file that ``share_ledgers`` has written; None: this is the only gateway in front of these experts.
        gateway: number of this one among those that share it.
        gateways: their number.

    Attributes:
        ledger: to be told what comes back.
        live: the cluster as policies see it.
        fallbacks: decisions that the policy did not take, by reason.
        refusals: requests that went nowhere, by reason.
        slowness: of the policy.
        predicting: predictions for requests.

    Raises:
        InputError: no such policy or fallback, or one that cannot be loaded; predictors that do not know an expert's model; not
            one ``may_drop`` for each class.
    """

    def __init__(
        self,
        scenario: Scenario,
        policy: str | LivePolicy = IMPACT_GREEDY,
        *,
        fallback: str = IMPACT_GREEDY,
        predictors: Predictors | None = None,
        shadow: str | None = None,
        may_drop: Sequence[bool] = (),
        capacity: int = 4096,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
        shared: Path | None = None,
        gateway: int = 0,
        gateways: int = 1,
    ) -> None:
        classes = max(len(scenario.classes), 1)
        if may_drop and len(may_drop) != classes:
            raise InputError(f"may_drop has {len(may_drop)} entries: must have one for each of the {classes} classes")
        self.policy = policy if isinstance(policy, LivePolicy) else load_policy(policy, scenario.observation)
        self.shadow = None if shadow is None else load_policy(shadow, scenario.observation)
        told = self.policy.observation
        self._chain = [load_policy(fallback, told), *([load_policy(LEAST_WORK, told)] if fallback != LEAST_WORK else [])]
        self.scenario = scenario
        self.predicting = Predicting(scenario.experts, predictors)
        self._capacity = max(capacity, BASE_ROWS)
        seen = None if shared is None else map_shared(shared, gateways, 2 * self._capacity, scenario.n_experts)
        self.live, self._beside = self._new_clusters(seen, gateway)
        self.fallbacks: Counter[Fallback] = Counter()
        self.refusals: Counter[Refusal] = Counter()
        self.slowness = Slowness()
        self._watch = None if self.policy.trained_on is None else RangeWatch(self.policy.trained_on, self.live)
        self._may_drop = tuple(may_drop) or (False,) * classes
        self._confinement = Confinement(scenario)
        self._longest = np.array([expert.engine.max_model_len for expert in scenario.experts])
        self._rng, self._clock = np.random.default_rng(seed), clock
        self._shadow_rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))  # it takes no draw of the policy
        self._start, self._numbers = secrets.token_hex(4), itertools.count()

    @property
    def ledger(self) -> Ledger:
        """The requests under way."""
        return self.live.ledger

    @property
    def outside(self) -> str | None:
        """What of the experts is outside the policy's training range, so that it will not decide; None: nothing."""
        found = None if self._watch is None else self._watch.outside(0)
        return None if found is None else f"{found.name} = {found.value}: trained on {found.low} to {found.high}"

    def warm_up(self) -> None:
        """Take some decisions for nothing, which compiles and loads what the first real one needs."""
        real, refusals, fallbacks = (self.live, self._beside), self.refusals.copy(), self.fallbacks.copy()
        watch, self._watch = self._watch, None
        self.live, self._beside = self._new_clusters()
        for i in range(_WARM_UP):
            self.decide(RouteRequest(prompt_tokens=100, text="warm up"), float(i), [True] * self.scenario.n_experts)
        (self.live, self._beside), self._watch = real, watch
        self.refusals, self.fallbacks, self.slowness = refusals, fallbacks, Slowness()

    def decide(self, request: RouteRequest, now_s: float, ready: Sequence[bool], told: Told | None = None) -> RouteDecision:
        """Decide, and enter the request in the ledger if it goes somewhere.

        Args:
            request: to route.
            now_s: the time, of the clock that the ledger is told.
            ready: (N,) experts that can be asked now.
            told: what is predicted for it; None: predictors are asked now.

        Raises:
            ValueError: the request does not fit the scenario (``Confinement``), or a budget is out of range.
        """
        started_s = self._clock()
        n = self.scenario.n_experts
        may_go = self._confinement.of(request)
        terms = self.live.terms_for(request.service, request.budgets)
        prompts = np.array([request.prompt_at(e) for e in range(n)])
        told = self.predicting.of(request) if told is None else told
        key = f"{self._start}-{next(self._numbers):x}"
        if len(self.ledger) >= self._capacity:
            return self._refused(key, "full", started_s)
        allowed = may_go & (prompts < self._longest) & np.asarray(ready, np.bool_)
        row, possible = self._show(prompts, told, terms, allowed, now_s)
        if not possible.any():
            fits = may_go & (prompts < self._longest)
            return self._refused(key, "confined" if not may_go.any() else "unavailable" if fits.any() else "too_long", started_s)
        choice = self._choose(request, possible, now_s, shown=row is not None)
        verdict = choice.verdict
        dropped = verdict.action == n
        expert = None if dropped else verdict.action
        ranking = self._ranking(verdict, possible, expert)
        send: Send | None = None
        if expert is None:
            self.refusals["dropped"] += 1
        else:

            def send_there(live: LiveCluster, row: int) -> None:
                live.send(key, row, expert, int(prompts[expert]), told, may_go, streams=request.streams)

            send = send_there
            send(self.live, self.live.new_row() if row is None else row)
        scores = () if verdict.scores is None else tuple(verdict.scores.tolist())
        decision_s = self._clock() - started_s
        return RouteDecision(
            id=key,
            expert=expert,
            reason="dropped" if dropped else None,
            ranking=ranking,
            policy=choice.policy,
            version=choice.version,
            fallback=choice.fallback,
            scores=scores,
            probability=verdict.probability,
            predicted_score=tuple(told.score.tolist()),
            predicted_tokens=tuple(self.live.expected_tokens(told).tolist()),
            predicted_ttft_s=tuple(self.live.predicted_ttft_s.tolist()),
            predicted_tpot_s=tuple(self.live.predicted_tpot_s(told).tolist()),
            reasons=self._reasons(choice, expert),
            decision_s=decision_s,
            shadow=self._shadow_choice(request, told, allowed, now_s, send),
        )

    def moved(self, key: str, expert: int, now_s: float, prompt_tokens: int | None = None) -> None:
        """A request whose expert failed before the first token goes to another one.

        Args:
            key: of the request; nothing happens for an unknown one.
            expert: of its ranking.
            now_s: the time.
            prompt_tokens: its tokens there; None: as many as at the expert before.

        Raises:
            ValueError: it may not go there.
        """
        if key in self.ledger:
            prompt = self.ledger.prompt_of(key) if prompt_tokens is None else prompt_tokens
            self.live.move(key, expert, prompt, now_s)
            if self._beside is not None:
                self._beside.move(key, expert, prompt, now_s)

    def take_over(self, old: Decider, now_s: float) -> None:
        """Take over what is under way at the decider of an older configuration, before the first decision.

        From then on its ends and tokens are to be told here, under the same keys.

        Raises:
            ValueError: it has other experts, or another order of them, or more under way than this one may have.
        """
        self.live.take_over(old.live, now_s)
        if self._beside is not None:
            self._beside.take_over(old.live if old._beside is None else old._beside, now_s)

    def _new_clusters(self, seen: Seen | None = None, me: int = 0) -> tuple[LiveCluster, LiveCluster | None]:
        """The cluster as the policy sees it, and as the shadow does, which may be shown other things.

        A shadow knows of the requests of its own gateway alone.
        """
        live = self._new_cluster(self.policy, seen, me)
        if self.shadow is None:
            return live, None
        beside = self._new_cluster(self.shadow)
        live.ledger.follower = beside.ledger
        return live, beside

    def _new_cluster(self, policy: LivePolicy, seen: Seen | None = None, me: int = 0) -> LiveCluster:
        scenario = replace(self.scenario, observation=policy.observation)
        return LiveCluster(scenario, capacity=2 * self._capacity, log_sd=self.predicting.log_sd, seen=seen, me=me)

    def _show(
        self, prompts: NDArray[np.int64], told: Told, terms: int, allowed: NDArray[np.bool_], now_s: float
    ) -> tuple[int | None, NDArray[np.bool_]]:
        """The row of the request, which the cluster now shows, and (N,) where it can go; None: it cannot be shown."""
        try:
            row = self.live.observe(int(np.rint(prompts.mean())), told, terms, allowed, now_s)
        except Exception:
            _LOG.exception("a request cannot be shown to the policies")
            return None, allowed
        return row, allowed & (self.live.view.action_mask[0, :-1] > 0)

    def _choose(self, request: RouteRequest, possible: NDArray[np.bool_], now_s: float, *, shown: bool) -> _Choice:
        """Ask the policy, then those of the fallback chain, and last the ledger."""
        if request.pinned is not None:
            return _Choice(Verdict(request.pinned, 1.0, None), _PINNED, "", None, "asked for")
        fallback: Fallback | None = "error"
        why = "cannot be shown"
        if shown:
            if self._watch is not None:
                self._watch.note()
            fallback, why = self._why_not(request.service, now_s)
            if fallback is None:
                began_s = self._clock()
                verdict = self._ask(self.policy, request.service, possible, self.live, self._rng)
                self.slowness.note(self._clock() - began_s, now_s)
                if verdict is not None:
                    return _Choice(verdict, self.policy.name, self.policy.version, None, "")
                fallback, why = "error", "no valid decision"
            for policy in self._chain:
                verdict = self._ask(policy, request.service, possible, self.live, self._rng)
                if verdict is not None:
                    self.fallbacks[fallback] += 1
                    return _Choice(verdict, policy.name, policy.version, fallback, why)
        self.fallbacks[fallback] += 1
        return _Choice(self._by_ledger(request, possible), LEAST_WORK, "", fallback, why)

    def _shadow_choice(
        self, request: RouteRequest, told: Told, allowed: NDArray[np.bool_], now_s: float, send: Send | None
    ) -> ShadowChoice | None:
        """What the shadow would have done; None: nobody asks it, or it failed. The request goes where the policy said.

        Args:
            request: to route.
            told: what is predicted for it.
            allowed: (N,) experts that it may go to now.
            now_s: the time.
            send: sends it in a cluster; None: it goes nowhere.
        """
        if self.shadow is None or self._beside is None:
            return None
        live, n = self._beside, allowed.size
        try:
            prompt = int(np.rint(np.mean([request.prompt_at(e) for e in range(n)])))
            row = live.observe(prompt, told, live.terms_for(request.service, request.budgets), allowed, now_s)
            possible = allowed & (live.view.action_mask[0, :-1] > 0)
            verdict = None
            if request.pinned is None and possible.any():
                verdict = self._ask(self.shadow, request.service, possible, live, self._shadow_rng)
            if send is not None:
                send(live, row)
        except Exception:
            _LOG.exception("shadow %s failed", self.shadow.name)
            return None
        if verdict is None:
            return None
        return ShadowChoice(
            policy=self.shadow.name,
            version=self.shadow.version,
            expert=None if verdict.action == n else verdict.action,
            scores=() if verdict.scores is None else tuple(verdict.scores.tolist()),
        )

    def _why_not(self, service: int, now_s: float) -> tuple[Fallback | None, str]:
        """Why the policy is not asked, if so."""
        if self._watch is not None and (found := self._watch.outside(service)):
            return "outside", f"{found.name} {found.value} outside {found.low}..{found.high}"
        return ("slow", "rests") if self.slowness.rests(now_s) else (None, "")

    def _ask(
        self, policy: LivePolicy, service: int, possible: NDArray[np.bool_], live: LiveCluster, rng: np.random.Generator
    ) -> Verdict | None:
        """A policy's decision, if it is one that can be followed.

        A drop where none is allowed becomes the best expert.
        """
        n = possible.size
        try:
            verdict = policy.decide(live, rng)
            if not self._may_drop[service]:
                verdict = without_drop(verdict, np.append(possible, False), rng)
        except Exception:
            _LOG.exception("policy %s failed", policy.name)
            return None
        if not 0 <= verdict.action <= n or (verdict.action < n and not possible[verdict.action]):
            _LOG.error("policy %s chose %d, which is not possible", policy.name, verdict.action)
            return None
        return verdict

    def _by_ledger(self, request: RouteRequest, possible: NDArray[np.bool_]) -> Verdict:
        """The least work by the ledger alone: tokens left times the engine's time for them."""
        work_s: list[float] = []
        for e, (load, expert) in enumerate(zip(self.ledger.loads(), self.scenario.experts, strict=True)):
            engine = expert.engine
            decode_ms = (load.tokens_left + expert.mean_output_tokens) * (engine.c0_ms + engine.b_ms)
            work_s.append(1e-3 * engine.overhead * (decode_ms + (load.prompt_tokens + request.prompt_at(e)) * engine.a_ms))
        return best_of(np.append(-np.array(work_s), -np.inf), np.append(possible, False), self._rng)

    def _ranking(self, verdict: Verdict, possible: NDArray[np.bool_], expert: int | None) -> tuple[int, ...]:
        """The other possible experts, the best first: by the policy's scores, else by what the roll-out says of each."""
        view, n = self.live.view, possible.size
        if verdict.scores is not None:
            values = verdict.scores[:n]
        else:
            values = (arrived_feature(view, "predicted_score") * whatif_feature(view, "own_success"))[0]
        order = np.argsort(-np.where(np.isfinite(values), values, -np.inf), kind="stable").tolist()
        return tuple(e for e in order if possible[e] and e != expert)

    def _reasons(self, choice: _Choice, expert: int | None) -> str:
        """In short, for a header: of the expert where it goes, the predicted success and quality, and the requests there."""
        if expert is None:
            return choice.why or "worth more to others"
        view = self.live.view
        success, score = whatif_feature(view, "own_success")[0, expert], arrived_feature(view, "predicted_score")[0, expert]
        said = f"in time {success:.2f}, quality {score:.2f}, under way {int(present(view)[0, expert])}"
        return f"{choice.why}; {said}" if choice.why else said

    def _refused(self, key: str, reason: Refusal, started_s: float) -> RouteDecision:
        self.refusals[reason] += 1
        unknown = (float("nan"),) * self.scenario.n_experts
        return RouteDecision(
            id=key,
            expert=None,
            reason=reason,
            ranking=(),
            policy="",
            version="",
            fallback=None,
            scores=(),
            probability=1.0,
            predicted_ttft_s=unknown,
            predicted_tpot_s=unknown,
            reasons=reason,
            decision_s=self._clock() - started_s,
        )
