"""Where a request goes, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Refusal = Literal["dropped", "confined", "unavailable", "too_long", "full"]
"""Why a request goes nowhere.

- dropped: the policy gives its place to others, where the class allows that.
- confined: experts are there, but none that it may go to.
- unavailable: no expert that it may go to is ready, or has room.
- too_long: its prompt fits no expert that it may go to.
- full: the gateway has as many requests under way as it can keep account of.
"""

Fallback = Literal["outside", "error", "slow"]
"""Why the policy did not decide.

- outside: the cluster or its traffic is outside the training range of the bundle.
- error: the policy failed, or gave no such action.
- slow: the policy took too long several times in a row, and rests.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowChoice:
    """What another policy would have done in the same place. Nothing came of it."""

    policy: str
    version: str
    expert: int | None  # None: it would have dropped the request
    scores: tuple[float, ...] = ()  # as of a decision


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteDecision:
    """A decision for one request at N experts."""

    id: str  # key of the request in the ledger
    expert: int | None  # None: it goes nowhere
    reason: Refusal | None  # why it goes nowhere
    ranking: tuple[int, ...]  # the other experts that it may go to now, the best first: for retries
    policy: str  # who decided: the policy asked for, or the one of the fallback chain; "pinned": the request
    version: str  # of the policy
    fallback: Fallback | None  # why another policy than the one asked for decided
    scores: tuple[float, ...]  # (N + 1,) value of each expert and of a drop, as the policy takes it; () where it has none
    probability: float  # of this action under the policy
    predicted_score: tuple[float, ...] = ()  # (N,) quality of each expert's answer, in [0, 1]
    predicted_tokens: tuple[float, ...] = ()  # (N,) expected length of each expert's answer
    predicted_ttft_s: tuple[float, ...]  # (N,) time to the first token if it went there; NaN: not known
    predicted_tpot_s: tuple[float, ...]  # (N,) time per output token after the first; NaN likewise
    reasons: str  # in short, for a header
    decision_s: float  # time that the decision took
    shadow: ShadowChoice | None = None  # None: no policy decides beside the acting one, or it failed
