"""The learner of DQN: its losses, and one optimizer step on them."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from torch import Tensor
from torch.nn import functional

from models.rllib.dqn.module import BASELINE, NEXT_Q, NEXT_TARGET_Q, DQNModule, Q
from models.rllib.learning.column_learner import ColumnLearner
from models.rllib.learning.replay import DT_S


class DQNLearner(ColumnLearner):
    """Double Q-learning (van Hasselt et al., arXiv 1509.06461) on what rewards are above an action-independent baseline.

    - The target network gives the value of the action that the other one thinks the best of the possible ones.
    - The baseline learns to predict rewards. No decision changes it, so subtracting it changes no optimum; without it, values
      would be hundreds of requests' QoS, and differences of actions are hundredths of one.
    - Discount ``gamma * exp(-beta * dt)``: steps differ in length.
    - The slow copies follow after every optimizer step.
    """

    MOST_GRADIENT = 1.0

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One optimizer: the losses are differentiated together."""
        params = [p for p in self.module[module_id].parameters() if p.requires_grad]  # pyright: ignore
        optimizer = torch.optim.Adam(params)
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=params, lr_or_lr_schedule=config.lr)

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]) -> Tensor:
        """Sum of the losses of values and baseline.

        Raises:
            FloatingPointError: one of them is not finite.
        """
        rewards, baseline = batch[Columns.REWARDS], fwd_out[BASELINE]
        taken = fwd_out[Q].gather(-1, batch[Columns.ACTIONS].long().unsqueeze(-1)).squeeze(-1)
        above = rewards - baseline.detach()
        target = double_q_target(batch, above, fwd_out[NEXT_Q], fwd_out[NEXT_TARGET_Q], gamma=config.gamma, beta=config.beta)
        losses = {"q": functional.huber_loss(taken, target), "baseline": functional.mse_loss(baseline, rewards)}
        return self.add_up(module_id, losses, {"q_mean": taken.detach().mean(), "reward_above_baseline": above.mean()})

    def set_exploration(self, *, epsilon: float, guidance: float) -> None:
        """Set the shares of exploration, which go to the workers with the weights."""
        module: DQNModule = self.module[DEFAULT_MODULE_ID].unwrapped()  # pyright: ignore[reportAssignmentType]
        module.set_exploration(epsilon, guidance)


def double_q_target(
    batch: dict[str, Any], rewards: Tensor, next_values: Tensor, next_target: Tensor, *, gamma: float, beta: float
) -> Tensor:
    """(B,) ``r + gamma exp(-beta dt) (1 - terminated) Q'(s', argmax_a Q(s', a))``, no gradient.

    Args:
        batch: with the times to the next decision, and whether the episode ended.
        rewards: (B,) of the decisions.
        next_values: (B, N + 1) action values Q of the next observation, far below all others where an action is not possible.
        next_target: (B, N + 1) the same by the target network, Q'.
        gamma: discount of a step.
        beta: discount rate of time, 1/s.
    """
    after = next_target.gather(-1, next_values.argmax(dim=-1, keepdim=True)).squeeze(-1)
    discount = gamma * torch.exp(-beta * batch[DT_S]) * (1 - batch[Columns.TERMINATEDS].float())
    return (rewards + discount * after).detach()
