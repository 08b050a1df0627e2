"""The per-expert router as RLlib sees it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.distribution import Distribution
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from models.per_expert import PerExpertPolicy, PerExpertValue, expert_features


class MaskedCategorical(TorchCategorical):
    """A categorical distribution over finite logits, some of them so low that their probability is 0.

    The stock divergence is infinite as soon as one tiny probability underflows to 0; this one stays finite.
    """

    def kl(self, other: Distribution) -> Tensor:
        """KL(self || other) of each row."""
        p, q = self._dist, other._dist  # pyright: ignore[reportAttributeAccessIssue]
        return (p.probs * (p.logits - q.logits)).sum(dim=-1)


class PerExpertPPOModule(TorchRLModule, ValueFunctionAPI, InferenceOnlyAPI):
    """``PerExpertPolicy`` and ``PerExpertValue``, which share nothing but their input.

    ``model_config``: ``hidden`` and ``temperature``. Whether there are what-if results is read off the observation space, a Dict
    that arrives here un-flattened.
    """

    def setup(self) -> None:
        """Build the two networks."""
        assert isinstance(self.observation_space, gym.spaces.Dict)
        whatif = "whatif" in self.observation_space.spaces
        hidden = self.model_config["hidden"]
        self.policy = PerExpertPolicy(whatif=whatif, hidden=hidden, temperature=self.model_config["temperature"])
        self.value = PerExpertValue(whatif=whatif, hidden=hidden)
        self.action_dist_cls = MaskedCategorical

    def get_non_inference_attributes(self) -> list[str]:
        """What rollout workers do without."""
        return ["value"]

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(batch[Columns.OBS])}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        observation = batch[Columns.OBS]
        features = expert_features(observation)
        return {Columns.ACTION_DIST_INPUTS: self.policy.logits(observation, features), Columns.EMBEDDINGS: features}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """(B,) values; ``embeddings`` are the expert features, where the caller has them already."""
        return self.value(expert_features(batch[Columns.OBS]) if embeddings is None else embeddings)
