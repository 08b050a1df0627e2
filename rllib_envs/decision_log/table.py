"""A decision log as episodes of the simulator: consecutive requests at their own times, with the lengths that were seen.

The answer of the expert that was asked has its true length, and so has that of any other expert with the same model. What another
model would have answered nobody knows: its length is drawn about the prediction, with the errors that the log shows. The quality
of an answer is its feedback, else as predicted. Each request is held to the bounds that it was promised (``promises``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from rllib_envs.decision_log.reader import DecisionLog, column
from rllib_envs.decision_log.records import LoggedRequest
from rllib_envs.scenario import Scenario
from rllib_envs.sim.terms import SCORE_GRID, users
from rllib_envs.workload.catalogue import LENGTH_LOG_SD
from rllib_envs.workload.episode import Episode

_MOST_TOKENS = 2**24
_FEW = 20  # errors of an expert's lengths, below which those of prompts in general are taken; also judged answers
_MANY = 100  # judged answers of an expert, from which on they say what a prediction's difference is worth


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedTable:
    """M requests of a log that went somewhere, as arrays. N experts."""

    requests: tuple[LoggedRequest, ...]
    arrival_s: NDArray[np.float64]  # (M,) since the first of them, ascending
    prompt: NDArray[np.int32]  # (M,)
    expert: NDArray[np.int64]  # (M,) that answered, or was asked last
    tokens: NDArray[np.int32]  # (M,) of the answer; 0: it was not finished
    predicted_score: NDArray[np.float64]  # (M, N)
    predicted_tokens: NDArray[np.float64]  # (M, N)
    score: NDArray[np.float64]  # (M, N) feedback where there is one, else as predicted
    judged: NDArray[np.bool_]  # (M,) whether there is feedback
    possible: NDArray[np.bool_]  # (M, N) experts that it could go to
    service: NDArray[np.int32]  # (M,) index of its class
    tenant: NDArray[np.int32]  # (M,) index of its tenant
    log_median: NDArray[np.float64]  # (N,) of log(true / predicted tokens)
    log_sd: NDArray[np.float64]  # (N,)


def table_of(log: DecisionLog) -> LoggedTable:
    """The requests of a log that went somewhere."""
    scenario, n = log.scenario, log.scenario.n_experts
    requests = tuple(x for x in log.requests if x.outcome is not None)
    means = np.array([x.mean_output_tokens for x in scenario.experts])
    scores = np.array([x.mean_score for x in scenario.experts])
    predicted_tokens = np.array([_known(column(x.predicted_tokens, n), means) for x in requests]).reshape(-1, n)
    predicted_score = np.array([_known(column(x.predicted_score, n), scores) for x in requests]).reshape(-1, n).clip(0, 1)
    expert = np.array([x.outcome.expert for x in requests if x.outcome is not None], np.int64)
    tokens = np.array([_tokens(x) for x in requests], np.int32)
    score, judged = predicted_score.copy(), np.array([x.id in log.feedback for x in requests], np.bool_)
    for i, request in enumerate(requests):
        if request.id in log.feedback:
            score[i, expert[i]] = log.feedback[request.id]
    classes = {entry.name: i for i, entry in enumerate(scenario.classes)}
    tenants = {entry.name: i for i, entry in enumerate(scenario.tenants)}
    time_s = np.array([x.time for x in requests])
    predicted_tokens = predicted_tokens.clip(1)
    log_median, log_sd = _errors(expert, tokens, predicted_tokens)
    return LoggedTable(
        requests=requests,
        arrival_s=time_s - time_s[0] if requests else time_s,
        prompt=np.array([_prompt(x) for x in requests], np.int32),
        expert=expert,
        tokens=tokens,
        predicted_score=predicted_score,
        predicted_tokens=predicted_tokens,
        score=score,
        judged=judged,
        possible=np.array([[e in x.candidates for e in range(n)] for x in requests], np.bool_).reshape(-1, n),
        service=np.array([classes.get(x.service, 0) for x in requests], np.int32),
        tenant=np.array([tenants.get(x.tenant, 0) for x in requests], np.int32),
        log_median=log_median,
        log_sd=log_sd,
    )


def cut(table: LoggedTable, share: float) -> tuple[LoggedTable, LoggedTable]:
    """The first ``share`` of a log's requests, and the later ones; what lengths err by, both know from the first alone.

    Args:
        table: with two requests at least.
        share: above 0 and below 1.
    """
    count = len(table.requests)
    at = min(max(round(share * count), 1), count - 1)
    earlier = _rows(table, slice(0, at))
    log_median, log_sd = _errors(earlier.expert, earlier.tokens, earlier.predicted_tokens)
    later = _rows(table, slice(at, count))
    return (
        replace(earlier, log_median=log_median, log_sd=log_sd),
        replace(later, log_median=log_median, log_sd=log_sd, arrival_s=later.arrival_s - later.arrival_s[0]),
    )


def _rows(table: LoggedTable, rows: slice) -> LoggedTable:
    of_experts = ("log_median", "log_sd")
    return replace(table, **{x.name: getattr(table, x.name)[rows] for x in fields(table) if x.name not in of_experts})


def expected_scores(learned_from: LoggedTable, predicted: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, N) quality to expect where this much is predicted, by the feedback of a log.

    Of an expert with enough feedback: its mean feedback, and so much of a prediction's difference to the mean as a regression of
    feedback on predictions says, of an expert with much. Others: as predicted.

    Args:
        learned_from: the log.
        predicted: (M, N) predicted quality, of any requests.
    """
    found = predicted.copy()
    for e in range(predicted.shape[1]):
        rows = np.flatnonzero(learned_from.judged & (learned_from.expert == e))
        if rows.size < _FEW:
            continue
        said, told = learned_from.score[rows, e], learned_from.predicted_score[rows, e]
        slope, variance = 1.0, float(told.var())
        if rows.size >= _MANY and variance > 0:
            slope = float(np.clip(((told - told.mean()) * (said - said.mean())).mean() / variance, 0, 1))
        found[:, e] = said.mean() + slope * (predicted[:, e] - told.mean())
    return found.clip(0, 1)


