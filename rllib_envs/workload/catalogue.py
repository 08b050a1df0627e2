"""The request catalogue: prompts with every expert's true score and output length, synthetic or from a file of real prompts.

Synthetic. A Gaussian copula with one shared factor, drawn per request ``i`` and MODEL ``m`` (experts with the same model
give the same answer, as with greedy decoding)::

    correct_ie = 1[ theta_e + sqrt(v_z)*z_i + sqrt(v_e)*own_im + sqrt(v_r)*luck_im > 0 ]          v_z + v_e + v_r = 1
    log d_ie   = log mean_e - s^2/2 + s*( -lambda*z_i + gamma*g_i + sqrt(1-lambda^2-gamma^2)*w_im )

``z`` is the ease of the request, ``own`` the ease for this model alone, ``g`` the answer length that the request asks for.
The continuous score is the probability of a correct answer given ``z`` and ``own``, ``Phi((theta + ..)/sqrt(v_r))``. The
binary score is a Bernoulli draw from it. ``theta_e = Phi^-1(mean_score)`` makes the mean of both exactly
``Expert.mean_score``. The mean length is exactly ``Expert.mean_output_tokens`` (up to rounding to whole tokens).

The constants were fitted to the ZeroEval results (GSM8K, CRUX, MATH level 5; 2,840 prompts) of its seven models of at
most 9 billion parameters; ``benchmarks/fit_catalogue.py`` repeats the fit from the public file. File against model:

===================================================  ======  ======
mean correlation between two models' 0/1 scores       .531    .537
best model per prompt (oracle), mean 0/1 score        .771    .782
correlation of lengths between models, in tokens      .329    .329
correlation of 0/1 score and length, in tokens       -.271   -.271
standard deviation of log length                      .718    .718
===================================================  ======  ======

Correlations of lengths are matched in TOKENS, the unit of an engine's work. A log-normal law cannot match the log scale at
the same time: there the file has .62 and this model .39. The reason is that 1-2 % of the file's answers are endless loops,
which are random and hide the agreement of all others. For the same reason the file's coefficient of variation is 1.7 (this
model .82). Scores and lengths depend on each other through ``z`` alone. In the file another model's failure correlates with a
length nearly as much (-.24) as the model's own (-.27). Prompt lengths are independent of both (in the file: -.05 with log
length, -.23 with the score).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.scenario import Scenario
from rllib_envs.workload.lengths import LENGTH_NOISE_LOG_SD, MAX_TOKENS, GivenLengths
from rllib_envs.workload.predicted import Predicted
from rllib_envs.workload.prediction_table import PredictionTable, read_table
from rllib_envs.workload.prompt_files import PromptFile, in_train_split, read_prompt_file

_Drawn = TypeVar("_Drawn", bound=np.generic)

SHARED_VARIANCE = 0.768
"""v_z: share of the latent score that is common to all models; fitted to pairwise correlation and oracle together."""

OWN_VARIANCE = (1 - SHARED_VARIANCE) / 2
"""v_e: share specific to a model and predictable before it answers. An assumption: 0/1 results cannot separate it from luck
(v_r, the rest). At equal shares an oracle over continuous scores keeps about two thirds of the 0/1 oracle's lead."""

LENGTH_LOG_SD = 0.718
"""s: standard deviation of log output length, mean over the seven models."""

LENGTH_EASE = 0.451
"""lambda: shortening of answers to easy requests; fitted to the correlation of 0/1 score and length in tokens."""

LENGTH_SHARED = 0.430
"""gamma: other common variation of lengths; lambda^2 + gamma^2 is fitted to the correlation of lengths in tokens."""

