"""Fit an engine's cost coefficients to measured layer times, and hold a simulated run against a measured one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from rllib_envs.errors import InputError
from rllib_envs.measurements import Batches, MeasuredRun, measured_batches
from rllib_envs.sim.profile import EngineProfile

Floats = NDArray[np.float64]

SERVER_OVERHEAD = 1.05
"""Step time of a server over the sum of its kernels' times, for profiles fitted with ``c_mixed``: public comparisons say 1.05
to 1.16, and the seconds of a measured run in which it only decodes say 1.02 to 1.06."""

MAX_CONTEXT_TOKENS = 4096
"""Longest context per sequence among the fitted batches: what engines at the edge serve, and where the form holds best."""

MIN_CHUNK_TOKENS = 64
"""Shortest prompt chunk among the fitted batches: far below the hinge a prompt costs next to nothing, and the many such rows of
the files would pull the hinge down at the expense of the batches that take time."""


class Limits(TypedDict, total=False):
    """Fields of ``EngineProfile`` that no layer file tells."""

    overhead: float
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_waiting: int
    reuse_preempted_blocks: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedProfile:
    """A profile and how far its kernel times (overhead 1) are from the measured ones."""

    profile: EngineProfile
    mape_decode: float  # mean absolute relative error over the decode-only batches
    mape_mixed: float  # the same over the batches with prefill


def fit_profile(folder: Path, *, layers: int, kv_tokens: int, kv_bytes_per_token: int, **limits: Unpack[Limits]) -> FittedProfile:
    """Fit ``EngineProfile``'s coefficients to the layer files in ``folder``.

    Least squares on the relative error with coefficients >= 0, in two stages: c0, b, c on the decode-only batches, where an
    engine spends most of its iterations; then a, q, c_mixed and the hinge n0 (best of 0, 16 .. 512) on the batches with prefill.
    Only batches that the KV capacity can hold take part.

    Args:
        folder: holds the layer files (see ``rllib_envs.measurements``).
        layers: decoder layers of the model (Llama-3.1-8B: 32).
        kv_tokens: KV capacity as the engine reports it, tokens.
        kv_bytes_per_token: 2 * layers * KV heads * head size * bytes of a number.
        limits: further fields of the profile; those not given keep its defaults.

    Raises:
        InputError: a file is missing or wrong, no batch is left to fit, or the profile would be one that no engine can have.
    """
    every = measured_batches(folder, layers=layers)
    fits = every.context + every.cached + every.chunk <= kv_tokens
    short = (every.context <= MAX_CONTEXT_TOKENS * every.decodes) & (every.cached <= MAX_CONTEXT_TOKENS)
    decode = _subset(every, fits & short & (every.chunk == 0))
    mixed = _subset(every, fits & short & (every.chunk >= MIN_CHUNK_TOKENS))
    for name, batches in (("decode-only", decode), ("mixed", mixed)):
        if batches.ms.size < 3:
            raise InputError(f"{folder}: kv_tokens = {kv_tokens}: {batches.ms.size} {name} batches fit, at least 3 are needed")
    decode_ms, decode_errors = _relative_nnls(_decode_terms(decode), decode.ms)
    rest = _decode_terms(mixed) @ decode_ms
    hinges = [(n0, *_relative_nnls(_prefill_terms(mixed, n0), mixed.ms, rest)) for n0 in range(0, 513, 16)]
    n0, prefill_ms, mixed_errors = min(hinges, key=lambda hinge: float(np.mean(hinge[2] ** 2)))
    c0, b, c = decode_ms.tolist()
    a, q, c_mixed = prefill_ms.tolist()
    try:
        profile = EngineProfile(
            c0_ms=c0,
            b_ms=b,
            c_ms=c,
            a_ms=a,
            n0_tokens=n0,
            q_ms=q,
            c_mixed_ms=c_mixed,
            kv_tokens=kv_tokens,
            kv_bytes_per_token=kv_bytes_per_token,
            **limits,
        )
    except ValueError as error:
        raise InputError(f"profile fitted to {folder}: {error}") from None
    return FittedProfile(
        profile=profile,
        mape_decode=float(np.mean(np.abs(decode_errors))),
        mape_mixed=float(np.mean(np.abs(mixed_errors))),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunErrors:
    """Relative errors (simulated / measured - 1) of a run's requests; arrays (R,)."""

    e2e: Floats  # arrival to last token
    ttft: Floats  # arrival to first token
    tpot: Floats  # mean time between tokens; NaN for an answer of one token


def compare_run(run: MeasuredRun, first_token_s: Floats, finish_s: Floats) -> RunErrors:
    """Hold simulated times, (R,) each, in s from the first arrival, against those measured."""
    measured_decode_s = np.where(run.output_tokens > 1, run.last_token_s - run.first_token_s, np.nan)
    return RunErrors(
        e2e=(finish_s - run.arrival_s) / (run.last_token_s - run.arrival_s) - 1,
        ttft=(first_token_s - run.arrival_s) / (run.first_token_s - run.arrival_s) - 1,
        tpot=(finish_s - first_token_s) / measured_decode_s - 1,
    )


def _decode_terms(batches: Batches) -> Floats:
    return np.column_stack([np.ones_like(batches.ms), batches.decodes, batches.context])


def _prefill_terms(batches: Batches, n0: int) -> Floats:
    beyond = np.maximum(0.0, batches.chunk + batches.decodes - n0)
    return np.column_stack([beyond, batches.chunk * (batches.cached + batches.chunk / 2), batches.context])


def _subset(batches: Batches, mask: NDArray[np.bool_]) -> Batches:
    return Batches(**{field.name: getattr(batches, field.name)[mask] for field in fields(Batches)})


def _relative_nnls(terms: Floats, ms: Floats, rest: Floats | float = 0.0) -> tuple[Floats, Floats]:
    """Coefficients >= 0 that minimise the squared relative error of ``rest + terms @ coefficients``, and those errors."""
    scale = terms.max(axis=0)  # the solver needs columns of like size
    solution: Floats = nnls(terms / scale / ms[:, None], (ms - rest) / ms)[0] / scale
    return solution, (rest + terms @ solution) / ms - 1
