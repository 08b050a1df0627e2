"""The router as an RLModule with a value function, for any policy-gradient algorithm of RLlib."""

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

    ``model_config`` may hold ``router``, the fields of its ``RouterSpec``, and ``temperature``, in QoS. The default
    router starts from the what-if results if observations hold them. Other keys are RLlib's.

    Attributes:
        router: the acting network.
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
        self.value = StateValue(hidden=max(self.router.spec.hidden, 1), embedding=self.embedding)
        self.action_dist_cls = MaskedCategorical

    @property
    def embedding(self) -> int:
        """Width of the encoder's embedding for the value function; 0 for none."""
        return 0

    def router_to_serve(self) -> Router:
        """The router to export."""
        return self.router

    def get_non_inference_attributes(self) -> list[str]:
        """Attributes that rollout workers do not need."""
        return ["value"]

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """(B,) values of the observed states."""
        return self.value(read_columns(batch[Columns.OBS]))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.router(batch[Columns.OBS]) / self.temperature}


class BaselineModule(RouterModule):
    """A ``RouterModule`` with an action-independent baseline, for PPO and AVL."""

    def setup(self) -> None:
        """Build the networks."""
        super().setup()
        self.baseline = ActionIndependentBaseline(columns=self.router.spec.request_columns)

    def get_non_inference_attributes(self) -> list[str]:
        """What rollout workers do without."""
        return [*super().get_non_inference_attributes(), "baseline"]
