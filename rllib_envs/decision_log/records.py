"""The lines of a decision log. A file begins with the cluster that its lines are about, so it can be read alone.

A request's line is written when the request ends. Its numbers of experts are places in the scenario's list. What is not known,
as a prediction that nobody made, is null.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from rllib_envs.limits import CONFIG
from rllib_envs.scenario import Scenario

VERSION = 1
"""Of the format."""

PATTERN = "decisions-*.jsonl"
"""Names of the files."""

Text = Annotated[str, Field(max_length=1000)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Known = Annotated[float, Field(ge=0, le=1e12)] | None
Place = Annotated[int, Field(ge=0, le=255)]
Values = Annotated[tuple[Annotated[float, Field(ge=-1e12, le=1e12)] | None, ...], Field(max_length=257)]


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class LoggedStart:
    """The first line of a file, and the first after a reload."""

    kind: Literal["start"] = "start"
    version: Literal[1] = VERSION
    time: Annotated[float, Field(ge=0, le=1e12)]  # seconds since 1970
    scenario: Scenario  # the cluster: experts with their engine profiles, classes, tenants, service level


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class LoggedBounds:
    """What a request was promised; null: no such bound."""

    per_token_s: Known = None
    ttft_s: Known = None
    tpot_s: Known = None
    e2e_s: Known = None


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class LoggedShadow:
    """What another policy would have done."""

    policy: Text
    version: Text
    expert: Place | None  # null: drop
    scores: Values


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class LoggedOutcome:
    """What came of a request that went to an expert."""

    status: Text  # how it ended, ``gateway.server.exchange.Outcome``
    expert: Place  # that answered, or was asked last
    attempts: Count
    ttft_s: Known  # null: no stream, or no token
    tpot_s: Known
    e2e_s: Known
    prompt_tokens: Count | None  # as the engine counts them
    output_tokens: Count | None  # the same, else those that were seen to pass
    violates: bool  # whether it finished beyond a bound of its own


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class LoggedRequest:
    """A decision, and what came of it."""

    kind: Literal["request"] = "request"
    id: Text  # header x-request-id, for feedback
    time: Annotated[float, Field(ge=0, le=1e12)]  # of its arrival, seconds since 1970
    tenant: Text
    service: Text  # name of its class
    prompt_tokens: tuple[Count, ...]  # (N,) as estimated
    max_tokens: Count | None
    streams: bool
    pinned: bool  # whether it asked for an expert by name
    bounds: LoggedBounds
    candidates: tuple[Place, ...]  # experts that it could go to then
    policy: Text
    version: Text
    fallback: Text | None
    refusal: Text | None  # why it went nowhere
    expert: Place | None  # the decision
    predicted_score: Values  # (N,), as the next three
    predicted_tokens: Values  # with what was learned of lengths, within the request's limit
    predicted_ttft_s: Values
    predicted_tpot_s: Values
    scores: Values  # (N + 1,) the policy's; () where it has none
    probability: Annotated[float, Field(ge=0, le=1)] | None  # of the action under the policy
    decision_s: Known
    reasons: Text
    load: tuple[tuple[Count, Count, Count, float], ...]  # (N,) waiting, running, their prompt tokens, tokens to come; after it
    shadow: LoggedShadow | None
    outcome: LoggedOutcome | None  # null: it went nowhere
    text: str | None = None  # the prompt, where prompts are logged


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class LoggedFeedback:
    """How good an answer was, by whoever read it."""

    kind: Literal["feedback"] = "feedback"
    time: Annotated[float, Field(ge=0, le=1e12)]
    id: Text
    score: Annotated[float, Field(ge=0, le=1)]


LoggedLine = Annotated[LoggedStart | LoggedRequest | LoggedFeedback, Field(discriminator="kind")]
LINES: TypeAdapter[LoggedLine] = TypeAdapter(LoggedLine)


def start_line(scenario: Scenario, time_s: float) -> bytes:
    """The line that begins a file."""
    return line_of({"kind": "start", "version": VERSION, "time": time_s, "scenario": asdict(scenario)})


def feedback_line(identity: str, score: float, time_s: float) -> bytes:
    """The line of a feedback."""
    return line_of({"kind": "feedback", "time": time_s, "id": identity, "score": score})


def line_of(data: dict[str, Any]) -> bytes:
    """A line of these fields."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).encode() + b"\n"
