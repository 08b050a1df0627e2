"""What a gateway knows of a request when it decides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Bounds of a single request, in place of those of its service class; None: not given."""

    per_token_s: float | None = None  # (finish - arrival) / output tokens
    ttft_s: float | None = None  # first token - arrival
    tpot_s: float | None = None  # (finish - first token) / (output tokens - 1)
    e2e_s: float | None = None  # finish - arrival

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return self != _NONE


_NONE = Budgets()


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """A request to route."""

    prompt_tokens: int | tuple[int, ...]  # >= 1; or a number for each expert, whose tokenizers differ
    max_tokens: int | None = None  # most output tokens; None: no limit of its own
    text: str = ""  # of the prompt, for predictors
    service: int = 0  # index of its service class in the scenario
    tenant: str = ""  # name of its tenant in the scenario; "": nobody's
    allowed: tuple[bool, ...] | None = None  # experts that it may go to, beyond what class and tenant say; None: all
    pinned: int | None = None  # the expert that it asks for by name
    budgets: Budgets = _NONE
    streams: bool = True  # whether its tokens are seen one by one; else all at the end

    def prompt_at(self, expert: int) -> int:
        """Its prompt tokens at an expert."""
        return self.prompt_tokens if isinstance(self.prompt_tokens, int) else self.prompt_tokens[expert]
