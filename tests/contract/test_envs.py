"""What every environment of ours owes to Gymnasium, and to whoever reruns it."""

from __future__ import annotations

import copy
import doctest
import pickle
import re
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

import rllib_envs
from rllib_envs import env as routing
from rllib_envs.env import EdgeRoutingEnv, EdgeRoutingVectorEnv
from rllib_envs.errors import InputError
from rllib_envs.scenario import Faults, Observation, Reward, Scenario, Variation
from tests.worlds import random_expenses, small, tight

ENV_IDS = [name for name, spec in gym.registry.items() if str(spec.entry_point).startswith("rllib_envs")]
LOOKAHEAD = Observation(whatif=True, counterfactual=True, running_slots=3, waiting_slots=2)
EVERY_TERM = Reward(violation=0.5, paper_impact=0.25, drop=0.125, marginal_qos=2)
SCENARIOS = {
    "edge6": small("edge6"),
    "lookahead": small("edge6", observation=LOOKAHEAD),
    "informed": small("edge3", observation=Observation(information=True, calibrate=True)),
    "paper3": small("paper3"),
    "edge3": small("edge3", reward=EVERY_TERM),
    "metered": random_expenses(small("edge3", reward=Reward(energy=0.5, cost=2.0)), np.random.default_rng(0)),
    "late telemetry": small("edge6", faults=Faults(telemetry_delay_s=1.0, engine_factor=1.2), observation=LOOKAHEAD),
    "calibrated": small(
        "edge6", faults=Faults(telemetry_delay_s=0.3, engine_expert_log_sd=0.3), observation=replace(LOOKAHEAD, calibrate=True)
    ),
    "varied": small("edge6", variation=Variation(fault_share=0.8, each=0.4), observation=replace(LOOKAHEAD, calibrate=True)),
    "tight": tight(small("edge3", 150, observation=LOOKAHEAD, reward=EVERY_TERM)),
}

pytestmark = [pytest.mark.parametrize("env_id", ENV_IDS), pytest.mark.slow]
with_scenarios = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))


def decisions(scenario: Scenario, steps: int, rng: np.random.Generator, *batch: int) -> NDArray[np.int64]:
    """Random actions, those that are masked among them."""
    return rng.integers(scenario.n_experts + 1, size=(steps, *batch))


def episode(env: gym.Env[Any, Any], actions: NDArray[np.int64], seed: int | None) -> list[Any]:
    """Everything that the environment says from reset to the end of the episode."""
    said: list[Any] = [env.reset(seed=seed)]
    for action in actions:
        said.append(env.step(action))
        if said[-1][2]:
            return said
    raise AssertionError("the episode does not end")


