"""The common learner of SAC and DQN: an optimizer step on columns that are drawn from a replay buffer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.rllib.learning.stateful_learner import StatefulLearner


class ColumnLearner(StatefulLearner):
    """Steps all optimizers at once, then moves the module's slow copies (``update_targets``).

    A subclass says what is minimised (``compute_loss_for_module``), and gives its losses to ``add_up``. A loss or gradient that
    is not finite is an error that names it, before anything is changed by it.
    """

    config: Any
    MOST_GRADIENT: float | None = None
    """Bound of the norm of all gradients together; None for no bound."""

    def build(self) -> None:
        """Build what every learner has."""
        self._logged: dict[str, dict[str, Tensor]] = {}
        super().build()

    def add_up(self, module_id: str, losses: Mapping[str, Tensor], figures: Mapping[str, Tensor], note: str = "") -> Tensor:
        """Sum of the losses; keeps them and other figures to be logged.

        Args:
            module_id: name of the module.
            losses: name -> loss.
            figures: name -> what else to log.
            note: end of the error's message.

        Raises:
            FloatingPointError: one of the losses is not finite.
        """
        for name, loss in losses.items():
            if not math.isfinite(loss.item()):
                raise FloatingPointError(f"{name} loss is {loss.item()}: training cannot go on{note}")
        self._logged[module_id] = {f"{name}_loss": loss.detach() for name, loss in losses.items()} | dict(figures)
        return torch.stack(list(losses.values())).sum()

    def apply_gradients(self, gradients_dict: dict[Any, Any]) -> None:
        """Step every optimizer, then move the slow copies.

        Raises:
            FloatingPointError: a gradient is not finite.
        """
        norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients_dict.values() if gradient is not None])
        if not math.isfinite(norm.item()):
            raise FloatingPointError(f"the gradients' norm is {norm.item()}: training cannot go on")
        for logged in self._logged.values():
            logged["gradient_norm"] = norm
        for param, gradient in gradients_dict.items():
            param.grad = gradient
        if self.MOST_GRADIENT is not None:
            torch.nn.utils.clip_grads_with_norm_(gradients_dict.keys(), self.MOST_GRADIENT, norm)
        self.step_optimizers()
        for module in self.module.values():
            module.unwrapped().update_targets(self.config.polyak)  # pyright: ignore[reportAttributeAccessIssue]

    def step_optimizers(self) -> None:
        """Step every optimizer; a subclass may let some of them wait."""
        for optimizer in self._named_optimizers.values():
            optimizer.step()  # pyright: ignore[reportAttributeAccessIssue]

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Log the losses of the last minibatch, once a call: logging each would take longer than learning from it."""
        super().after_gradient_based_update(timesteps=timesteps)
        for module_id, logged in self._logged.items():
            self.metrics.log_dict({key: value.item() for key, value in logged.items()}, key=module_id, window=1)
