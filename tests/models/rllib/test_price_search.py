"""The search for the price: it finds an optimum it can be told about, and judges prices as evaluation would."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.price import TERMS
from models.rllib.avl.price_search import PriceSearch, try_candidates
from models.rllib.rollout.runner import VectorEnvRunner
from rllib_envs.simulation import Simulation
from tests.models.rllib.avl_learner import config, learner_of

pytestmark = pytest.mark.slow

P = len(TERMS)


def searched(target, *, generations, noise=0.0, seed=0):
    """How far a search is from the best in the end, where QoS falls with the squared distance, in two worlds of unlike scale."""
    search, rng = PriceSearch(TERMS, population=16, seed=seed, searches=4), np.random.default_rng(seed)
    spread = np.array([term.spread for term in TERMS.values()])
    distances = []
    for _ in range(generations):
        loss = (((search.ask() - target) / spread) ** 2).mean(axis=1)
        distances.append(float((((search.mean - target) / spread) ** 2).mean()))
        search.tell(np.stack([0.6 - 0.01 * loss, 0.3 - 0.1 * loss], axis=1) + noise * rng.standard_normal((16, 2)))
    return distances


def test_it_comes_near_the_optimum():
    start = np.array([term.prior for term in TERMS.values()])
    spread = np.array([term.spread for term in TERMS.values()])
    target = start + spread * np.random.default_rng(1).standard_normal(P)
    for noise in (0.0, 0.003):
        distances = searched(target, generations=60, noise=noise)
        assert distances[-1] < 0.35 * distances[0]


def test_what_it_settles_on_follows_luck_less_than_where_it_is():
    target = np.array([term.prior for term in TERMS.values()])
    ratios = []
    for seed in range(5):
        search, rng = PriceSearch(TERMS, population=16, seed=seed, searches=4), np.random.default_rng(seed)
        for _ in range(40):
            search.tell(rng.standard_normal((16, 2)))
        ratios.append(np.square(search.settled - target).sum() / np.square(search.mean - target).sum())
    assert np.mean(ratios) < 0.9


def test_what_it_settles_on_goes_to_the_optimum_too_but_slower_at_first():
    start = np.array([term.prior for term in TERMS.values()])
    spread = np.array([term.spread for term in TERMS.values()])
    target = start + spread * np.random.default_rng(1).standard_normal(P)
    search = PriceSearch(TERMS, population=16, seed=0, searches=4)

    def left(terms):
        return (((terms - target) / spread) ** 2).mean() / (((start - target) / spread) ** 2).mean()

    for _ in range(60):
        loss = (((search.ask() - target) / spread) ** 2).mean(axis=1)
        search.tell(-0.01 * loss[:, None])
        if search.generation == 10:
            assert left(search.mean) < left(search.settled) < 1
    assert left(search.settled) < 0.5


def test_candidates_are_antithetic_and_the_same_until_they_are_told_what_they_are_worth():
    search = PriceSearch(TERMS, population=6, seed=3, searches=4)
    first = search.ask()
    np.testing.assert_allclose(first[:3] + first[3:], np.tile(2 * search.mean, (3, 1)), atol=1e-12)
    assert np.array_equal(search.ask(), first)
    search.tell(np.zeros((6, 2)))
    assert search.generation == 1
    assert not np.isclose(search.ask(), first).any()
    assert not np.isclose(PriceSearch(TERMS, population=6, seed=4, searches=4).ask(), first).any()


def test_it_goes_on_from_its_state():
    first, second = PriceSearch(TERMS, population=6, seed=3, searches=4), PriceSearch(TERMS, population=6, seed=3, searches=4)
    qos = np.random.default_rng(0).random((6, 4))
    first.tell(qos)
    second.set_state(pickle.loads(pickle.dumps(first.get_state())))
    for search in (first, second):
        search.tell(qos[::-1])
    assert np.array_equal(first.ask(), second.ask())
    assert np.array_equal(first.settled, second.settled)


def test_a_loss_against_the_reference_counts_twice_as_much_as_a_gain():
    """By the roots of their sizes: to make up for a loss takes a gain four times as large in another world."""
    for gain, better in ((0.035, False), (0.045, True)):
        search = PriceSearch(TERMS, population=4, seed=0, reference={"level": -9.0})
        first, *_, reference = search.ask()
        assert dict(zip(TERMS, reference, strict=True))["level"] == -9.0
        search.tell(0.5 + np.array([[gain, -0.01], [0.0, 0.0], [0.0, 0.0], [-gain, 0.01], [0.0, 0.0]]))
        closer = np.abs(search.mean - first).sum() < np.abs(np.array([t.prior for t in TERMS.values()]) - first).sum()
        assert closer == better


def test_a_world_with_larger_differences_counts_more_by_their_root():
    """Differences a hundred times as large outweigh the other way round in nine worlds, not in eleven."""
    small, large = 0.1 * np.array([3.0, 2, 1, 0]), 10 * np.array([0.0, 1, 2, 3])
    for count, decisive in ((9, large), (11, small)):
        both, alone = (PriceSearch(TERMS, population=4, seed=0) for _ in range(2))
        both.tell(np.stack([*[small] * count, large], axis=1))
        alone.tell(decisive[:, None])
        np.testing.assert_allclose(both.mean, alone.mean)


@pytest.fixture(scope="module")
def runner(small_scenario):
    return VectorEnvRunner(config=config(small_scenario))


def test_what_a_candidate_is_worth_is_what_its_router_gets_in_that_world(runner):
    candidates = np.stack([np.array([term.prior + 4 * i for term in TERMS.values()]) for i in range(2)])
    qos = try_candidates(runner, candidates, 0, 4, 0, ("plain",), 25)
    assert qos.shape == (2, 4)
    assert np.array_equal(qos, try_candidates(runner, candidates, 0, 4, 0, ("plain",), 25))
    assert not np.array_equal(qos, try_candidates(runner, candidates, 1, 4, 0, ("plain",), 25))
    assert (qos[0] != qos[1]).any()
    router = runner.module.router
    before = router.price.terms.clone()
    for i, candidate in enumerate(candidates):
        router.price.terms.copy_(torch.from_numpy(candidate))
        again = try_candidates(runner, np.stack([candidate] * 2), 0, 4, 0, ("plain",), 25)
        np.testing.assert_array_equal(again, np.stack([qos[i]] * 2))
        assert router.price.terms.numpy() == pytest.approx(candidate)
    router.price.terms.copy_(before)


def test_drawn_worlds_are_new_each_generation_and_the_same_for_all_candidates(runner, monkeypatch):
    met, start_all = [], Simulation.start_all
    monkeypatch.setattr(Simulation, "start_all", lambda self, seeds: met.append((self.variants, seeds)) or start_all(self, seeds))
    for generation in range(2):
        qos = try_candidates(runner, np.zeros((3, P)), generation, 0, 2, ("plain",), 25)
        assert qos.shape == (3, 2)
    scenarios = [variants[0] for variants, _ in met]
    assert len({scenario.fingerprint() for scenario in scenarios}) == 4
    try_candidates(runner, np.zeros((3, P)), 0, 0, 2, ("plain", "edge"), 25)
    plain, edge = (variants[0] for variants, _ in met[4:])
    assert plain == scenarios[0]
    assert edge.classes
    assert edge.network is not None
    assert replace(edge, classes=(), tenants=(), network=None, experts=scenarios[1].experts) == scenarios[1]
    for variants, seeds in met:
        assert variants == variants[:1] * 3
        assert seeds == seeds[:1] * 3


def test_episodes_are_whole_and_all_candidates_meet_the_same(runner, monkeypatch):
    met, start_all = [], Simulation.start_all
    monkeypatch.setattr(Simulation, "start_all", lambda self, seeds: met.append((self.variants, seeds)) or start_all(self, seeds))
    try_candidates(runner, np.zeros((3, P)), 0, 4, 0, ("plain",), 25)
    for worlds, seeds in met:
        assert worlds == worlds[: len(worlds) // 3] * 3
        assert seeds == seeds[: len(seeds) // 3] * 3
        assert {world.workload.requests for world in worlds} == {25}


def test_in_training_the_price_is_searched_for_and_refined_first_and_the_rest_learned_then(small_scenario, one_ray):
    settings = {"generations": 2, "refinements": 2, "population": 4, "search_variants": 4, "search_requests": 20}
    algorithm = config(small_scenario, rows=20, **settings).build_algo()
    prior, seen = np.array([term.prior for term in TERMS.values()], np.float32), []
    try:
        for _ in range(7):
            algorithm.train()
            learner = learner_of(algorithm)
            router = learner.module["default_policy"].unwrapped().router
            assert torch.equal(algorithm.env_runner.module.router.price.terms, router.price.terms)
            moved = not np.allclose(router.price.terms.numpy(), prior)
            done = learner.search.generation, learner.refinement.generation
            step = learner.refinement.step() if done == (2, 2) else 0.0
            np.testing.assert_array_equal(router.price.terms.numpy(), np.float32(learner.search.settled + step))
            seen.append((done, moved, router.encoder_enabled, bool(router.future.last.weight.any())))
    finally:
        algorithm.stop()
    generations, moved, heard, improved = zip(*seen, strict=True)
    assert generations == ((1, 0), (2, 0), (2, 1), (2, 2), (2, 2), (2, 2), (2, 2))
    assert all(moved)
    assert heard == (False, False, False, False, True, True, True)
    assert improved == (False, False, False, False, True, True, True)
