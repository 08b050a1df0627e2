"""What AVL learns from a sample of columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_TRAINED
from torch import Tensor

from models.price import TERMS
from models.rllib.avl_module import AVLModule
from models.rllib.columns import Fragment
from models.rllib.learner import StatefulLearner
from models.rllib.peers import Peers
from models.rllib.price_search import PriceSearch
from models.rllib.returns import afterstate_returns
from models.router import Router

BASELINES, SEARCH = "baselines", "price_search"
"""Names of the learner's components that hold the statistics of the environments and the search for the price."""

_CHUNK = 4096  # rows of a forward pass that needs no gradient
_GAIN = 0.05  # of the running mean reward of an environment
_SCALE_GAIN = 0.1  # of the running variances
_COMMON = 0.3  # share of the median in what an environment's errors are divided by: no environment counts for nearly all
_GRADIENT_NORM = 1.0


@dataclass(slots=True, kw_only=True)
class Baselines:
    """Running statistics of each of B environments: their loads differ, and so do the sizes of rewards and errors."""

    reward: NDArray[np.float64]  # mean of what a decision earns more than usual
    return_variance: NDArray[np.float64]
    impact_error: NDArray[np.float64]  # mean squared error of the impact estimate
    advantage_variance: NDArray[np.float64]
    samples: int = 0

    @staticmethod
    def of(count: int) -> Baselines:
        """Before the first sample."""
        zero, one = np.zeros(count), np.ones(count)
        return Baselines(reward=zero, return_variance=one, impact_error=one.copy(), advantage_variance=one.copy())

    def heed(self, name: str, seen: NDArray[np.float64], gain: float) -> NDArray[np.float64]:
        """Move a statistic towards what a sample shows, (B,), at first all the way; the new value."""
        value = getattr(self, name)
        value = value + max(gain, 1 / (self.samples + 1)) * (seen - value)
        setattr(self, name, value)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Rows to learn from, one for each decision that is followed by another: R of them."""

    observation: dict[str, Tensor]  # each (R, ...)
    action: Tensor  # (R, 1)
    log_policy: Tensor  # (R, N+1) of the router that sampled
    impact: Tensor  # (R, N) its estimate
    marginal: Tensor  # (R, N) true marginal QoS
    known: Tensor  # (R, N) 1 where there is one
    usual: Tensor  # (R,) what ``UsualQuality`` is regressed on
    returns: Tensor  # (R,)
    advantage: Tensor  # (R,)
    value_weight: Tensor  # (R,)
    impact_weight: Tensor  # (R,)

    def rows(self, index: Tensor) -> Targets:
        """Some of them."""
        taken = {name: getattr(self, name)[index] for name in self.__dataclass_fields__ if name != "observation"}
        return Targets(observation={key: x[index] for key, x in self.observation.items()}, **taken)

    def __len__(self) -> int:
        return len(self.returns)


class AVLLearner(StatefulLearner):
    """Three regressions and a cautious improvement, from one sample of columns; and, at first, a search for the price.

    With ``I`` the estimated impact, ``pi`` the router, ``m`` the true marginal QoS:

    - impact estimator: ``I(s, a)`` on ``m(s, a)``, all actions of every decision;
    - usual quality ``b``: on ``r = sum_a pi(a|s) I(s, a)``, what a decision is expected to earn. The reward of a decision is
      ``r - b - mean``: rid of the luck of the draw and of the request's own quality, both of which are many times what a
      decision costs those to come; the mean is that of its environment. Where the reward has other terms than marginal QoS, what
      they came to since the decision before is added, and what is estimated of marginal QoS has its weight;
    - state value ``V``: on the lambda-returns ``G`` of the afterstate (``afterstate_returns``);
    - future part of the scores: a clipped step (Schulman et al., arXiv 1707.06347) along the advantage
      ``I(s, a) - r + G - V(s)``. To act greedily on differences of ``V`` goes wrong: the values are those of a router that
      avoids overload, and say little about what happens to one that does not.

    Errors and advantages are scaled environment by environment: else the heaviest load would be all that counts.

    While the price of congestion is being searched for (``PriceSearch``), the future part rests, and the router does without its
    graph encoder, which costs more than all else; it joins then, through weights that are 0.

    Several learners take the same fragments and each its part of the rows (``Peers``): they come to what one comes to, but for
    rounding.
    """

    config: Any

    def build(self) -> None:
        """Build what every learner has, and the baselines."""
        self.baselines: dict[tuple[int, int], Baselines] = {}
        self._samples = 0
        self.search = PriceSearch(self.config.population, int(self.config.seed or 0))
        super().build()
        self._peers = Peers(self._device)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One optimizer: the losses share the encoder and are differentiated together."""
        params = [p for p in self.module[module_id].parameters() if p.requires_grad]  # pyright: ignore
        optimizer = torch.optim.Adam(params)
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=params, lr_or_lr_schedule=config.lr)

    def compute_loss_for_module(self, **kwargs: Any) -> Tensor:
        """Not used: ``update`` does it all."""
        raise NotImplementedError

    def candidates(self) -> NDArray[np.float64] | None:
        """(K, P) prices to try, with the number of their generation as ``search.generation``; None when there are none to try."""
        if self._router.price is None or self._samples < self.config.warmup or not self._searching:
            return None
        return self.search.ask()

    def judge(self, qos: NDArray[np.float64]) -> None:
        """Take up what became of the candidates, (K, W)."""
        self.search.tell(qos)
        price = self._router.price
        assert price is not None
        price.terms.copy_(torch.from_numpy(self.search.settled))
        self._weights_seq_no += 1  # else the workers would take the new price for the old one

    @property
    def _searching(self) -> bool:
        return self.search.generation < self.config.generations

    @property
    def _router(self) -> Router:
        module: AVLModule = self.module[DEFAULT_MODULE_ID].unwrapped()  # pyright: ignore[reportAssignmentType]
        return module.router

    def update(self, *, training_data: Any = None, timesteps: Any = None, **kwargs: Any) -> Any:  # pyright: ignore
        """Learn from fragments, which come as ``training_data.episodes``.

        Raises:
            FloatingPointError: a loss is not finite, on all learners alike; nothing has been changed by it.
        """
        self._check_is_built()
        self.before_gradient_based_update(timesteps=timesteps or {})
        self._weights_seq_no += 1  # else the workers would take the new weights for the old ones
        module: AVLModule = self.module[DEFAULT_MODULE_ID].unwrapped()  # pyright: ignore[reportAssignmentType]
        self._router.listen(self._router.price is None or not self._searching)
        samples = [self._targets(module, fragment) for fragment in training_data.episodes]
        self._samples += 1
        logged = self._fit(module, samples)
        settled = self._samples > 2 * self.config.warmup and not self._searching
        module.serve(self.config.keep if settled else 0.5)
        self.metrics.log_dict(logged, key=DEFAULT_MODULE_ID, window=1)
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED), sum(map(len, training_data.episodes)), reduce="sum")
        self.after_gradient_based_update(timesteps=timesteps or {})
        return self.metrics.reduce()

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, the baselines and the search."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(BASELINES, components, not_components):
            state[BASELINES] = {"samples": self._samples, "environments": self.baselines}
        if self._check_component(SEARCH, components, not_components):
            state[SEARCH] = self.search.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up what ``get_state`` gave."""
        super().set_state(state)
        if BASELINES in state:
            self._samples, self.baselines = state[BASELINES]["samples"], state[BASELINES]["environments"]
        if SEARCH in state:
            self.search.set_state(state[SEARCH])

    def _other_terms(self, fragment: Fragment, goes_on: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(T, B) what the reward holds beside the marginal QoS of the action: nothing, by default.

        It came after the decision, so that it belongs to the interval that the next one ends.
        """
        assert fragment.marginal is not None
        marginal = np.take_along_axis(fragment.marginal, fragment.actions[..., None], axis=-1)[..., 0]
        others = fragment.rewards - self.config.marginal_weight * np.nan_to_num(marginal)
        return np.where(goes_on, others, 0.0).astype(np.float64)

    def _targets(self, module: AVLModule, fragment: Fragment) -> Targets:
        steps, environments = fragment.actions.shape
        impact, log_policy, usual, value = _look(module, fragment, self._device, self._peers)
        policy = np.exp(log_policy)
        expected = (policy[..., :-1] * impact).sum(axis=-1)
        baselines = self.baselines.setdefault((fragment.worker, fragment.group), Baselines.of(environments))
        goes_on = fragment.valid & ~fragment.terminated
        learned_from = goes_on.sum(axis=0).clip(min=1)

        def mean(x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
            return x.sum(axis=0, where=goes_on, dtype=np.float64) / learned_from

        if self._samples < self.config.warmup:
            baselines.samples = 0  # while everything still changes, the past tells little
        weight = self.config.marginal_weight
        excess = weight * (expected - usual).astype(np.float64)
        excess[1:] += self._other_terms(fragment, goes_on)
        reward = excess - baselines.heed("reward", mean(excess[:-1]), _GAIN)
        returns = afterstate_returns(
            reward, value, fragment.dt_s, goes_on, beta_per_s=self.config.beta_per_s, lam=self.config.lam
        )
        taken = np.concatenate([impact, np.zeros_like(impact[..., :1])], axis=-1)[:-1]
        own = weight * (np.take_along_axis(taken, fragment.actions[..., None], axis=-1)[..., 0] - expected[:-1])
        advantage = own + returns - value[:-1]
        advantage = advantage - mean(advantage)
        assert fragment.marginal is not None
        marginal = fragment.marginal[..., :-1]
        known = np.isfinite(marginal) & (fragment.obs["action_mask"][:-1, :, :-1] > 0)
        marginal = np.where(known, marginal, 0.0)
        error = np.where(known, (impact[:-1] - marginal) ** 2, 0.0).mean(axis=-1)
        centred = returns - mean(returns)
        return_variance = baselines.heed("return_variance", mean(centred**2), _SCALE_GAIN)
        impact_error = baselines.heed("impact_error", mean(error), _SCALE_GAIN)
        scale = np.sqrt(_with_common(baselines.heed("advantage_variance", mean(advantage**2), _SCALE_GAIN)))
        baselines.samples += 1
        level = returns.mean(where=goes_on)  # the same for all: differences are all that counts, and they stay small
        rows = goes_on.reshape(-1)

        def flat(x: NDArray[Any]) -> Tensor:
            wide = np.broadcast_to(x, (steps, environments, *x.shape[2:])) if x.ndim > 1 else np.broadcast_to(x, goes_on.shape)
            data = wide.reshape(-1, *wide.shape[2:])[rows]
            return torch.from_numpy(np.ascontiguousarray(data, data.dtype if data.dtype == np.int64 else np.float32)).to(
                self._device
            )

        return Targets(
            observation={key: flat(column[:-1]) for key, column in fragment.obs.items()},
            action=flat(fragment.actions[..., None]),
            log_policy=flat(log_policy[:-1]),
            impact=flat(impact[:-1]),
            marginal=flat(marginal),
            known=flat(known),
            usual=flat(expected[:-1]),
            returns=flat(returns - level),
            advantage=flat(advantage / scale),
            value_weight=flat(_weights(return_variance)),
            impact_weight=flat(_weights(impact_error)),
        )

    def _fit(self, module: AVLModule, samples: list[Targets]) -> dict[str, float]:
        config = self.config
        optimizer: Any = self.get_optimizer(DEFAULT_MODULE_ID)
        future = [] if module.router.future is None else list(module.router.future.parameters())
        generator = torch.Generator().manual_seed(int(config.seed or 0) * 1_000_003 + self._samples)
        improve = module.router.future is not None and self._samples > config.warmup and not self._searching
        total = sum(map(len, samples))
        kl = 0.0
        logged: dict[str, float] = {}
        for _ in range(config.epochs):
            for batch, rows in _minibatches(samples, max(total // config.minibatch, 1), generator, self._peers):
                optimizer.zero_grad(set_to_none=True)
                own, own_moved = _losses(module, batch, rows, config.clip, improve)
                if batch:
                    torch.stack(list(own.values())).sum().backward()
                # Summed first, and only then looked at: what one learner alone minds would leave the others waiting for it.
                *found, moved = self._peers.add(module.parameters(), [*(loss.item() for loss in own.values()), own_moved])
                losses = dict(zip(own, found, strict=True))
                if improve:
                    kl = 0.8 * kl + 0.2 * moved
                    improve = kl < config.kl_stop
                for name, loss in losses.items():
                    if not math.isfinite(loss):
                        raise FloatingPointError(f"{name} loss is {loss}: training cannot go on")
                gradients = [p.grad for p in module.parameters() if p.grad is not None]
                norm = torch.nn.utils.get_total_norm(gradients)
                if future:
                    torch.nn.utils.clip_grad_norm_(future, _GRADIENT_NORM)
                if not math.isfinite(norm.item()):
                    raise FloatingPointError(f"the gradients' norm is {norm.item()}: training cannot go on")
                optimizer.step()
                logged = {f"{name}_loss": loss for name, loss in losses.items()} | {"gradient_norm": norm.item()}
        advantage = torch.cat([targets.advantage for targets in samples])
        returns = torch.cat([targets.returns for targets in samples])
        entropy = -sum(float((t.log_policy.exp() * t.log_policy).sum()) for t in samples) / total
        if self._searching:
            logged["search_generation"] = float(self.search.generation)
            for term, mean, spread in zip(TERMS, self.search.settled, self.search.spread, strict=True):
                logged |= {f"price/{term}": float(mean), f"price_spread/{term}": float(spread)}
        return logged | {
            "kl": kl,
            "entropy": entropy,
            "returns_sd": float(returns.std()),
            "advantage_max": float(advantage.abs().max()),
            "impact_error": float(np.mean([b.impact_error.mean() for b in self.baselines.values()])),
        }


def _losses(module: AVLModule, batch: list[Targets], rows: int, clip: float, improve: bool) -> tuple[dict[str, Tensor], float]:
    """What some rows of every fragment add to the losses of a minibatch, and to how far the router has moved (KL).

    Args:
        module: what learns.
        batch: the rows, all of a minibatch or one learner's part of it.
        rows: of the whole minibatch.
        clip: bound on how far the chance of an action may move.
        improve: whether the future part learns.
    """
    nothing = torch.zeros((), device=next(module.parameters()).device)
    losses: dict[str, Tensor] = dict.fromkeys(("impact", "usual", "value", "future"), nothing)
    moved = 0.0
    for t in batch:
        share = len(t) / rows
        parts = module.router.parts(t.observation)
        error = ((parts.impact - t.marginal) ** 2 * t.known).sum(dim=-1)
        value_error = (module.state_value(parts) - t.returns) ** 2
        losses["impact"] = losses["impact"] + share * (t.impact_weight * error).mean()
        losses["usual"] = losses["usual"] + share * ((module.usual(parts.columns) - t.usual) ** 2).mean()
        losses["value"] = losses["value"] + share * (t.value_weight * value_error).mean()
        if improve:
            scores = module.router.scores(t.observation, parts._replace(impact=t.impact))
            log_policy = (scores / module.temperature).log_softmax(dim=-1)
            ratio = (log_policy.gather(-1, t.action) - t.log_policy.gather(-1, t.action)).squeeze(-1).exp()
            gain = torch.minimum(ratio * t.advantage, ratio.clamp(1 - clip, 1 + clip) * t.advantage)
            losses["future"] = losses["future"] - share * gain.mean()
            with torch.no_grad():
                moved += share * (t.log_policy.exp() * (t.log_policy - log_policy)).sum(dim=-1).mean().item()
    return losses, moved


def _minibatches(
    samples: list[Targets], count: int, generator: torch.Generator, peers: Peers
) -> Iterator[tuple[list[Targets], int]]:
    """So many minibatches that together hold every row once, each its share of every sample.

    Yields:
        this learner's part of the minibatch, and the rows of all of it.
    """
    orders = [torch.randperm(len(targets), generator=generator).tensor_split(count) for targets in samples]
    for drawn in zip(*orders, strict=True):
        parts = [index[peers.part(len(index))] for index in drawn]
        batch = [targets.rows(index) for targets, index in zip(samples, parts, strict=True) if len(index)]
        yield batch, sum(map(len, drawn))


@torch.no_grad()
def _look(module: AVLModule, fragment: Fragment, device: Any, peers: Peers) -> tuple[NDArray[np.float32], ...]:
    """Impact (T+1, B, N), log policy (T+1, B, N+1), usual quality and value (T+1, B) of every observation."""
    shape = fragment.obs["action_mask"].shape[:2]
    count = shape[0] * shape[1]
    columns = {key: x.reshape(count, *x.shape[2:]) for key, x in fragment.obs.items()}
    results: list[list[Tensor]] = []
    own = peers.part(count)
    for begin in range(own.start, own.stop, _CHUNK):
        # Copied: what another process has sent must not be written to, and torch warns of such memory.
        chunk = slice(begin, min(begin + _CHUNK, own.stop))
        observation = {key: torch.tensor(x[chunk], device=device) for key, x in columns.items()}
        parts = module.router.parts(observation)
        log_policy = (module.router.scores(observation, parts) / module.temperature).log_softmax(dim=-1)
        results.append([parts.impact, log_policy, module.usual(parts.columns), module.state_value(parts)])
    found = [peers.gather(torch.cat(column), count) for column in zip(*results, strict=True)]
    return tuple(x.cpu().numpy().reshape(*shape, *x.shape[1:]) for x in found)


def _with_common(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x + _COMMON * np.median(x)


def _weights(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) weights of the environments, 1 on average: the smaller their usual squared error, the more an error counts."""
    weights = 1 / np.maximum(_with_common(x), 1e-8)
    return weights / weights.mean()
