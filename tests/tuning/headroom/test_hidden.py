"""Other truths in place of the hidden ones: the past stays, and the future is that of an episode with these truths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given

from rllib_envs.simulation import Simulation
from tests.draws import examples
from tests.worlds import REQUESTS, play, random_scores, random_world, seeds, simulation_of, twins_at
from tuning.headroom.hidden import replace_truth, tell_generated


def generated_in(simulation: Simulation) -> np.ndarray:
    generated = np.empty(REQUESTS, np.int32)
    tell_generated(simulation.state, 0, simulation.now_s[0], generated)
    return generated


@given(seed=seeds)
@examples(30)
def test_tokens_so_far_are_those_of_the_reference_engine(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng)
    count = int(rng.integers(1, REQUESTS))
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[:count])
    expected = np.full(REQUESTS, -1)
    for twin in twins_at(scenario, episode, actions, count, float(simulation.now_s[0])):
        for request in twin.present:
            expected[twin.number[request]] = request.generated
    np.testing.assert_array_equal(generated_in(simulation), expected)


@given(seed=seeds)
@examples(30)
def test_the_future_is_that_of_an_episode_in_which_the_other_truths_held_from_the_start(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng)
    count = int(rng.integers(1, REQUESTS))
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[:count])
    generated = generated_in(simulation)
    present = np.flatnonzero(generated >= 0)
    length = generated + rng.integers(1, 60, REQUESTS).astype(np.int32)
    output, score = episode.output.copy(), episode.score.copy()
    told = random_scores((REQUESTS,), rng)
    output[present, actions[present]], score[present, actions[present]] = length[present], told[present]
    replace_truth(simulation.state, simulation.workload, simulation.world.service, simulation.now_s[0], length[None], told[None])
    other = simulation_of(scenario, replace(episode, output=output, score=score))
    play(other, actions[:count])
    assert play(simulation, actions[count:]).sum() == play(other, actions[count:]).sum()
    ours, theirs = simulation.records(0), other.records(0)
    np.testing.assert_array_equal(ours.status, theirs.status)
    np.testing.assert_array_equal(ours.score, theirs.score)
    np.testing.assert_array_equal(ours.output_tokens, theirs.output_tokens)
    np.testing.assert_allclose(ours.finish_s, theirs.finish_s, rtol=1e-9)
