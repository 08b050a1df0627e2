"""Double DQN: target and exploration by their laws, and updates of a real RLlib learner. Only the last tests need a Ray."""

import math
from dataclasses import replace
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns

from models.bounds import MASKED_SCORE
from models.rllib.dqn.algorithm import dqn_config
from models.rllib.dqn.exploration import Exploration, choose
from models.rllib.dqn.learner import double_q_target
from models.rllib.dqn.module import BASELINE, NEXT_Q, NEXT_TARGET_Q, DQNModule, Q
from models.rllib.dqn.runner import GuidedEnvRunner
from models.rllib.learning.replay import DT_S, Replay
from models.router import RouterSpec
from rllib_envs.baselines import HEURISTICS
from rllib_envs.errors import InputError
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from tests.models.rllib.test_sac import tensors, update, weights

pytestmark = pytest.mark.slow

SPEC = RouterSpec(encoder="aggregates", hidden=8, impact_hidden=8)
MODEL = {"router": SPEC.to_dict(), "temperature": 0.05}
ENVS = 4


def config(scenario, **training):
    made = dqn_config(
        [(scenario, ENVS)], seed=3, env_runners=0, rows=16, router=SPEC, temperature=0.05, lr=1e-2, save_replay=True
    )
    small = {"minibatch_size": 16, "steps_per_update": 8, "replay_capacity": 400, "learning_starts": 64, "explore_steps": 150}
    return made.training(**small | training)


def runner_with(scenario, epsilon, guidance, **training):
    runner = GuidedEnvRunner(config=config(scenario, **training))
    runner.module.set_exploration(epsilon, guidance)
    return runner


@pytest.fixture(scope="module")
def crowded(small_scenario):
    """Small engines under more than they carry: often some take no request, and now and then none does."""
    experts = tuple(
        replace(expert, engine=replace(expert.engine, max_num_seqs=2, max_waiting=1)) for expert in small_scenario.experts
    )
    return replace(with_workload(small_scenario, load=60.0, requests=60), experts=experts)


@pytest.fixture(scope="module")
def fragment(small_scenario):
    return runner_with(small_scenario, 0.5, 0.5).sample(num_timesteps=ENVS * 40)[0]


@pytest.fixture(scope="module")
def columns(fragment):
    replay = Replay(400, 1)
    replay.add(fragment)
    return replay.rings[0].sample(64, np.random.default_rng(0))


@pytest.fixture
def learner(small_scenario, fragment):
    """A learner with the module of the scenario's spaces."""
    spaces = gym.spaces.Dict({key: gym.spaces.Box(-1e6, 1e6, value.shape[2:], np.float32) for key, value in fragment.obs.items()})

    def make(**training):
        settings = config(small_scenario, **training)
        settings.validate()
        actions = gym.spaces.Discrete(fragment.obs["action_mask"].shape[-1])
        spec = settings.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: (spaces, actions)})
        built = settings.get_default_learner_class()(config=settings, module_spec=spec)
        torch.manual_seed(0)
        built.build()
        return built

    return make


def test_the_target_is_the_slow_value_of_the_action_that_the_other_network_prefers():
    online = torch.tensor([[1.0, 3.0, 2.0], [0.5, 0.2, 0.1], [0.0, 1.0, 2.0]])
    slow = torch.tensor([[9.0, 4.0, 7.0], [-2.0, 5.0, 6.0], [1.0, 8.0, 3.0]])
    batch = {DT_S: torch.tensor([0.0, 2.0, 0.5]), Columns.TERMINATEDS: torch.tensor([False, False, True])}
    rewards = torch.tensor([0.1, 0.2, 0.3])
    got = double_q_target(batch, rewards, online, slow.requires_grad_(), gamma=0.9, beta=0.1)
    torch.testing.assert_close(got, torch.tensor([0.1 + 0.9 * 4.0, 0.2 + 0.9 * math.exp(-0.2) * -2.0, 0.3]))
    assert not got.requires_grad
    single = rewards + torch.tensor([0.9, 0.9 * math.exp(-0.2), 0.0]) * slow.detach().amax(dim=-1)
    assert (got <= single + 1e-6).all()  # never more than by plain Q-learning, which takes the slow network's own best


