"""A copy of a cluster goes on as the cluster does, and leaves it alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from rllib_envs.copies import append_requests, copy_cluster
from rllib_envs.scenario import Faults, Observation, Reward, with_workload
from rllib_envs.sim.cluster import RequestTable
from rllib_envs.simulation import Simulation
from tests.draws import examples
from tests.worlds import REQUESTS, assert_same, play, random_expenses, random_world, seeds, simulation_of, small

OBSERVATION = Observation(
    whatif=True, calibrate=True, information=True, demand=True, places=True, judged_share=0.5, running_slots=2, waiting_slots=1
)


def rest_of(source: Simulation, cluster: int, copies: int) -> RequestTable:
    """The requests that are still to come, for each copy."""
    first, total = int(source.cursor[cluster]) + 1, int(source.workload.total[cluster])
    rows = [np.repeat(table[cluster : cluster + 1, first:total], copies, axis=0) for table in source.workload[1:]]
    return RequestTable(np.full(copies, total - first, np.int32), *rows)


@given(seed=seeds)
@examples(30)
def test_a_copy_with_the_same_requests_and_decisions_gives_the_same_to_the_last_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=OBSERVATION, reward=Reward(energy=0.5, cost=0.25))
    scenario = random_expenses(scenario, np.random.default_rng([seed, 1]))
    _, other, _ = random_world(rng, observation=OBSERVATION)
    other = replace(episode, score=other.score[:, :1] * np.ones_like(episode.score), arrival_s=other.arrival_s)
    source = simulation_of(scenario, other, episode)
    at = int(rng.integers(0, REQUESTS - 1))
    copies = Simulation(with_workload(scenario, requests=REQUESTS + 7), 3)
    for before in sorted({0, at // 2, at}):  # what a copy was before does not count
        play(source, actions[int(source.cursor[1]) : before])
        untouched = source.state.experts.tobytes(), source.state.requests.tobytes()
        copy_cluster(source, 1, copies)
        append_requests(copies, rest_of(source, 1, copies.batch))
        assert copies.now_s.tolist() == [source.now_s[1]] * 3
        play(copies, actions[before : before + 5])
        assert (source.state.experts.tobytes(), source.state.requests.tobytes()) == untouched
    play(source, actions[at : at + 5])
    for _ in range(2):
        for cluster in range(copies.batch):
            assert_same(type(source.view)(*[part[1:] for part in source.view]), type(source.view)(
                *[part[cluster : cluster + 1] for part in copies.view]
            ))  # fmt: skip
            for name in ("experts", "running", "finish_at", "waiting"):
                ours, theirs = getattr(copies.state, name), getattr(source.state, name)
                assert ours[cluster].tobytes() == theirs[1].tobytes(), name
            for name in ("requests", "records"):
                ours, theirs = getattr(copies.state, name), getattr(source.state, name)
                assert ours[cluster, :REQUESTS].tobytes() == theirs[1].tobytes(), name
            if copies.state.extras is not None:
                assert source.state.extras is not None
                assert copies.state.extras[cluster, :REQUESTS].tobytes() == source.state.extras[1].tobytes()
        rewards = play(source, actions[at + 5 :])
        np.testing.assert_array_equal(play(copies, actions[at + 5 :]), np.repeat(rewards[:, 1:], copies.batch, axis=1))


def test_all_that_is_known_of_each_expert_is_copied_from_the_first_request_on() -> None:
    """With more experts than requests so far, too."""
    source = Simulation(replace(small("edge6"), observation=OBSERVATION), 2)
    source.start_all([1, 2])
    copies = Simulation(source.scenario, 1)
    copy_cluster(source, 1, copies)
    for ours, theirs in zip(copies.world.worth, source.world.worth, strict=True):
        assert ours[0].tobytes() == theirs[1].tobytes()
    assert len(np.unique(copies.world.worth.averages["score"][0])) > 1


def test_what_cannot_be_copied_is_refused() -> None:
    scenario, episode, actions = random_world(np.random.default_rng(1), observation=OBSERVATION)
    source = simulation_of(scenario, episode)
    with pytest.raises(ValueError, match="observation differs"):
        copy_cluster(source, 0, Simulation(replace(scenario, observation=Observation()), 1))
    small = Simulation(with_workload(scenario, requests=3), 1)
    copy_cluster(source, 0, small)
    with pytest.raises(ValueError, match="room for 3"):
        append_requests(small, rest_of(source, 0, 1))
    play(source, actions[:5])
    with pytest.raises(ValueError, match="room for 3"):
        copy_cluster(source, 0, small)
    play(source, actions[5:])
    with pytest.raises(ValueError, match="over"):
        copy_cluster(source, 0, Simulation(scenario, 1))
    late = replace(scenario, faults=Faults(telemetry_delay_s=0.1))
    source = simulation_of(late, replace(episode, telemetry_delay_s=0.1))
    with pytest.raises(ValueError, match="delayed"):
        copy_cluster(source, 0, Simulation(late, 1))