def assert_equal(one: Any, other: Any) -> None:
    """Exactly equal, of equal types, all the way down."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


def test_the_registry_holds_what_the_package_names(env_id: str) -> None:
    assert rllib_envs.ENV_ID in ENV_IDS
    assert re.fullmatch(r"\w+-v\d+", env_id)
    assert gym.spec(env_id).vector_entry_point is not None


@with_scenarios
def test_gymnasiums_own_checks_pass(env_id: str, scenario: Scenario) -> None:
    check_env(gym.make(env_id, scenario=scenario).unwrapped)  # a warning is an error


def test_it_can_be_drawn(env_id: str) -> None:
    env = gym.make(env_id, scenario=SCENARIOS["edge3"], render_mode="rgb_array")
    env.reset(seed=1)
    first = np.asarray(env.render())
    for _ in range(10):
        env.step(0)
    later = np.asarray(env.render())
    assert first.shape == later.shape
    assert first.shape[1:] == (1000, 3)
    assert (first != later).any()


@with_scenarios
def test_an_episode_has_one_step_a_request_and_stays_within_the_spaces(env_id: str, scenario: Scenario) -> None:
    env = gym.make(env_id, scenario=scenario)
    said = episode(env, decisions(scenario, 1000, np.random.default_rng(1)), seed=3)
    assert len(said) == scenario.workload.requests + 1
    for observation, *_ in said:
        assert env.observation_space.contains(observation)
    assert not any(truncated for *_, truncated, _ in said[1:])
    assert not said[-1][0]["arrived"].any()


@with_scenarios
def test_the_same_seed_gives_the_same_episode(env_id: str, scenario: Scenario) -> None:
    used, fresh = (gym.make(env_id, scenario=scenario) for _ in range(2))
    actions = decisions(scenario, 1000, np.random.default_rng(1))
    episode(used, actions[::-1], seed=8)  # what went before leaves no trace
    first = episode(used, actions, seed=7)
    assert_equal(first, episode(fresh, actions, seed=7))
    second = episode(used, actions, seed=None)  # the seed fixes the episodes after it as well
    assert_equal(second, episode(fresh, actions, seed=None))
    assert first[0][0]["arrived"].tolist() != second[0][0]["arrived"].tolist()


@pytest.mark.parametrize(
    "duplicate",
    [lambda env: pickle.loads(pickle.dumps(env, 4)), lambda env: pickle.loads(pickle.dumps(env, 5)), copy.deepcopy],
    ids=["pickle 4", "pickle 5", "deepcopy"],
)
@with_scenarios
def test_a_copy_goes_on_as_the_original(env_id: str, scenario: Scenario, duplicate: Any) -> None:
    env = gym.make(env_id, scenario=scenario)
    before = duplicate(env)
    actions = decisions(scenario, 1000, np.random.default_rng(2))
    assert_equal(episode(before, actions, seed=1), episode(env, actions, seed=1))
    env.reset()
    for action in actions[:15]:
        env.step(action)
    midway = duplicate(env)
    rest = [env.step(action) for action in actions[15 : scenario.workload.requests]]
    assert rest[-1][2]
    assert_equal([midway.step(action) for action in actions[15 : scenario.workload.requests]], rest)
    assert_equal(midway.reset(), env.reset())  # the generator was copied too


@with_scenarios
def test_the_vector_environment_is_so_many_single_ones(env_id: str, scenario: Scenario) -> None:
    """Exactly, with Gymnasium's own loop over single environments as the judge, through the end of two episodes."""
    ours = gym.make_vec(env_id, 3, vectorization_mode="vector_entry_point", scenario=scenario)
    judge = gym.make_vec(env_id, 3, vectorization_mode="sync", scenario=scenario)
    assert isinstance(judge, SyncVectorEnv)
    assert ours.metadata["autoreset_mode"] is judge.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert ours.single_observation_space == judge.single_observation_space
    assert ours.observation_space == judge.observation_space
    assert ours.action_space == judge.action_space
    actions = decisions(scenario, 2 * scenario.workload.requests + 5, np.random.default_rng(3), 3)
    assert_same_step(ours.reset(seed=11), judge.reset(seed=11))
    ends = 0
    for row in actions:
        step, expected = ours.step(row), judge.step(row)
        assert_same_step(step, expected)
        ends += int(step[2].all())
        assert step[2].all() or not step[2].any()
    assert ends == 2
    assert_same_step(ours.reset(), judge.reset())
    assert_same_step(ours.reset(seed=[5, None, 6]), judge.reset(seed=[5, None, 6]))


