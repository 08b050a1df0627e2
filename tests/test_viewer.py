"""The picture of a cluster: what experts are doing, and which classes miss their bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given

from rllib_envs.scenario import Scenario
from rllib_envs.service import ServiceClass
from rllib_envs.sim.state import FINISHED, TOO_LONG
from rllib_envs.simulation import Simulation
from rllib_envs.viewer import STATUSES, History, expert_status, missed_at_s
from tests.draws import examples
from tests.worlds import REQUESTS, play, random_world, seeds, simulation_of, small, tight

CLASSES = (ServiceClass(name="hasty", per_token_s=0.02), ServiceClass(name="patient"))


@examples(75)
@given(seeds)
def test_an_expert_is_idle_serving_or_full(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, several=True)
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[: int(rng.integers(REQUESTS + 1))])
    experts = simulation.state.experts[0]
    for e, status in enumerate(expert_status(simulation, 0)):
        present = int(experts["n_run"][e] + experts["n_wait"][e])
        name = list(STATUSES)[status]
        assert (name == "idle") == (present == 0)
        assert (name == "queue full") == (experts["n_wait"][e] >= scenario.experts[e].engine.max_waiting)


@examples(75)
@given(seeds)
def test_what_each_class_misses_is_all_that_is_missed(seed: int) -> None:
    scenario, episode, actions = random_world(np.random.default_rng(seed), several=True)
    simulation = simulation_of(scenario, episode)
    play(simulation, actions)
    records = simulation.records(0)
    missed = [missed_at_s(records, i) for i in range(len(scenario.classes))]
    possible = records.status != TOO_LONG
    in_time = (records.status == FINISHED) & ~records.late
    assert sum(times.size for times in missed) == np.count_nonzero(possible & ~in_time)
    assert all((np.diff(times) >= 0).all() for times in missed)


def pictured(scenario: Scenario) -> np.ndarray:
    simulation, history = Simulation(scenario, 1), History(scenario)
    simulation.start(0, 1)
    history.restart(simulation)
    for action in np.arange(60) % scenario.n_experts:
        simulation.step(np.array([action]))
        history.record(simulation)
    return history.draw()


def test_classes_have_a_panel_of_their_own() -> None:
    plain = tight(small("edge3"))
    without, with_classes = pictured(plain), pictured(replace(plain, classes=CLASSES))
    assert with_classes.shape[0] > without.shape[0]
    assert with_classes.shape[1] == without.shape[1]
    turned = pictured(replace(plain, classes=CLASSES[::-1]))
    assert (turned != with_classes).any()
