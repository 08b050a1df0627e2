"""The learner of AVL: its losses, its baselines and its price search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.price import Term
from models.rllib.avl.module import AVLModule
from models.rllib.avl.price_refinement import LENGTH, PriceRefinement
from models.rllib.avl.price_search import PriceSearch
from models.rllib.learning.fragment_learner import Batch, FragmentLearner, clipped_gain
from models.rllib.learning.minibatches import flatten
from models.rllib.learning.returns import afterstate_returns
from models.rllib.rollout.fragments import Fragment
from models.router import Router

BASELINES, SEARCH, REFINEMENT = "baselines", "price_search", "price_refinement"
"""Names of the learner's components: the statistics of the environments, the search for the price and its refinement."""


class Candidates(NamedTuple):
    """Prices to try."""

    terms: NDArray[np.float64]  # (K, P)
    generation: int
    length: int  # requests of an episode over ``search_requests``


_GAIN = 0.05  # of the running mean reward of an environment
_SCALE_GAIN = 0.1  # of the running variances
_COMMON = 0.3  # share of the median in what an environment's errors are divided by: no environment counts for nearly all
_GRADIENT_NORM = 1.0


@dataclass(slots=True, kw_only=True)
class Baselines:
    """Running statistics of each of B environments, whose loads, rewards and errors differ in scale."""

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

    def update_ema(self, name: str, seen: NDArray[np.float64], gain: float) -> NDArray[np.float64]:
        """Update a statistic's moving average with a sample's value, (B,); the first value replaces it. Returns the new value."""
        value = getattr(self, name)
        value = value + max(gain, 1 / (self.samples + 1)) * (seen - value)
        setattr(self, name, value)
        return value


