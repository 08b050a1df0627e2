"""Fit an engine's cost coefficients to measured layer times, and compare a simulated run with a measured one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from rllib_envs.errors import InputError
from rllib_envs.profiles.measurements import Batches, MeasuredRun, measured_batches
from rllib_envs.sim.profile import EngineProfile

Floats = NDArray[np.float64]

SERVER_OVERHEAD = 1.0
"""Step time of a server over the sum of its kernels' times. The measured layer times, interpolated and replayed, need .99 on an
RTX 4090. On an RTX PRO 6000 they need 1.00 together with ``SERVER_MIXED_MS``, and 1.025 without it."""

SERVER_MIXED_MS = 5.0
"""Server time of an iteration with prefill beyond its kernels' times, ms (part of ``EngineProfile.c0_mixed_ms``). A measured
run on an RTX PRO 6000 shows single iterations, from one first token to the next. Their median is 4 ms above the kernels, nearly
the same for chunks of 300 and of 1,500 tokens. With 5 ms that run's latencies agree best."""

MAX_CONTEXT_TOKENS = 4096
"""Longest context per sequence among the fitted batches: typical of edge engines, and where the formula holds best."""

_FOLDS = 5  # parts of the batches; each is left out of one fit

_LEAST_BATCHES = 3  # of a kind
_HICCUP = 20.0  # median errors that an iteration may be late; of Gaussian errors none in 10^40 is

_PLAUSIBLE_MS = (0.1, 1e5)
"""Iteration times outside this range have another unit than the files' microseconds."""


class EngineLimits(TypedDict, total=False):
    """Fields of ``EngineProfile`` that layer files do not contain."""

    overhead: float
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_waiting: int
    reuse_preempted_blocks: bool


class FitError(NamedTuple):
    """Relative errors of the kernel times of a fit."""

    mape: float  # mean absolute error
    bias: float  # mean error


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedProfile:
    """A profile and the errors of its kernel times (without server time) against the measured ones."""

    profile: EngineProfile
    mape_decode: float  # mean absolute relative error over the decode-only batches
    mape_mixed: float  # the same over the batches with prefill
    by_chunk: Mapping[int, FitError]  # by prompt tokens in the batch, ascending; 0 = decode-only


def fit_profile(
    folder: Path,
    *,
    layers: int,
    kv_tokens: int,
    kv_bytes_per_token: int,
    server_mixed_ms: float = SERVER_MIXED_MS,
    **limits: Unpack[EngineLimits],
) -> FittedProfile:
    """Fit ``EngineProfile``'s coefficients to the layer files in ``folder``.

    Least squares in milliseconds with coefficients >= 0, in two stages. First c0, b, c on the decode-only batches, where an
    engine spends most of its iterations. Then c0_mixed, a, q, c_mixed and the hinge n0 (best of 0, 16 .. 512) on those with
    prefill. The errors are absolute: a run's latency is a sum of iteration times, so an error counts by its time. Besides, most
    rows of the files are small chunks. Only batches that the KV capacity can hold are fitted.

    Args:
        folder: holds the layer files (see ``rllib_envs.profiles.measurements``).
        layers: decoder layers of the model (Llama-3.1-8B: 32), >= 1.
        kv_tokens: KV capacity as the engine reports it, tokens.
        kv_bytes_per_token: 2 * layers * KV heads * head size * bytes of a number.
        server_mixed_ms: server time of an iteration with prefill beyond its kernels; 0 = the profile has kernel times.
        limits: further fields of the profile; those not given keep its defaults.

    Raises:
        InputError: a file is missing or wrong, the batches do not determine the coefficients, or the profile would be that of an
            impossible engine.
    """
    kinds = _fitted_batches(folder, layers, kv_tokens)
    return _fitted(f"{folder}: attention.csv", kinds, kv_tokens, kv_bytes_per_token, server_mixed_ms, limits)


def fit_batches(
    batches: Batches, where: str, *, kv_tokens: int, kv_bytes_per_token: int, **limits: Unpack[EngineLimits]
) -> tuple[FittedProfile, HeldOut]:
    """Fit the coefficients, as ``fit_profile`` does, to the iterations of a running server, and predict each by a fit to others.

    Iterations that took far longer than a first fit says are left out: the machine had something else to do.

    Args:
        batches: with their times, those of the server included.
        where: where they were read, for messages.
        kv_tokens: KV capacity, tokens.
        kv_bytes_per_token: bytes.
        limits: further fields of the profile.

    Raises:
        InputError: the batches do not determine the coefficients, or the profile would be that of an impossible engine.
    """
    decode, mixed = _subset(batches, batches.chunk == 0), _subset(batches, batches.chunk > 0)
    for name, part in (("decode-only", decode), ("mixed", mixed)):
        if part.ms.size < _LEAST_BATCHES:
            raise InputError(f"{where}: {part.ms.size} {name} iterations: at least {_LEAST_BATCHES} are needed")
    kinds = _without_hiccups(where, decode, mixed)
    return _fitted(where, kinds, kv_tokens, kv_bytes_per_token, 0.0, limits), _held_out(where, kinds)