def test_an_impossible_action_is_never_in_the_target(learner, columns):
    module = learner().module[DEFAULT_MODULE_ID].unwrapped()
    blocked = {key: value.copy() for key, value in columns[Columns.OBS].items()}
    blocked["action_mask"][:, 1:4] = 0
    batch = tensors(columns | {Columns.NEXT_OBS: blocked})
    output = module.forward_train(batch)
    assert not np.isin(output[NEXT_Q].argmax(-1).numpy(), [1, 2, 3]).any()
    target = double_q_target(batch, batch[Columns.REWARDS], output[NEXT_Q], output[NEXT_TARGET_Q], gamma=1.0, beta=0.05)
    assert (target.abs() < 100).all()
    assert (output[NEXT_TARGET_Q][:, 1:4] < MASKED_SCORE / 2).all()


def test_values_differ_from_the_routers_scores_by_the_state_alone(learner, columns):
    module = learner().module[DEFAULT_MODULE_ID].unwrapped()
    output = module.forward_train(tensors(columns))
    scores = module.router(tensors(columns)[Columns.OBS])
    possible = tensors(columns)[Columns.OBS]["action_mask"] > 0
    shift = torch.where(possible, output[Q] - scores, torch.nan)
    torch.testing.assert_close(shift.nan_to_num(), torch.where(possible, shift[:, -1:].expand_as(shift), 0.0))
    torch.testing.assert_close(shift[:, -1], -output[BASELINE])  # a new value function is 0
    assert torch.equal(output[Q].argmax(-1), scores.argmax(-1))


def test_an_update_moves_every_network(learner, columns):
    made = learner()
    before = weights(made)
    update(made, columns)
    after = weights(made)
    for part in ("router", "value", "baseline", "target_router", "target_value"):
        assert [key for key in before if key.startswith(f"{part}.") and not torch.equal(before[key], after[key])], part
    assert all(torch.equal(before[key], after[key]) for key in ("epsilon", "guidance"))


def test_slow_copies_follow_after_each_minibatch(learner, columns):
    made = learner(polyak=0.9)
    module = made.module[DEFAULT_MODULE_ID].unwrapped()
    own, slow = ([*part[0].parameters(), *part[1].parameters()] for part in _networks(module))
    expected = [x.clone() for x in slow]
    seen = []
    step = module.update_targets

    def follow(polyak):
        step(polyak)
        seen.append([x.detach().clone() for x in own])

    module.update_targets = follow
    update(made, columns)
    assert len(seen) == 64 // 16
    for values in seen:
        expected = [0.9 * x + 0.1 * y for x, y in zip(expected, values, strict=True)]
    for x, y in zip(slow, expected, strict=True):
        torch.testing.assert_close(x, y)


def _networks(module):
    return (module.router, module.value), (module.target_router, module.target_value)


def test_each_loss_has_its_own_networks(learner, columns):
    """The baseline learns rewards, whatever the values are; values learn from what is above it."""
    made = learner()
    batch = {DEFAULT_MODULE_ID: tensors(columns)}
    output = made.module.forward_train(batch)[DEFAULT_MODULE_ID]
    made.compute_gradients(made.compute_losses(fwd_out={DEFAULT_MODULE_ID: output}, batch=batch))
    module, now = made.module[DEFAULT_MODULE_ID].unwrapped(), batch[DEFAULT_MODULE_ID]
    error = (module.baseline(module.router.parts(now[Columns.OBS]).columns) - now[Columns.REWARDS]).square().mean()
    params = list(module.baseline.parameters())
    for param, gradient in zip(params, torch.autograd.grad(error, params), strict=True):
        torch.testing.assert_close(param.grad, gradient)
    assert all(param.grad is None for part in _networks(module)[1] for param in part.parameters())


@pytest.mark.parametrize("column", [Columns.REWARDS, DT_S])
def test_what_is_not_finite_is_an_error_that_changes_nothing(learner, columns, column):
    made = learner()
    before = weights(made)
    bad = columns[column].copy()
    bad[3] = np.nan
    with pytest.raises(FloatingPointError, match="q loss is nan: training cannot go on"):
        update(made, columns, **{column: bad})
    assert all(torch.equal(before[key], value) for key, value in weights(made).items())


