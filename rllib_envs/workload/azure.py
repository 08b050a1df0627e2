"""Requests similar to those of the Azure LLM inference traces of 2023: prompt lengths, and output lengths given the prompt.

Both are interpolated quantiles. ``python -m benchmarks.fit_azure FILE_CONV FILE_CODE`` (docs/data.md) prints them again, and the
fit against the trace. Conversation outputs depend on the prompt, though the correlation is low. Short ones follow prompts of 372
to 710 tokens, long ones those of 984 to 1,190. So there are quantiles for each of twelve ranges of prompts. Code outputs do not
depend on the prompt.

=================================  =============  ===========
200,000 draws (trace)               conversation         code
=================================  =============  ===========
mean output, tokens                209.4 (211.1)  28.4 (27.9)
median output, tokens                  130 (129)      13 (13)
standard deviation, tokens         163.0 (162.9)  59.7 (59.9)
rank correlation with the prompt       .09 (.07)   .00 (-.02)
largest difference in probability           .027         .016
=================================  =============  ===========
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.workload.lengths import GivenLengths, given_lengths

AzureKind = Literal["azure-conversation", "azure-code"]

# Quantiles of the traces' prompt tokens; many prompts of the code trace are cut at 7,437.
_PROMPT_LEVELS = (0, 0.01, 0.02, *(round(0.05 * step, 2) for step in range(1, 20)), 0.98, 0.99, 0.995, 0.999, 1)
_PROMPT_QUANTILES: dict[AzureKind, tuple[int, ...]] = {
    "azure-conversation": (
        *(2, 29, 91, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189, 1315, 1876, 2735, 4083),
        *(4098, 4142, 4831, 6179, 14050),
    ),
    "azure-code": (
        *(3, 17, 35, 75, 147, 232, 386, 578, 770, 939, 1075, 1261, 1469, 1690, 1909, 2164, 2433, 2745, 3192, 3920, 5188, 7303),
        *(7436, 7436, 7436, 7437, 7437),
    ),
}


class OutputFit(NamedTuple):
    """Quantiles of the output tokens by prompt tokens."""

    edges: tuple[int, ...]  # R - 1: a range of prompts begins at each; the first range begins at 1
    levels: tuple[float, ...]  # Q, from 0 to 1
    quantiles: tuple[tuple[int, ...], ...]  # R rows of Q


OUTPUT_FITS: dict[AzureKind, OutputFit] = {
    "azure-conversation": OutputFit(
        edges=(181, 207, 372, 387, 415, 710, 984, 1190, 1316, 1877, 2735),
        levels=(0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1),
        quantiles=(
            (11, 12, 12, 12, 77, 140, 175, 205, 217, 231, 251, 265),
            (47, 54, 75, 91, 123, 165, 204, 217, 223, 333, 1000, 1000),
            (14, 14, 14, 18, 18, 80, 152, 188, 217, 220, 318, 436),
            (7, 32, 48, 53, 63, 74, 87, 99, 111, 144, 176, 189),
            (24, 54, 74, 81, 89, 97, 111, 134, 147, 174, 200, 200),
            (31, 46, 64, 78, 87, 96, 111, 136, 158, 328, 652, 739),
            (10, 31, 45, 64, 89, 157, 403, 431, 465, 596, 684, 921),
            (28, 50, 120, 375, 393, 405, 428, 486, 553, 658, 992, 1004),
            (26, 42, 56, 81, 148, 207, 402, 428, 465, 619, 939, 954),
            (24, 37, 47, 52, 75, 107, 165, 231, 375, 483, 721, 918),
            (15, 28, 41, 48, 66, 88, 115, 146, 164, 201, 305, 458),
            (17, 26, 30, 35, 43, 58, 87, 132, 154, 256, 671, 800),
        ),
    ),
    "azure-code": OutputFit(
        edges=(),
        levels=(
            *(0, 0.05, 0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95),
            *(0.965, 0.98, 0.985, 0.99, 0.993, 0.996, 0.998, 0.999, 0.9995, 1),
        ),
        quantiles=((6, 6, 9, 11, 13, 16, 20, 29, 39, 55, 72, 90, 115, 171, 201, 251, 296, 401, 670, 825, 885, 1340),),
    ),
}
_LAW_DRAWS = 20_000


def azure_prompt_tokens(kind: AzureKind, n: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """Prompt tokens (n,) as in the Azure trace of that kind, by interpolation of 27 quantiles (within 0.04 in probability)."""
    return np.rint(np.interp(rng.random(n), _PROMPT_LEVELS, _PROMPT_QUANTILES[kind])).astype(np.int32)


def azure_lengths(kind: AzureKind, prompt_tokens: NDArray[np.integer[Any]], rng: np.random.Generator) -> GivenLengths:
    """Output lengths (n,) for prompts (n,) as in the Azure trace of that kind (fit and errors: see the module)."""
    return GivenLengths(tokens=_output_tokens(kind, prompt_tokens, rng), law=_law(kind))


def _output_tokens(kind: AzureKind, prompt_tokens: NDArray[np.integer[Any]], rng: np.random.Generator) -> NDArray[np.int32]:
    fit = OUTPUT_FITS[kind]
    # All ranges in one interpolation: range r lies between r and r + 1.
    grid = np.add.outer(np.arange(len(fit.quantiles)), fit.levels).ravel()
    place = np.searchsorted(fit.edges, prompt_tokens, "right") + rng.random(prompt_tokens.size)
    return np.rint(np.interp(place, grid, np.ravel(fit.quantiles))).astype(np.int32)


@lru_cache(maxsize=2)
def _law(kind: AzureKind) -> NDArray[np.int32]:
    """The marginal law as a large fixed sample."""
    rng = np.random.default_rng(0)
    return given_lengths(_output_tokens(kind, azure_prompt_tokens(kind, _LAW_DRAWS, rng), rng)).law