def _without_hiccups(where: str, decode: Batches, mixed: Batches) -> tuple[Batches, Batches]:
    """The batches but for those that a fit to all finds too slow by many times the usual error."""
    decode_ms, hinge = _coefficients(where, decode, mixed)
    kept: list[Batches] = []
    for batches, fitted_ms in ((decode, _decode_terms(decode) @ decode_ms), (mixed, _mixed_ms(mixed, decode_ms, hinge))):
        late_ms = batches.ms - fitted_ms
        usual_ms = float(np.median(np.abs(late_ms)))
        kept.append(_subset(batches, late_ms <= _HICCUP * usual_ms + 1e-6 * batches.ms))
    return kept[0], kept[1]


def _fitted(
    where: str,
    kinds: tuple[Batches, Batches],
    kv_tokens: int,
    kv_bytes_per_token: int,
    server_mixed_ms: float,
    limits: EngineLimits,
) -> FittedProfile:
    decode, mixed = kinds
    decode_ms, best = _coefficients(where, decode, mixed)
    c0, b, c = decode_ms.tolist()
    c0_mixed, a, q, c_mixed = best[1].tolist()
    try:
        profile = EngineProfile(
            c0_ms=c0,
            b_ms=b,
            c_ms=c,
            a_ms=a,
            n0_tokens=best[0],
            q_ms=q,
            c_mixed_ms=c_mixed,
            c0_mixed_ms=c0_mixed + server_mixed_ms,
            kv_tokens=kv_tokens,
            kv_bytes_per_token=kv_bytes_per_token,
            **limits,
        )
    except ValueError as error:
        raise InputError(f"profile fitted to {where.removesuffix(': attention.csv')}: {error}") from None
    decode_errors = _decode_terms(decode) @ decode_ms / decode.ms - 1
    mixed_errors = _mixed_ms(mixed, decode_ms, best) / mixed.ms - 1
    return FittedProfile(
        profile=profile,
        mape_decode=_fit_error(decode_errors).mape,
        mape_mixed=_fit_error(mixed_errors).mape,
        by_chunk={0: _fit_error(decode_errors)} | _errors_by_chunk(mixed.chunk, mixed_errors),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """The fitted batches, each predicted by a fit to others; arrays (M,)."""

    chunk: Floats  # new prompt tokens; 0 = decode only
    measured_ms: Floats  # iteration time
    fitted_ms: Floats  # by a fit without this batch

    @property
    def by_chunk(self) -> dict[int, FitError]:
        """Errors by prompt tokens in the batch, ascending; 0 = decode-only."""
        return _errors_by_chunk(self.chunk, self.fitted_ms / self.measured_ms - 1)


def held_out(folder: Path, *, layers: int, kv_tokens: int) -> HeldOut:
    """Predict a fifth of the batches at a time by a fit to the others, until all are predicted. The parts are drawn at random.

    Args:
        folder: as for ``fit_profile``, and so are the next two.
        layers: decoder layers of the model.
        kv_tokens: KV capacity, tokens.

    Raises:
        InputError: as for ``fit_profile``; a batch that a fit leaves out may be needed to tell two coefficients apart.
    """
    return _held_out(f"{folder}: attention.csv", _fitted_batches(folder, layers, kv_tokens))


def _held_out(where: str, kinds: tuple[Batches, Batches]) -> HeldOut:
    rng = np.random.default_rng(0)
    folds = [rng.permutation(batches.ms.size) % _FOLDS for batches in kinds]
    priced = [np.empty(batches.ms.size) for batches in kinds]
    for fold in range(_FOLDS):
        decode, mixed = (_subset(batches, of != fold) for batches, of in zip(kinds, folds, strict=True))
        decode_ms, hinge = _coefficients(where, decode, mixed)
        out = [of == fold for of in folds]
        priced[0][out[0]] = _decode_terms(_subset(kinds[0], out[0])) @ decode_ms
        priced[1][out[1]] = _mixed_ms(_subset(kinds[1], out[1]), decode_ms, hinge)
    return HeldOut(
        chunk=np.concatenate([batches.chunk for batches in kinds]),
        measured_ms=np.concatenate([batches.ms for batches in kinds]),
        fitted_ms=np.concatenate(priced),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunErrors:
    """Relative errors (simulated / measured - 1) of a run's requests; arrays (R,)."""

    e2e: Floats  # arrival to last token
    ttft: Floats  # arrival to first token
    tpot: Floats  # mean time between tokens; NaN where all tokens came at once


def compare_run(run: MeasuredRun, first_token_s: Floats, finish_s: Floats) -> RunErrors:
    """Compare simulated times, (R,) each, in s from the first arrival, with the measured ones."""
    decode_s = run.last_token_s - run.first_token_s
    measured_decode_s = np.where((run.output_tokens > 1) & (decode_s > 0), decode_s, np.nan)
    return RunErrors(
        e2e=(finish_s - run.arrival_s) / (run.last_token_s - run.arrival_s) - 1,
        ttft=(first_token_s - run.arrival_s) / (run.first_token_s - run.arrival_s) - 1,
        tpot=(finish_s - first_token_s) / measured_decode_s - 1,
    )


_Hinge = tuple[int, Floats]  # n0, and c0_mixed, a, q and c_mixed


def _fitted_batches(folder: Path, layers: int, kv_tokens: int) -> tuple[Batches, Batches]:
    """The decode-only and the mixed batches for a fit."""
    every = measured_batches(folder, layers=layers)
    fits = every.context + every.cached + every.chunk <= kv_tokens
    short = (every.context <= MAX_CONTEXT_TOKENS * every.decodes) & (every.cached <= MAX_CONTEXT_TOKENS)
    decode = _subset(every, fits & short & (every.chunk == 0))
    mixed = _subset(every, fits & short & (every.chunk > 0))
    for name, batches in (("decode-only", decode), ("mixed", mixed)):
        if batches.ms.size < 3:
            raise InputError(f"{folder}: kv_tokens = {kv_tokens}: {batches.ms.size} {name} batches fit, at least 3 are needed")
        _check_times(folder, name, batches)
    return decode, mixed


def _coefficients(where: str, decode: Batches, mixed: Batches) -> tuple[Floats, _Hinge]:
    """c0, b and c, and the best hinge with its coefficients."""
    decode_ms = _nonnegative_fit(_decode_terms(decode), decode.ms)
    if decode_ms is None:
        raise InputError(_too_few(where, "decode-only", decode, ("n_decode", "kv_decode"), "c0, b and c"))
    rest = _decode_terms(mixed) @ decode_ms
    hinges = [
        (n0, fit) for n0 in range(0, 513, 16) if (fit := _nonnegative_fit(_prefill_terms(mixed, n0), mixed.ms - rest)) is not None
    ]
    if not hinges:
        raise InputError(
            _too_few(where, "mixed", mixed, ("prefill_chunk", "n_decode", "kv_decode"), "c0_mixed, a, q and c_mixed")
        )
    return decode_ms, min(hinges, key=lambda hinge: float(np.sum((_mixed_ms(mixed, decode_ms, hinge) - mixed.ms) ** 2)))


def _mixed_ms(mixed: Batches, decode_ms: Floats, hinge: _Hinge) -> Floats:
    return _decode_terms(mixed) @ decode_ms + _prefill_terms(mixed, hinge[0]) @ hinge[1]


def _errors_by_chunk(chunk: Floats, errors: Floats) -> dict[int, FitError]:
    return {int(size): _fit_error(errors[chunk == size]) for size in np.unique(chunk)}


def _decode_terms(batches: Batches) -> Floats:
    return np.column_stack([np.ones_like(batches.ms), batches.decodes, batches.context])


def _prefill_terms(batches: Batches, n0: int) -> Floats:
    beyond = np.maximum(0.0, batches.chunk + batches.decodes - n0)
    pairs = batches.chunk * (batches.cached + batches.chunk / 2)
    return np.column_stack([np.ones_like(batches.ms), beyond, pairs, batches.context])


def _subset(batches: Batches, mask: NDArray[np.bool_]) -> Batches:
    return Batches(**{field.name: getattr(batches, field.name)[mask] for field in fields(Batches)})


def _check_times(folder: Path, name: str, batches: Batches) -> None:
    least, most = _PLAUSIBLE_MS
    for ms in (batches.ms.min(), batches.ms.max()):
        if not least <= ms <= most:
            raise InputError(
                f"{folder}: time_us: a {name} batch takes {ms:.3g} ms, must be from {least} to {most:.0f}: "
                "are the times microseconds?"
            )


def _nonnegative_fit(terms: Floats, ms: Floats) -> Floats | None:
    """Coefficients >= 0 with the least squared error of ``terms @ coefficients``; None if the batches do not determine them."""
    scale = terms.max(axis=0)
    if not (scale > 0).all() or np.linalg.matrix_rank(terms / scale) < terms.shape[1]:
        return None
    solution: Floats = nnls(terms / scale, ms)[0] / scale  # the solver needs columns of similar size
    return solution


def _too_few(where: str, name: str, batches: Batches, columns: tuple[str, ...], coefficients: str) -> str:
    context = batches.context / np.maximum(batches.decodes, 1)
    values = {"prefill_chunk": batches.chunk, "n_decode": batches.decodes, "kv_decode": context}
    sizes = ", ".join(f"{np.unique(values[column]).size} of {column} (at most {values[column].max():g})" for column in columns)
    return (
        f"{where}: the {name} batches do not tell {coefficients} apart: they have {sizes} different values; "
        "two or more above 0 of each are needed"
    )


def _fit_error(errors: Floats) -> FitError:
    return FitError(mape=float(np.mean(np.abs(errors))), bias=float(np.mean(errors)))
