"""Fit predictors of quality and length to prompts with known outcomes.

The catalogue is a JSONL file, plain or gzip: a header line with the models, then for each prompt its text and every model's score
and output tokens. Or it is a log, as CSV, JSONL or Parquet: a row for each answer of a model, with the columns id, prompt, model,
score and out_tokens (docs/predictors.md). The command learns from the train split and writes a folder: the predictors, what they
predict for each prompt without having seen it, figures on the test split, and a picture. Interrupted, it goes on with the folds
that it has. Example:

    edgeroute fit-predictors --catalogue prompts.jsonl --out predictors
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.predictors.calibration import Corrections, fit_corrections
from models.predictors.encoders import Encoder, load_encoder
from models.predictors.fit import Kind, Outcomes, Raw, fit_weights, folds_of, joined, kind_for, predict_raw
from models.predictors.held_out import Figures, figures_of
from models.predictors.kept import KeptFits
from models.predictors.served import Prediction, Predictors, inputs_of
from models.predictors.text import STATISTICS_VERSION
from rllib_envs.errors import InputError
from rllib_envs.workload.answer_logs import read_prompts
from rllib_envs.workload.predicted import Predicted
from rllib_envs.workload.prediction_table import TABLE, check_ids, table_of
from rllib_envs.workload.prompt_files import PromptFile, in_train_split
from tuning.output.literal import markdown, printable
from tuning.output.plot_style import GREY, canvas, looks, save, short
from tuning.output.progress import Progress
from tuning.output.tables import markdown_table
from tuning.run_dir.digests import code_digest, content_digest

_LEAST_PROMPTS = 50
_MOST_TASKS = 30
_LEAST_OF_TASK = 20
_NOVEL = 0.99
_EMBEDDED = 100  # texts between two reports of progress
_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    catalogue: Path
    """File of the prompts and their outcomes, or log of answers: JSONL, CSV or Parquet."""
    models: tuple[str, ...] = ()
    """Models to fit predictors for. Default: all of the file."""
    encoder: Literal["stats", "wordllama", "minilm"] = "stats"
    """What is read of a text. stats: its statistics. wordllama and minilm: an embedding too; their extras must be installed."""
    out: Path = Path("runs/predictors")
    """Folder of the predictors."""
    folds: int = 5
    """Parts of the train split. Each is predicted by predictors that have not seen it."""
    seed: int = 0
    """Fixes the folds and every draw of the fit."""
    smoke: bool = False
    """Three folds and no task left out."""


def run(options: Options) -> None:
    """Fit, print the figures, and write the folder.

    Raises:
        InputError: an option that cannot be; a file that is malformed, has no texts or too few prompts; a place that cannot be
            written to.
    """
    options = replace(options, folds=3) if options.smoke else options
    file = read_prompts(str(options.catalogue))
    chosen = _chosen(options, file)
    encoder = None if options.encoder == "stats" else load_encoder(options.encoder)
    check_ids(file)
    outcomes = _outcomes(file, [file.models.index(name) for name in chosen], encoder)
    train = np.array([in_train_split(prompt_id) for prompt_id in file.ids])
    _check(options, file, outcomes, train)
    data = content_digest([options.catalogue])
    settings = {
        "folds": options.folds,
        "seed": options.seed,
        "kind": kind_for(int(train.sum())),
        "statistics": STATISTICS_VERSION,
        "encoder": options.encoder,
    }
    kept = KeptFits(options.out, json.dumps([data, chosen, settings, encoder and encoder.versions, code_digest()]))
    tasks = [] if options.smoke else _tasks(file, outcomes, train)
    best = int(np.nanmean(outcomes.score[train], axis=0).argmax())
    predictors, corrections, raw, left_out = _fit(
        options, outcomes, train, tasks, np.array(file.tasks), kept, chosen, best, encoder
    )
    crossed = replace(predictors, corrections=corrections)
    shown = _table(predictors, crossed, raw, outcomes, train)
    held_out = _figures(predictors, shown, outcomes, ~train, best)
    rows = {"test split": held_out, "train split, out of fold": _figures(crossed, shown, outcomes, train, best)} | left_out
    about = {
        "catalogue": {"name": options.catalogue.name, "sha256": data, "prompts": len(file.ids), "train": int(train.sum())},
        "settings": settings,
        "figures": {name: _finite(asdict(figures)) for name, figures in rows.items()},
    }
    final = replace(predictors, about=about)
    report = _report(options, final, rows)
    predicted = Predicted(score=shown.score, output_tokens=shown.output_tokens, log_sd=shown.log_sd)

    def extra(staged: Path) -> None:
        table_of(file, chosen, predicted).write(staged / TABLE)
        (staged / "figures.md").write_text(report + "\n", encoding="utf-8")
        _draw(staged / "calibration.png", chosen, shown, outcomes, ~train)

    final.save(options.out, extra)
    kept.clear()
    print(report)
    files = ("predictors.json", "predictors.safetensors", TABLE, "figures.md", "calibration.png")
    print(f"\nWritten: {options.out} ({', '.join(files)})")


def _chosen(options: Options, file: PromptFile) -> tuple[str, ...]:
    for name in options.models:
        if name not in file.models:
            raise InputError(f"models = {name!r}: {options.catalogue} has {', '.join(file.models)}")
    return tuple(dict.fromkeys(options.models)) or file.models


def _outcomes(file: PromptFile, columns: Sequence[int], encoder: Encoder | None = None) -> Outcomes:
    texts = [text for text in file.texts if text is not None]
    if len(texts) < len(file.texts):
        absent = file.ids[file.texts.index(None)]
        raise InputError(f"{file.path}: prompt {absent!r} has no text: every line must have the key prompt")
    score, tokens = file.score[:, columns], file.output_tokens[:, columns]
    return Outcomes(statistics=_inputs(texts, encoder), score=score, log_length=np.log(np.maximum(tokens, 1)))


def _inputs(texts: Sequence[str], encoder: Encoder | None) -> NDArray[np.float64]:
    """What the predictors read, with progress where it takes its time."""
    if encoder is None:
        return inputs_of(texts, None)
    parts = range(0, len(texts), _EMBEDDED)
    progress = Progress(f"hundreds of texts, read by {encoder.name}", len(parts))
    try:
        rows: list[NDArray[np.float64]] = []
        for begin in parts:
            rows.append(inputs_of(texts[begin : begin + _EMBEDDED], encoder))
            progress.advance()
    except KeyboardInterrupt:
        progress.interrupted("the same command begins anew: no fit was done")
        raise
    return np.concatenate(rows)


def _check(options: Options, file: PromptFile, outcomes: Outcomes, train: NDArray[np.bool_]) -> None:
    learned, asked = int(train.sum()), int((~train).sum())
    if not 2 <= options.folds <= 50:
        raise InputError(f"folds = {options.folds}: must be from 2 to 50")
    if not 0 <= options.seed < 2**31:
        raise InputError(f"seed = {options.seed}: must be from 0 to {2**31 - 1}")
    if min(learned, asked) < _LEAST_PROMPTS:
        raise InputError(
            f"{file.path}: {learned} prompts in the train split and {asked} in the test split: there must be {_LEAST_PROMPTS} in "
            "each (the id of a prompt decides, seven in ten are for training)"
        )
    for name, score, length in zip(_chosen(options, file), outcomes.score.T, outcomes.log_length.T, strict=True):
        for what, values in (("scores", score), ("lengths", length)):
            for split, rows in (("train", train), ("test", ~train)):
                there = int(np.isfinite(values[rows]).sum())
                if there < _LEAST_PROMPTS:
                    raise InputError(
                        f"{file.path}: model {name!r} has {there} {what} in the {split} split: must be {_LEAST_PROMPTS} or more; "
                        "--models leaves it out"
                    )


def _tasks(file: PromptFile, outcomes: Outcomes, train: NDArray[np.bool_]) -> list[str]:
    """The tasks that are left out one by one: those with enough prompts and outcomes elsewhere, if they are not very many."""
    tasks, known = np.array(file.tasks), np.isfinite(outcomes.score) & np.isfinite(outcomes.log_length)

    def can_be_left_out(task: str) -> bool:
        own = tasks == task
        elsewhere = known[train & ~own].sum(axis=0)
        return int((own & train).sum()) >= _LEAST_OF_TASK and int(elsewhere.min(initial=_LEAST_PROMPTS)) >= _LEAST_PROMPTS

    found = [task for task in dict.fromkeys(file.tasks) if can_be_left_out(task)]
    return found if 1 < len(found) <= _MOST_TASKS else []


def _fit(
    options: Options,
    outcomes: Outcomes,
    train: NDArray[np.bool_],
    tasks: Sequence[str],
    task_of: NDArray[np.str_],
    kept: KeptFits,
    models: tuple[str, ...],
    best: int,
    encoder: Encoder | None,
) -> tuple[Predictors, Corrections, Raw, dict[str, Figures]]:
    """The predictors, corrections and raw out-of-fold predictions for the train split, and the figures of each task left out."""
    learned = outcomes.at(train)
    kind: Kind = kind_for(len(learned))
    names = [*(f"fold {i}" for i in range(options.folds)), "all", *(f"without task {task}" for task in tasks)]
    progress = Progress("fits", len(names), sum(kept.has(name) for name in names))

    def fitted(name: str, rows: NDArray[np.bool_]) -> Any:
        there = kept.has(name)
        weights = kept.get(name, lambda: fit_weights(learned.at(rows), kind, options.seed, encoder.width if encoder else 0))
        if not there:
            progress.advance()
        return weights

    fold_of = folds_of(len(learned), options.folds, options.seed)
    try:
        parts = [predict_raw(fitted(f"fold {i}", fold_of != i), learned.statistics[fold_of == i]) for i in range(options.folds)]
        raw = joined(parts, fold_of)
        corrections = _corrections(raw, learned, np.ones(len(learned), np.bool_))
        weights = fitted("all", np.ones(len(learned), np.bool_))
        x = weights.standardise(learned.statistics)
        usual = float(np.quantile(np.sqrt(np.square(x).mean(axis=1, dtype=np.float64)), _NOVEL))
        predictors = Predictors(
            models=models, weights=weights, corrections=corrections, usual_novelty=max(usual, 1e-6), about={}, encoder=encoder
        )
        left_out: dict[str, Figures] = {}
        for task in tasks:
            others = task_of[train] != task
            own = replace(
                predictors,
                weights=fitted(f"without task {task}", others),
                corrections=_corrections(raw, learned, others),
            )
            rows = task_of == task
            left_out[f"task {task}, left out"] = _figures(own, own.predict_from(outcomes.statistics), outcomes, rows, best)
    except KeyboardInterrupt:
        progress.interrupted("the same command goes on from there")
        raise
    return predictors, _crossed(raw, learned, fold_of), raw, left_out


def _corrections(raw: Raw, learned: Outcomes, rows: NDArray[np.bool_]) -> Corrections:
    """Those fitted to the out-of-fold predictions for some prompts."""
    return fit_corrections(raw.logit[rows], raw.log_length[rows], raw.log_sd[rows], learned.score[rows], learned.log_length[rows])


def _crossed(raw: Raw, learned: Outcomes, fold_of: NDArray[np.int64]) -> Corrections:
    """(P, A) for each prompt the corrections that are fitted to the other folds."""
    by_fold = [_corrections(raw, learned, fold_of != i) for i in range(fold_of.max() + 1)]
    return Corrections(**{name: np.stack([getattr(found, name) for found in by_fold])[fold_of] for name in asdict(by_fold[0])})


def _table(predictors: Predictors, crossed: Predictors, raw: Raw, outcomes: Outcomes, train: NDArray[np.bool_]) -> Prediction:
    """Predictions (P, A) for all prompts, for each by predictors that have not seen it."""
    shown = predictors.predict_from(outcomes.statistics)
    own = crossed.corrected(raw)
    for name in ("score", "output_tokens", "log_sd"):
        getattr(shown, name)[train] = getattr(own, name)
    return shown


def _figures(predictors: Predictors, shown: Prediction, outcomes: Outcomes, rows: NDArray[np.bool_], best: int) -> Figures:
    return figures_of(
        shown.score[rows],
        shown.output_tokens[rows],
        shown.log_sd[rows],
        np.log(shown.output_tokens[rows] / predictors.corrections.smearing),
        outcomes.score[rows],
        outcomes.log_length[rows],
        best,
    )


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {name: value if np.isfinite(value) else None for name, value in values.items()}


def _shown(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _report(options: Options, predictors: Predictors, rows: dict[str, Figures]) -> str:
    header = [
        "prompts", "number", "AUC", "Brier", "ECE", "log-length R2", "log-length MAE", "tokens, predicted / true",
        "in the 80 % interval", "score at the best predicted", "best single model", "oracle",
    ]  # fmt: skip
    table = [
        [
            markdown(name),
            f"{f.prompts:,}",
            *map(_shown, (f.auc, f.brier, f.ece, f.log_length_r2, f.log_length_mae)),
            *map(_shown, (f.tokens_ratio, f.coverage, f.argmax, f.best_single, f.oracle)),
        ]
        for name, f in rows.items()
    ]
    kind = predictors.about["settings"]["kind"]
    learned = predictors.about["catalogue"]["train"]
    models = ", ".join(map(markdown, predictors.models))
    return (
        f"# Predictors fitted to {markdown(options.catalogue.name)}\n\nModels: {models}. Fitted with: {kind}, to "
        f"{learned:,} prompts.\n\n{markdown_table(header, table)}\n\nAUC, Brier and ECE are of the quality, means over models. "
        "R2 and MAE are of the log length."
    )


def _draw(path: Path, models: Sequence[str], shown: Prediction, outcomes: Outcomes, rows: NDArray[np.bool_]) -> None:
    """Draw mean scores over mean predicted scores, in ten bins of equal size for each model."""
    figure, axes = canvas()
    styles = looks(models)
    for name, score, truth in zip(models, shown.score[rows].T, outcomes.score[rows].T, strict=True):
        there = np.isfinite(truth)
        order = np.argsort(score[there], kind="stable")
        bins = [part for part in np.array_split(order, _BINS) if part.size]
        mean = [[float(values[there][part].mean()) for part in bins] for values in (score, truth)]
        axes.plot(*mean, label=short(printable(name)), **styles[name])
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="equal")
    axes.set_xlabel("predicted score, mean of a bin")
    axes.set_ylabel("true score, mean of the same prompts")
    axes.set_title("Calibration on the test split", loc="left")
    save(figure, axes, path)
