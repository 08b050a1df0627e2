"""Learners in processes of their own: one learns what the driver would, several come to the same weights. Real processes."""

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.rllib.core.learner.training_data import TrainingData

from models.rllib.checkpoint import learner_state, restore_learner, router_of
from models.rllib.errors import LearnerFailed
from models.rllib.learning.all_reduce import DataParallel
from models.rllib.rollout.collect import ask_learners, collect, update_learners, with_processes
from rllib_envs.errors import InputError
from tests.models.rllib import avl_learner, test_dqn, test_ppo, test_sac

# Ray copies a record of its own to each learner, the deprecated fields included.
pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")]
SEARCH = {"generations": 1, "population": 4, "search_variants": 4, "search_requests": 20}
ITERATIONS = 4


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """RLlib's algorithms want one."""
    ray.init("local", num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def build(small_scenario, one_ray):
    """Builds algorithms and stops them; the same ones for the same settings."""
    built = []
    configured = {
        "avl": lambda: avl_learner.config(small_scenario, rows=20, minibatch=64, **SEARCH),
        "ppo": lambda: test_ppo.config(small_scenario),
        "sac": lambda: test_sac.config(small_scenario),
        "dqn": lambda: test_dqn.config(small_scenario),
    }

    def make(name, learners):
        made = with_processes(configured[name](), env_runners=0, learners=learners, gpus_per_learner=0)
        built.append(made.build_algo())
        return built[-1]

    yield make
    for algorithm in built:
        algorithm.stop()


@pytest.fixture(scope="module")
def trained(build):
    """Algorithms after a few iterations, and what the last one reported; each of them once."""
    kept = {}

    def make(name, learners):
        if (name, learners) not in kept:
            algorithm = build(name, learners)
            kept[name, learners] = algorithm, [algorithm.train() for _ in range(ITERATIONS)][-1]
        return kept[name, learners]

    return make


@pytest.fixture(scope="module")
def two(build):
    """An algorithm with two learners, to be done anything to; its state is whatever others have left."""
    algorithm = build("avl", 2)
    algorithm.train()
    return algorithm


def weights(algorithm):
    """Of each learner."""

    def held(learner):
        state = learner.module["default_policy"].unwrapped().state_dict()
        return {key: value.numpy().copy() for key, value in state.items()}

    return ask_learners(algorithm, held)


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[key], theirs[key]) for key in ours)


def statistics(algorithm):
    """What AVL's learners keep beside the weights, flat, of each learner."""

    def kept(learner):
        fields = ("reward", "return_variance", "impact_error", "advantage_variance")
        numbers = [getattr(baselines, name) for baselines in learner.baselines.values() for name in fields]
        return np.concatenate([*numbers, learner.search.mean, learner.search.spread, [learner.search.generation]])

    return ask_learners(algorithm, kept)


@pytest.mark.parametrize("name", ["avl", "ppo", "sac", "dqn"])
def test_one_learner_learns_what_the_driver_would_to_the_last_bit(trained, name):
    (ours, reported), (theirs, expected) = trained(name, 1), trained(name, 0)
    assert same(*weights(ours), *weights(theirs))
    assert reported["learners"].keys() == expected["learners"].keys()
    assert router_weights(ours).keys() == router_weights(theirs).keys()
    assert same(router_weights(ours), router_weights(theirs))


def router_weights(algorithm):
    return {key: value.numpy() for key, value in router_of(algorithm).state_dict().items()}


@pytest.mark.parametrize("name", ["avl", pytest.param("ppo", marks=pytest.mark.nightly)])
def test_two_learners_come_to_the_same_weights_to_the_last_bit_and_to_those_of_one_but_for_rounding(trained, name):
    (two, reported), (one, expected) = trained(name, 2), trained(name, 0)
    first, second = weights(two)
    assert same(first, second)
    (alone,) = weights(one)
    for key, value in alone.items():
        np.testing.assert_allclose(first[key], value, rtol=1e-3, atol=1e-4)
    ours, theirs = (result["learners"]["default_policy"] for result in (reported, expected))
    for figure in ("value_loss", "baseline_loss", "gradient_norm", "entropy", "kl"):
        assert ours[figure] == pytest.approx(theirs[figure], rel=1e-2, abs=1e-5), figure
    trained_on = [result["learners"]["__all_modules__"]["num_env_steps_trained"] for result in (reported, expected)]
    assert trained_on[0] == trained_on[1]


