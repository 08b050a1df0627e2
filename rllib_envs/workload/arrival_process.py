"""An arrival process: a function, the fields of a scenario's ``arrivals`` that it reads, and its results.

``rllib_envs.workload.arrival_processes`` has the built-in ones. This module does not depend on scenarios.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_envs.signatures import REQUIRED, keywords
from rllib_envs.workload.given_classes import GivenClasses
from rllib_envs.workload.lengths import GivenLengths

Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArrivalBatch:
    """The arrivals of an episode."""

    arrival_s: Times  # (n,) ascending (equal times may repeat), seconds from the start of the episode, >= 0
    prompt_tokens: NDArray[np.int32] | None  # (n,) >= 1, if the process has its own prompt lengths
    lengths: GivenLengths | None = None  # of the n answers, if the process has them and ``Arrivals.lengths`` asks for them
    classes: GivenClasses | None = None  # of the n requests, if the process has them


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalProcess:
    """An arrival process and its metadata."""

    draw: Callable[..., Times | ArrivalBatch]
    own_rate_rps: float | None  # its rate if none is given; None: it has none
    brings_prompts: bool  # whether it returns an ``ArrivalBatch`` with prompts
    fields: tuple[str, ...]  # fields of ``Arrivals`` that it reads
    parameters: dict[str, float]  # its other parameters with their defaults, given as ``Arrivals.parameters``

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of all its parameters, fields of ``Arrivals`` or not."""
        return (*(name for name in self.fields if name != "lengths"), *self.parameters)

    def __call__(self, rate_rps: float, n: int, rng: np.random.Generator, **values: Any) -> ArrivalBatch:
        """Draw n arrivals of mean rate ``rate_rps``, requests/s."""
        drawn = self.draw(rate_rps, n, rng, **values)
        return drawn if isinstance(drawn, ArrivalBatch) else ArrivalBatch(arrival_s=drawn, prompt_tokens=None)


def arrival_process(
    *, own_rate_rps: float | None = None, brings_prompts: bool = False
) -> Callable[[Callable[..., Times | ArrivalBatch]], ArrivalProcess]:
    """Make an arrival process of a function of (rate_rps, n, rng) and keyword-only values.

    The function returns n ascending times in seconds, or an ``ArrivalBatch``. A keyword without a default is a field of
    ``Arrivals``. One with a default is a parameter of its own, which a user sets in ``Arrivals.parameters``.

    Args:
        own_rate_rps: rate of the process if none is given, requests/s.
        brings_prompts: whether its batches have prompts.

    Raises:
        TypeError: the function has other arguments.
    """

    def make(function: Callable[..., Times | ArrivalBatch]) -> ArrivalProcess:
        values = keywords(function, ("rate_rps", "n", "rng"))
        return ArrivalProcess(
            draw=function,
            own_rate_rps=own_rate_rps,
            brings_prompts=brings_prompts,
            fields=tuple(name for name, default in values.items() if default is REQUIRED),
            parameters={name: default for name, default in values.items() if default is not REQUIRED},
        )

    return make
