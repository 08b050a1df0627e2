"""Decide where a request goes: by the policy, else by the fallback chain, never where it may not go."""

from __future__ import annotations

import itertools
import secrets
import time
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gateway.confinement import Confinement
from gateway.decision import Fallback, Refusal, RouteDecision
from gateway.ledger import Ledger
from gateway.request import RouteRequest
from rllib_envs.scenario import Scenario

LAST_RESORT = "least-work"
"""Who decides when everybody else fails: it needs the ledger alone."""


class Decider:
    """Decides for one cluster, and keeps account of what is under way.

    Args:
        scenario: experts with their engine profiles, classes, tenants and service level.
        capacity: most requests under way.
        seed: of what is drawn, as for ties.
    """

    def __init__(self, scenario: Scenario, *, capacity: int = 8192, seed: int = 0) -> None:
        self.scenario = scenario
        engines = [expert.engine for expert in scenario.experts]
        self._token_s = np.array([1e-3 * x.overhead * (x.c0_ms + x.b_ms) for x in engines])
        self._prompt_token_s = np.array([1e-3 * x.overhead * x.a_ms for x in engines])
        self._longest = np.array([x.max_model_len for x in engines])
        self.ledger = Ledger(scenario.n_experts, capacity, self._token_s)
        self.fallbacks: Counter[Fallback] = Counter()
        self.refusals: Counter[Refusal] = Counter()
        self._confinement = Confinement(scenario)
        self._rng = np.random.default_rng(seed)
        self._start, self._numbers = secrets.token_hex(4), itertools.count()

    def warm_up(self) -> None:
        """Compile and load what the first decision needs."""

    def decide(self, request: RouteRequest, now_s: float, ready: Sequence[bool]) -> RouteDecision:
        """Decide, and enter the request in the ledger if it goes somewhere.

        Args:
            request: to route.
            now_s: the time, of the clock that the ledger is told.
            ready: (N,) experts that can be asked now.

        Raises:
            ValueError: the request does not fit the scenario (``Confinement``).
        """
        started_s = time.perf_counter()
        n = self.scenario.n_experts
        confined = self._confinement.of(request)
        fits = np.array([request.prompt_at(e) for e in range(n)]) < self._longest
        allowed = confined & fits & np.asarray(ready, np.bool_)
        key = f"{self._start}-{next(self._numbers):x}"
        work_s = self._work_s(request)
        # Equal ones at random: whoever takes the first of them sends everything there while nothing is under way.
        order = np.lexsort((self._rng.random(n), np.where(allowed, work_s, np.inf)))[: int(allowed.sum())]
        expert = int(order[0]) if order.size else None
        reason = None if expert is not None else self._refusal(confined, fits)
        if expert is not None:
            self._enter(key, request, expert, now_s)
        return RouteDecision(
            id=key,
            expert=expert,
            reason=reason,
            ranking=tuple(order[1:].tolist()),
            policy="pinned" if request.pinned is not None else LAST_RESORT,
            version="",
            fallback=None,
            scores=(),
            probability=1.0,
            predicted_ttft_s=(float("nan"),) * n,
            predicted_tpot_s=(float("nan"),) * n,
            reasons=LAST_RESORT,
            decision_s=time.perf_counter() - started_s,
        )

    def _refusal(self, confined: NDArray[np.bool_], fits: NDArray[np.bool_]) -> Refusal:
        reason: Refusal = "confined" if not confined.any() else "too_long" if not (confined & fits).any() else "unavailable"
        self.refusals[reason] += 1
        return reason

    def _work_s(self, request: RouteRequest) -> NDArray[np.float64]:
        """(N,) predicted work at each expert, this request included: tokens left times the engine's time for them."""
        work_s: list[float] = []
        for e, (load, expert) in enumerate(zip(self.ledger.loads(), self.scenario.experts, strict=True)):
            decode = load.tokens_left + expert.mean_output_tokens
            prefill = load.prompt_tokens + request.prompt_at(e)
            work_s.append(decode * self._token_s[e] + prefill * self._prompt_token_s[e])
        return np.array(work_s)

    def _enter(self, key: str, request: RouteRequest, expert: int, now_s: float) -> None:
        if self.ledger.rows == self.ledger.capacity:
            self.ledger.compact(np.zeros(self.ledger.rows, np.bool_))
        tokens = self.scenario.experts[expert].mean_output_tokens
        self.ledger.opened(key, self.ledger.take_row(), expert, now_s, request.prompt_at(expert), tokens)
