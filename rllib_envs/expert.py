"""An expert: one LLM on one GPU, with its engine, where it stands and what it costs."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from rllib_envs.limits import CONFIG, InnerShare, Name, NonNegative, Positive
from rllib_envs.sim.profile import EngineProfile


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Expert:
    """One LLM on one GPU."""

    name: Name
    model: str
    gpu: str
    params_b: Positive  # billions of parameters
    engine: EngineProfile
    mean_score: InnerShare  # mean quality of its answers over the catalogue
    mean_output_tokens: Annotated[float, Field(ge=2, le=1e9)]  # mean answer length over the catalogue
    labels: tuple[Name, ...] = ()  # where it stands and whose it is (a region, on-premises): to confine requests by
    site: Name | None = None  # where it stands, for the network
    idle_w: NonNegative = 0.0  # watts while it has no request; what is not known, or somebody else's, is 0
    active_w: NonNegative = 0.0  # watts while an iteration runs
    prompt_price: NonNegative = 0.0  # money per million prompt tokens, in any currency
    output_price: NonNegative = 0.0  # money per million output tokens

    @model_validator(mode="after")
    def _active_above_idle(self) -> Self:
        if self.active_w < self.idle_w:
            raise ValueError(f"active_w = {self.active_w} with idle_w = {self.idle_w}: must not be below it")
        return self
