"""What PPO learns from a sample of columns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_TRAINED
from torch import Tensor

from models.features import read_columns
from models.rllib.columns import Fragment
from models.rllib.learner import StatefulLearner
from models.rllib.peers import Peers
from models.rllib.ppo_module import PPOModule
from models.rllib.returns import advantages
from models.rllib.rows import flatten, minibatches

MEANS = "means"
"""Name of the learner's component that holds the mean reward of each environment."""

_CHUNK = 4096  # rows of a forward pass that needs no gradient
_GAIN = 0.1  # of the running mean reward of an environment
_COMMON = 0.3  # share of the median in what an environment's advantages are divided by: no environment counts for nearly all
_GRADIENT_NORM = 1.0
_LOSSES = ("policy", "value", "usual")


class PPOLearner(StatefulLearner):
    """Clipped policy steps (Schulman et al., arXiv 1707.06347) on rewards that are rid of most of their noise.

    Of a decision with reward ``m(s, a)``, its true marginal QoS, the learner makes
    ``m(s, a) - sum_a' pi(a'|s) (m(s, a') - I(s, a')) - b(s) - c``: the policy's mean over all actions is that of the PREDICTED
    marginal QoS I; the usual quality b of the request (``UsualQuality``, regressed on that mean) and the running mean c of the
    environment are subtracted, which no decision changes. What an action has over another stays exact.

    The actor's learning rate is 0 at first, then rises linearly: it starts as a good router, which the advantages of an
    untrained critic would ruin.

    Several learners take the same fragments and each its part of the rows (``Peers``): they come to what one comes to, but for
    rounding.
    """

    config: Any

    def build(self) -> None:
        """Build what every learner has, and the means."""
        self.means: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._samples = 0
        super().build()
        self._peers = Peers(self._device)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Register an optimizer each for actor and critic."""
        module: PPOModule = self.module[module_id].unwrapped()  # pyright: ignore[reportAssignmentType]
        warm, lr = config.warmup_steps, config.lr
        schedule = [[0, 0.0], [warm, 0.0], [2 * warm, lr]] if warm else lr
        critic = [*module.value.parameters(), *module.usual.parameters()]
        for name, params, rate in (("policy", list(module.router.parameters()), schedule), ("value", critic, lr)):
            optimizer = torch.optim.Adam(params, eps=1e-5)
            self.register_optimizer(
                module_id=module_id, optimizer_name=name, optimizer=optimizer, params=params, lr_or_lr_schedule=rate
            )

    def compute_loss_for_module(self, **kwargs: Any) -> Tensor:
        """Not used: ``update`` does it all."""
        raise NotImplementedError

    def update(self, *, training_data: Any = None, timesteps: Any = None, **kwargs: Any) -> Any:  # pyright: ignore
        """Learn from fragments, which come as ``training_data.episodes``.

        Raises:
            FloatingPointError: a loss or gradient is not finite, on all learners alike.
        """
        self._check_is_built()
        self.before_gradient_based_update(timesteps=timesteps or {})
        self._weights_seq_no += 1  # else the workers would take the new weights for the old ones
        module: PPOModule = self.module[DEFAULT_MODULE_ID].unwrapped()  # pyright: ignore[reportAssignmentType]
        logged = self._fit(module, [self._rows(module, fragment) for fragment in training_data.episodes])
        self._samples += 1
        self.metrics.log_dict(logged, key=DEFAULT_MODULE_ID, window=1)
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED), sum(map(len, training_data.episodes)), reduce="sum")
        self.after_gradient_based_update(timesteps=timesteps or {})
        return self.metrics.reduce()

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and the means."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(MEANS, components, not_components):
            state[MEANS] = {"samples": self._samples, "environments": self.means}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up what ``get_state`` gave."""
        super().set_state(state)
        if MEANS in state:
            self._samples, self.means = state[MEANS]["samples"], state[MEANS]["environments"]

    def _rows(self, module: PPOModule, fragment: Fragment) -> dict[str, Any]:
        """What to learn from: decisions that are followed by another of the same episode."""
        assert fragment.marginal is not None
        log_policy, impact, usual, value = _look(module, fragment, self._device, self._peers)
        policy = np.exp(log_policy[:-1])
        marginal = np.where(np.isnan(fragment.marginal), 0, fragment.marginal)  # a full expert has none, and is never chosen
        expected = (policy[..., :-1] * impact[:-1]).sum(axis=-1)
        taken = np.take_along_axis(marginal, fragment.actions[..., None], axis=-1)[..., 0]
        reward = (taken - (policy * marginal).sum(axis=-1) + expected - usual[:-1]).astype(np.float64)
        goes_on = fragment.valid & ~fragment.terminated
        count = goes_on.sum(axis=0).clip(min=1)
        seen = reward.sum(axis=0, where=goes_on) / count
        key = (fragment.worker, fragment.group)
        mean = self.means[key] = self.means[key] + _GAIN * (seen - self.means[key]) if key in self.means else seen
        config = self.config
        gain = advantages(reward - mean, value, fragment.dt_s, goes_on, beta_per_s=config.beta_per_s, lam=config.lam)
        centred = np.where(goes_on, gain - gain.sum(axis=0) / count, 0.0)
        variance = (centred**2).sum(axis=0) / count
        scale = np.sqrt(np.maximum(variance + _COMMON * np.median(variance), 1e-12))
        columns = {
            "observation": {name: column[:-1] for name, column in fragment.obs.items()},
            "action": fragment.actions[..., None],
            "log_policy": log_policy[:-1],
            "expected": expected,
            "returns": gain + value[:-1],
            "advantage": centred / scale,
            "weight": np.broadcast_to(1 / scale**2, goes_on.shape),
        }
        return flatten(columns, goes_on, self._device)

    def _fit(self, module: PPOModule, samples: list[dict[str, Any]]) -> dict[str, float]:
        config = self.config
        optimizers: Any = [self.get_optimizer(DEFAULT_MODULE_ID, name) for name in ("policy", "value")]
        generator = torch.Generator().manual_seed(int(config.seed or 0) * 1_000_003 + self._samples)
        sizes = [len(rows["action"]) for rows in samples]
        level = sum(float(rows["weight"].sum()) for rows in samples) / sum(sizes)
        logged: dict[str, float] = {}
        for _ in range(config.epochs):
            count = max(sum(sizes) // config.minibatch, 1)
            for batch in minibatches(samples, sizes, count, generator, self._peers):
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                own = _losses(module, batch, level=level, clip=config.clip)
                if batch:
                    (own["policy"] + own["value"] + own["usual"]).backward()
                # Summed first, and only then looked at: what one learner alone minds would leave the others waiting for it.
                found = self._peers.add(module.parameters(), [x.item() for x in own.values()])
                figures = {f"{name}_loss" if name in _LOSSES else name: x for name, x in zip(own, found, strict=True)}
                norm = torch.nn.utils.clip_grad_norm_(module.router.parameters(), _GRADIENT_NORM)
                logged = figures | {"gradient_norm": norm.item()}
                _check({name.replace("_", " "): x for name, x in logged.items() if name not in ("entropy", "kl")})
                for optimizer in optimizers:
                    optimizer.step()
        returns = torch.cat([rows["returns"] for rows in samples])
        return logged | {"returns_sd": float(returns.std())}


def _losses(module: PPOModule, batch: list[tuple[dict[str, Any], float]], *, level: float, clip: float) -> dict[str, Tensor]:
    """The losses of a minibatch, and entropy and KL of the router to the one that sampled, for the log."""
    nothing = torch.zeros((), device=next(module.parameters()).device)
    total: dict[str, Tensor] = dict.fromkeys((*_LOSSES, "entropy", "kl"), nothing)
    for rows, share in batch:
        parts = module.router.parts(rows["observation"])
        log_policy = (module.router.scores(rows["observation"], parts) / module.temperature).log_softmax(dim=-1)
        taken = log_policy.gather(-1, rows["action"]) - rows["log_policy"].gather(-1, rows["action"])
        ratio = taken.squeeze(-1).exp()
        gain = torch.minimum(ratio * rows["advantage"], ratio.clamp(1 - clip, 1 + clip) * rows["advantage"])
        columns = parts.columns
        error = rows["weight"] / level * (module.value(columns) - rows["returns"]) ** 2
        with torch.no_grad():
            entropy = -(log_policy.exp() * log_policy).sum(dim=-1)
            kl = (rows["log_policy"].exp() * (rows["log_policy"] - log_policy)).sum(dim=-1)
        usual = (module.usual(columns) - rows["expected"]) ** 2
        found = {"policy": -gain, "value": error, "usual": usual, "entropy": entropy, "kl": kl}
        total = {name: total[name] + share * found[name].mean() for name in total}
    return total


def _check(figures: dict[str, float]) -> None:
    for name, figure in figures.items():
        if not math.isfinite(figure):
            raise FloatingPointError(f"{name} is {figure}: training cannot go on")


@torch.no_grad()
def _look(module: PPOModule, fragment: Fragment, device: Any, peers: Peers) -> list[NDArray[np.float32]]:
    """Log policy (T+1, B, N+1), predicted marginal QoS (T+1, B, N), usual quality and value (T+1, B) of every observation."""
    shape = fragment.obs["action_mask"].shape[:2]
    count = shape[0] * shape[1]
    columns = {key: x.reshape(count, *x.shape[2:]) for key, x in fragment.obs.items()}
    results: list[list[Tensor]] = []
    own = peers.part(count)
    for begin in range(own.start, own.stop, _CHUNK):
        # Copied: what another process has sent must not be written to, and torch warns of such memory.
        chunk = slice(begin, min(begin + _CHUNK, own.stop))
        observation = {key: torch.tensor(x[chunk], device=device) for key, x in columns.items()}
        read = read_columns(observation)
        log_policy = (module.router(observation) / module.temperature).log_softmax(dim=-1)
        results.append([log_policy, read.marginal, module.usual(read), module.value(read)])
    found = [peers.gather(torch.cat(column), count) for column in zip(*results, strict=True)]
    return [x.cpu().numpy().reshape(*shape, *x.shape[1:]) for x in found]