_REST = float(np.sqrt(1 - LENGTH_EASE**2 - LENGTH_SHARED**2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """What the synthetic catalogue drew its M requests from: standard normals, and how far they move the log length."""

    ease: NDArray[np.float32]  # (M, 1) z
    own_ease: NDArray[np.float32]  # (M, N)
    rest: NDArray[np.float32]  # (M, N) w: what no other model's length says
    ease_log_sd: float  # the log length falls by it where z rises by 1
    rest_log_sd: float  # the log length rises by it where w does
    model_of: tuple[int, ...]  # (N,) the model of each expert, from 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBatch:
    """M requests with the true values for all N experts.

    ``probability`` is the best possible prediction of ``score``: the score itself if it is continuous. For 0/1 scores it is the
    probability of a correct answer: the copula's, or for a file the expert's mean on the task's train split.
    """

    prompt_tokens: NDArray[np.int32]  # (M,) >= 1
    score: NDArray[np.float64]  # (M, N) in [0, 1]
    probability: NDArray[np.float64]  # (M, N) in [0, 1]
    output_tokens: NDArray[np.int32]  # (M, N) >= 1, not truncated to the engine's max_model_len
    means: Predicted  # (1, N) the same for every request: each expert's means, for a file those of its train split
    given: Predicted | None = None  # (M, N) of predictors or of the file's own keys; None: neither, or a synthetic catalogue
    task_means: Predicted | None = None  # (M, N) each expert's means on the prompt's task, of the train split; None: no tasks
    latent: Latent | None = None  # None for a file


def draw_requests(
    scenario: Scenario,
    n: int,
    rng: np.random.Generator,
    prompt_tokens: NDArray[np.integer[Any]] | None = None,
    lengths: GivenLengths | None = None,
    service: NDArray[np.int32] | None = None,
) -> RequestBatch:
    """Draw ``n`` requests from the scenario's catalogue.

    Args:
        scenario: its ``workload.catalogue`` selects the catalogue; a file keeps its own score type and ignores ``scores``.
        n: M, number of requests.
        rng: the catalogue's own stream.
        prompt_tokens: (M,) prompt lengths of a trace; they replace the catalogue's, and all other draws stay the same.
        lengths: of the answers, from a trace; scores are drawn jointly with them (``rllib_envs.workload.lengths``).
        service: (M,) index of each request's class: it has a prompt of that class, if the file says which those are. None: any.

    Raises:
        InputError: the file is missing or malformed, lacks an expert's model or a class's prompts, or a given array is not (M,).
    """
    for name, given in (("prompt_tokens", prompt_tokens), ("lengths", None if lengths is None else lengths.tokens)):
        if given is not None and given.shape != (n,):
            raise InputError(f"{name}: shape {given.shape}, must be ({n},): one length for each request")
    if scenario.workload.catalogue.kind == "file":
        batch = _draw_from_file(scenario, n, rng, lengths, service)
    else:
        batch = _draw_synthetic(scenario, n, rng, lengths)
    if lengths is not None:
        means = lengths.means(batch.means)
        ratio = means.output_tokens / batch.means.output_tokens
        task_means = None if batch.task_means is None else replace(_rescaled(batch.task_means, ratio), log_median=None)
        batch = replace(batch, means=means, task_means=task_means)
    return batch if prompt_tokens is None else replace(batch, prompt_tokens=_as_tokens(prompt_tokens))


def _as_tokens(values: NDArray[Any]) -> NDArray[np.int32]:
    return np.clip(values, 1, MAX_TOKENS).astype(np.int32)


def _models(experts: Sequence[Expert]) -> tuple[int, list[int]]:
    """The number of different models, and the model of each expert."""
    names = list(dict.fromkeys(expert.model for expert in experts))
    return len(names), [names.index(expert.model) for expert in experts]


def _draw_synthetic(scenario: Scenario, n: int, rng: np.random.Generator, lengths: GivenLengths | None) -> RequestBatch:
    experts, catalogue = scenario.experts, scenario.workload.catalogue
    models, model_of = _models(experts)

    def per_model(draws: NDArray[_Drawn]) -> NDArray[_Drawn]:
        return draws if models == len(experts) else draws[:, model_of]

    ease = rng.standard_normal((n, 1), dtype=np.float32)
    own = per_model(rng.standard_normal((n, models), dtype=np.float32))
    wordy = rng.standard_normal((n, 1), dtype=np.float32)
    rest = per_model(rng.standard_normal((n, models), dtype=np.float32))
    if lengths is not None:  # the draw of the wordiness is unused then; it decides the order within ties
        ease = lengths.ease(ease, ndtr(wordy[:, 0].astype(np.float64)), LENGTH_EASE)
    score = probability = _probability(ndtri([expert.mean_score for expert in experts]), ease, own)
    if catalogue.scores == "binary":
        score = (per_model(rng.random((n, models), dtype=np.float32)) < probability).astype(np.float64)
    log_sd = np.sqrt(np.log1p(catalogue.prompt_tokens_cv**2))
    prompt = log_sd * rng.standard_normal(n) + (np.log(catalogue.prompt_tokens_mean) - log_sd**2 / 2)
    mean_tokens = np.array([expert.mean_output_tokens for expert in experts])
    if lengths is None:
        output_tokens = _output_tokens(np.log(mean_tokens), ease, wordy, rest)
    else:
        output_tokens = lengths.at_experts(mean_tokens, rest, per_model(rng.random((n, models))))
    return RequestBatch(
        prompt_tokens=_whole_tokens(prompt),
        score=score,
        probability=probability,
        output_tokens=output_tokens,
        means=Predicted(
            score=np.array([[expert.mean_score for expert in experts]]),
            output_tokens=mean_tokens[None],
            log_sd=np.full((1, len(experts)), LENGTH_LOG_SD),
        ),
        latent=Latent(
            ease=ease,
            own_ease=own,
            rest=rest,
            ease_log_sd=LENGTH_EASE * (LENGTH_LOG_SD if lengths is None else lengths.log_sd),
            rest_log_sd=LENGTH_LOG_SD * _REST if lengths is None else LENGTH_NOISE_LOG_SD,
            model_of=tuple(model_of),
        ),
    )


def _probability(theta: NDArray[np.float64], ease: NDArray[np.float32], own: NDArray[np.float32]) -> NDArray[np.float64]:
    luck_sd = np.sqrt(1 - SHARED_VARIANCE - OWN_VARIANCE)
    latent = own * np.float32(np.sqrt(OWN_VARIANCE) / luck_sd)
    latent += ease * np.float32(np.sqrt(SHARED_VARIANCE) / luck_sd)
    latent += (theta / luck_sd).astype(np.float32)
    return ndtr(latent).astype(np.float64)


def _output_tokens(
    log_mean: NDArray[np.float64], ease: NDArray[np.float32], wordy: NDArray[np.float32], rest: NDArray[np.float32]
) -> NDArray[np.int32]:
    log_length = rest * np.float32(LENGTH_LOG_SD * _REST)
    log_length += wordy * np.float32(LENGTH_LOG_SD * LENGTH_SHARED) - ease * np.float32(LENGTH_LOG_SD * LENGTH_EASE)
    log_length += (log_mean - LENGTH_LOG_SD**2 / 2).astype(np.float32)
    return _whole_tokens(log_length)


def _whole_tokens(log_tokens: NDArray[np.floating[Any]]) -> NDArray[np.int32]:
    tokens = np.exp(np.minimum(log_tokens, np.log(MAX_TOKENS), dtype=log_tokens.dtype))
    return np.clip(np.rint(tokens), 1, MAX_TOKENS).astype(np.int32)


def _draw_from_file(
    scenario: Scenario, n: int, rng: np.random.Generator, lengths: GivenLengths | None, service: NDArray[np.int32] | None
) -> RequestBatch:
    """Prompts of the file, drawn uniformly, perhaps among those of a request's class, or chosen to match given lengths.

    With given lengths the file's joint law of lengths and scores is kept. A request gets the prompt at which a randomly drawn
    expert has the same rank of length as the request among the given lengths. Every prompt stays equally likely. The prompt's
    scores become the request's. Its lengths only serve to find it, and enter through the experts' means.
    """
    catalogue = scenario.workload.catalogue
    predictors = scenario.predictions.predictors
    table = None if predictors is None else read_table(Path(predictors))
    file = read_catalogue(str(catalogue.path))
    pool = _pool(file, table, scenario.experts, catalogue.split)
    if not file.classes or not scenario.classes:
        service = None
    if service is not None and lengths is not None:
        raise InputError(
            f"{file.path}: its prompts belong to classes, so arrivals cannot bring the lengths of answers: set "
            "workload.arrivals.lengths: catalogue"
        )
    if lengths is None:
        last = len(pool.prompt_tokens)
        rows = rng.integers(0, last, n) if service is None else _rows_of_classes(file, scenario, service, rng)
        output_tokens = pool.output_tokens[rows]
        given, task_means = (None if told is None else told.at(rows) for told in (pool.given, pool.task_means))
    else:
        asked = rng.integers(0, len(scenario.experts), n)
        last = len(pool.prompt_tokens) - 1
        ranks = np.minimum(lengths.levels(rng.random(n)) * (last + 1), last).astype(np.int64)
        rows = np.argsort(pool.output_tokens, axis=0, kind="stable")[ranks, asked]
        models, model_of = _models(scenario.experts)
        noise, rounding = rng.standard_normal((n, models))[:, model_of], rng.random((n, models))[:, model_of]
        output_tokens = lengths.at_experts(pool.output_tokens.mean(axis=0), noise, rounding)
        ratio = output_tokens / pool.output_tokens[rows]
        given = None if pool.given is None else _rescaled(pool.given.at(rows), ratio)
        task_means = None if pool.task_means is None else pool.task_means.at(rows)
    return RequestBatch(
        prompt_tokens=pool.prompt_tokens[rows],
        score=pool.score[rows],
        probability=pool.probability[rows],
        output_tokens=output_tokens,
        means=pool.means,
        given=given,
        task_means=task_means,
    )


def _rows_of_classes(
    file: PromptFile, scenario: Scenario, service: NDArray[np.int32], rng: np.random.Generator
) -> NDArray[np.int64]:
    """(M,) rows of the pool, each drawn among the prompts of a request's class."""
    members = _members(file, scenario.workload.catalogue.split)
    level, rows = rng.random(service.size), np.zeros(service.size, np.int64)
    for c in np.unique(service):
        name, mine = scenario.classes[c].name, service == c
        if name not in members:
            raise InputError(f"{file.path}: no prompt is of class {name!r}; there are those of {', '.join(members)}")
        rows[mine] = members[name][(level[mine] * members[name].size).astype(np.int64)]
    return rows


@lru_cache(maxsize=16)
def _members(file: PromptFile, split: str) -> dict[str, NDArray[np.int64]]:
    """Name of each class -> its rows of the pool."""
    classes = np.array(file.classes)[_split(file, split)]
    return {str(name): np.flatnonzero(classes == name) for name in np.unique(classes)}


def _split(file: PromptFile, split: str) -> NDArray[np.bool_]:
    """(P,) the prompts of a split."""
    train = np.array([in_train_split(prompt_id) for prompt_id in file.ids])
    return {"train": train, "test": ~train, "all": np.ones_like(train)}[split]


def read_catalogue(path: str) -> PromptFile:
    """The prompts of a file: JSON lines with a header; or a log, if its suffix is that of CSV or Parquet.

    Raises:
        InputError: as ``read_prompt_file`` or ``answer_logs.read_prompts``.
    """
    if Path(path.removesuffix(".gz")).suffix.lower() not in (".csv", ".parquet"):
        return read_prompt_file(path)
    from rllib_envs.workload.answer_logs import read_prompts  # here: it imports pyarrow, which takes long

    return read_prompts(path)


def _rescaled(predicted: Predicted, ratio: NDArray[np.float64]) -> Predicted:
    """The predictions for answers that have ``ratio`` times the length: they err by the same factor."""
    return replace(predicted, output_tokens=np.clip(predicted.output_tokens * ratio, 1, MAX_TOKENS))


@lru_cache(maxsize=16)
def _pool(file: PromptFile, table: PredictionTable | None, experts: tuple[Expert, ...], split: str) -> RequestBatch:
    columns = [_column(file, expert) for expert in experts]
    score = file.score[:, columns]
    train, chosen = _split(file, "train"), _split(file, split)
    if not chosen.any():
        raise InputError(f"workload.catalogue.split = {split!r}: none of the {len(train)} prompts of {file.path} fall in it")
    binary = bool(np.isin(score, (0.0, 1.0)).all())
    output_tokens = np.maximum(file.output_tokens[:, columns], 1)
    learned_from = train if train.any() else chosen
    means = _means(score[learned_from], output_tokens[learned_from])
    if table is None:
        given = _given(file, experts, columns, means, output_tokens, learned_from)
    else:
        given = table.predicted(file, experts)
    if given is not None:
        given = _with_median(given, output_tokens, learned_from)
    return RequestBatch(
        prompt_tokens=file.prompt_tokens[chosen],
        score=score[chosen],
        probability=(_task_means(score, file.tasks, train) if binary else score)[chosen],
        output_tokens=output_tokens[chosen].astype(np.int32),
        means=means,
        given=None if given is None else given.at(np.flatnonzero(chosen)),
        task_means=_of_tasks(score, output_tokens, file.tasks, train).at(np.flatnonzero(chosen)),
    )


def _means(score: NDArray[np.float64], output_tokens: NDArray[np.float64]) -> Predicted:
    """(1, N) the means of each expert, and how its log lengths spread."""
    means = Predicted(
        score=score.mean(axis=0, keepdims=True),
        output_tokens=output_tokens.mean(axis=0, keepdims=True),
        log_sd=np.log(output_tokens).std(axis=0, keepdims=True),
    )
    return _with_median(means, output_tokens, np.ones(len(output_tokens), np.bool_))


def _with_median(predicted: Predicted, output_tokens: NDArray[np.float64], known: NDArray[np.bool_]) -> Predicted:
    """The predictions with the median of their errors at the prompts that are known: answers that loop leave it where it is."""
    errors = np.log(output_tokens / predicted.output_tokens)[known]
    return replace(predicted, log_median=np.median(errors, axis=0))


def _given(
    file: PromptFile,
    experts: Sequence[Expert],
    columns: list[int],
    means: Predicted,
    output_tokens: NDArray[np.float64],
    train: NDArray[np.bool_],
) -> Predicted | None:
    """What the file itself predicts for its P prompts, (P, N); an expert's means stand in for a key that it does not have."""
    if not file.predicted:
        return None
    values = {key: table[:, columns] for key, table in file.predicted.items()}
    for key, table in values.items():
        absent = np.isnan(table)
        if absent.any():
            row, column = (int(i) for i in np.argwhere(absent)[0])
            raise InputError(
                f"{file.path}: {key} is null for model {experts[column].model!r} of expert {experts[column].name!r} "
                f"(first: prompt {file.ids[row]!r}); a file that has {key} must have it for every expert and prompt"
            )
    shape = (len(file.ids), len(columns))
    tokens = np.maximum(values.get("predicted_tokens", np.broadcast_to(means.output_tokens, shape)), 1)
    errors = np.log(output_tokens / tokens)[train]
    return Predicted(
        score=values.get("predicted_score", np.broadcast_to(means.score, shape)),
        output_tokens=tokens,
        log_sd=values.get("predicted_log_sd", np.broadcast_to(errors.std(axis=0), shape)),
    )


def _column(file: PromptFile, expert: Expert) -> int:
    if expert.model not in file.models:
        have = ", ".join(file.models)
        raise InputError(f"{file.path}: no results for model {expert.model!r} of expert {expert.name!r}; it has {have}")
    column = file.models.index(expert.model)
    absent = np.isnan(file.score) | np.isnan(file.output_tokens)  # (P, A)
    gaps = absent[:, column]
    if gaps.any():
        complete = ", ".join(model for i, model in enumerate(file.models) if not absent[:, i].any())
        raise InputError(
            f"{file.path}: model {expert.model!r} of expert {expert.name!r} was not run on {gaps.sum()} of {gaps.size} prompts "
            f"(first: {file.ids[int(gaps.argmax())]!r}), and a request needs every expert's result; "
            f"models run on all prompts: {complete or 'none'}"
        )
    return column


def _of_tasks(
    score: NDArray[np.float64], output_tokens: NDArray[np.float64], tasks: tuple[str, ...], train: NDArray[np.bool_]
) -> Predicted:
    """(P, N) each expert's means on the prompt's task; a task without two train prompts has those of all."""
    known = train if train.any() else np.ones_like(train)
    task_of = np.array(tasks)
    overall = _means(score[known], output_tokens[known])
    found = overall.at(np.zeros(len(tasks), np.int64))
    for task in set(tasks):
        members = task_of == task
        if (members & known).sum() > 1:
            own = _means(score[members & known], output_tokens[members & known])
            for name in ("score", "output_tokens", "log_sd"):
                getattr(found, name)[members] = getattr(own, name)
    return _with_median(found, output_tokens, known)


def _task_means(score: NDArray[np.float64], tasks: tuple[str, ...], train: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(P, N) each expert's mean score on the prompt's task, over train prompts and one pseudo-prompt with the overall mean."""
    overall = (score[train].sum(axis=0) + 0.5) / (train.sum() + 1)
    means = np.empty_like(score)
    for task in set(tasks):
        members = np.array([other == task for other in tasks])
        means[members] = (score[members & train].sum(axis=0) + overall) / ((members & train).sum() + 1)
    return means