def test_exploration_and_guidance_fall_in_a_line_and_then_stay():
    schedule = Exploration(epsilon=(0.8, 0.2), guidance=(1.0, 0.0), steps=300)
    found = [schedule.at(steps) for steps in (0, 100, 150, 300, 10**9)]
    assert found == [pytest.approx(pair) for pair in [(0.8, 1.0), (0.6, 2 / 3), (0.5, 0.5), (0.2, 0.0), (0.2, 0.0)]]


@pytest.mark.parametrize(("epsilon", "guidance"), [(0.0, 1.0), (0.3, 0.0), (0.3, 0.8), (1.0, 0.5), (1.0, 1.0)])
def test_so_many_explore_and_so_many_of_them_are_guided(epsilon, guidance):
    count, greedy = 40_000, 0
    asked = []

    def ask():
        asked.append(True)
        return np.full(count, 2)

    rng = np.random.default_rng(5)
    actions, exploring, guided = choose(
        np.full(count, greedy), np.full(count, 1), ask, epsilon=epsilon, guidance=guidance, rng=rng
    )
    for share, expected in ((exploring.mean(), epsilon), (guided.mean(), epsilon * guidance)):
        assert abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / count)
    assert not (guided & ~exploring).any()
    assert np.array_equal(actions, np.where(guided, 2, np.where(exploring, 1, greedy)))
    assert bool(asked) == (epsilon * guidance > 0)


@pytest.mark.parametrize(("epsilon", "guidance"), [(0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (1.0, 1.0)])
def test_no_impossible_action_is_taken(crowded, epsilon, guidance):
    sample = runner_with(crowded, epsilon, guidance).sample(num_timesteps=ENVS * 50)[0]
    masks = sample.obs["action_mask"][:-1]
    assert (masks[sample.valid] == 0).mean() > 0.1
    taken = np.take_along_axis(masks, sample.actions[..., None], axis=-1)[..., 0]
    assert (taken[sample.valid] > 0).all()


@pytest.mark.parametrize(("guide", "parameters"), [("impact-greedy", {"price": 3.0}), ("least-work", {}), ("polyserve", {})])
def test_what_is_guided_is_what_the_heuristic_would_do(small_scenario, guide, parameters):
    runner = runner_with(small_scenario, 1.0, 1.0, guide=guide, guide_parameters=parameters)
    sample = runner.sample(num_timesteps=ENVS * 30)[0]
    rng = np.random.default_rng(0)
    for t in range(len(sample.actions)):
        view = SimpleNamespace(**{key: value[t] for key, value in sample.obs.items()})
        expected = HEURISTICS[guide](SimpleNamespace(view=view, scenario=small_scenario), rng, **parameters)
        assert np.array_equal(sample.actions[t][sample.valid[t]], expected[sample.valid[t]])
    metrics = runner.get_metrics()
    assert metrics["guided"].peek() == metrics["explored"].peek() == sample.env_steps()


def test_without_exploration_the_best_score_is_taken(small_scenario):
    runner = runner_with(small_scenario, 0.0, 1.0)
    sample = runner.sample(num_timesteps=ENVS * 30)[0]
    for t in range(len(sample.actions)):
        scores = runner.module.router({key: torch.from_numpy(value[t]) for key, value in sample.obs.items()})
        assert np.array_equal(sample.actions[t], scores.argmax(-1).numpy())


def test_a_sample_is_fixed_by_the_seed(small_scenario):
    def sampled(seed):
        settings = config(small_scenario).debugging(seed=seed)
        runner = GuidedEnvRunner(config=settings)
        return runner.sample(num_timesteps=ENVS * 20)[0].actions

    assert np.array_equal(sampled(3), sampled(3))
    assert not np.array_equal(sampled(3), sampled(4))


def test_a_worker_has_the_router_and_how_to_explore_alone(learner, columns):
    module = learner().module[DEFAULT_MODULE_ID].unwrapped()
    module.set_exploration(0.25, 0.125)
    worker = DQNModule(
        observation_space=module.observation_space, action_space=module.action_space, model_config=MODEL, inference_only=True
    )
    assert not any(hasattr(worker, name) for name in ("value", "baseline", "target_router", "target_value"))
    worker.set_state(module.get_state(inference_only=True))
    assert (worker.epsilon.item(), worker.guidance.item()) == (0.25, 0.125)
    batch = {Columns.OBS: tensors(columns)[Columns.OBS]}
    logits = worker.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    torch.testing.assert_close(logits, module.router(batch[Columns.OBS]) / 0.05)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"lr": -1}, "lr = -1: must be positive"),
        ({"explore_steps": 0}, "explore_steps = 0: must be positive"),
        ({"epsilon": (0.5, 1.5)}, r"epsilon = \(0\.5, 1\.5\): must be two shares from 0 to 1"),
        ({"guidance": (0.5,)}, r"guidance = \(0\.5,\): must be two shares"),
        ({"guide": "impact"}, "guide = 'impact': unknown; allowed are random"),
        ({"guide_parameters": {"tau": 0.1}}, "guide = 'impact-greedy': parameter 'tau': allowed are shrink, price"),
        ({"guide_parameters": {"price": -1.0}}, "guide = 'impact-greedy': price = -1: must be from 0 to 1000"),
        ({"guide": "calibrated-impact-greedy"}, r"needs observation\.calibrate = True, which scenario edge6 has not"),
    ],
)
def test_a_wrong_setting_is_named(small_scenario, training, message):
    with pytest.raises(InputError, match=message):
        config(small_scenario, **training).validate()


