"""Router, critic and baseline of PPO as RLlib sees them."""

from __future__ import annotations

from models.critic import UsualQuality
from models.rllib.router_module import RouterModule


class PPOModule(RouterModule):
    """A ``RouterModule`` with a baseline that no action has an influence on."""

    def setup(self) -> None:
        """Build the networks."""
        super().setup()
        self.usual = UsualQuality()

    def get_non_inference_attributes(self) -> list[str]:
        """What rollout workers do without."""
        return [*super().get_non_inference_attributes(), "usual"]
