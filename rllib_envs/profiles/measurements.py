"""Readers for public measurements of LLM engines: times of single layers, and whole serving runs.

The files are those of LLMServingSim (https://github.com/casys-kaist/LLMServingSim), plain or gzipped. Layer times of one GPU and
model, a folder of ``profiler/perf``:

* ``dense.csv``: ``layer, tokens, time_us``, the operators of one decoder layer by tokens in the iteration;
* ``per_sequence.csv``: ``layer, sequences, time_us``, lm_head and sampler by sequences in the iteration;
* ``attention.csv``: ``prefill_chunk, kv_prefill, n_decode, kv_decode, time_us``, attention of one layer in a batch of one prompt
  chunk (``kv_prefill`` of its tokens cached) and ``n_decode`` sequences of ``kv_decode`` context tokens each. Its rows are the
  batches fitted; the other two files are interpolated.

A run of a vLLM server (made from ``bench/examples``): ``NAME_requests.csv``, a row per request with its tokens and its times in
seconds, and ``NAME_meta.json``, the settings of the engine.
"""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.json_files import parse_json

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PER_LAYER = ("layernorm", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
_PER_ITERATION = ("embedding", "final_layernorm")
_PER_SEQUENCE = ("lm_head", "sampler")
_MOST = 1e12
"""Far above any size or time in these files; sums and products of such numbers stay finite."""
_ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batches:
    """Batches with measured iteration times; all arrays (M,)."""

    chunk: Floats  # new prompt tokens of the one prompt in the batch; 0 = decode only
    cached: Floats  # tokens of that prompt already cached
    decodes: Floats  # decoding sequences
    context: Floats  # their context tokens in all
    ms: Floats  # iteration time


class LayerTimes:
    """The layer times of one GPU and model, and the iteration times computed from them.

    Iteration = embedding + layers * (2 layernorm + qkv_proj + [qk_norm] + rotary_emb + attention + o_proj + gate_up_proj +
    act_fn + down_proj) + final_layernorm + lm_head + sampler.

    Attributes:
        attention: the columns of ``attention.csv``, (5, M).
        reach: largest number of tokens, and of sequences, measured in the other files.
    """

    def __init__(self, folder: Path, *, layers: int) -> None:
        """Read the files.

        Raises:
            InputError: a file, a layer or a column is missing, a value is not a finite number from 0 to 1e12, or ``layers`` < 1.
        """
        if layers < 1:
            raise InputError(f"layers = {layers}: must be >= 1")
        _check_layout(folder)
        self._layers = layers
        self._dense = _Curves(_find(folder, "dense.csv"), "tokens")
        self._per_sequence = _Curves(_find(folder, "per_sequence.csv"), "sequences")
        self.attention = _columns(_find(folder, "attention.csv"), _ATTENTION)
        self.reach = self._dense.reach, self._per_sequence.reach

    def iteration_ms(self, tokens: Floats, sequences: Floats, attention_us: Floats) -> Floats:
        """Iteration times of batches from their tokens, sequences and attention time in one layer; (M,) each."""
        per_layer = (*_PER_LAYER, "qk_norm") if self._dense.has("qk_norm") else _PER_LAYER
        us = self._layers * (attention_us + self._dense.total_us(per_layer, tokens))
        us += self._dense.total_us(_PER_ITERATION, tokens) + self._per_sequence.total_us(_PER_SEQUENCE, sequences)
        return us / 1e3


def measured_batches(folder: Path, *, layers: int) -> Batches:
    """Iteration times of the batches in ``attention.csv``. Batches beyond the range of the other files are left out.

    Raises:
        InputError: as ``LayerTimes``.
    """
    times = LayerTimes(folder, layers=layers)
    chunk, cached, decodes, context, attention_us = times.attention
    tokens, sequences = chunk + decodes, decodes + (chunk > 0)
    kept = (tokens >= 1) & (tokens <= times.reach[0]) & (sequences <= times.reach[1])
    return Batches(
        chunk=chunk[kept],
        cached=cached[kept],
        decodes=decodes[kept],
        context=(decodes * context)[kept],
        ms=times.iteration_ms(tokens[kept], sequences[kept], attention_us[kept]),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredRun:
    """A measured serving run; arrays (R,) in the order of arrival, times in s from the first arrival."""

    prompt_tokens: Ints
    output_tokens: Ints
    arrival_s: Floats
    first_token_s: Floats
    last_token_s: Floats
    max_num_seqs: int
    max_num_batched_tokens: int


def read_run(folder: Path, name: str) -> MeasuredRun:
    """Read the run ``name`` (for example ``RTXPRO6000_Llama-3.1-8B``) in ``folder``.

    Raises:
        InputError: a file, a column or a setting is missing, or a value is impossible.
    """
    columns = ("prompt_tokens", "output_tokens", "arrival_s", "first_token_s", "last_token_s")
    prompt, output, arrival_s, first_s, last_s = _columns(_find(folder, f"{name}_requests.csv"), columns)
    settings = _settings(_find(folder, f"{name}_meta.json"), ("max_num_seqs", "max_num_batched_tokens"))
    order = np.argsort(arrival_s, kind="stable")
    return MeasuredRun(
        prompt_tokens=prompt[order].astype(np.int64),
        output_tokens=output[order].astype(np.int64),
        arrival_s=arrival_s[order],
        first_token_s=first_s[order],
        last_token_s=last_s[order],
        max_num_seqs=settings["max_num_seqs"],
        max_num_batched_tokens=settings["max_num_batched_tokens"],
    )


class _Curves:
    """Measured times per operator over one size (tokens or sequences), interpolated."""

    def __init__(self, path: Path, size: str) -> None:
        self._path = path
        points: dict[str, list[tuple[float, float]]] = {}
        for line, row in _rows(path, ("layer", size, "time_us")):
            points.setdefault(row["layer"], []).append((_number(path, line, row, size), _number(path, line, row, "time_us")))
        self._curves = {layer: np.array(sorted(curve)) for layer, curve in points.items()}
        self.reach = min(curve[-1, 0] for curve in self._curves.values())  # largest size that was measured for all operators

    def has(self, layer: str) -> bool:
        return layer in self._curves

    def total_us(self, layers: Sequence[str], size: Floats) -> Floats:
        """Summed time of ``layers``, one for each time a name occurs; shape of ``size``."""
        for layer in layers:
            if layer not in self._curves:
                raise InputError(f"{self._path}: layer = {', '.join(sorted(self._curves))}: {layer!r} is missing")
        return sum((np.interp(size, *self._curves[layer].T) for layer in layers), np.zeros_like(size))


def _check_layout(folder: Path) -> None:
    """Refuse folders of layer times in other layouts, and say what to do about it."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    wanted = ("dense.csv", "per_sequence.csv", "attention.csv")
    if not any(name in names or f"{name}.gz" in names for name in wanted):
        there = f"it holds {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}" if names else "it is empty, or no folder"
        raise InputError(
            f"{folder}: none of {', '.join(wanted)} is there ({there}): layer times must be in the layout that LLMServingSim's "
            "profiler writes to profiler/perf; its older one (layers.csv) and those of other simulators lack the times of batches"
        )
    if any(name.removesuffix(".gz") == "moe.csv" for name in names):
        raise InputError(
            f"{folder}: moe.csv: a mixture of experts cannot be fitted: its times depend on how many experts a batch activates, "
            "which no profile has; layer times of a dense model would do, or a dense.csv in which gate_up_proj, act_fn and "
            "down_proj stand for this model's experts, without moe.csv"
        )


def _settings(path: Path, names: Sequence[str]) -> dict[str, int]:
    try:
        given = parse_json(_text(path), str(path))["engine_kwargs"]
        return {name: int(given[name]) for name in names}
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{path}: engine_kwargs: {' and '.join(names)} must be whole numbers ({error!r})") from None


def _columns(path: Path, columns: Sequence[str]) -> list[Floats]:
    table = [[_number(path, line, row, column) for column in columns] for line, row in _rows(path, columns)]
    return list(np.array(table).T)


def _number(path: Path, line: int, row: dict[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= _MOST:
        raise InputError(f"{path}, line {line}, column {column}: {row[column]!r}: must be a finite number from 0 to {_MOST:.0e}")
    return value


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row; at least one row."""
    reader = csv.DictReader(_text(path).splitlines(), strict=True)
    try:
        yield from _checked_rows(path, reader, columns)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not CSV: {error}") from None


def _checked_rows(path: Path, reader: csv.DictReader[str], columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    header = reader.fieldnames or ()
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(f"{path}, line 1: columns {', '.join(header)}: {missing[0]!r} is missing")
    line = 1
    for line, row in enumerate(reader, start=2):
        yield line, row
    if line == 1:
        raise InputError(f"{path}: no rows: at least one is needed")


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise InputError(f"{folder}: neither {name} nor {name}.gz is there")


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not {'gzipped ' if path.suffix == '.gz' else ''}text: {error}") from None