@pytest.fixture(scope="module")
def trained(small_scenario, one_ray):
    """An algorithm after a few iterations, in a world of two scenarios of different size, and how it explored in each."""
    three = replace(
        load_scenario("edge3"),
        **{name: getattr(small_scenario, name) for name in ("workload", "capacity_rps", "reward", "observation")},
    )
    made = config(small_scenario)
    made.environment(env_config={"scenarios": [(small_scenario, 3), (three, 1)]})
    algorithm = made.build_algo()
    results = []
    for _ in range(4):
        result = algorithm.train()
        module = algorithm.env_runner.module
        results.append((result, (module.epsilon.item(), module.guidance.item())))
    yield algorithm, results
    algorithm.stop()


def test_an_algorithm_explores_as_scheduled_and_learns(trained):
    algorithm, results = trained
    before = 0
    assert sum(result["env_runners"]["guided"] for result, _ in results) > 0
    for result, shares in results:
        assert shares == pytest.approx(algorithm.config.schedules.at(before))
        sampled = result["env_runners"]
        assert 0 <= sampled["guided"] <= sampled["explored"] <= sampled["num_env_steps_sampled"]
        before = result["num_env_steps_sampled_lifetime"]
    assert results[-1][1] == pytest.approx((0.05, 0.5))  # 150 steps are over
    learned = results[-1][0]["learners"][DEFAULT_MODULE_ID]
    assert np.isfinite([learned[key] for key in ("q_loss", "baseline_loss", "q_mean", "gradient_norm")]).all()
    assert all(len(ring) for ring in algorithm.replay.rings)


def state_of(algorithm):
    return algorithm.learner_group._learner.module[DEFAULT_MODULE_ID].state_dict()


def test_what_is_restored_is_the_same_and_goes_on_the_same_to_the_last_bit(trained, tmp_path):
    algorithm, _ = trained
    algorithm.save_to_path(tmp_path / "saved")
    found = []
    for _ in range(2):
        other = algorithm.config.copy(copy_frozen=False).build_algo()
        try:
            other.restore_from_path(tmp_path / "saved")
            ours, theirs = state_of(algorithm), state_of(other)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
            for mine, own in zip(algorithm.replay.rings, other.replay.rings, strict=True):
                a, b = (ring.sample(30, np.random.default_rng(0)) for ring in (mine, own))
                assert np.array_equal(a[Columns.NEXT_OBS]["experts"], b[Columns.NEXT_OBS]["experts"])
            other.train()
            found.append({key: value.clone() for key, value in state_of(other).items()})
            assert other.env_runner.module.epsilon.item() == pytest.approx(0.05)  # the schedule goes on where it was
        finally:
            other.stop()
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())
    assert any(not torch.equal(value, found[0][key]) for key, value in state_of(algorithm).items())
