"""A log played into a live cluster: what a policy would have decided in each place that the log's policy was in.

The log says when requests came, where they went, when their first tokens came and how long their answers were. Tokens between the
first and the last are taken to have come evenly. So the log itself is the ledger: no state needs to be in it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gateway.ledger import BASE_ROWS
from gateway.live import LiveCluster, Told
from gateway.policies import LivePolicy, load_policy, without_drop
from gateway.request import Budgets
from rllib_envs.decision_log.records import LoggedRequest
from rllib_envs.decision_log.table import LoggedTable
from rllib_envs.scenario import Scenario

_STEPS = 8  # reports of an answer's tokens between the first and the last


class _Event(NamedTuple):
    """Something that comes back, at a time."""

    time_s: float
    number: int  # of the request
    tokens: int  # that have come; -1: the end
    finished: bool
    cut: bool = False  # at the request's limit of tokens


def decide_again(table: LoggedTable, scenario: Scenario, text: str, seed: int) -> NDArray[np.int64]:
    """(M,) what a policy would have done with each request of a log, where the log's policy had brought the cluster.

    Args:
        table: the log.
        scenario: its cluster.
        text: the policy, as for the gateway; a drop counts as its best expert.
        seed: of what it draws.

    Raises:
        InputError: no such policy.
    """
    policy = load_policy(text, scenario.observation)
    rng = np.random.default_rng(seed)
    events: list[_Event] = []
    found = np.empty(len(table.requests), np.int64)
    under_way = _most_under_way(table)
    live = LiveCluster(
        replace(scenario, observation=policy.observation), capacity=2 * max(under_way + 1, BASE_ROWS), log_sd=table.log_sd
    )
    for i, request in enumerate(table.requests):
        now_s = float(table.arrival_s[i])
        while events and events[0].time_s <= now_s:
            _tell(live, heapq.heappop(events))
        found[i] = _decide_one(table, request, i, live, policy, rng)
        for event in _events(request, i, now_s):
            heapq.heappush(events, event)
    return found


def _decide_one(
    table: LoggedTable, request: LoggedRequest, i: int, live: LiveCluster, policy: LivePolicy, rng: np.random.Generator
) -> int:
    most = math.inf if request.max_tokens is None else float(max(request.max_tokens, 1))
    told = Told(score=table.predicted_score[i], tokens=table.predicted_tokens[i], log_sd=table.log_sd, most=most)
    bounds, now_s = request.bounds, float(table.arrival_s[i])
    own = Budgets(per_token_s=bounds.per_token_s, ttft_s=bounds.ttft_s, tpot_s=bounds.tpot_s, e2e_s=bounds.e2e_s)
    row = live.observe(int(table.prompt[i]), told, live.terms_for(int(table.service[i]), own), table.possible[i], now_s)
    verdict = without_drop(policy.decide(live, rng), np.append(table.possible[i], False), rng)
    expert = int(table.expert[i])
    everywhere = np.ones(table.possible.shape[1], np.bool_)
    live.send(str(i), row, expert, int(table.prompt[i]), told, everywhere, streams=request.streams)
    return verdict.action


def _events(request: LoggedRequest, number: int, now_s: float) -> Iterator[_Event]:
    """What came back of a request: its first token, some in between, its end."""
    outcome = request.outcome
    assert outcome is not None
    end_s = now_s + (outcome.e2e_s or 0.0)
    finished, tokens = outcome.status == "finished", outcome.output_tokens or 0
    if outcome.ttft_s is not None and tokens > 0:
        first_s = now_s + outcome.ttft_s
        steps = min(_STEPS, tokens - 1)
        for k in range(steps + 1):
            share = k / (steps + 1)
            yield _Event(first_s + share * (end_s - first_s), number, 1 + int(share * (tokens - 1)), False)
    yield _Event(end_s, number, -1, finished, cut=request.max_tokens is not None and tokens >= request.max_tokens)


def _tell(live: LiveCluster, event: _Event) -> None:
    key, ledger = str(event.number), live.ledger
    if key not in ledger:
        return
    if event.tokens < 0 and event.finished:
        ledger.finished(key, event.time_s, cut=event.cut)
    elif event.tokens < 0:
        ledger.failed(key, event.time_s)
    else:
        ledger.streamed(key, event.tokens - ledger.tokens_of(key), event.time_s)


def _most_under_way(table: LoggedTable) -> int:
    """Most requests of the log that were under way at once."""
    times = [(x.outcome.e2e_s or 0.0) if x.outcome is not None else 0.0 for x in table.requests]
    ends = np.sort(table.arrival_s + np.array(times))
    before = np.searchsorted(ends, table.arrival_s, side="left")
    return int((np.arange(len(times)) + 1 - before).max(initial=0))
