"""Reader for the log of a vLLM server that was started with ``--enable-logging-iteration-details``.

Each iteration has a line with its prompt tokens, its decoding sequences, its time and the KV usage at its end
(``LoggingStatLogger._log_iteration_details`` in ``vllm/v1/metrics/loggers.py``). The context of the decoding sequences is what
the usage says less what the prompts hold. A prompt larger than an iteration's budget fills it. So where the budget is full, the
next iteration with prefill goes on with that prompt. The lines of the start have the KV capacity and what is set by hand.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rllib_envs.errors import InputError
from rllib_envs.profiles.measurements import Batches
from rllib_envs.sim.profile import BLOCK_TOKENS
from rllib_envs.text_files import read_text

MOST_BYTES = 2**28
"""Largest log that is read: about a million iterations."""

_ITERATION = re.compile(
    r"Iteration\(\d+\): (\d+) context requests, (\d+) context tokens, (\d+) generation requests, (\d+) generation tokens, "
    r"iteration elapsed time: (\d+(?:\.\d+)?) ms(?: \(dummy\))?(?:, \S+ KV cache usage: (\d+(?:\.\d+)?)%)?"
)
_CAPACITY = re.compile(r"KV cache size: ([\d,]+) tokens, Maximum concurrency for ([\d,]+) tokens per request")
_ARGUMENTS = re.compile(r"non-default args: (\{.*\})")
_LIMITS = ("max_num_seqs", "max_num_batched_tokens", "max_model_len")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IterationLog:
    """What a log says of an engine."""

    batches: Batches  # its iterations
    kv_tokens: int | None  # KV capacity, tokens; None: the log does not say
    limits: dict[str, int]  # max_num_seqs, max_num_batched_tokens and max_model_len, those that it says
    async_scheduling: bool | None  # None: as vLLM sets it by itself
    model: str | None


def read_iteration_log(path: Path, *, kv_tokens: int | None = None, max_num_batched_tokens: int | None = None) -> IterationLog:
    """Read a log.

    Args:
        path: the server's output, with whatever else stands in it.
        kv_tokens: KV capacity, if the log has no line on it.
        max_num_batched_tokens: token budget of an iteration, if the log does not say it.

    Raises:
        InputError: it cannot be read, has no iterations, has them without KV usage, or the KV capacity is not known.
    """
    text = read_text(path, MOST_BYTES)
    rows = [match.groups() for match in _ITERATION.finditer(text)]
    if not rows:
        raise InputError(f"{path}: no line of an iteration: start the server with --enable-logging-iteration-details")
    if any(row[5] is None for row in rows):
        raise InputError(f"{path}: an iteration without KV cache usage: this version of vLLM does not log what is needed")
    settings = _arguments(text)
    found = _CAPACITY.search(text)
    limits = {name: settings[name] for name in _LIMITS if isinstance(settings.get(name), int)}
    if found:
        kv_tokens = int(found[1].replace(",", ""))
        limits.setdefault("max_model_len", int(found[2].replace(",", "")))
    if kv_tokens is None:
        raise InputError(f"{path}: no line 'KV cache size': the log of the server's start is missing, or give --kv-tokens")
    budget = limits.get("max_num_batched_tokens", max_num_batched_tokens or 2048)
    numbers = np.array(rows, dtype=np.float64)
    numbers = numbers[numbers[:, 4] > 0]
    model, ahead = settings.get("model"), settings.get("async_scheduling")
    return IterationLog(
        batches=_batches(numbers, kv_tokens, budget),
        kv_tokens=kv_tokens,
        limits=limits,
        async_scheduling=ahead if isinstance(ahead, bool) else None,
        model=model if isinstance(model, str) else None,
    )


def _arguments(text: str) -> dict[str, Any]:
    """The settings that the log of the start shows."""
    found = _ARGUMENTS.search(text)
    if not found:
        return {}
    try:
        return dict(ast.literal_eval(found[1]))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {}  # values that are no literals


def _batches(rows: np.ndarray[Any, np.dtype[np.float64]], kv_tokens: int, budget: int) -> Batches:
    """Columns of ``rows``: prompts, their tokens, decoding sequences, their tokens, ms, KV usage in per cent."""
    prompts, chunk, decodes, _, ms, usage = rows.T
    cached = np.zeros_like(chunk)
    full = chunk + decodes >= budget
    for i in range(1, chunk.size):
        if full[i - 1] and chunk[i] > 0:
            cached[i] = cached[i - 1] + chunk[i - 1]
    held = usage * 0.01 * kv_tokens - 0.5 * BLOCK_TOKENS * (decodes + prompts)  # half of each last block is empty
    context = np.where(decodes > 0, np.maximum(held - chunk - cached, decodes), 0.0)
    # Several prompts of one iteration do not attend to one another: their pairs of tokens are fewer. Equal parts are assumed.
    shared = np.where((prompts > 1) & (cached == 0), chunk / np.maximum(prompts, 1), chunk)
    cached = cached - (chunk - shared) / 2
    return Batches(chunk=chunk, cached=cached, decodes=decodes, context=context, ms=ms)