def test_statistics_and_the_search_for_the_price_are_the_same_on_both(trained):
    first, second = statistics(trained("avl", 2)[0])
    assert np.array_equal(first, second)
    assert first[-1] == SEARCH["generations"]
    np.testing.assert_allclose(first, *statistics(trained("avl", 0)[0]), rtol=1e-3, atol=1e-5)


def test_two_learners_learn(two):
    algorithm = two
    fragments = collect(algorithm)
    errors = []
    for _ in range(20):
        update_learners(algorithm, TrainingData(episodes=fragments))
        errors.append(algorithm.metrics.peek(("learners", "default_policy", "impact_error")))
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("saved_by", [0, 2])
def test_a_checkpoint_goes_on_with_another_number_of_learners(trained, build, two, tmp_path, saved_by):
    algorithm, _ = trained("avl", saved_by)
    algorithm.save_to_path(tmp_path / "saved")
    other = build("avl", 0) if saved_by else two
    assert not same(weights(other)[0], weights(algorithm)[0])
    other.restore_from_path(tmp_path / "saved")
    for ours, theirs in zip(weights(other), weights(algorithm) * 2, strict=False):
        assert same(ours, theirs)
    for ours, theirs in zip(statistics(other), statistics(algorithm) * 2, strict=False):
        assert np.array_equal(ours, theirs)
    other.train()
    assert all(same(weights(other)[0], own) for own in weights(other))


@pytest.mark.parametrize("learners", [0, 2])
def test_an_iteration_can_be_taken_back(build, two, learners):
    algorithm = two if learners else build("avl", 0)
    algorithm.train()
    good, before = learner_state(algorithm), weights(algorithm)
    algorithm.train()
    assert not same(before[0], weights(algorithm)[0])
    restore_learner(algorithm, good)
    assert all(same(ours, own) for ours, own in zip(before, weights(algorithm), strict=True))


def test_a_loss_that_is_not_finite_is_an_error_that_names_it_and_all_learners_go_on(two):
    algorithm = two
    fragments, good, before = collect(algorithm), learner_state(algorithm), weights(algorithm)
    dt_s = np.full_like(fragments[0].dt_s, np.nan)
    with pytest.raises(FloatingPointError, match="value loss is nan"):
        update_learners(algorithm, TrainingData(episodes=[replace(fragments[0], dt_s=dt_s), *fragments[1:]]))
    assert all(same(ours, own) for ours, own in zip(before, weights(algorithm), strict=True))
    restore_learner(algorithm, good)  # else the sample has left its mark on the baselines
    algorithm.train()
    assert all(same(weights(algorithm)[0], own) for own in weights(algorithm))


def test_a_learner_that_is_killed_ends_training_with_an_error_that_says_so(two):
    algorithm = two
    os.kill(ask_learners(algorithm, lambda _: os.getpid())[1], signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(LearnerFailed, match="a learner is lost"):
            algorithm.train()


@pytest.mark.parametrize(("name", "arm"), [("sac", test_sac), ("dqn", test_dqn)])
def test_what_learns_from_a_replay_buffer_is_not_divided(small_scenario, name, arm):
    made = with_processes(arm.config(small_scenario), env_runners=0, learners=2, gpus_per_learner=0)
    with pytest.raises(InputError, match=f"num-learners = 2: {name} learns in one process"):
        made.validate()


@given(rows=st.integers(0, 100), count=st.integers(1, 9))
def test_the_parts_of_all_learners_are_all_rows_each_once(rows, count):
    parts = []
    for index in range(count):
        parallel = DataParallel()
        parallel.count, parallel.index = count, index
        parts += list(range(rows))[parallel.part(rows)]
    assert parts == list(range(rows))


def test_alone_nothing_is_changed():
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), 0.1)
    figures, part = [0.1, 0.2], torch.rand(4, 2)
    parallel, gradient = DataParallel(), parameter.grad
    assert parallel.add([parameter], figures) is figures
    assert parameter.grad is gradient
    assert parallel.gather(part, 4) is part
