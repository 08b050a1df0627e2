"""The learner of discrete SAC: its losses, and one optimizer step on all of them."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from models.rllib.learning.column_learner import ColumnLearner
from models.rllib.learning.replay import DT_S, MARGINAL
from models.rllib.sac.module import IMPACT, NEXT_LOGITS, NEXT_TARGET_Q, TARGET_Q, Q, SACModule, with_drop

ACTOR, CRITIC, ALPHA = "actor", "critic", "alpha"
"""Names of the optimizers."""


class SACLearner(ColumnLearner):
    """Soft actor-critic for discrete actions (Christodoulou, arXiv 1910.07207), with these changes.

    - ``log_softmax`` of masked logits: the usual ``softmax().log()`` is NaN where an action is not possible.
    - The twins' mean instead of their minimum, which underestimates, and the clipped critic loss of arXiv 2209.10081.
    - A target entropy that is positive and can be reached: a share of the entropy of the uniform policy on the possible actions.
    - Critics learn alone in the first steps: an actor that begins well would be ruined by critics that know nothing.
    - Where the true marginal QoS of all actions is known, an estimator learns it for all of them at once, and the critics only
      what is beyond it. Values are the sum of both.
    - Discount ``gamma * exp(-beta * dt)``: steps differ in length.
    - The slow critics follow after every optimizer step, not once a call.
    - A loss or gradient that is not finite is an error that names it, before anything is changed by it.

    The parameters of actor, critics and temperature are apart and what one loss takes from another is detached, so that one
    backward pass over the sum serves three optimizers.
    """

    config: Any

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register the three optimizers."""
        module: SACModule = self.module[module_id].unwrapped()  # pyright: ignore[reportAssignmentType]
        critics = [*module.critics.parameters(), *([] if module.impact is None else module.impact.parameters())]
        for name, params, lr in (
            (ACTOR, list(module.policy.parameters()), config.lr),
            (CRITIC, critics, config.lr),
            (ALPHA, [module.log_alpha], config.alpha_lr),
        ):
            optimizer = torch.optim.Adam(params)
            self.register_optimizer(
                module_id=module_id, optimizer_name=name, optimizer=optimizer, params=params, lr_or_lr_schedule=lr
            )

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Any]) -> Tensor:
        """Sum of the three losses.

        Raises:
            FloatingPointError: one of them is not finite.
        """
        module: SACModule = self.module[module_id].unwrapped()  # pyright: ignore[reportAssignmentType]
        alpha = module.log_alpha.exp().detach()
        log_policy = fwd_out[Columns.ACTION_DIST_INPUTS].log_softmax(dim=-1)
        policy = log_policy.exp()
        entropy = -(policy * log_policy).sum(dim=-1)
        target = soft_target(batch, fwd_out, alpha, gamma=config.gamma, beta=config.beta, twins=config.twins)
        values, actions = join_twins(fwd_out[Q].detach(), config.twins), batch[Columns.ACTIONS]
        apart = alpha.new_zeros(())
        if IMPACT in fwd_out:
            values = values + with_drop(fwd_out[IMPACT].detach())
            target = target - taken_marginal(batch[MARGINAL], actions)
            apart = impact_loss(fwd_out[IMPACT], batch[MARGINAL])
        wanted = target_entropy(batch[Columns.OBS]["action_mask"], config.target_entropy_share)
        losses = {
            ACTOR: -((policy * values).sum(dim=-1) + alpha * entropy).mean(),
            CRITIC: critic_loss(fwd_out[Q], fwd_out[TARGET_Q], actions, target, config.q_clip),
            ALPHA: (module.log_alpha * (entropy - wanted).detach()).mean(),
            IMPACT: apart,
        }
        figures = {"alpha": alpha, "entropy": entropy.detach().mean(), "target_entropy": wanted.mean(), "q_mean": values.mean()}
        return self.add_up(module_id, losses, figures, f" (alpha {alpha.item():.3g})")

    def step_optimizers(self) -> None:
        """Step every optimizer, but in the warm-up that of the critics alone."""
        for module_id in self.module.keys():  # noqa: SIM118 (a module of modules, no mapping)
            critic = self.get_optimizer(module_id, CRITIC)
            critic.step()
            if _steps(critic) > self.config.critic_warmup:
                for name in (ACTOR, ALPHA):
                    self.get_optimizer(module_id, name).step()


def _steps(optimizer: Any) -> int:
    """Steps of an Adam optimizer so far; its checkpoint keeps them."""
    return max((int(state["step"]) for state in optimizer.state.values()), default=0)


def join_twins(values: Tensor, twins: str) -> Tensor:
    """(2, B, N+1) -> (B, N+1): the ``mean`` or the ``min`` of the twins."""
    return values.mean(dim=0) if twins == "mean" else values.amin(dim=0)


def soft_target(batch: dict[str, Any], output: dict[str, Any], alpha: Tensor, *, gamma: float, beta: float, twins: str) -> Tensor:
    """(B,) ``r + gamma exp(-beta dt) (1 - terminated) sum_a pi(a|s') (Q'(s', a) - alpha log pi(a|s'))``, no gradient."""
    log_policy = output[NEXT_LOGITS].log_softmax(dim=-1)
    values = join_twins(output[NEXT_TARGET_Q], twins)
    after = (log_policy.exp() * (values - alpha * log_policy)).sum(dim=-1)
    discount = gamma * torch.exp(-beta * batch[DT_S]) * (1 - batch[Columns.TERMINATEDS].float())
    return (batch[Columns.REWARDS] + discount * after).detach()


def critic_loss(values: Tensor, slow: Tensor, actions: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """Sum over the twins of the mean squared error to ``target``, (B,).

    With ``clip`` c the larger of the errors of Q and of ``Q' + clamp(Q - Q', -c, c)``, Q' being the slow copy: it takes no more
    than c in one direction from a value that the slow copy does not know (Q-clip, arXiv 2209.10081).
    """
    index = actions.long().expand(2, -1).unsqueeze(-1)
    taken = values.gather(-1, index).squeeze(-1)
    errors = (taken - target).square()
    if clip is not None:
        before = slow.gather(-1, index).squeeze(-1)
        errors = torch.maximum(errors, (before + (taken - before).clamp(-clip, clip) - target).square())
    return errors.mean(dim=-1).sum()


def taken_marginal(marginal: Tensor, actions: Tensor) -> Tensor:
    """(B,) true marginal QoS of the actions, 0 where it is not known (a full expert)."""
    return marginal.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1).nan_to_num(0.0)


def impact_loss(predicted: Tensor, marginal: Tensor) -> Tensor:
    """Mean squared error of the experts' predicted marginal QoS, (B, N), to the true one, (B, N+1), where that is known."""
    known = marginal[..., :-1].isfinite()
    errors = (predicted - marginal[..., :-1].nan_to_num(0.0)).square()
    return (errors * known).sum() / known.sum().clamp(min=1)


def target_entropy(action_mask: Tensor, share: float) -> Tensor:
    """(B,) ``share * ln(number of possible actions)``, nats: ``share * ln(N + 1)`` where none is masked."""
    return share * action_mask.sum(dim=-1).log()
