"""Predictors from a folder: text in, quality and length for each model out. Imports neither torch nor Ray."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.export.files import staged_folder
from models.export.manifest import check_folder, manifest_in, manifest_of, read_description, read_file
from models.predictors.calibration import Corrections
from models.predictors.encoders import Encoder, load_encoder
from models.predictors.text import STATISTICS, STATISTICS_VERSION, statistics_of
from models.predictors.weights import Raw, Weights, within
from rllib_envs.errors import InputError

FORMAT = "edgeroute-predictors-1"
DESCRIPTION = "predictors.json"
_WEIGHTS = "predictors.safetensors"
_MOST_BYTES = 2**28  # thousand times the usual
_MOST_MODELS, _MOST_WIDTH = 512, 4096
_MOST_TOKENS = 2**24
_VERSION = re.compile(r"[\w.+!-]{1,50}")  # it is shown in a command to copy
_MOST_LOG_TOKENS = float(np.log(_MOST_TOKENS))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """Predictions for B texts and A models."""

    score: NDArray[np.float64]  # (B, A) in [0, 1]: the expected quality
    output_tokens: NDArray[np.float64]  # (B, A) >= 1: the expected length, so the mean and not the median
    log_sd: NDArray[np.float64]  # (B, A) standard deviation of the log length about its median
    novelty: NDArray[np.float64]  # (B,) how unusual the text is: above 1 more than 99 % of the prompts that were learned from


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictors:
    """Fitted predictors for A models.

    Args:
        models: their names.
        weights: of the network.
        corrections: fitted to out-of-fold predictions.
        usual_novelty: root mean square of the standardised statistics that 1 % of the prompts exceed.
        about: JSON that says where they come from: data, settings, figures.
        encoder: whose embedding of a text they read beside its statistics.
    """

    models: tuple[str, ...]
    weights: Weights
    corrections: Corrections
    usual_novelty: float
    about: Mapping[str, Any]
    encoder: Encoder | None = None

    def predict(self, texts: Sequence[str]) -> Prediction:
        """Predict for B texts."""
        return self.predict_from(inputs_of(texts, self.encoder))

    def predict_from(self, statistics: NDArray[np.float64]) -> Prediction:
        """Predict from the statistics (B, S) of B texts."""
        x = self.weights.standardise(statistics)
        raw = self.weights.outputs(x)
        novelty = np.sqrt(np.square(x).sum(axis=1, dtype=np.float64) / x.shape[1]) / self.usual_novelty
        return self.corrected(raw, novelty)

    def corrected(self, raw: Raw, novelty: NDArray[np.float64] | None = None) -> Prediction:
        """Apply the corrections to predictions of the weights alone; a novelty (B,) that is not given is not known (NaN)."""
        tokens = np.exp(within(raw.log_length, 0, _MOST_LOG_TOKENS)) * self.corrections.smearing
        return Prediction(
            score=self.corrections.score(raw.logit),
            output_tokens=within(tokens, 1, _MOST_TOKENS),
            log_sd=raw.log_sd * self.corrections.sd_factor,
            novelty=np.full(len(raw.logit), np.nan) if novelty is None else novelty,
        )

    def save(self, folder: Path, extra: Callable[[Path], None] = lambda staged: None) -> None:
        """Write the folder in one step; what was there is replaced.

        Args:
            folder: where.
            extra: writes further files into the staged folder.

        Raises:
            InputError: the place cannot be written to.
        """
        corrections = {name: getattr(self.corrections, name) for name in _CORRECTIONS}
        with staged_folder(folder) as staged:
            (staged / _WEIGHTS).write_bytes(save({**self.weights.arrays(), **corrections}))
            extra(staged)
            contents = {
                "format": FORMAT,
                "statistics": {"version": STATISTICS_VERSION, "names": STATISTICS},
                "encoder": None if self.encoder is None else {"name": self.encoder.name, "packages": self.encoder.versions},
                "models": self.models,
                "usual_novelty": self.usual_novelty,
                "about": self.about,
                **manifest_of(staged).to_dict(),
            }
            (staged / DESCRIPTION).write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a folder; nothing in it is run, and its memory is bounded.

        Raises:
            InputError: there are none, they are damaged, of another version, or no fit can have written them, or their encoder is
                not installed.
        """
        where = folder / DESCRIPTION
        if folder.is_dir() and not where.exists():
            raise InputError(f"{folder}: no predictors: {DESCRIPTION} is missing")
        contents = read_description(where, "predictors")
        if contents.get("format") != FORMAT:
            raise InputError(f"{where}: format is not {FORMAT!r}: no predictors, or those of another version")
        statistics = contents.get("statistics")
        if statistics != {"version": STATISTICS_VERSION, "names": list(STATISTICS)}:
            raise InputError(f"{where}: statistics are not those of version {STATISTICS_VERSION}: fit the predictors anew")
        models = _models(contents.get("models"), where)
        usual = contents.get("usual_novelty")
        if not isinstance(usual, float) or not 0 < usual < 1e6:
            raise InputError(f"{where}: usual_novelty = {usual!r:.100}: must be a positive number")
        about = contents.get("about")
        if not isinstance(about, dict):
            raise InputError(f"{where}: damaged: about is no mapping")
        manifest = manifest_in(contents, where)
        check_folder(folder, manifest, where, "predictors")
        encoder = _encoder(contents.get("encoder"), where)
        arrays = _arrays(folder / _WEIGHTS, len(models), len(STATISTICS) + (encoder.width if encoder else 0))
        corrections = {name: arrays.pop(name).astype(np.float64) for name in _CORRECTIONS}
        return cls(
            models=models,
            weights=Weights(**arrays),
            corrections=Corrections(**corrections),
            usual_novelty=usual,
            about=cast(dict[str, Any], about),
            encoder=encoder,
        )


