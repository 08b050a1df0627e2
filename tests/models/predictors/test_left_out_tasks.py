"""Offsets on tasks that no predictor has seen: soon no worse than each expert's mean, on two pools of real prompts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.predictors.calibration import fit_corrections
from models.predictors.fit import Outcomes, fit_weights, folds_of, joined, predict_raw
from models.predictors.text import statistics_of
from models.predictors.weights import Raw
from rllib_envs.sim.offsets import OFFSET, note_length, note_score, start_lengths, start_scores, with_odds
from rllib_envs.workload.predicted import Predicted
from rllib_envs.workload.prompt_files import read_prompt_file

pytestmark = pytest.mark.slow  # fits predictors

ZEROEVAL = (
    "zeroeval/zeroeval_gsm_crux_math.jsonl.gz",
    "gemma-2-2b-it Phi-3.5-mini-instruct Qwen2-7B-Instruct Meta-Llama-3.1-8B-Instruct gemma-2-9b-it Yi-1.5-9B-Chat",
)
MMLU_PRO = ("mmlu_pro/mmlu_pro_cot.jsonl.gz", "Phi-3-mini-4k-instruct Yi-6b-Chat Mistral-7B-Instruct-v0.2 Qwen1.5-7B-Chat")
JUDGED_SHARE, REQUESTS, STREAMS, PROMPTS = 0.2, 200, 20, 4000
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Told:
    """P prompts, and what predictors that were fitted without them say of them; (P, N)."""

    predicted: Predicted
    mean_score: Floats  # (N,) over the tasks that were learned from
    median_log_length: Floats  # (N,)
    score: Floats
    log_length: Floats


@cache
def pool(path: Path, models: str) -> tuple[Outcomes, NDArray[np.str_]]:
    file = read_prompt_file(str(path))
    columns = [file.models.index(model) for model in models.split()]
    rows = np.random.default_rng(0).permutation(len(file.ids))[:PROMPTS]
    texts = [str(file.texts[row]) for row in rows]
    outcomes = Outcomes(
        statistics=statistics_of(texts),
        score=file.score[np.ix_(rows, columns)],
        log_length=np.log(np.maximum(file.output_tokens[np.ix_(rows, columns)], 1)),
    )
    return outcomes, np.array(file.tasks)[rows]


@cache
def known_and_unseen(path: Path, models: str, task: str) -> tuple[Told, Told]:
    """The tasks that were learned from, out of fold, and the task that was left out."""
    outcomes, tasks = pool(path, models)
    others, own = outcomes.at(tasks != task), outcomes.at(tasks == task)
    fold_of = folds_of(len(others), 3, 0)
    raw = joined(
        [predict_raw(fit_weights(others.at(fold_of != i), "ridge", 0), others.statistics[fold_of == i]) for i in range(3)],
        fold_of,
    )
    corrections = fit_corrections(raw.logit, raw.log_length, raw.log_sd, others.score, others.log_length)
    log_told = np.log(corrections.smearing)

    def told(found: Raw, outcomes: Outcomes) -> Told:
        return Told(
            predicted=Predicted(
                score=corrections.score(found.logit),
                output_tokens=np.exp(found.log_length + log_told),
                log_sd=found.log_sd * corrections.sd_factor,
                log_median=np.median(others.log_length - raw.log_length, axis=0) - log_told,
            ),
            mean_score=others.score.mean(axis=0),
            median_log_length=np.median(others.log_length, axis=0),
            score=outcomes.score,
            log_length=outcomes.log_length,
        )

    return told(raw, others), told(predict_raw(fit_weights(others, "ridge", 0), own.statistics), own)


def errors(phases: tuple[Told, ...], rng: np.random.Generator) -> Floats:
    """(phases, REQUESTS, 4) in one stream of requests, first of one phase and then of the next; means over experts before each.

    Of the log length and of the score (Brier), as corrected and as the expert's means have it.
    """
    n = phases[0].score.shape[1]
    lengths, scores = np.zeros(n + 1, OFFSET), np.zeros(n + 1, OFFSET)
    start_lengths(lengths)
    start_scores(scores)
    made = np.empty((len(phases), REQUESTS, 4))
    for rows, told in zip(made, phases, strict=True):
        expected = np.log(told.predicted.output_tokens) + told.predicted.median
        log_sd = np.sqrt(np.square(told.predicted.log_sd).mean(axis=0))
        for row, p in zip(rows, rng.integers(len(told.score), size=REQUESTS), strict=True):
            corrected = with_odds(told.predicted.score[p], np.exp(scores["mean"][:n] + scores["mean"][n]))
            row[0] = np.abs(told.log_length[p] - expected[p] - lengths["mean"][:n] - lengths["mean"][n]).mean()
            row[1] = np.abs(told.log_length[p] - told.median_log_length).mean()
            row[2] = np.square(corrected - told.score[p]).mean()
            row[3] = np.square(told.mean_score - told.score[p]).mean()
            e = rng.integers(n)  # the expert that answers
            note_length(lengths[n], lengths[e], -np.inf, told.log_length[p, e] - expected[p, e], log_sd[e], True)
            if rng.random() < JUDGED_SHARE:
                note_score(scores[n], scores[e], told.predicted.score[p, e], told.score[p, e])
    return made


def mean_errors(phases: tuple[Told, ...]) -> Floats:
    """(phases, REQUESTS, 4) the same, means over streams."""
    return np.mean([errors(phases, np.random.default_rng(seed)) for seed in range(STREAMS)], axis=0)


def told_of(data_dir: Path, pool_of: tuple[str, str], task: str) -> tuple[Told, Told]:
    path = data_dir / pool_of[0]
    if not path.is_file():
        pytest.skip(f"{path} is not there (docs/data.md)")
    return known_and_unseen(path, pool_of[1], task)


@pytest.mark.parametrize(
    ("pool_of", "task", "length_error", "brier"),
    [
        (ZEROEVAL, "gsm", 0.42, 0.19),
        (ZEROEVAL, "math-l5", 0.90, 0.18),
        (ZEROEVAL, "crux", 0.47, 0.265),
        (MMLU_PRO, "law", 0.40, 0.20),
        (MMLU_PRO, "biology", 0.43, 0.245),
    ],
)
def test_after_100_requests_offsets_beat_the_expert_means(
    data_dir: Path, pool_of: tuple[str, str], task: str, length_error: float, brier: float
) -> None:
    later = mean_errors(told_of(data_dir, pool_of, task)[1:])[0, 100:].mean(axis=0)
    assert later[0] < min(later[1], length_error)
    assert later[2] < min(later[3], brier)


@pytest.mark.parametrize(
    ("pool_of", "task"),
    [(ZEROEVAL, "gsm"), (ZEROEVAL, "math-l5"), (ZEROEVAL, "crux"), (MMLU_PRO, "law"), (MMLU_PRO, "biology")],
)
def test_100_requests_after_a_change_of_task_offsets_beat_the_expert_means(
    data_dir: Path, pool_of: tuple[str, str], task: str
) -> None:
    """Offsets have settled on tasks that were learned from. Then each request is of the task that was left out."""
    before, after = mean_errors(told_of(data_dir, pool_of, task))
    later = after[100:].mean(axis=0)
    assert before[:, 0].mean() < before[:, 1].mean()
    assert before[:, 2].mean() < before[:, 3].mean()
    assert later[0] < later[1]
    assert later[2] < later[3]
