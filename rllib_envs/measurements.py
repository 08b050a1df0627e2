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
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_PER_LAYER = ("layernorm", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
_PER_ITERATION = ("embedding", "final_layernorm")
_PER_SEQUENCE = ("lm_head", "sampler")
_ATTENTION = ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batches:
    """Batches with measured iteration times; all arrays (M,)."""

    chunk: Floats  # new prompt tokens of the one prompt in the batch; 0 = decode only
    cached: Floats  # tokens of that prompt already cached
    decodes: Floats  # decoding sequences
    context: Floats  # their context tokens in all
    ms: Floats  # iteration time


def measured_batches(folder: Path, *, layers: int) -> Batches:
    """Iteration times of the batches in ``attention.csv``.

    Iteration = embedding + layers * (2 layernorm + qkv_proj + [qk_norm] + rotary_emb + attention + o_proj + gate_up_proj +
    act_fn + down_proj) + final_layernorm + lm_head + sampler. Batches larger than the other files reach are left out.

    Raises:
        InputError: a file, a layer or a column is missing, or a value is not a finite number >= 0.
    """
    dense = _Curves(_find(folder, "dense.csv"), "tokens")
    per_sequence = _Curves(_find(folder, "per_sequence.csv"), "sequences")
    chunk, cached, decodes, context, attention_us = _columns(_find(folder, "attention.csv"), _ATTENTION)
    tokens, sequences = chunk + decodes, decodes + (chunk > 0)
    kept = (tokens >= 1) & (tokens <= dense.reach) & (sequences <= per_sequence.reach)
    tokens, sequences = tokens[kept], sequences[kept]
    per_layer = (*_PER_LAYER, "qk_norm") if dense.has("qk_norm") else _PER_LAYER
    layer_us = attention_us[kept] + dense.total_us(per_layer, tokens)
    us = layers * layer_us + dense.total_us(_PER_ITERATION, tokens) + per_sequence.total_us(_PER_SEQUENCE, sequences)
    context = decodes * context
    return Batches(chunk=chunk[kept], cached=cached[kept], decodes=decodes[kept], context=context[kept], ms=us / 1e3)


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
    """The run ``name`` (say ``RTXPRO6000_Llama-3.1-8B``) in ``folder``.

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
        self.reach = min(curve[-1, 0] for curve in self._curves.values())  # largest size that all operators were measured at

    def has(self, layer: str) -> bool:
        return layer in self._curves

    def total_us(self, layers: Sequence[str], size: Floats) -> Floats:
        """Summed time of ``layers``, one for each time it is named; shape of ``size``."""
        for layer in layers:
            if layer not in self._curves:
                raise InputError(f"{self._path}: layer = {', '.join(sorted(self._curves))}: {layer!r} is missing")
        return sum((np.interp(size, *self._curves[layer].T) for layer in layers), np.zeros_like(size))


def _settings(path: Path, names: Sequence[str]) -> dict[str, int]:
    try:
        given = json.loads(_text(path))["engine_kwargs"]
        return {name: int(given[name]) for name in names}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: engine_kwargs: {' and '.join(names)} must be whole numbers ({error!r})") from None


def _columns(path: Path, columns: Sequence[str]) -> list[Floats]:
    table = [[_number(path, line, row, column) for column in columns] for line, row in _rows(path, columns)]
    return list(np.array(table).T)


def _number(path: Path, line: int, row: dict[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{path}, line {line}, column {column}: {row[column]!r}: must be a finite number >= 0")
    return value


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells of each row; at least one row."""
    reader = csv.DictReader(_text(path).splitlines())
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
    raw = path.read_bytes()
    try:
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not {'gzipped ' if path.suffix == '.gz' else ''}text: {error}") from None
