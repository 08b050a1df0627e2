"""Energy and money: what each step spends, what an episode spends, and what they are in tables and in the reward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from rllib_envs.env import EdgeRoutingEnv, EdgeRoutingVectorEnv
from rllib_envs.errors import InputError
from rllib_envs.scenario import Reward, Scenario
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from rllib_envs.sim.state import FINISHED
from rllib_envs.simulation import Simulation
from tests.draws import examples
from tests.worlds import (
    REQUESTS,
    play,
    random_classes,
    random_expenses,
    random_world,
    seeds,
    simulation_of,
    small,
    twins_at,
)
from tuning.metrics.episode import EXPENSES, episode_metrics, metrics_of
from tuning.metrics.groups import group_metrics

NO_REWARD = Reward(realised_qos=0)


def with_figures(scenario: Scenario, **figures: float) -> Scenario:
    """The scenario with these watts and prices at every expert."""
    return replace(scenario, experts=tuple(replace(expert, **figures) for expert in scenario.experts))  # type: ignore[arg-type]


@examples(100)
@given(seeds)
def test_the_steps_of_an_episode_sum_to_its_metrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, reward=NO_REWARD)
    scenario = random_expenses(scenario, rng)
    simulation = simulation_of(scenario, episode)
    energy_j, cost = np.zeros(REQUESTS), np.zeros(REQUESTS)
    for r, action in enumerate(actions):
        simulation.step(np.array([action]))
        energy_j[r], cost[r] = simulation.steps["energy_j"][0], simulation.steps["cost"][0]
    metrics = episode_metrics(simulation, 0)
    simulation.step(np.array([0]))  # after the end
    assert (simulation.steps["energy_j"][0], simulation.steps["cost"][0]) == (0, 0)
    for weights, spent, name, per in (
        (Reward(realised_qos=0, energy=2), 2e-3 * energy_j, "energy_j_per_request", 2e-3),
        (Reward(realised_qos=0, cost=3), 3 * cost, "cost_per_1000", 3e-3),
    ):
        rewards = play(simulation_of(replace(scenario, reward=weights), episode), actions)[:, 0]
        np.testing.assert_allclose(rewards, -spent, rtol=1e-12)
        if name in metrics_of(scenario):
            count = REQUESTS * (1 - metrics["too_long_rate"])
            assert -rewards.sum() == pytest.approx(per * metrics[name] * count, rel=1e-9)
        else:
            assert np.isnan(metrics[name])
            assert not spent.any()
    if scenario.has_watts:
        qos = simulation.records(0).qos.sum()
        assert metrics["qos_per_kj"] * energy_j.sum() / 1e3 == pytest.approx(qos, rel=1e-9)


@examples(60)
@given(seeds)
def test_energy_at_a_decision_is_that_of_the_iterations_until_then(seed: int) -> None:
    """Also of the one under way: stepped one by one."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng)
    scenario = random_expenses(scenario, rng)
    count = int(rng.integers(1, REQUESTS))
    simulation = simulation_of(scenario, episode)
    energy_j = 0.0
    for action in actions[:count]:
        simulation.step(np.array([action]))
        energy_j += simulation.steps["energy_j"][0]
    now_s = float(episode.arrival_s[count])
    twins = twins_at(scenario, episode, actions, count, now_s)
    expected = [
        e.idle_w * now_s + (e.active_w - e.idle_w) * twin.busy_until(now_s)
        for e, twin in zip(scenario.experts, twins, strict=True)
    ]
    assert energy_j == pytest.approx(sum(expected), rel=1e-9, abs=1e-9)


@examples(60)
@given(seeds)
def test_power_is_between_idle_and_active_in_every_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng)
    scenario = random_expenses(scenario, rng)
    simulation = simulation_of(scenario, episode)
    before_s = 0.0
    for action in actions:
        simulation.step(np.array([action]))
        passed_s = simulation.now_s[0] - before_s  # in the first step since time 0
        before_s = simulation.now_s[0]
        least, most = (passed_s * sum(getattr(e, name) for e in scenario.experts) for name in ("idle_w", "active_w"))
        assert least - 1e-6 <= simulation.steps["energy_j"][0] <= most + 1e-6


@examples(60)
@given(seeds)
def test_a_request_costs_its_own_tokens_at_its_expert_when_it_is_sent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng)
    scenario = random_expenses(scenario, rng)
    simulation = simulation_of(scenario, episode)
    paid = np.zeros(REQUESTS)
    for r, action in enumerate(actions):
        simulation.step(np.array([action]))
        paid[r] = simulation.steps["cost"][0]
    records = simulation.records(0)
    for r in range(REQUESTS):
        if records.status[r] != FINISHED:
            assert paid[r] == 0
            continue
        expert = scenario.experts[records.route[r]]
        price = expert.prompt_price * records.prompt_tokens[r] + expert.output_price * records.output_tokens[r]
        assert 1e6 * paid[r] == pytest.approx(price)


