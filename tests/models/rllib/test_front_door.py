"""What users of RLlib meet first: ten-line scripts work, and what cannot work is refused in a line that says why."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec

import models.rllib
from models.rllib import AVL, AVLConfig, RouterDQNConfig, RouterModule, RouterPPOConfig, RouterSACConfig, training_scenario
from models.rllib.avl.learner import AVLLearner
from models.rllib.avl.module import AVLModule
from models.rllib.ppo.learner import PPOLearner
from models.rllib.router_module import BaselineModule
from models.rllib.scenario import MARGINAL
from rllib_envs.env import EdgeRoutingEnv
from rllib_envs.errors import InputError
from rllib_envs.scenario import Reward
from rllib_envs.scenarios.load import load_scenario
from tests.models.observed import busy, seen, stir

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_ray")]

ENVIRONMENT = "rllib_envs:EdgeRouting-v0"
MODULE = f"learner_group/learner/rl_module/{DEFAULT_MODULE_ID}"
SMALL = {"router": {"encoder": "aggregates", "hidden": 8, "impact_hidden": 8}}


def small(config):
    """So that an iteration is over at once."""
    return config.env_runners(num_envs_per_env_runner=2, rollout_fragment_length=12)


def test_all_names_are_there():
    assert models.rllib.__all__ == sorted(models.rllib.__all__, key=str)
    assert all(getattr(models.rllib, name) is not None for name in models.rllib.__all__)
    assert set(models.rllib._HOMES) == set(models.rllib.__all__)
    with pytest.raises(AttributeError, match="RouterModul'"):
        _ = models.rllib.RouterModul


def stock(scenario):
    return (
        PPOConfig()
        .environment(ENVIRONMENT, env_config={"scenario": scenario})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .training(train_batch_size_per_learner=32, minibatch_size=16, num_epochs=1)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=RouterModule))
    )


def test_stock_ppo_builds_a_router_for_what_observations_hold():
    algorithm = stock("edge3").build_algo()
    assert not algorithm.get_module().router.spec.impact
    algorithm.stop()


def test_stock_ppo_trains_our_module_and_its_checkpoints_are_read_back(tmp_path):
    algorithm = stock(training_scenario("edge3")).build_algo()
    before = {key: value.clone() for key, value in algorithm.get_module().state_dict().items()}
    learned = algorithm.train()["learners"][DEFAULT_MODULE_ID]
    assert all(math.isfinite(learned[name]) for name in ("policy_loss", "vf_loss", "entropy"))
    after = algorithm.get_module().state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    path = algorithm.save_to_path(tmp_path / "checkpoint")
    restored, module = Algorithm.from_checkpoint(path), RLModule.from_checkpoint(f"{path}/{MODULE}")
    assert isinstance(module, RouterModule)
    assert module.router.spec.impact
    for found in (restored.get_module(), module):
        assert all(torch.equal(value, found.state_dict()[key]) for key, value in after.items())
    for one in (algorithm, restored):
        one.stop()


@pytest.mark.parametrize(
    "config",
    [
        AVLConfig().training(warmup=1, generations=1, population=2, search_variants=1, search_requests=10),
        RouterPPOConfig().training(warmup_steps=0),
        RouterSACConfig().training(learning_starts=16, minibatch_size=8, replay_capacity=500),
        RouterDQNConfig().training(learning_starts=16, minibatch_size=8, replay_capacity=500),
    ],
    ids=["avl", "ppo", "sac", "dqn"],
)
def test_our_algorithms_train_on_a_preset_by_name(config, tmp_path):
    algorithm = small(config.copy()).environment(env_config={"scenario": "edge3"}).build_algo()
    for _ in range(2):
        result = algorithm.train()
    assert math.isfinite(result["env_runners"]["qos_mean"])
    assert result["learners"][DEFAULT_MODULE_ID]
    path = algorithm.save_to_path(tmp_path / "checkpoint")
    restored = Algorithm.from_checkpoint(path)
    assert type(restored) is type(algorithm)
    assert math.isfinite(restored.train()["env_runners"]["qos_mean"])
    for one in (algorithm, restored):
        one.stop()


@pytest.mark.parametrize("kind", [RouterModule, BaselineModule, AVLModule])
def test_a_module_gives_values_and_masked_logits(kind):
    scenario = replace(training_scenario("edge3"), capacity_rps=10.0)
    env = EdgeRoutingEnv(scenario)
    module = kind(observation_space=env.observation_space, action_space=env.action_space, model_config={})
    stir(module)
    batch = {Columns.OBS: seen(busy(scenario, clusters=3))}
    logits = module.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    possible = batch[Columns.OBS]["action_mask"] > 0
    assert logits.shape == possible.shape
    assert (logits.softmax(dim=-1)[~possible] == 0).all()
    values = module.compute_values(batch)
    assert values.shape == (3,)
    assert len(set(values.tolist())) == 3
    assert module.router_to_serve().spec == module.router.spec


class OfEpisodes(RLlibCallback):
    def on_episode_end(self, **kwargs):
        raise AssertionError("it would never be called")


class OfTraining(RLlibCallback):
    def on_train_result(self, **kwargs):
        pass


def edge3(config):
    return config.environment(env_config={"scenario": "edge3"})


@pytest.mark.parametrize("kind", [AVLConfig, RouterPPOConfig, RouterSACConfig, RouterDQNConfig])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.env_runners(env_to_module_connector=lambda *_: []), "env_to_module_connector: .*no connectors"),
        (lambda c: c.env_runners(module_to_env_connector=lambda *_: []), "module_to_env_connector: "),
        (lambda c: c.learners(learner_connector=lambda *_: []), "learner_connector: "),
        (lambda c: c.callbacks(OfEpisodes), "callbacks.on_episode_end: .*no episode objects"),
        (lambda c: c.callbacks([OfTraining, OfEpisodes]), "callbacks.on_episode_end: "),
        (lambda c: c.callbacks(on_episode_step=print), "callbacks.on_episode_step: "),
        (lambda c: c.environment("CartPole-v1"), "env = 'CartPole-v1': must be 'rllib_envs:EdgeRouting-v0'"),
        (lambda c: c.environment(env_config={"scenario": "edgy"}), "edgy"),
        (lambda c: c.rl_module(model_config={"router": {"wings": 2}}), "model_config.router: 'wings' is not known"),
        (lambda c: c.rl_module(model_config={"router": 5}), "model_config.router = 5: must be a mapping"),
    ],
)
def test_what_would_be_passed_over_is_refused(kind, change, message):
    with pytest.raises(InputError, match=message):
        change(edge3(kind())).validate()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: AVLConfig().training(population=3, clip=5), "population = 3: must be even|clip = 5"),
        (lambda: AVLConfig().training(gamma=0.9), "training: gamma: AVLConfig does not use it"),
        (lambda: RouterPPOConfig().training(train_batch_size_per_learner=9), "train_batch_size_per_learner: RouterPPOConfig"),
        (lambda: RouterPPOConfig().training(clip=2), "clip = 2"),
        (lambda: RouterSACConfig().training(polyak=2), "polyak = 2"),
        (lambda: RouterDQNConfig().training(train_batch_size_per_learner=9), "train_batch_size_per_learner: RouterDQNConfig"),
        (lambda: RouterDQNConfig().training(guide="impact"), "guide = 'impact': unknown; allowed are random, "),
    ],
)
def test_settings_that_cannot_be_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        edge3(config()).validate()


@pytest.mark.parametrize("env_config", [{}, {"scenario": "edge3", "scenarios": [("edge3", 32)]}], ids=["neither", "both"])
def test_one_scenario_or_several_it_must_be(env_config):
    with pytest.raises(InputError, match="either scenario or scenarios"):
        AVLConfig().environment(env_config=env_config).validate()


def test_a_name_nobody_knows_is_pythons_own_error():
    with pytest.raises(TypeError, match="lamda"):
        AVLConfig().training(lamda=0.5)


def test_a_scenario_by_name_gets_what_training_needs_and_a_value_stays_as_it_is():
    config = AVLConfig().environment(env_config={"scenario": "edge3"})
    config.validate()
    assert config.env_config["scenario"] == training_scenario("edge3")
    before = config.env_config["scenario"]
    config.validate()
    assert config.env_config["scenario"] is before
    plain = load_scenario("edge3")
    with pytest.raises(InputError, match=r"counterfactual = False: AVLConfig learns .*training_scenario"):
        AVLConfig().environment(env_config={"scenario": plain}).validate()
    blind = replace(plain, observation=replace(plain.observation, counterfactual=True))
    AVLConfig().environment(env_config={"scenario": blind}).validate()
    with pytest.raises(InputError, match="needs the what-if results"):
        AVLConfig().environment(env_config={"scenario": blind}).rl_module(model_config=SMALL).validate()
    RouterSACConfig().environment(env_config={"scenario": plain}).validate()


def test_a_training_scenario_keeps_what_its_scenario_says():
    own = Reward(realised_qos=0.5, marginal_qos=0.5, drop=0.1)
    scenario = replace(load_scenario("edge3"), reward=own)
    seeing = replace(scenario, observation=replace(scenario.observation, whatif=True, whatif_tau=0.2))
    assert training_scenario("edge3").reward == MARGINAL
    assert training_scenario(scenario).reward == own
    assert training_scenario(seeing).observation.whatif_tau == 0.2
    found = training_scenario(scenario)
    assert found.observation.whatif
    assert found.observation.counterfactual
    assert replace(found, observation=scenario.observation) == scenario
    config = AVLConfig().environment(env_config={"scenario": found})
    config.validate()
    assert config.marginal_weight == 0.5


@pytest.mark.parametrize(("config", "learner"), [(AVLConfig, AVLLearner), (RouterPPOConfig, PPOLearner)], ids=["avl", "ppo"])
def test_a_term_can_be_added_to_the_loss(config, learner):
    """Nothing changes by a term that is zero; one that pulls at a weight moves it."""

    def with_term(size):
        class Mine(learner):
            def compute_loss_for_module(self, **arguments):
                loss = super().compute_loss_for_module(**arguments)
                weight = self.unwrapped.baseline.pooled[-1].bias
                return loss + size * (weight - 5.0).square().sum() / self.parallel.count

        return Mine

    def trained(kind):
        made = small(edge3(config())).debugging(seed=0).rl_module(model_config=SMALL)
        if kind is not None:
            made = made.training(learner_class=kind)
        algorithm = made.build_algo()
        algorithm.train()
        state = algorithm.learner_group.get_state()["learner"]["rl_module"][DEFAULT_MODULE_ID]
        algorithm.stop()
        return {key: np.asarray(value) for key, value in state.items()}

    plain, zero, pulled = trained(None), trained(with_term(0.0)), trained(with_term(100.0))
    assert all(np.array_equal(value, zero[key]) for key, value in plain.items())
    assert pulled["baseline.pooled.2.bias"] > plain["baseline.pooled.2.bias"]


def test_an_algorithm_is_found_by_its_configuration():
    assert AVL.get_default_config().algo_class is AVL
    assert models.rllib.RouterDQN.get_default_config().algo_class is models.rllib.RouterDQN
    assert models.rllib.RouterPPO.get_default_config().algo_class is models.rllib.RouterPPO
    assert models.rllib.RouterSAC.get_default_config().algo_class is models.rllib.RouterSAC