def inputs_of(texts: Sequence[str], encoder: Encoder | None) -> NDArray[np.float64]:
    """(B, S + E) what predictors read of B texts: the statistics, then the embedding of the encoder, where there is one."""
    statistics = statistics_of(texts)
    return statistics if encoder is None else np.hstack([statistics, encoder(texts)])


_CORRECTIONS = ("slope", "offset", "sd_factor", "smearing")


def _models(found: object, where: Path) -> tuple[str, ...]:
    names = cast(list[object], found) if isinstance(found, list) else []
    if not 0 < len(names) <= _MOST_MODELS or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise InputError(f"{where}: models = {found!r:.200}: must be 1 to {_MOST_MODELS} different names")
    return tuple(cast(list[str], names))


def _encoder(found: object, where: Path) -> Encoder | None:
    if found is None:
        return None
    about = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    name, packages = about.get("name"), about.get("packages")
    versions = list(cast(dict[str, Any], packages).values()) if isinstance(packages, dict) else [None]
    if not isinstance(name, str) or not all(isinstance(value, str) and _VERSION.fullmatch(value) for value in versions):
        raise InputError(f"{where}: encoder = {found!r:.100}: must have a name, and packages with their versions")
    try:
        return load_encoder(name, cast(dict[str, Any], packages))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error.__cause__


def _arrays(path: Path, models: int, s: int) -> dict[str, NDArray[Any]]:
    """The arrays of the file, if they are exactly those of a fit for so many models, finite, and positive where they must be."""
    try:
        arrays: dict[str, NDArray[Any]] = load(read_file(path, _MOST_BYTES, "predictors"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
    width = arrays["first_bias"].size if "first_bias" in arrays else 0
    if width > _MOST_WIDTH:
        raise InputError(f"{path}: does not fit: first_bias has {width:,} units: at most {_MOST_WIDTH:,} are allowed")
    out = 3 * models
    expected = {
        "mean": (s,), "scale": (s,), "length_mean": (models,), "length_scale": (models,),
        "first": (s, width), "first_bias": (width,), "second": (width, width), "second_bias": (width,),
        "heads": (width, out), "skip": (s, out), "bias": (out,),
        **dict.fromkeys(_CORRECTIONS, (models,)),
    }  # fmt: skip
    for name, shape in expected.items():
        kind = np.float64 if name in _CORRECTIONS else np.float32
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype != kind:
            raise InputError(f"{path}: does not fit: {name} must be {np.dtype(kind)} {list(shape)}")
        if not np.isfinite(array).all():
            raise InputError(f"{path}: does not fit: {name} has values that are not finite")
        if name in ("scale", "length_scale", "sd_factor", "smearing") and not (array > 0).all():
            raise InputError(f"{path}: does not fit: {name} must be positive")
    more = sorted(set(arrays) - set(expected))
    if more:
        raise InputError(f"{path}: does not fit: {more[0]!r:.100} is no array of predictors")
    return arrays
