"""The costs and limits of one engine: figures of an LLM on a GPU, and the iteration-time formula."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, get_args

BLOCK_TOKENS = 16
"""Tokens in a KV block, as in vLLM."""

Scheduling = Literal["fcfs", "priority"]
"""Whom an engine serves first: who came first, or who has the lowest priority number (vLLM's ``--scheduling-policy``)."""

_MS, _TOKENS = (0.0, 1e6), 2**30
_LIMITS: dict[str, tuple[float, float]] = {
    "c0_ms": (1e-3, 1e6), "b_ms": _MS, "c_ms": _MS, "a_ms": _MS, "q_ms": _MS, "c_mixed_ms": _MS, "c0_mixed_ms": _MS,
    "n0_tokens": (0, _TOKENS), "kv_tokens": (1, _TOKENS), "kv_bytes_per_token": (1, _TOKENS),
    "overhead": (0.1, 100), "handoff_s": (0.0, 60.0),
    "max_num_seqs": (1, 2**14), "max_num_batched_tokens": (1, _TOKENS), "max_model_len": (2, _TOKENS), "max_waiting": (1, 2**16),
}  # fmt: skip
"""The smallest and the largest value of each figure: far beyond any engine, and within the state's 32 bits."""

_TYPES: dict[str, tuple[str, Any]] = {
    "float": ("a number", Real),
    "int": ("an integer", Integral),
    "bool": ("true or false", bool),
    "Scheduling": (" or ".join(get_args(Scheduling)), str),
}


def within_limits(name: str, value: float) -> float:
    """Clip a figure to its range, so that a drawn fault gives a possible engine."""
    low, high = _LIMITS[name]
    return min(max(value, low), high)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """Cost model and limits of one engine (an LLM served on a GPU by a continuous-batching server).

    An iteration that decodes ``B`` sequences with ``C`` cached context tokens in all, and computes ``P`` new prompt
    tokens for sequences that already have ``kv_i`` of their tokens cached, takes ::

        T = overhead * (c0 + b*B + c*C + [P > 0] * (c0_mixed + a*max(0, P + B - n0) + q*sum_i P_i*(kv_i + P_i/2) + c_mixed*C))

    The hinge: up to ``n0`` tokens the transfer of the weights hides the arithmetic. The quadratic attention term is summed over
    the prompts of the batch. Attention kernels read the context of decoding sequences more slowly in a batch that also has
    prefill: ``c_mixed``, if it was measured. The fixed cost grows too: ``c0_mixed`` is other kernels, and server work that takes
    much the same time whatever the batch contains. Fitted to measured layer times, the formula is within 1-2 % on decode-only and
    3-6 % on mixed batches (``benchmarks/fidelity.py``).

    Raises:
        ValueError: a figure is not finite or outside the range in its comment.
    """

    c0_ms: float  # > 0: fixed cost of an iteration, ms (weights read once)
    b_ms: float  # >= 0: per decoding sequence, ms
    c_ms: float  # >= 0: per cached context token read by a decoding sequence, ms
    a_ms: float  # >= 0: per token beyond the hinge in a batch with prefill, ms
    n0_tokens: int  # >= 0: the hinge
    q_ms: float  # >= 0: attention within prefill, ms per token^2
    c_mixed_ms: float = 0.0  # >= 0: increase of c in an iteration with prefill, ms
    c0_mixed_ms: float = 0.0  # >= 0: increase of c0 in an iteration with prefill, ms
    kv_tokens: int  # > 0: KV capacity; floor(kv_tokens / 16) blocks, of which one is the server's null block
    kv_bytes_per_token: int  # > 0
    overhead: float = 1.0  # > 0: measured step time over kernel time; see rllib_envs/profiles/fit.py
    max_num_seqs: int = 256  # >= 1: most requests running at once
    max_num_batched_tokens: int = 2048  # >= max_num_seqs: token budget of an iteration
    max_model_len: int = 4096  # >= 2 and within the KV capacity: longest prompt + output
    max_waiting: int = 256  # >= 1: waiting requests at most; one more is rejected, and the router sees the expert masked
    reuse_preempted_blocks: bool = True  # a preempted request reuses its own blocks that no other has taken meanwhile
    async_scheduling: bool = True  # compose an iteration while the one before it begins, as vLLM V1 does by default
    handoff_s: float = 0.0  # >= 0: time from the router's decision to the engine's queue, s
    scheduling: Scheduling = "fcfs"  # priority: by the priority of the service class, then arrival

    def __post_init__(self) -> None:
        """Refuse impossible figures."""
        for field in fields(self):
            value: Any = getattr(self, field.name)
            allowed, kind = _TYPES[str(field.type)]
            if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
                raise ValueError(f"{field.name} = {value!r}: must be {allowed}")
            if isinstance(value, str):
                _require(self, field.name, value in get_args(Scheduling), f"must be {allowed}")
            if isinstance(value, (bool, str)):
                continue
            low, high = _LIMITS[field.name]
            _require(self, field.name, low <= value <= high, f"must be from {low:,} to {high:,}")
        _require(
            self,
            "max_num_batched_tokens",
            self.max_num_batched_tokens >= self.max_num_seqs,
            f"must be >= max_num_seqs = {self.max_num_seqs}: every running request needs one token of an iteration's budget",
        )
        _require(
            self,
            "kv_tokens",
            self.usable_blocks * BLOCK_TOKENS >= self.max_model_len,
            f"must hold the largest request: at least max_model_len = {self.max_model_len} tokens "
            f"in whole blocks of {BLOCK_TOKENS} beside the server's null block",
        )

    @property
    def usable_blocks(self) -> int:
        """KV blocks available to requests."""
        return self.kv_tokens // BLOCK_TOKENS - 1

    def iteration_s(self, decodes: int, context_tokens: int, prompts: tuple[tuple[int, int], ...] = ()) -> float:
        """Seconds of one iteration; ``prompts`` has (new tokens, tokens already cached) of each prompt in it."""
        ms = self.c0_ms + self.b_ms * decodes + self.c_ms * context_tokens
        new = sum(chunk for chunk, _ in prompts)
        if new:
            ms += self.c0_mixed_ms
            ms += self.a_ms * max(0, new + decodes - self.n0_tokens)
            ms += self.c_mixed_ms * context_tokens
            ms += self.q_ms * sum(chunk * (cached + chunk / 2) for chunk, cached in prompts)
        return ms * self.overhead * 1e-3


def _require(profile: EngineProfile, name: str, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {getattr(profile, name)}: {rule}")
