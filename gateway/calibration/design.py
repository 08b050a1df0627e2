"""The load that tells an engine's coefficients apart: requests alone, batches at once, and random arrivals.

Requests alone show what a prompt costs, batches what each further sequence costs. Random arrivals mix prefill with decoding, as
traffic does. The engine is idle between two waves, so what one wave gets wrong does not pass on.

A batch comes while one short request is decoding. All of it then joins the same iteration. At an idle engine the first of them
would start alone or not, by a race of less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rllib_envs.profiles.replay import Floats, replay_requests
from rllib_envs.sim.profile import EngineProfile

SOLO_PROMPTS = (32, 64, 128, 256, 512, 900, 1300, 1800)
BATCHES = (4, 8, 12, 16)
BATCH_PROMPTS = (64, 128, 256, 512)
RANDOM_WAVES, RANDOM_REQUESTS = 6, 15

_LEADER, _LEADER_STEPS = (16, 24), 6.5  # prompt and output of the request that a batch joins, and when it does
_SOLO_OUTPUT, _BATCH_OUTPUT, _RANDOM_OUTPUT = 24, 32, (8, 64)
_PRESENT = 4.0  # requests present at a time under random arrivals, about
_FIRST = ("solo-32", "batch-4x64", "random-0", "solo-512", "batch-8x256", "random-1", "batch-16x128", "solo-256", "random-2")

NEEDED = _FIRST[:3]
"""Waves that are sent however long they take: together they have enough requests for a fit."""


class Planned(NamedTuple):
    """A request of a wave."""

    after_s: float  # from the start of the wave
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Requests that are sent together, or at times of their own, to an idle engine."""

    name: str
    requests: tuple[Planned, ...]  # ascending in time
    expected_s: float  # how long it takes an engine like the first guess

    @property
    def tokens(self) -> int:
        """Prompt and output tokens of all its requests."""
        return sum(request.prompt_tokens + request.output_tokens for request in self.requests)


def probe_waves() -> list[Wave]:
    """A few requests alone, from which a first guess is made."""
    sizes = ((32, 8), (32, 24), (256, 8), (96, 24))
    return [
        Wave(name=f"probe-{i}", requests=(Planned(0.0, prompt, output),), expected_s=0.0)
        for i, (prompt, output) in enumerate(sizes)
    ]


def designed_load(guess: EngineProfile, *, seconds: float, tokens: int, seed: int = 0) -> list[Wave]:
    """The waves in the order in which they are sent: a few of each kind first, so that any beginning can be fitted.

    Args:
        guess: about the engine's speed, and its limits.
        seconds: waves that would take the load beyond it are left out, but for the first three: no fit is possible without.
        tokens: and so are those that would take it beyond so many tokens.
        seed: of the arrival times and sizes.
    """
    waves = sorted(_all_waves(guess, np.random.default_rng(seed)), key=lambda wave: _rank(wave.name))
    chosen: list[Wave] = []
    for wave in waves:
        if (wave.expected_s <= seconds or wave.name in NEEDED) and wave.tokens <= tokens:
            chosen.append(wave)
            seconds, tokens = seconds - wave.expected_s, tokens - wave.tokens
    return chosen


def _all_waves(guess: EngineProfile, rng: np.random.Generator) -> list[Wave]:
    longest = guess.max_model_len
    waves = [
        _wave(guess, f"solo-{prompt}", [Planned(0.0, prompt, _SOLO_OUTPUT)])
        for prompt in SOLO_PROMPTS
        if prompt + _SOLO_OUTPUT <= longest
    ]
    waves += [
        _batch_wave(guess, f"batch-{count}x{prompt}", count, prompt)
        for count in BATCHES
        for prompt in BATCH_PROMPTS
        if prompt + _BATCH_OUTPUT <= longest
    ]
    return waves + [_random_wave(guess, f"random-{i}", rng) for i in range(RANDOM_WAVES)]


def _batch_wave(guess: EngineProfile, name: str, count: int, prompt: int) -> Wave:
    """Equal requests at once, in the middle of an iteration of a request that is decoding."""
    first_s, end_s = _times_s(guess, [Planned(0.0, *_LEADER)])
    step_s = float(end_s[0] - first_s[0]) / (_LEADER[1] - 1)
    at_s = float(first_s[0]) + _LEADER_STEPS * step_s
    return _wave(guess, name, [Planned(0.0, *_LEADER), *[Planned(at_s, prompt, _BATCH_OUTPUT)] * count])


def _random_wave(guess: EngineProfile, name: str, rng: np.random.Generator) -> Wave:
    """Poisson arrivals with log-uniform prompts, at a rate that keeps some requests at the engine."""
    longest = min(512, guess.max_model_len - _RANDOM_OUTPUT[1])
    prompts = np.exp(rng.uniform(np.log(16), np.log(max(longest, 17)), RANDOM_REQUESTS)).astype(int)
    outputs = rng.integers(_RANDOM_OUTPUT[0], _RANDOM_OUTPUT[1] + 1, RANDOM_REQUESTS)
    gaps = rng.exponential(1.0, RANDOM_REQUESTS)
    alone = [Planned(1e4 * i, *size) for i, size in enumerate(zip(prompts.tolist(), outputs.tolist(), strict=True))]
    mean_s = float(np.mean(_times_s(guess, alone)[1] - [request.after_s for request in alone]))
    times = (np.cumsum(gaps) - gaps[0]) * mean_s / _PRESENT
    return _wave(guess, name, [Planned(*row) for row in zip(times.tolist(), prompts.tolist(), outputs.tolist(), strict=True)])


def _times_s(guess: EngineProfile, requests: Sequence[Planned]) -> tuple[Floats, Floats]:
    """Times of the first and the last token of each request, in s from the start of the wave."""
    after_s, prompts, outputs = (np.array(column) for column in zip(*requests, strict=True))
    times = replay_requests([guess], after_s, prompts, outputs)
    return times.first_token_s[0], times.finish_s[0]


def _wave(guess: EngineProfile, name: str, requests: list[Planned]) -> Wave:
    return Wave(name=name, requests=tuple(requests), expected_s=float(_times_s(guess, requests)[1].max()))


def _rank(name: str) -> tuple[int, int]:
    """Place of a wave: those of the beginning, then the others mixed, in an order that is the same each time."""
    if name in _FIRST:
        return 0, _FIRST.index(name)
    return 1, int(np.random.default_rng(list(name.encode())).integers(2**31))
