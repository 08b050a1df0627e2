"""The vector runner against a plain loop over the environment. No Ray is started."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.debug import update_global_seed_if_necessary

from models.rllib.rollout.env_groups import EnvGroups, groups_of
from models.rllib.rollout.fragments import STEP_COLUMNS
from models.rllib.rollout.runner import VectorEnvRunner
from models.rllib.router_module import BaselineModule
from models.router import RouterSpec
from rllib_envs import ENV_ID
from rllib_envs.errors import InputError
from rllib_envs.scenario import Reward, with_workload
from rllib_envs.scenarios.load import load_scenario

pytestmark = pytest.mark.slow

MODEL = {"router": RouterSpec(encoder="aggregates", hidden=8, impact_hidden=8).to_dict(), "temperature": 0.05}
ENVS, REQUESTS = 4, 30
KEPT = ("actions", "rewards", "dt_s", "terminated", "valid", "marginal")


def small(name="edge6", requests=REQUESTS, load=15.0):
    scenario = with_workload(load_scenario(name), requests=requests, load=load)
    observation = replace(scenario.observation, whatif=True, counterfactual=True)
    return replace(scenario, capacity_rps=24.0, reward=Reward(realised_qos=0.0, marginal_qos=1.0), observation=observation)


def config(scenarios, seed=3, evaluation=False, **env_config):
    made = (
        PPOConfig()
        .environment(f"rllib_envs:{ENV_ID}", env_config={"scenarios": scenarios, **env_config})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=sum(count for _, count in scenarios))
        .rl_module(rl_module_spec=RLModuleSpec(module_class=BaselineModule, model_config=MODEL))
        .debugging(seed=seed)
    )
    made.in_evaluation = evaluation
    return made


def make(scenarios=None, worker_index=0, **changes):
    return VectorEnvRunner(config=config(scenarios or [(small(), ENVS)], **changes), worker_index=worker_index)


def same(a, b):
    return all(np.array_equal(getattr(a, key), getattr(b, key), equal_nan=True) for key in KEPT) and all(
        np.array_equal(a.obs[key], b.obs[key]) for key in a.obs
    )


@pytest.fixture(scope="module")
def replayed():
    """Two fragments of a runner that go on from one another, and what a plain loop over copies makes of their actions."""
    runner = make(staggered=False)
    fragments = [runner.sample(num_timesteps=ENVS * 20)[0], runner.sample(num_timesteps=ENVS * 45)[0]]
    (group,) = EnvGroups([(small(), ENVS)]).groups
    group._copy = True
    fresh = make(staggered=False)
    steps = [group.reset(seed=fresh._streams()[0])]
    for actions in np.concatenate([fragment.actions for fragment in fragments]):
        steps.append(group.step(actions))
    return fragments, steps


def joined(fragments, key):
    return np.concatenate([getattr(fragment, key) for fragment in fragments])


def test_observations_are_those_of_a_plain_loop(replayed):
    fragments, steps = replayed
    for key, first in fragments[0].obs.items():
        assert np.array_equal(first[-1], fragments[1].obs[key][0])
        whole = np.concatenate([first[:-1], fragments[1].obs[key]])
        assert np.array_equal(whole, np.stack([step[0][key] for step in steps]))


def test_what_a_step_brings_is_that_of_a_plain_loop(replayed):
    fragments, (_, *steps) = replayed
    for key, expected in (
        ("rewards", [step[1] for step in steps]),
        ("terminated", [step[2] for step in steps]),
        ("dt_s", [step[4]["dt"] for step in steps]),
    ):
        got = joined(fragments, key)
        assert np.array_equal(got, np.stack(expected).astype(got.dtype))
    for key in STEP_COLUMNS:
        got = np.concatenate([fragment.sums[key] for fragment in fragments])
        assert np.array_equal(got, np.stack([step[4][key] for step in steps]).astype(np.float32))


def test_a_row_holds_the_marginals_of_its_own_observation(replayed):
    fragments, steps = replayed
    infos = [steps[0][1], *(step[4] for step in steps[1:-1])]
    marginal, valid = joined(fragments, "marginal"), joined(fragments, "valid")
    expected = np.stack([info["marginal_qos"] for info in infos]).astype(np.float32)
    assert np.array_equal(marginal, expected, equal_nan=True)
    taken = np.take_along_axis(marginal, joined(fragments, "actions")[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(joined(fragments, "rewards")[valid], taken[valid], atol=1e-6)


def test_the_row_after_the_end_of_an_episode_is_invalid_and_no_other(replayed):
    fragments, _ = replayed
    terminated, valid = joined(fragments, "terminated"), joined(fragments, "valid")
    assert terminated.sum() == 2 * ENVS  # 65 rows hold two episodes of 30
    assert valid[0].all()
    assert np.array_equal(valid[1:], ~terminated[:-1])
    assert (joined(fragments, "rewards")[~valid] == 0).all()
    assert (joined(fragments, "dt_s")[~valid] == 0).all()


def test_a_fragment_counts_its_valid_steps(replayed):
    for fragment, least in zip(replayed[0], (20, 45), strict=True):
        assert len(fragment) == fragment.env_steps() == fragment.agent_steps() == fragment.valid.sum() >= least * ENVS
        assert len(fragment) < (least + 1) * ENVS


def test_no_possible_action_is_left_out_and_no_other_taken():
    runner = make([(small(load=40.0, requests=100), ENVS)])
    for random_actions in (False, True):
        (fragment,) = runner.sample(num_timesteps=ENVS * 100, random_actions=random_actions)
        mask = np.take_along_axis(fragment.obs["action_mask"][:-1], fragment.actions[..., None], axis=-1)
        assert (mask > 0).all()
    assert set(np.unique(fragment.actions[fragment.valid])) == set(range(7))


def test_without_exploration_the_best_action_is_taken():
    (fragment,) = make().sample(num_timesteps=ENVS * 20, explore=False)
    runner = make()
    for t in range(20):
        observation = {key: value[t] for key, value in fragment.obs.items()}
        assert np.array_equal(runner._act(0, observation, explore=False, random_actions=False), fragment.actions[t])


def test_actions_are_drawn_with_the_probabilities_of_the_logits():
    runner = make()
    runner._reset(staggered=False)
    probabilities = np.array([0.6, 0.3, 0.1])
    drawn = runner._draw(np.tile(np.log(probabilities), (20_000, 1)))
    np.testing.assert_allclose(np.bincount(drawn, minlength=3) / 20_000, probabilities, atol=0.02)  # more than five deviations


def test_the_same_seed_gives_the_same_trajectories_and_another_others():
    np.random.seed(0)  # noqa: NPY002 (the global state must not matter)
    first = make().sample(num_timesteps=ENVS * 40)[0]
    np.random.seed(1)  # noqa: NPY002
    runner = make()
    pieces = [runner.sample(num_timesteps=ENVS)[0] for _ in range(3)]
    assert same(first, make().sample(num_timesteps=ENVS * 40)[0])
    assert all(np.array_equal(piece.actions, first.actions[t : t + len(piece.actions)]) for t, piece in enumerate(pieces))
    for other in (make(seed=4), make(worker_index=2), make(evaluation=True)):
        assert not np.array_equal(first.obs["arrived"][0], other.sample(num_timesteps=ENVS)[0].obs["arrived"][0])


def test_a_users_callback_finds_the_global_generators_seeded_as_rllib_does():
    """Also the first one, as the environments are made."""
    found = []

    def draw(*, env_runner, **_):
        found.append((env_runner.config.seed, random.random(), np.random.random(), torch.rand(1)))  # noqa: NPY002

    made = config([(small(), ENVS)]).callbacks(on_environment_created=draw)
    VectorEnvRunner(config=made, worker_index=2)
    update_global_seed_if_necessary("torch", 3 + 2)
    assert found == [(3, random.random(), np.random.random(), torch.rand(1))]  # noqa: NPY002


def test_a_runner_that_goes_on_elsewhere_does_not_repeat_its_episodes():
    first, second = make(), make()
    before = first.sample(num_timesteps=ENVS)[0]
    second.set_state(first.get_state())
    assert not np.array_equal(before.obs["arrived"][0], second.sample(num_timesteps=ENVS)[0].obs["arrived"][0])


def test_first_episodes_end_one_after_the_other_and_later_ones_are_whole():
    (fragment,) = make().sample(num_timesteps=ENVS * 70)
    ends = [np.flatnonzero(column) for column in fragment.terminated.T]
    assert [int(end[0]) + 1 for end in ends] == [REQUESTS * (i + 1) // ENVS for i in range(ENVS)]
    assert all((np.diff(end) == REQUESTS + 1).all() for end in ends)  # and a row for the reset


def test_so_many_episodes_are_whole_and_the_same_in_each_evaluation():
    runner = make(evaluation=True)
    first, second = (runner.sample(num_episodes=6, explore=False)[0] for _ in range(2))
    assert same(first, second)
    assert first.terminated.sum() == 2 * ENVS
    assert first.env_steps() == 2 * ENVS * REQUESTS
    assert np.isclose(sum(first.sums[key].sum() for key in ("finished", "dropped", "rejected", "too_long")), first.env_steps())


def test_steps_of_unfinished_episodes_do_not_count_where_episodes_are_asked_for():
    runner = make([(small(), 1), (small(requests=20), 1)], evaluation=True)
    long, short = runner.sample(num_episodes=1)
    assert (long.env_steps(), short.env_steps()) == (0, 20)


def test_scenarios_of_different_sizes_share_a_runner_and_its_module():
    scenarios = [(small("edge6"), 3), (small("edge3"), 2)]
    runner = make(scenarios)
    six, three = runner.sample(num_timesteps=60)
    assert (six.group, three.group) == (0, 1)
    assert six.obs["action_mask"].shape[1:] == (3, 7)
    assert three.obs["action_mask"].shape[1:] == (2, 4)
    assert six.env_steps() + three.env_steps() >= 60
    assert three.actions.max() <= 3


def test_metrics_are_those_of_the_fragments():
    runner = make()
    fragments = [fragment for _ in range(3) for fragment in runner.sample(num_timesteps=ENVS * 20)]
    peek = runner.metrics.peek
    steps = sum(fragment.env_steps() for fragment in fragments)
    assert peek("num_env_steps_sampled_lifetime") == runner.num_env_steps_sampled_lifetime == steps
    assert peek("num_episodes") == sum(fragment.terminated.sum() for fragment in fragments)
    assert peek("finished") == sum(fragment.sums["finished"].sum() for fragment in fragments)
    assert peek("reward") == pytest.approx(sum(fragment.rewards.sum() for fragment in fragments), rel=1e-5)
    assert peek("qos_mean") == pytest.approx(fragments[-1].sums["qos"].sum() / len(fragments[-1]))
    assert peek("weights_seq_no") == 0


def test_the_return_of_an_episode_is_the_sum_of_its_rewards():
    runner = make(evaluation=True)
    (fragment,) = runner.sample(num_episodes=ENVS)
    metrics = runner.get_metrics()
    assert metrics["episode_len_mean"].peek() == REQUESTS
    assert metrics["episode_return_mean"].peek() == pytest.approx(fragment.rewards.sum() / ENVS, rel=1e-5)


def test_an_environment_that_fails_is_built_anew(monkeypatch):
    settings = config([(small(), ENVS)])
    settings.restart_failed_sub_environments = True
    runner = VectorEnvRunner(config=settings)
    before = runner.env
    runner.sample(num_timesteps=ENVS * 3)

    def fail(_):
        raise RuntimeError("broken")

    monkeypatch.setattr(before, "step", fail)
    (fragment,) = runner.sample(num_timesteps=ENVS * 3)
    assert runner.env is not before
    assert fragment.env_steps() == ENVS * 3


@pytest.mark.parametrize(
    ("env_config", "message"),
    [
        ({}, "either scenario or scenarios"),
        ({"scenario": "edge6", "scenarios": []}, "either scenario or scenarios"),
        ({"scenarios": [("edge6", 3)]}, r"num_envs_per_env_runner = 4: must be .* 3"),
        ({"scenarios": [("edge6", 5), ("edge3", -1)]}, r"scenarios\[1\] \(edge3\): -1 environments"),
        ({"scenarios": [(small(), 2), ("edge6", 2)]}, r"observation\.whatif = False"),
    ],
)
def test_an_environment_configuration_that_makes_no_sense_is_named(env_config, message):
    with pytest.raises(InputError, match=message):
        EnvGroups(groups_of(env_config, 4))
