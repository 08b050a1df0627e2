"""What errors a predictor makes that learned from prompts: the figures behind ``rllib_envs/workload/error_law.py``.

Run it:  python -m benchmarks.fit_error_law FILE MODEL [MODEL ...]
Expect:  a column of the table in that module's docstring for the file and these models, beside that of the law itself. Half a
         minute for 3,000 prompts, two minutes for 12,000; one core.

The predictor is ridge regression on hashed words and text statistics, for the scores, the log lengths, and the log of the
absolute length error. All that is compared is predicted out of fold. The file is a catalogue (docs/data.md) with the key
``prompt``, the text.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import sys
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from rllib_envs.scenario import Catalogue, Predictions, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.catalogue import draw_requests
from rllib_envs.workload.predicted import Predicted
from rllib_envs.workload.predictions import predict
from rllib_envs.workload.prompt_files import read_prompt_file
from tuning.output.tables import markdown_table

Floats = NDArray[np.float64]

_BUCKETS, _FOLDS, _PENALTIES = 2000, 5, (3.0, 10.0, 30.0)
_SCALE_OF_80_PERCENT = 1.2816  # half the width of a standard normal's middle 80 %


def features(texts: list[str]) -> Floats:
    """(P, columns) words and pairs of words, hashed; statistics of the text, their squares and products."""
    words, statistics = np.zeros((len(texts), _BUCKETS)), []
    for row, text in zip(words, texts, strict=True):
        found = re.findall(r"[a-z]+|\d|[^\sa-z\d]", text.lower())
        for gram in (*found, *(f"{a} {b}" for a, b in itertools.pairwise(found))):
            row[zlib.crc32(gram.encode()) % _BUCKETS] += 1
        counts = [text.count(mark) for mark in ("\n", "\\", "$", "(", "=", "def ", "assert", "return", "for ")]
        shares = [sum(map(kind, text)) / max(len(text), 1) for kind in (str.isdigit, str.isupper)]
        sizes = [len(text), len(found), len(re.findall(r"\d+", text))]
        variety = [len(set(found)) / max(len(found), 1), text.count("?"), len(text) / max(len(found), 1)]
        statistics.append([*np.log1p(counts), *shares, *np.log1p(sizes), *variety])
    words = np.log1p(words)
    words /= np.linalg.norm(words, axis=1, keepdims=True) + 1e-9
    plain = _standardised(np.array(statistics))
    products = [plain[:, [i]] * plain[:, i:] for i in range(plain.shape[1])]
    return np.hstack([words, 0.1 * _standardised(np.hstack([plain, np.maximum(plain, 0), *products]))])


def _standardised(table: Floats) -> Floats:
    return (table - table.mean(axis=0)) / (table.std(axis=0) + 1e-9)


def out_of_fold(x: Floats, y: Floats) -> Floats:
    """(P, A) predictions of ``y`` for the prompts of each fold from the others, with the best of a few penalties."""
    fold = np.random.default_rng(0).permutation(len(x)) % _FOLDS
    found = {penalty: np.zeros_like(y) for penalty in _PENALTIES}
    for k in range(_FOLDS):
        train, test = fold != k, fold == k
        mean, target = x[train].mean(axis=0), y[train].mean(axis=0)
        centred = x[train] - mean
        gram, cross = centred.T @ centred, centred.T @ (y[train] - target)
        for penalty, predicted in found.items():
            weights = np.linalg.solve(gram + penalty * np.eye(len(gram)), cross)
            predicted[test] = (x[test] - mean) @ weights + target
    return min(found.values(), key=lambda predicted: float(((predicted - y) ** 2).sum()))


def learn(texts: list[str], score: Floats, output_tokens: Floats) -> Predicted:
    """Out-of-fold predictions for P prompts and A models: the median of the length in place of its mean."""
    x, log_tokens = features(texts), np.log(output_tokens)
    median = out_of_fold(x, log_tokens)
    error = log_tokens - median
    offset = np.median(error, axis=0)
    log_sd = np.exp(out_of_fold(x, np.log(np.abs(error) + 0.05)))
    low, high = np.quantile((error - offset) / log_sd, [0.1, 0.9])
    log_sd *= (high - low) / 2 / _SCALE_OF_80_PERCENT
    return Predicted(score=np.clip(out_of_fold(x, score), 0.01, 0.99), output_tokens=np.exp(median + offset), log_sd=log_sd)


def figures(score: Floats, output_tokens: Floats, predicted: Predicted) -> dict[str, str]:
    """The rows of the table for (M, N) 0/1 scores and lengths, and their predictions."""
    error = np.log(output_tokens) - np.log(predicted.output_tokens)
    error -= np.median(error, axis=0)
    quarter = np.searchsorted(np.quantile(predicted.log_sd, [0.25, 0.5, 0.75]), predicted.log_sd)
    core = float(np.quantile(error, 0.75) - np.quantile(error, 0.25)) / 1.349
    within = predicted.score - predicted.score.mean(axis=1, keepdims=True)
    within -= within.mean(axis=0)
    n = score.shape[1]
    return {
        "R2 of log length": _show(1 - error.var(axis=0).mean() / np.log(output_tokens).var(axis=0).mean()),
        "log-length error: sd": _show(error.std()),
        "its core (interquartile range / 1.349)": _show(core),
        "its quantiles at 5, 95, 99 %": _show(*np.quantile(error, [0.05, 0.95, 0.99])),
        "its sd by quarter of the predicted sd": _show(*(error[quarter == i].std() for i in range(4))),
        "mean predicted sd by quarter": _show(*(predicted.log_sd[quarter == i].mean() for i in range(4))),
        "its correlation between models": _show(_pairs(error)),
        "its correlation with success": _show(_columns(error, score)),
        "its correlation with the log length": _show(_columns(error, np.log(output_tokens))),
        "correlation of these sds between models": _show(_pairs(predicted.log_sd)),
        "predicted scores: AUC": _show(np.mean([_auc(s, t) for s, t in zip(score.T, predicted.score.T, strict=True)])),
        "their sd over prompts": _show(predicted.score.std(axis=0).mean()),
        "their sd within a prompt": _show(np.sqrt((within**2).mean() * n / (n - 1))),
        "correlation of score errors between models": _show(_pairs(score - predicted.score)),
    }


def _show(*values: float | np.floating) -> str:
    return ", ".join(f"{float(value):.3f}" for value in values)


def _pairs(columns: Floats) -> float:
    return float(np.atleast_2d(np.corrcoef(columns.T))[np.triu_indices(columns.shape[1], 1)].mean())


def _columns(one: Floats, other: Floats) -> float:
    return float(np.mean([np.corrcoef(one[:, i], other[:, i])[0, 1] for i in range(one.shape[1])]))


def _auc(score: Floats, predicted: Floats) -> float:
    right = score > 0
    return float((np.asarray(rankdata(predicted))[right].mean() - (right.sum() + 1) / 2) / (~right).sum())


def law() -> dict[str, str]:
    """The same figures of the law, on edge6 with 0/1 scores."""
    requests = draw_requests(
        with_workload(load_scenario("edge6"), catalogue=Catalogue(scores="binary")), 100_000, np.random.default_rng(1)
    )
    predicted = predict(Predictions(law="measured"), requests, np.random.default_rng(2))
    return figures(requests.score, requests.output_tokens.astype(np.float64), predicted)


def main() -> None:
    """Print the figures of a file, and those of the law."""
    path, models = Path(sys.argv[1]), sys.argv[2:]
    file = read_prompt_file(str(path))
    columns = [file.models.index(model) for model in models]
    data = path.read_bytes()
    lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig").split("\n")[1:]
    texts = [json.loads(line)["prompt"] for line in lines if line.strip()]
    score, tokens = file.score[:, columns], np.maximum(file.output_tokens[:, columns], 1)
    found, of_law = figures(score, tokens, learn(texts, score, tokens)), law()
    print(markdown_table(["", path.name, "the law"], [[name, value, of_law[name]] for name, value in found.items()]))


if __name__ == "__main__":
    main()
