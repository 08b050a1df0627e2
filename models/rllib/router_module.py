"""The router as an RLModule, with a value of the state beside it: what any policy gradient of RLlib learns from."""

from __future__ import annotations

from typing import Any

from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from models.critic import ActionIndependentBaseline, StateValue
from models.features import read_columns
from models.rllib.build import build_router
from models.rllib.distribution import MaskedCategorical
from models.router import Router

TEMPERATURE = 0.015
"""QoS that a difference of 1 in the logits stands for, where ``model_config`` does not say."""


class RouterModule(TorchRLModule, InferenceOnlyAPI, ValueFunctionAPI):
    """A ``Router`` that acts by softmax(score / temperature), and a ``StateValue``; they share nothing but their input.

    ``model_config`` may hold ``router``, the fields of its ``RouterSpec``, and ``temperature``, in QoS. Without, the router is
    the usual one, which begins with the what-if results where observations hold them. Whatever else is there is RLlib's.

    Attributes:
        router: what acts.
        temperature: QoS that a difference of 1 in the logits stands for.

    Shapes:
        - ``Columns.OBS``: as ``EdgeRoutingEnv`` describes it, with a leading batch axis B
        - ``Columns.ACTION_DIST_INPUTS``: (B, N + 1), so low where the action is not possible that its probability is 0

    Example:
        >>> config = PPOConfig().rl_module(rl_module_spec=RLModuleSpec(module_class=RouterModule))
    """

    def setup(self) -> None:
        """Build the networks."""
        self.router = build_router(self.model_config, self.observation_space)
        self.temperature: float = self.model_config.get("temperature", TEMPERATURE)
        self.value = StateValue(hidden=self.router.spec.hidden, embedding=self.embedding)
        self.action_dist_cls = MaskedCategorical

    @property
    def embedding(self) -> int:
        """Width of the encoder's embedding that the state's value is given; 0 for none."""
        return 0

    def router_to_serve(self) -> Router:
        """What training has come to."""
        return self.router

    def get_non_inference_attributes(self) -> list[str]:
        """What rollout workers do without."""
        return ["value"]

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """(B,) values of the states that are observed."""
        return self.value(read_columns(batch[Columns.OBS]))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.router(batch[Columns.OBS]) / self.temperature}


class BaselineModule(RouterModule):
    """A ``RouterModule`` with a baseline that no action has an influence on: what PPO and AVL learn from."""

    def setup(self) -> None:
        """Build the networks."""
        super().setup()
        self.baseline = ActionIndependentBaseline()

    def get_non_inference_attributes(self) -> list[str]:
        """What rollout workers do without."""
        return [*super().get_non_inference_attributes(), "baseline"]
