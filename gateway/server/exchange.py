"""The record of one completion: what was asked and decided, and what came of it. Metrics are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.decision import RouteDecision
from gateway.ledger import ExpertLoad
from gateway.request import Budgets, RouteRequest
from rllib_envs.service import ServiceClass

Outcome = Literal[
    "finished", "passed_on", "client_gone", "client_slow", "first_byte", "idle", "answer", "broken", "shutdown", "exhausted",
    "presumed",
]  # fmt: skip
"""How it ended.

- finished: the answer is complete.
- passed_on: the expert refused the request (a status of 4xx), which the client was told.
- client_gone, client_slow: the client left, or took nothing for too long.
- first_byte, idle, answer: the expert took too long, to begin, to go on, or for an answer that is no stream.
- broken: the stream broke after its first byte.
- shutdown: the gateway ended.
- presumed: whoever sent it to where the gateway said did not tell its end.
- exhausted: no expert that was tried answered.
"""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One completion. Times are seconds of the monotonic clock."""

    request_id: str
    arrived_s: float
    class_name: str
    bounds: Budgets  # what it is promised: its own bounds, else those of its class
    request: RouteRequest
    decision: RouteDecision
    expert: int  # that answers, or was asked last; of a request that went nowhere, none: -1
    load: tuple[ExpertLoad, ...] = ()  # what was under way at each expert once it was decided; () where nobody asks
    attempts: int = 1
    first_s: float | None = None  # first token; of an answer that is no stream, the answer
    ended_s: float | None = None
    tokens: int = 0  # that were seen to pass
    prompt_tokens: int | None = None  # as the expert counts them
    output_tokens: int | None = None
    outcome: Outcome | None = None  # None: under way

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token of a stream."""
        return None if self.first_s is None or not self.request.streams else self.first_s - self.arrived_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token of a stream after the first."""
        tokens = self.tokens if self.output_tokens is None else self.output_tokens
        if self.first_s is None or self.ended_s is None or tokens < 2 or not self.request.streams:
            return None
        return (self.ended_s - self.first_s) / (tokens - 1)

    @property
    def violates(self) -> bool:
        """Whether a finished one broke a bound that can be seen."""
        if self.ended_s is None:
            return False
        e2e_s = self.ended_s - self.arrived_s
        tokens = self.tokens if self.output_tokens is None else self.output_tokens
        seen = (
            (self.bounds.ttft_s, self.ttft_s),
            (self.bounds.tpot_s, self.tpot_s),
            (self.bounds.e2e_s, e2e_s),
            (self.bounds.per_token_s, e2e_s / max(tokens, 1)),
        )
        return any(bound is not None and value is not None and value > bound for bound, value in seen)


def promised(own: Budgets, service: ServiceClass | None, slo_s_per_token: float) -> Budgets:
    """The bounds of a request: its own in place of those of its class; the common one where there is none."""
    names = ("per_token_s", "ttft_s", "tpot_s", "e2e_s")
    given = {name: getattr(own, name) or (None if service is None else getattr(service, name)) for name in names}
    return Budgets(**given) if any(given.values()) else Budgets(per_token_s=slo_s_per_token)
