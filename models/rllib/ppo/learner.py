"""The learner of PPO: its losses and its noise-reduced rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.features import read_columns
from models.rllib.learning.fragment_learner import Batch, FragmentLearner, clipped_gain
from models.rllib.learning.minibatches import flatten
from models.rllib.learning.returns import advantages
from models.rllib.rollout.fragments import Fragment
from models.rllib.router_module import BaselineModule

MEANS = "means"
"""Name of the learner's component that holds the mean reward of each environment."""

_GAIN = 0.1  # of the running mean reward of an environment
_COMMON = 0.3  # share of the median in what an environment's advantages are divided by: no environment counts for nearly all
_GRADIENT_NORM = 1.0
_LOSSES = ("policy_loss", "value_loss", "baseline_loss")


class PPOLearner(FragmentLearner):
    """Clipped policy steps (Schulman et al., arXiv 1707.06347) on rewards with most of their noise removed.

    Of a decision with reward ``m(s, a)``, its true marginal QoS, the learner makes
    ``m(s, a) - sum_a' pi(a'|s) (m(s, a') - I(s, a')) - b(s) - c``: the policy's mean over all actions is that of the PREDICTED
    marginal QoS I; the baseline b of the request (``ActionIndependentBaseline``, regressed on that mean) and the running mean c
    of the environment are subtracted, which no decision changes. What an action has over another stays exact.

    The actor's learning rate is 0 at first, then rises linearly: it starts as a good router, which the advantages of an
    untrained critic would ruin.
    """

    _FIRST = 0

    def build(self) -> None:
        """Build what every learner has, and the means."""
        self.means: dict[tuple[int, int], NDArray[np.float64]] = {}
        super().build()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register an optimizer each for actor and critic."""
        module: BaselineModule = self.module[module_id].unwrapped()  # pyright: ignore[reportAssignmentType]
        warm, lr = config.warmup_steps, config.lr
        schedule = [[0, 0.0], [warm, 0.0], [2 * warm, lr]] if warm else lr
        critic = [*module.value.parameters(), *module.baseline.parameters()]
        for name, params, rate in (("policy", list(module.router.parameters()), schedule), ("value", critic, lr)):
            optimizer = torch.optim.Adam(params, eps=1e-5)
            self.register_optimizer(
                module_id=module_id, optimizer_name=name, optimizer=optimizer, params=params, lr_or_lr_schedule=rate
            )

    def rows_of(self, fragment: Fragment) -> dict[str, Any]:
        """A row for each decision that is followed by another of the same episode: R of them.

        Returns:
            ``observation``, each (R, ...); ``action`` (R, 1); ``log_policy`` (R, N+1) of the router that sampled; ``expected``
            (R,), the target of ``ActionIndependentBaseline``; ``returns`` and ``advantage`` (R,); ``weight`` (R,) of the
            value's error.
        """
        assert fragment.marginal is not None
        log_policy, impact, usual, value = self.look(fragment, self._read)
        policy = np.exp(log_policy[:-1])
        marginal = np.where(np.isnan(fragment.marginal), 0, fragment.marginal)  # a full expert has none, and is never chosen
        expected = (policy[..., :-1] * impact[:-1]).sum(axis=-1)
        taken = np.take_along_axis(marginal, fragment.actions[..., None], axis=-1)[..., 0]
        reward = (taken - (policy * marginal).sum(axis=-1) + expected - usual[:-1]).astype(np.float64)
        continues = fragment.valid & ~fragment.terminated
        count = continues.sum(axis=0).clip(min=1)
        seen = reward.sum(axis=0, where=continues) / count
        key = (fragment.worker, fragment.group)
        mean = self.means[key] = self.means[key] + _GAIN * (seen - self.means[key]) if key in self.means else seen
        config = self.config
        gain = advantages(reward - mean, value, fragment.dt_s, continues, beta_per_s=config.beta_per_s, lam=config.lam)
        centred = np.where(continues, gain - gain.sum(axis=0) / count, 0.0)
        variance = (centred**2).sum(axis=0) / count
        scale = np.sqrt(np.maximum(variance + _COMMON * np.median(variance), 1e-12))
        columns = {
            "observation": {name: column[:-1] for name, column in fragment.obs.items()},
            "action": fragment.actions[..., None],
            "log_policy": log_policy[:-1],
            "expected": expected,
            "returns": gain + value[:-1],
            "advantage": centred / scale,
            "weight": np.broadcast_to(1 / scale**2, continues.shape),
        }
        return flatten(columns, continues, self._device)

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Batch, fwd_out: dict[str, float]) -> Tensor:
        """Sum of the losses of policy, value and usual quality; logs entropy, and KL of the router to the one that sampled."""
        module: BaselineModule = self.module[module_id].unwrapped()  # pyright: ignore[reportAssignmentType]
        nothing = torch.zeros((), device=next(module.parameters()).device)
        total: dict[str, Tensor] = dict.fromkeys((*_LOSSES, "entropy", "kl"), nothing)
        for rows, share in batch:
            parts = module.router.parts(rows["observation"])
            log_policy = (module.router.scores(rows["observation"], parts) / module.temperature).log_softmax(dim=-1)
            error = rows["weight"] / self._level * (module.value(parts.columns) - rows["returns"]) ** 2
            with torch.no_grad():
                before = rows["log_policy"]
                entropy = -(log_policy.exp() * log_policy).sum(dim=-1)
                kl = (before.exp() * (before - log_policy)).sum(dim=-1)
            missed = (module.baseline(parts.columns) - rows["expected"]) ** 2
            gain = clipped_gain(log_policy, rows, config.clip)
            found = {"policy_loss": -gain, "value_loss": error, "baseline_loss": missed, "entropy": entropy, "kl": kl}
            total = {name: total[name] + share * found[name].mean() for name in total}
        fwd_out.update({name: x.item() for name, x in total.items()})
        return torch.stack([total[name] for name in _LOSSES]).sum()

    def clip_gradients(self) -> float:
        """Clip the gradients of the router."""
        return torch.nn.utils.clip_grad_norm_(self.unwrapped.router.parameters(), _GRADIENT_NORM).item()

    def figures_of(self, samples: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Metrics of a sample to log."""
        return {"returns_sd": float(torch.cat([rows["returns"] for rows in samples]).std())}

    def _fit(self, samples: list[dict[str, Any]]) -> dict[str, float]:
        self._level = sum(float(rows["weight"].sum()) for rows in samples) / sum(len(rows["action"]) for rows in samples)
        return super()._fit(samples)

    def _read(self, observation: dict[str, Tensor]) -> list[Tensor]:
        """Log policy (R, N+1), predicted marginal QoS (R, N), usual quality and value (R,) of some observations."""
        module: BaselineModule = self.unwrapped
        columns = read_columns(observation)
        log_policy = (module.router(observation) / module.temperature).log_softmax(dim=-1)
        return [log_policy, columns.marginal, module.baseline(columns), module.value(columns)]

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and the means."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(MEANS, components, not_components):
            state[MEANS] = {"samples": self._samples, "environments": self.means}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the result of ``get_state``."""
        super().set_state(state)
        if MEANS in state:
            self._samples, self.means = state[MEANS]["samples"], state[MEANS]["environments"]
