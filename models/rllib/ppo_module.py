"""Router, critic and baseline of PPO as RLlib sees them."""

from __future__ import annotations

from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from models.critic import StateValue, UsualQuality
from models.rllib.build import build_router
from models.rllib.distribution import MaskedCategorical
from models.router import Router


class PPOModule(TorchRLModule, InferenceOnlyAPI):
    """A ``Router`` that acts by softmax(score / temperature), and what it learns from; they share nothing but their input.

    ``model_config``: ``router``, the fields of its ``RouterSpec``, and ``temperature``, in QoS.
    """

    def setup(self) -> None:
        """Build the networks."""
        self.router = build_router(self.model_config, self.observation_space)
        self.temperature: float = self.model_config["temperature"]
        self.value = StateValue(hidden=self.router.spec.hidden)
        self.usual = UsualQuality()
        self.action_dist_cls = MaskedCategorical

    @property
    def served(self) -> Router:
        """The router to serve."""
        return self.router

    def get_non_inference_attributes(self) -> list[str]:
        """What rollout workers do without."""
        return ["value", "usual"]

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.router(batch[Columns.OBS]) / self.temperature}
