"""RLlib's side of the per-expert router. No Ray is started: a runner and a module work without."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

from models.per_expert import PerExpertPolicy, predicted_marginal
from models.rllib.ppo import QuietRewards, ppo_config
from models.rllib.ppo_module import MaskedCategorical, PerExpertPPOModule
from rllib_envs.observation import ARRIVED_FEATURES
from rllib_envs.routing import EdgeRoutingVectorEnv

MODEL = {"hidden": 16, "temperature": 0.05}
STEPS, ENVS = 160, 4
MASKED = [-1e9, 0.0, -3.0]


def config(scenario, seed=3):
    return ppo_config(scenario, seed=seed, lr=1e-3, env_runners=0, envs_per_runner=ENVS, steps=STEPS, model=MODEL)


@pytest.fixture(scope="module")
def runner(small_scenario):
    runner = SingleAgentEnvRunner(config=config(small_scenario))
    yield runner
    runner.stop()


@pytest.fixture(scope="module")
def episodes(runner):
    """Pieces of episodes, some of them ended: 160 steps in 4 environments whose episodes have 30."""
    pieces = runner.sample(num_timesteps=STEPS, explore=True)
    assert any(piece.is_terminated for piece in pieces)
    assert not all(piece.is_terminated for piece in pieces)
    return pieces


def make_module(env, **kwargs):
    return PerExpertPPOModule(
        observation_space=env.single_observation_space, action_space=env.single_action_space, model_config=MODEL, **kwargs
    )


@pytest.fixture
def batch(small_scenario):
    env = EdgeRoutingVectorEnv(ENVS, small_scenario)
    observation, _ = env.reset(seed=5)
    return env, {Columns.OBS: {key: torch.from_numpy(value) for key, value in observation.items()}}


def test_the_module_is_the_policy_and_its_value(batch):
    env, batch = batch
    module = make_module(env)
    trained = module.forward_train(batch)
    torch.testing.assert_close(trained[Columns.ACTION_DIST_INPUTS], module.policy(batch[Columns.OBS]))
    torch.testing.assert_close(module.compute_values(batch, embeddings=trained[Columns.EMBEDDINGS]), module.compute_values(batch))
    assert module.compute_values(batch).shape == (ENVS,)


def test_exploring_and_acting_see_the_same_logits(batch):
    env, batch = batch
    module = make_module(env)
    expected = module.policy(batch[Columns.OBS])
    for forward in (module.forward_exploration, module.forward_inference):
        torch.testing.assert_close(forward(batch)[Columns.ACTION_DIST_INPUTS], expected)


def test_a_runner_has_no_critic(batch):
    env, batch = batch
    learner, runner = make_module(env, inference_only=False), make_module(env, inference_only=True)
    assert not hasattr(runner, "value")
    runner.set_state(learner.get_state(inference_only=True))
    torch.testing.assert_close(
        runner.forward_inference(batch)[Columns.ACTION_DIST_INPUTS], learner.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    )


def test_without_whatif_results_the_module_does_without(batch):
    env, _ = batch
    spaces = {key: space for key, space in env.single_observation_space.items() if key != "whatif"}
    module = PerExpertPPOModule(
        observation_space=gym.spaces.Dict(spaces), action_space=env.single_action_space, model_config=MODEL
    )
    assert not module.policy.whatif


def test_a_masked_action_is_never_drawn():
    drawn = MaskedCategorical(logits=torch.tensor(MASKED)).sample(sample_shape=(2000,))
    assert set(drawn.tolist()) == {1, 2}


def test_the_divergence_is_the_usual_one():
    p, q = (torch.distributions.Categorical(logits=torch.randn(7, 4)) for _ in range(2))
    ours = MaskedCategorical(logits=p.logits).kl(MaskedCategorical(logits=q.logits))
    torch.testing.assert_close(ours, torch.distributions.kl_divergence(p, q))


def test_the_divergence_and_its_gradient_stay_finite_where_probabilities_underflow():
    logits = torch.tensor([[-1e9, 0.0, -500.0]], requires_grad=True)
    divergence = MaskedCategorical(logits=torch.tensor([MASKED])).kl(MaskedCategorical(logits=logits))
    assert torch.isfinite(divergence).all()
    assert divergence > 1
    divergence.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_the_runner_steps_the_vector_environment(runner):
    assert isinstance(runner.env.unwrapped, EdgeRoutingVectorEnv)
    assert isinstance(runner.module.policy, PerExpertPolicy)


def test_the_reward_of_a_step_is_the_marginal_qos_of_its_action(episodes):
    for piece in episodes:
        marginals = np.stack([info["marginal_qos"] for info in piece.get_infos(slice(0, len(piece)))])
        taken = marginals[np.arange(len(piece)), piece.get_actions()]
        np.testing.assert_allclose(piece.get_rewards(), taken, atol=1e-6)


def test_step_metrics_are_those_of_the_steps(runner, episodes):
    assert sum(len(piece) for piece in episodes) >= STEPS
    decided = sum(runner.metrics.peek(name) for name in ("finished", "dropped", "rejected"))
    ended = sum(piece.is_terminated for piece in episodes)
    assert 30 * ended <= decided <= sum(len(piece) for piece in episodes) + ENVS
    assert runner.metrics.peek("late") <= runner.metrics.peek("finished")
    assert runner.metrics.peek("reward") == pytest.approx(sum(piece.get_rewards().sum() for piece in episodes))


@pytest.fixture
def quiet(batch):
    """What QuietRewards makes of one state per environment, for every action: (N+1, ENVS) rewards before and after."""
    env, batch = batch
    observation = batch[Columns.OBS]
    marginal = env.simulation.marginal.copy()
    logits = PerExpertPolicy(whatif=True, **MODEL)(observation).detach()

    class Piece:
        """A stand-in for an episode of one step."""

        def __init__(self, b):
            self.b = b

        def __len__(self):
            return 1

        def get_infos(self, _):
            return [{"marginal_qos": marginal[self.b]}]

    def make(connector, action):
        rewards = torch.from_numpy(marginal[:, action]).float()
        columns = {
            Columns.OBS: observation,
            Columns.LOSS_MASK: torch.ones(ENVS, dtype=torch.bool),
            Columns.ACTION_DIST_INPUTS: logits,
            Columns.REWARDS: rewards,
        }
        return connector(batch={"m": columns}, episodes=[Piece(b) for b in range(ENVS)])["m"][Columns.REWARDS]

    return make, marginal, observation, logits


def test_quiet_rewards_keep_what_one_action_has_over_another(quiet):
    make, marginal, _, _ = quiet
    actions = range(marginal.shape[1])
    connectors = [QuietRewards() for _ in actions]
    after = torch.stack([make(c, a) + c._mean for c, a in zip(connectors, actions, strict=True)])  # centred each for itself
    before = torch.from_numpy(marginal.T).float()
    torch.testing.assert_close(after - after[-1], before - before[-1], atol=1e-5, rtol=1e-5)


def test_quiet_rewards_of_the_policy_mean_are_free_of_true_values(quiet):
    make, marginal, observation, logits = quiet
    total = torch.zeros(ENVS)
    for action in range(marginal.shape[1]):
        connector = QuietRewards()
        total += logits.softmax(dim=-1)[:, action] * (make(connector, action) + connector._mean)
    best = torch.where(observation["action_mask"][:, :-1] > 0, predicted_marginal(observation), 0.0).amax(dim=-1).clamp(min=0)
    told = observation["arrived"][..., ARRIVED_FEATURES.index("told_score")].amax(dim=-1)
    torch.testing.assert_close(total, best - told, atol=1e-5, rtol=1e-5)


def test_quiet_rewards_are_centred(quiet):
    make, _, _, _ = quiet
    connector = QuietRewards()
    assert abs(float(make(connector, 0).mean())) < 1e-6