def lengths_of(table: LoggedTable, scenario: Scenario, rng: np.random.Generator) -> NDArray[np.int32]:
    """(M, N) lengths of the answers of all experts: those that were seen, and draws of the others.

    Args:
        table: the log.
        scenario: the cluster: experts with one model give one answer, as with greedy decoding.
        rng: for the lengths of answers that nobody saw.
    """
    predicted, tokens = table.predicted_tokens, table.tokens
    models = [expert.model for expert in scenario.experts]
    model = np.array([models.index(name) for name in models])
    noise = rng.standard_normal(predicted.shape)[:, model]
    drawn = predicted * np.exp(table.log_median + table.log_sd * noise)
    output = drawn.round().clip(1, _MOST_TOKENS).astype(np.int32)
    seen = (tokens > 0)[:, None] & (model == model[table.expert][:, None])
    return np.where(seen, tokens[:, None], output)


def episode_of(table: LoggedTable, scenario: Scenario, rng: np.random.Generator) -> Episode:
    """The requests of a log as an episode.

    Args:
        table: the log.
        scenario: the cluster; its classes are those that ``table.service`` counts.
        rng: for the lengths of answers that nobody saw.
    """
    predicted, tokens = table.predicted_tokens, table.tokens
    output = lengths_of(table, scenario, rng)
    user = users(tokens.size)
    user["service"], user["tenant"] = table.service, table.tenant
    engines = tuple(x.engine for x in scenario.experts)
    return Episode(
        arrival_s=table.arrival_s,
        prompt=table.prompt,
        score=(np.rint(table.score * SCORE_GRID) / SCORE_GRID).astype(np.float32),
        output=output,
        predicted_score=table.predicted_score.astype(np.float32),
        predicted_tokens=predicted.astype(np.float32),
        predicted_log_sd=np.tile(table.log_sd, (tokens.size, 1)).astype(np.float32),
        predicted_log_median=table.log_median,
        judged=np.zeros(tokens.size, np.bool_),
        user=user,
        engines=engines,
        nominal=engines,
        telemetry_delay_s=0.0,
    )


def _known(values: NDArray[np.float64], otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, otherwise)


def _tokens(request: LoggedRequest) -> int:
    outcome = request.outcome
    return outcome.output_tokens or 0 if outcome is not None and outcome.status == "finished" else 0


def _prompt(request: LoggedRequest) -> int:
    outcome = request.outcome
    told = None if outcome is None else outcome.prompt_tokens
    return max(told or request.prompt_tokens[0 if outcome is None else outcome.expert], 1)


def _errors(
    expert: NDArray[np.int64], tokens: NDArray[np.int32], predicted: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(N,) median and standard deviation of log(true / predicted tokens), of experts with enough answers."""
    n = predicted.shape[1]
    sd = np.full(n, LENGTH_LOG_SD)
    median = -np.square(sd) / 2
    for e in range(n):
        rows = np.flatnonzero((expert == e) & (tokens > 0))
        if rows.size >= _FEW:
            errors = np.log(tokens[rows] / predicted[rows, e])
            median[e], sd[e] = float(np.median(errors)), float(errors.std(ddof=1))
    return median, sd
