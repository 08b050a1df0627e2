"""Whole iterations of AVL with a Ray, and what its configuration and modules refuse."""

import numpy as np
import pytest
from gymnasium import spaces
from ray.rllib.core import DEFAULT_MODULE_ID

from models.rllib.avl.algorithm import AVLConfig
from models.rllib.avl.module import AVLModule
from models.rllib.avl.settings import AVLSettings
from models.rllib.dqn.module import DQNModule
from models.rllib.router_module import BaselineModule
from models.rllib.sac.module import SACModule
from models.router import RouterSpec
from rllib_envs.errors import InputError
from tests.models.rllib.avl_learner import COUNTS, config, learner_of, module_of, same, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(small_scenario, one_ray):
    """Algorithms of the same seed after three iterations with clusters of six experts and of three, and what they reported."""
    algorithms = [config(small_scenario, rows=20).build_algo() for _ in range(2)]
    results = [[algorithm.train() for _ in range(3)] for algorithm in algorithms]
    yield algorithms, results
    for algorithm in algorithms:
        algorithm.stop()


def test_the_same_seed_gives_the_same_weights_to_the_last_bit(trained):
    first, second = (weights(learner_of(algorithm)) for algorithm in trained[0])
    assert same(first, second)
    assert first["router.future.last.weight"].any()


def test_clusters_of_different_size_are_learned_from_together(trained):
    (algorithm, _), (results, _) = trained
    baselines = learner_of(algorithm).baselines
    assert {key: len(value.reward) for key, value in baselines.items()} == {(0, 0): COUNTS[0], (0, 1): COUNTS[1]}
    sampled = [result["num_env_steps_sampled_lifetime"] for result in results]
    assert 0 < sampled[0] < sampled[1] < sampled[2]
    learned = results[-1]["learners"][DEFAULT_MODULE_ID]
    names = ("impact_loss", "baseline_loss", "value_loss", "future_loss", "kl", "entropy", "returns_sd", "impact_error")
    assert np.isfinite([learned[name] for name in names]).all()
    assert 0 <= results[-1]["env_runners"]["qos_mean"] <= 1


def test_the_workers_act_with_the_learners_router(trained):
    algorithm = trained[0][0]
    ours, theirs = algorithm.env_runner.module.router.state_dict(), module_of(learner_of(algorithm)).router.state_dict()
    assert same(ours, theirs)


@pytest.mark.parametrize(
    "settings", [{"population": 3}, {"clip": 5}, {"lam": 1.5}, {"epochs": 0}, {"keep": float("nan")}, {"search_kinds": ("odd",)}]
)
def test_the_configuration_refuses_what_the_settings_refuse(settings):
    ((name, _),) = settings.items()
    with pytest.raises(InputError, match=f"^{name} = ") as by_settings:
        AVLSettings(**settings)
    with pytest.raises(InputError) as by_configuration:
        AVLConfig().environment("CartPole-v1").training(**settings).validate()
    assert str(by_configuration.value) == str(by_settings.value)


def test_a_module_whose_observations_lack_the_roll_out_is_not_built():
    config = {"router": RouterSpec().to_dict(), "temperature": 0.01}
    parts = dict.fromkeys(("arrived", "experts", "cluster", "action_mask"), spaces.Box(-1, 1, (3, 23)))
    flat = spaces.Box(-1, 1, (100,))
    for module in (AVLModule, BaselineModule, DQNModule, SACModule):
        with pytest.raises(InputError, match=r"observation.whatif = False"):
            module(observation_space=spaces.Dict(parts), action_space=spaces.Discrete(4), model_config=config)
        with pytest.raises(InputError, match=r"observation space without arrived, .*no connector may flatten them"):
            module(observation_space=flat, action_space=spaces.Discrete(4), model_config=config)