class AVLLearner(FragmentLearner):
    """Three regressions and a clipped policy improvement from one sample; at first also the price search.

    With ``I`` the estimated impact, ``pi`` the router, ``m`` the true marginal QoS:

    - impact estimator: ``I(s, a)`` on ``m(s, a)``, all actions of every decision;
    - usual quality ``b``: on ``r = sum_a pi(a|s) I(s, a)``, the expected reward of a decision. The reward is
      ``r - b - mean``, with the mean of its environment. That removes the noise of the action draw and of the request's own
      quality, which both are many times the opportunity cost of a decision. If the reward has terms beside marginal QoS, their
      sum since the last decision is added, and the estimated marginal QoS has its weight;
    - state value ``V``: on the lambda-returns ``G`` of the afterstate (``afterstate_returns``);
    - future part of the scores: a clipped step (Schulman et al., arXiv 1707.06347) along the advantage
      ``I(s, a) - r + G - V(s)``. Acting greedily on differences of ``V`` fails: these are values of a router
        that avoids overload, and say little about one that does not.

    Errors and advantages are scaled per environment; otherwise the heaviest load would dominate.

    During the search for the congestion price (``PriceSearch``, then ``PriceRefinement``) the future part rests, and the router
    runs without its graph encoder, its most expensive part. Both join afterwards, through weights that are 0.
    """

    def build(self) -> None:
        """Build what every learner has, and the baselines."""
        self.baselines: dict[tuple[int, int], Baselines] = {}
        self._kl, self._improving = 0.0, False  # of the sample in work
        super().build()
        self._begin_search(self._terms, {} if self._router.price is None else self._router.price.REFERENCE)

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One optimizer: the losses share the encoder and are differentiated together."""
        params = [p for p in self.module[module_id].parameters() if p.requires_grad]  # pyright: ignore
        optimizer = torch.optim.Adam(params)
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=params, lr_or_lr_schedule=config.lr)

    def candidates(self) -> Candidates | None:
        """The prices to try next; None when the search is over, or has not begun."""
        if self._router.price is None or self._samples < self.config.warmup or not self._searching:
            return None
        generation = self.search.generation + self.refinement.generation
        if self._refining:
            return Candidates(self.refinement.ask(self.search.settled), generation, LENGTH)
        return Candidates(self.search.ask(), generation, 1)

    def report_fitness(self, qos: NDArray[np.float64]) -> None:
        """Report the fitness of the candidates, (K, W)."""
        (self.refinement if self._refining else self.search).tell(qos)
        price = self._router.price
        assert price is not None
        step = 0.0 if self._searching else self.refinement.step()  # once, from all worlds together
        price.terms.copy_(torch.from_numpy(self.search.settled + step))
        self._weights_seq_no += 1  # else the workers would take the new price for the old one

    def begin_from(self, state: Mapping[str, Tensor]) -> None:
        """Begin with the weights of another router of the same specification, instead of initial ones.

        The search begins at its price, which counts as the result of a search. No candidate should be worse than it anywhere.
        Critic, baseline and optimizer begin anew: a router does not have them.

        Args:
            state: of the router.
        """
        for router in (self._router, self.unwrapped.ema_router):
            router.load_state_dict(state)
        price = self._router.price
        if price is not None:
            values = dict(zip(self._terms, price.terms.tolist(), strict=True))
            terms = {name: Term(values[name], term.spread) for name, term in self._terms.items()}
            self._begin_search(terms, values, searches=1)
        self._weights_seq_no += 1

    @property
    def _searching(self) -> bool:
        return not self._refining or self.refinement.generation < self.config.refinements

    @property
    def _refining(self) -> bool:
        return self.search.generation >= self.config.generations

    @property
    def _terms(self) -> Mapping[str, Term]:
        return {} if self._router.price is None else self._router.price.TERMS

    def _begin_search(self, terms: Mapping[str, Term], reference: Mapping[str, float] | None, searches: int = 0) -> None:
        searches = searches or (0 if self._router.price is None else self._router.price.SEARCHES)
        population, seed = self.config.population, int(self.config.seed or 0)
        self.search = PriceSearch(terms, population=population, seed=seed, searches=searches, reference=reference)
        self.refinement = PriceRefinement(terms, reference)

    @property
    def _router(self) -> Router:
        return self.unwrapped.router

    def update(self, *, training_data: Any = None, timesteps: Any = None, **kwargs: Any) -> Any:  # pyright: ignore
        """Learn from fragments, then update the moving average of the router."""
        self._router.enable_encoder(self._router.price is None or not self._searching)
        self._kl = 0.0
        self._improving = self._router.future is not None and self._samples >= self.config.warmup and not self._searching
        result = super().update(training_data=training_data, timesteps=timesteps, **kwargs)
        settled = self._samples > 2 * self.config.warmup and not self._searching
        self.unwrapped.update_ema(self.config.keep if settled else 0.5)
        return result

    def rows_of(self, fragment: Fragment) -> dict[str, Any]:
        """A row for each decision that is followed by another: R of them.

        Returns:
            ``observation``, each (R, ...); ``action`` (R, 1); ``log_policy`` (R, N+1) of the router that sampled; ``impact``
            (R, N), its estimate; ``marginal`` (R, N), the true marginal QoS, and ``known`` (R, N), 1 where there is one;
            ``baseline`` (R,), the target of ``ActionIndependentBaseline``; ``returns``, ``advantage``, ``value_weight``
            and ``impact_weight``, (R,) each.
        """
        environments = fragment.actions.shape[1]
        impact, log_policy, usual, value = self.look(fragment, self._read)
        policy = np.exp(log_policy)
        expected = (policy[..., :-1] * impact).sum(axis=-1)
        baselines = self.baselines.setdefault((fragment.worker, fragment.group), Baselines.of(environments))
        continues = fragment.valid & ~fragment.terminated
        learned_from = continues.sum(axis=0).clip(min=1)

        def mean(x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
            return x.sum(axis=0, where=continues, dtype=np.float64) / learned_from

        if self._samples < self.config.warmup:
            baselines.samples = 0  # while everything still changes, the past says little
        weight = self.config.marginal_weight
        excess = weight * (expected - usual).astype(np.float64)
        excess[1:] += self._other_terms(fragment, continues)
        reward = excess - baselines.update_ema("reward", mean(excess[:-1]), _GAIN)
        returns = afterstate_returns(
            reward, value, fragment.dt_s, continues, beta_per_s=self.config.beta_per_s, lam=self.config.lam
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
        return_variance = baselines.update_ema("return_variance", mean(centred**2), _SCALE_GAIN)
        impact_error = baselines.update_ema("impact_error", mean(error), _SCALE_GAIN)
        scale = np.sqrt(_with_common(baselines.update_ema("advantage_variance", mean(advantage**2), _SCALE_GAIN)))
        baselines.samples += 1
        level = returns.mean(where=continues)  # the same for all: differences are all that counts, and they stay small

        def each(x: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
            return np.broadcast_to(x, continues.shape)  # of the environments: the same at every step

        columns = {
            "observation": {key: column[:-1] for key, column in fragment.obs.items()},
            "action": fragment.actions[..., None],
            "log_policy": log_policy[:-1],
            "impact": impact[:-1],
            "marginal": marginal,
            "known": known,
            "baseline": expected[:-1],
            "returns": returns - level,
            "advantage": advantage / scale,
            "value_weight": each(_weights(return_variance)),
            "impact_weight": each(_weights(impact_error)),
        }
        return flatten(columns, continues, self._device)

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Batch, fwd_out: dict[str, float]) -> Tensor:
        """Sum of the three losses of the regressions and, while the future part learns, of that of the clipped step."""
        module: AVLModule = self.module[module_id].unwrapped()  # pyright: ignore[reportAssignmentType]
        nothing = torch.zeros((), device=next(module.parameters()).device)
        losses: dict[str, Tensor] = dict.fromkeys(("impact", "baseline", "value", "future"), nothing)
        moved = 0.0
        for rows, share in batch:
            parts = module.router.parts(rows["observation"])
            error = ((parts.impact - rows["marginal"]) ** 2 * rows["known"]).sum(dim=-1)
            value_error = (module.state_value(parts) - rows["returns"]) ** 2
            losses["impact"] = losses["impact"] + share * (rows["impact_weight"] * error).mean()
            losses["baseline"] = losses["baseline"] + share * ((module.baseline(parts.columns) - rows["baseline"]) ** 2).mean()
            losses["value"] = losses["value"] + share * (rows["value_weight"] * value_error).mean()
            if self._improving:
                scores = module.router.scores(rows["observation"], parts._replace(impact=rows["impact"]))
                log_policy, before = (scores / module.temperature).log_softmax(dim=-1), rows["log_policy"]
                losses["future"] = losses["future"] - share * clipped_gain(log_policy, rows, config.clip).mean()
                with torch.no_grad():
                    moved += share * (before.exp() * (before - log_policy)).sum(dim=-1).mean().item()
        fwd_out.update({f"{name}_loss": loss.item() for name, loss in losses.items()}, kl=moved)
        return torch.stack(list(losses.values())).sum()

    def clip_gradients(self) -> float:
        """Clip the gradients of the future part alone."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.unwrapped.parameters() if p.grad is not None])
        if self._router.future is not None:
            torch.nn.utils.clip_grad_norm_(self._router.future.parameters(), _GRADIENT_NORM)
        return norm.item()

    def update_figures(self, figures: dict[str, float]) -> None:
        """Stop updates of the future part once the router has moved far enough from the sampling one."""
        if self._improving:
            self._kl = 0.8 * self._kl + 0.2 * figures["kl"]
            self._improving = self._kl < self.config.kl_stop

    def figures_of(self, samples: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Metrics of a sample to log."""
        advantage = torch.cat([rows["advantage"] for rows in samples])
        returns = torch.cat([rows["returns"] for rows in samples])
        entropy = -sum(float((rows["log_policy"].exp() * rows["log_policy"]).sum()) for rows in samples) / len(returns)
        logged: dict[str, float] = {}
        if self._searching:
            logged["search_generation"] = float(self.search.generation + self.refinement.generation)
            for term, mean, spread in zip(self._terms, self.search.settled, self.search.spread, strict=True):
                logged |= {f"price/{term}": float(mean), f"price_spread/{term}": float(spread)}
        return logged | {
            "kl": self._kl,
            "entropy": entropy,
            "returns_sd": float(returns.std()),
            "advantage_max": float(advantage.abs().max()),
            "impact_error": float(np.mean([b.impact_error.mean() for b in self.baselines.values()])),
        }

    def _read(self, observation: dict[str, Tensor]) -> list[Tensor]:
        """Impact (R, N), log policy (R, N+1), usual quality and value (R,) of some observations."""
        module: AVLModule = self.unwrapped
        parts = module.router.parts(observation)
        log_policy = (module.router.scores(observation, parts) / module.temperature).log_softmax(dim=-1)
        return [parts.impact, log_policy, module.baseline(parts.columns), module.state_value(parts)]

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, the baselines, the search and its refinement."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(BASELINES, components, not_components):
            state[BASELINES] = {"samples": self._samples, "environments": self.baselines}
        if self._check_component(SEARCH, components, not_components):
            state[SEARCH] = self.search.get_state()
        if self._check_component(REFINEMENT, components, not_components):
            state[REFINEMENT] = self.refinement.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the result of ``get_state``."""
        super().set_state(state)
        if BASELINES in state:
            self._samples, self.baselines = state[BASELINES]["samples"], state[BASELINES]["environments"]
        if SEARCH in state:
            self.search.set_state(state[SEARCH])
        if REFINEMENT in state:
            self.refinement.set_state(state[REFINEMENT])

    def _other_terms(self, fragment: Fragment, continues: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(T, B) terms of the reward beside the marginal QoS of the action; 0 by default.

        They arise after the decision, so they belong to the interval that the next one ends.
        """
        assert fragment.marginal is not None
        marginal = np.take_along_axis(fragment.marginal, fragment.actions[..., None], axis=-1)[..., 0]
        others = fragment.rewards - self.config.marginal_weight * np.nan_to_num(marginal)
        return np.where(continues, others, 0.0).astype(np.float64)


def _with_common(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x + _COMMON * np.median(x)


def _weights(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B,) weights of the environments, 1 on average, larger where the usual squared error is smaller."""
    weights = 1 / np.maximum(_with_common(x), 1e-8)
    return weights / weights.mean()
