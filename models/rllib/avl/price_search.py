"""Search for the congestion price: an evolution strategy on whole episodes, the same for every candidate.

The value of a price shows in all later requests. Gradients of single decisions hardly detect it through the noise. Whole episodes
that differ in the price alone show it well, and the price has few parameters (``models.price``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.price import Term
from models.router import Router
from rllib_envs.scenario import Reward, Scenario, with_workload
from rllib_envs.scenarios.kinds import of_kind
from rllib_envs.scenarios.procedural import draw_scenario
from rllib_envs.simulation import Simulation

if TYPE_CHECKING:
    from models.rllib.rollout.runner import VectorEnvRunner

Array = NDArray[np.float64]

_STEP = 0.8  # how far the mean goes towards the best
_SETTLING = 0.05  # least weight of the newest mean in what is settled on
_SEARCH = 2.5  # weight there of where the search begins, in generations, for each earlier search that this comes from
_LOSS = 2.0  # weight of what a candidate loses against the reference, beside what it gains: no world is to be made worse
_SPREAD_RATE, _SPREAD_RANGE = 0.1, (0.88, 1.08)
_QOS_FLOOR = 0.001  # differences below this are noise, also in a scenario where nothing else differs
_STREAM, _KIND_STREAM = 11, 12  # keep its draws apart from those of the rollouts
_MIN_VARIANTS = 2


class PriceSearch:
    """Ask-and-tell search: mean and spread of a normal distribution follow the best candidates.

    An evolution strategy with antithetic candidates and weighted recombination, its spread adapted for each parameter on its own
    (Hansen and Ostermeier 2001, without the covariances; Salimans et al., arXiv 1703.03864, for the antithetic draws).

    Args:
        terms: the price's parameters.
        searches: number of earlier searches that the initial parameters are the mean of.
        reference: some of the parameters, of a price that no candidate should be worse than; None for no such price.
        population: candidates of a generation, an even number.
        seed: fixes the candidates.

    Attributes:
        mean: (P,) of the distribution that candidates are drawn from, in the order of ``terms``.
        settled: (P,) the result of the search: a moving average of the means (Polyak and Juditsky 1992), as each mean also
            follows the noise of its generation. The average includes the initial values, the result of earlier searches.
        generation: number of generations told.
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        *,
        population: int,
        seed: int,
        searches: int = 0,
        reference: Mapping[str, float] | None = None,
    ) -> None:
        self.mean = np.array([term.prior for term in terms.values()])
        self.settled = self.mean
        self.spread = np.array([term.spread for term in terms.values()])
        self.generation = 0
        self._pairs, self._seed = max(population // 2, 1), seed
        self._beginning = _SEARCH * searches
        priors = {name: term.prior for name, term in terms.items()}
        self._reference = np.array([list((priors | dict(reference)).values())]) if reference else np.zeros((0, len(terms)))

    def ask(self) -> Array:
        """(K, P) the candidates of this generation, then the reference if there is one; the same each time until told."""
        return np.concatenate([self.mean + self.spread * self._draws(), self._reference])

    def tell(self, qos: Array) -> None:
        """Report the fitness of what ``ask`` returned: (K or K + 1, W) mean QoS of each in W environment variants.

        A variant is weighted by the root of how much its QoS varies with the price. In proportion, overload would dominate; with
        equal weights, the search would ignore it. A loss against the reference counts twice as much as a gain.
        """
        qos, reference = np.split(qos, [len(self._draws())])
        scale = (qos.var(axis=0) + _QOS_FLOOR**2) ** 0.25
        gain = qos - qos.mean(axis=0)
        if len(reference):
            gain = qos - reference
            gain = np.where(gain < 0, _LOSS * gain, gain)
        order = np.argsort(-(gain / scale).mean(axis=1), kind="stable")
        count = max(len(order) // 3, 1)
        weights = np.log(count + 0.5) - np.log(np.arange(1, count + 1))
        weights /= weights.sum()
        best = self._draws()[order[:count]]
        self.mean = self.mean + _STEP * self.spread * (weights @ best)
        self.spread = self.spread * np.exp(_SPREAD_RATE * (weights @ best**2 - 1)).clip(*_SPREAD_RANGE)
        self.generation += 1
        self.settled = self.settled + max(_SETTLING, 1 / (self.generation + self._beginning)) * (self.mean - self.settled)

    def get_state(self) -> dict[str, Any]:
        """For ``set_state``."""
        return {"mean": self.mean, "settled": self.settled, "spread": self.spread, "generation": self.generation}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the result of ``get_state``."""
        self.mean, self.settled = state["mean"], state["settled"]
        self.spread, self.generation = state["spread"], state["generation"]

    def _draws(self) -> Array:
        half = np.random.default_rng([self._seed, _STREAM, self.generation]).standard_normal((self._pairs, self.mean.size))
        return np.concatenate([half, -half])


def try_candidates(
    runner: VectorEnvRunner,
    candidates: Array,
    generation: int,
    variants: int,
    drawn: int,
    kinds: Sequence[str],
    requests: int,
) -> Array:
    """(K, W) mean QoS of a worker's router with each candidate's price, in some of the worker's scenarios and in drawn ones.

    All candidates of a generation meet the same episodes; each generation meets new ones.

    Args:
        runner: whose module and scenarios count.
        candidates: (K, P) parameters of the price.
        generation: fixes variants and episodes, with the worker's index and seed.
        variants: about how many variants, in proportion to the worker's environments of each scenario; 0 for none.
        drawn: how many scenarios to draw (``rllib_envs.scenarios.procedural``), with the worker's kind of observation.
        kinds: of the drawn scenarios, in turn (``rllib_envs.scenarios.kinds``).
        requests: requests in an episode.
    """
    module: Any = runner.module
    seed = [int(runner.config.seed or 0), _STREAM, generation, runner.worker_index or 0]
    draw = np.random.default_rng(seed)
    results: list[Array] = []
    for group in runner.env.groups if variants else ():
        known: Sequence[Scenario] = group.simulation.variants
        count = min(max(round(variants * len(known) / runner.num_envs), _MIN_VARIANTS), len(known))
        first = draw.random() * len(known) / count
        chosen = [known[int(first + i * len(known) / count)] for i in range(count)]  # spread over the loads
        seeds = [int(x) for x in draw.integers(2**62, size=count)]
        results.append(_try_in(module.router, candidates, [_plain(scenario, requests) for scenario in chosen], seeds))
    seen = runner.env.groups[0].simulation.scenario.observation
    for i in range(drawn):
        kind = kinds[(generation + i) % len(kinds)]
        scenario = of_kind(kind, draw_scenario(draw, requests=requests), (*seed, _KIND_STREAM, i))
        scenario = replace(scenario, observation=seen)
        results.append(_try_in(module.router, candidates, [_plain(scenario, requests)], [int(draw.integers(2**62))]))
    return np.concatenate(results, axis=1)


def _plain(scenario: Scenario, requests: int) -> Scenario:
    """The scenario without learner-only data and without faults, which blur the value of a price."""
    observation = replace(scenario.observation, counterfactual=False)
    variation = None if scenario.variation is None else replace(scenario.variation, fault_share=0.0)
    return replace(with_workload(scenario, requests=requests), observation=observation, reward=Reward(), variation=variation)


@torch.inference_mode()
def _try_in(router: Router, candidates: Array, variants: list[Scenario], seeds: list[int]) -> Array:
    """(K, W): all candidates in all variants, W of one kind of cluster, in one batch."""
    count = len(candidates)
    simulation = Simulation(variants[0], count * len(variants), variants=variants * count)
    simulation.start_all(seeds * count)
    observation = {key: torch.from_numpy(x) for key, x in simulation.view._asdict().items() if x.size}
    terms = torch.from_numpy(np.repeat(candidates, len(variants), axis=0).astype(np.float32))
    while not simulation.over.all():
        simulation.step(router(observation, terms).argmax(dim=-1).numpy())
    qos = [simulation.records(b).qos.mean() for b in range(simulation.batch)]
    return np.reshape(qos, (count, len(variants)))