@examples(30)
@given(seeds)
def test_watts_and_prices_change_nothing_else_to_the_last_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng)
    plain, metered = (simulation_of(s, episode) for s in (scenario, random_expenses(scenario, rng)))
    np.testing.assert_array_equal(play(plain, actions), play(metered, actions))
    assert plain.state.records.tobytes() == metered.state.records.tobytes()
    assert plain.state.experts.tobytes() == metered.state.experts.tobytes()


def test_classes_share_the_cost_and_the_active_energy_of_all() -> None:
    rng = np.random.default_rng(0)
    scenario, episode, actions = random_world(rng, several=True)
    scenario = with_figures(
        replace(scenario, classes=random_classes(rng)), prompt_price=1.0, output_price=4.0, idle_w=5.0, active_w=50.0
    )
    user = episode.user.copy()
    user["service"] = rng.integers(0, len(scenario.classes), REQUESTS)
    episode = replace(episode, user=user, prompt=episode.prompt % 4 + 1)
    simulation = simulation_of(scenario, episode)
    play(simulation, actions)
    whole, groups = (
        episode_metrics(simulation, 0),
        group_metrics(scenario, simulation.records(0), simulation.state.experts["busy_s"][0]),
    )
    shares = np.bincount(user["service"]) / REQUESTS
    costs = [group["cost_per_1000"] for group in groups.values()]
    assert shares @ costs == pytest.approx(whole["cost_per_1000"])
    assert whole["cost_per_1000"] > 0
    active_j = 50 * simulation.state.experts["busy_s"][0].sum() / REQUESTS
    assert shares @ [group["active_j_per_request"] for group in groups.values()] == pytest.approx(active_j)
    assert whole["active_j_per_request"] == pytest.approx(active_j)


def test_an_environment_says_what_its_experts_spend_if_they_say_it() -> None:
    plain, metered = small("edge6"), with_figures(small("edge6"), idle_w=10.0, active_w=60.0, output_price=2.0)
    one, several = EdgeRoutingEnv(metered), EdgeRoutingVectorEnv(2, metered)
    one.reset(seed=1)
    several.reset(seed=1)
    _, _, _, _, info = one.step(np.int64(0))
    _, _, _, _, infos = several.step(np.array([0, 6]))
    assert info["energy_j"] == infos["energy_j"][0] > 60 * info["dt"]
    assert info["cost"] == infos["cost"][0] > 0 == infos["cost"][1]
    without = EdgeRoutingEnv(plain)
    without.reset(seed=1)
    assert not {"energy_j", "cost"} & without.step(np.int64(0))[4].keys()


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (Reward(energy=0.05), r"scenario edge6: reward\.energy = 0\.05: no expert has active_w, so it would always be 0"),
        (Reward(cost=2.0), r"scenario edge6: reward\.cost = 2: no expert has prompt_price or output_price"),
    ],
)
def test_a_reward_for_what_nobody_has_is_refused(reward: Reward, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Simulation(small("edge6", reward=reward), 1)


def test_metrics_are_shown_where_they_say_something() -> None:
    plain = small("edge6")
    watts, prices = with_figures(plain, active_w=60.0), with_figures(plain, prompt_price=1.0)
    shown = [set(EXPENSES) & set(metrics_of(scenario)) for scenario in (plain, watts, prices)]
    assert shown == [set(), {"energy_j_per_request", "qos_per_kj"}, {"cost_per_1000"}]


def test_watts_and_prices_are_read_as_they_are_written() -> None:
    scenario = replace(
        with_figures(small("edge6"), idle_w=10.0, active_w=60.0, prompt_price=0.5, output_price=1.5),
        reward=Reward(energy=0.25, cost=2.0),
    )
    assert parse_scenario(scenario.to_dict(), "here.yaml") == scenario
    assert scenario.fingerprint() != small("edge6").fingerprint()


def test_what_is_not_spent_is_not_named() -> None:
    data = load_scenario("edge6").to_dict()
    assert not {"energy", "cost"} & data["reward"].keys()
    assert all(not {"idle_w", "active_w", "prompt_price", "output_price"} & expert.keys() for expert in data["experts"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"idle_w": 30.0, "active_w": 20.0}, r"experts.1: .*active_w = 20.0 with idle_w = 30.0: must not be below it"),
        ({"idle_w": -1.0}, r"experts.1.idle_w: .*got -1.0"),
        ({"prompt_price": "free"}, r"experts.1.prompt_price: .*got 'free'"),
        ({"price": 1.0}, r"experts.1.price: "),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, object], message: str) -> None:
    data = small("edge6").to_dict()
    data["experts"][1] |= changes
    with pytest.raises(InputError, match=message):
        parse_scenario(data, "here.yaml")