def assert_same_step(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Observations and everything else equal; the judge's infos come with a mask for each key."""
    assert one[0].keys() == other[0].keys()
    for key, value in one[0].items():
        np.testing.assert_array_equal(value, other[0][key], err_msg=key)
    for a, b in zip(one[1:-1], other[1:-1], strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert {key for key in other[-1] if not key.startswith("_")} == one[-1].keys()
    for key, value in one[-1].items():
        np.testing.assert_array_equal(value, other[-1][key], err_msg=key)
        assert other[-1][f"_{key}"].all()


@with_scenarios
def test_the_step_after_an_end_shows_the_next_episode_and_earns_nothing(env_id: str, scenario: Scenario) -> None:
    env = gym.make_vec(env_id, 2, vectorization_mode="vector_entry_point", scenario=scenario)
    env.reset(seed=4)
    single = gym.make(env_id, scenario=scenario)
    single.reset(seed=4)
    expected, info = single.reset()
    ends = [env.step(np.zeros(2, np.int64))[2].any() for _ in range(scenario.workload.requests)]
    assert ends == [False] * (len(ends) - 1) + [True]
    observations, rewards, terminated, _, infos = env.step(np.full(2, scenario.n_experts))
    assert not rewards.any()
    assert not terminated.any()
    assert_equal({key: value[0] for key, value in observations.items()}, expected)
    assert {key: value[0].tolist() for key, value in infos.items()} == {
        key: np.array(value).tolist() for key, value in info.items()
    }


@with_scenarios
def test_what_it_handed_out_stays_as_it_was(env_id: str, scenario: Scenario) -> None:
    single = gym.make(env_id, scenario=scenario)
    vector = gym.make_vec(env_id, 2, vectorization_mode="vector_entry_point", scenario=scenario)
    actions = decisions(scenario, 30, np.random.default_rng(5), 2)
    for env, rows in ((single, actions[:, 0]), (vector, actions)):
        said: list[Any] = [env.reset(seed=1)]
        said_then = copy.deepcopy(said)
        for action in rows:
            said.append(env.step(action))
            said_then.append(copy.deepcopy(said[-1]))
        assert_equal(said, said_then)


def test_without_copies_it_hands_out_its_buffers(env_id: str) -> None:
    env = EdgeRoutingVectorEnv(2, SCENARIOS["edge6"], copy=False)
    assert gym.spec(env_id).vector_entry_point == f"{routing.__name__}:{EdgeRoutingVectorEnv.__name__}"
    first, _ = env.reset(seed=1)
    later, *_ = env.step(np.zeros(2, np.int64))
    assert all(later[key] is first[key] for key in first)


@with_scenarios
def test_shapes_are_those_of_the_docstring(env_id: str, scenario: Scenario) -> None:
    env = gym.make(env_id, scenario=scenario).unwrapped
    spec = scenario.observation
    sizes = {"N": scenario.n_experts, "running_slots": spec.running_slots, "waiting_slots": spec.waiting_slots}
    rows = re.findall(r"^ *``(\w+)`` {2,}\(([^)]*)\)", str(type(env).__doc__), re.MULTILINE)
    said = {key: tuple(eval(size, {}, sizes) for size in shape.split(",") if size.strip()) for key, shape in rows}
    for part in ("whatif", "information", "demand", "places"):
        if not getattr(spec, part):
            del said[part]
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert {key: space.shape for key, space in env.observation_space.items()} == said
    assert env.action_space == gym.spaces.Discrete(scenario.n_experts + 1)
    assert ("marginal_qos" in env.reset(seed=1)[1]) == spec.counterfactual


def test_the_example_of_the_docstring_runs(env_id: str) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(EdgeRoutingEnv, globs={"gym": gym})
    assert f'gym.make("{env_id}"' in str(example.docstring)
    assert doctest.DocTestRunner().run(example) == doctest.TestResults(0, 3)


def test_impossible_settings_are_refused(env_id: str) -> None:
    with pytest.raises(InputError, match="scenario 'nowhere'"):
        gym.make(env_id, scenario="nowhere")
    with pytest.raises(ValueError, match="render_mode = 'human'"):
        EdgeRoutingEnv(SCENARIOS["edge3"], render_mode="human")
    with pytest.raises(ValueError, match="render_mode = 'rgb_array'"):
        EdgeRoutingVectorEnv(2, SCENARIOS["edge3"], render_mode="rgb_array")
    with pytest.raises(ValueError, match="batch = 0"):
        EdgeRoutingVectorEnv(0, SCENARIOS["edge3"])
    with pytest.raises(ValueError, match="seed has 3 entries"):
        EdgeRoutingVectorEnv(2, SCENARIOS["edge3"]).reset(seed=[1, 2, 3])


@pytest.mark.parametrize("action", [-1, 4, 99])
def test_impossible_actions_are_refused(env_id: str, action: int) -> None:
    single = EdgeRoutingEnv(SCENARIOS["edge3"])
    single.reset(seed=1)
    vector = EdgeRoutingVectorEnv(2, SCENARIOS["edge3"])
    vector.reset(seed=1)
    with pytest.raises(ValueError, match=rf"action {action}.* 0 to 3"):
        single.step(np.int64(action))
    with pytest.raises(ValueError, match=rf"action {action}.* 0 to 3"):
        vector.step(np.array([0, action]))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        vector.step(np.zeros(3, np.int64))


def test_a_preset_can_be_named(env_id: str) -> None:
    by_name = gym.make(env_id, scenario="paper3").unwrapped
    assert isinstance(by_name, EdgeRoutingEnv)
    assert by_name.scenario == replace(SCENARIOS["paper3"], capacity_rps=None, workload=by_name.scenario.workload)
