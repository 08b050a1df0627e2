"""What goes in comes out: laws of requests, memory and time on random clusters that are short of everything."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.sim.plan import blocks_crossed, steps_begun
from rllib_envs.sim.profile import BLOCK_TOKENS
from rllib_envs.sim.state import DROPPED, FINISHED, PENDING, REJECTED, ROUTED, TOO_LONG
from rllib_envs.simulation import Records, Simulation
from rllib_envs.workload.episode import Episode
from tests.draws import examples
from tests.worlds import play, random_world, seeds, simulation_of, twins_at

World = tuple[Scenario, Episode, NDArray[np.int64]]


def drained(seed: int) -> tuple[World, Simulation, Records]:
    """A random world played to its end."""
    world = random_world(np.random.default_rng(seed))
    simulation = simulation_of(world[0], world[1])
    play(simulation, world[2])
    return world, simulation, simulation.records(0)


def blocks_in_use(simulation: Simulation, e: int) -> int:
    """KV blocks that expert e of cluster 0 holds now, those of the iteration under way included."""
    engine, expert = simulation.state.engines[0, e], simulation.state.experts[0, e]
    begun = steps_begun(expert, simulation.now_s[0])
    crossed = blocks_crossed(expert, 1, begun) if begun > 1 else 0
    return int(engine["blocks"] - expert["freed"] - expert["leaving_blocks"] + expert["taken"] + crossed)


@examples(150)
@given(seeds)
def test_every_arrival_is_accounted_for_at_every_decision(seed: int) -> None:
    scenario, episode, actions = random_world(np.random.default_rng(seed))
    simulation = simulation_of(scenario, episode)
    totals = np.zeros(5, np.int64)
    for r in range(len(actions) + 1):
        records, experts = simulation.records(0), simulation.state.experts[0]
        counts = np.bincount(records.status, minlength=6)
        assert counts[PENDING] == len(actions) - r
        assert counts[ROUTED] == (experts["n_run"] + experts["n_wait"]).sum()
        assert counts[FINISHED] == experts["done"].sum() == totals[0]
        assert (int(records.late.sum()), counts[DROPPED], counts[REJECTED], counts[TOO_LONG]) == tuple(totals[1:])
        assert (experts["n_run"] <= simulation.state.engines["max_seqs"][0]).all()
        for e in range(scenario.n_experts):
            mine = (records.route == e) & (records.status != REJECTED)
            assert experts["routed"][e] == mine.sum()
            assert experts["qos"][e] == records.qos[mine].sum()
            assert 0 <= blocks_in_use(simulation, e) <= simulation.state.engines["blocks"][0, e]
        if r < len(actions):
            simulation.step(actions[r : r + 1])
            step = simulation.steps[0]
            totals += [step["finished"], step["late"], step["dropped"], step["rejected"], step["too_long"]]
    assert counts[PENDING] == counts[ROUTED] == 0


@examples(60)
@given(seeds)
def test_blocks_in_use_are_those_that_requests_hold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng)
    count = int(rng.integers(0, len(actions)))
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[:count])
    for e, twin in enumerate(twins_at(scenario, episode, actions, count, simulation.now_s[0])):
        assert blocks_in_use(simulation, e) == sum(len(request.blocks) for request in twin.engine.running)


@examples(150)
@given(seeds)
def test_times_follow_each_other_and_admission_is_first_come_first_served(seed: int) -> None:
    (scenario, _, _), _, records = drained(seed)
    done = records.status == FINISHED
    assert (records.arrival_s <= records.first_scheduled_s)[done].all()
    assert (records.first_scheduled_s < records.first_token_s)[done].all()
    assert (records.first_token_s <= records.finish_s)[done].all()
    assert ((records.first_token_s == records.finish_s) == (records.output_tokens == 1))[done].all()
    never = np.stack([records.first_scheduled_s, records.first_token_s, records.finish_s])[:, ~done]
    assert np.isnan(never).all()
    for e in range(scenario.n_experts):
        admitted_s = records.first_scheduled_s[done & (records.route == e)]
        assert (np.diff(admitted_s) >= 0).all()


@examples(150)
@given(seeds)
def test_an_expert_is_busy_while_it_has_somebody_and_only_then(seed: int) -> None:
    """It works on while anybody is there: busy time is the length of the union of the stays, from the queue on."""
    (scenario, _, _), simulation, records = drained(seed)
    for e in range(scenario.n_experts):
        mine = (records.status == FINISHED) & (records.route == e)
        expert = simulation.state.experts[0, e]
        busy_s, until_s = 0.0, 0.0
        for arrival_s, finish_s in zip(records.arrival_s[mine], np.maximum.accumulate(records.finish_s[mine]), strict=True):
            queued_s = arrival_s + scenario.experts[e].engine.handoff_s
            busy_s += max(finish_s - max(queued_s, until_s), 0.0)
            until_s = max(until_s, finish_s)
        np.testing.assert_allclose(expert["busy_s"], busy_s, rtol=1e-9, atol=1e-12)
        assert expert["busy_s"] <= simulation.now_s[0] * (1 + 1e-9)


@examples(150)
@given(seeds)
def test_cached_tokens_over_time_lie_between_what_decoding_needs_and_what_fits(seed: int) -> None:
    (scenario, _, _), simulation, records = drained(seed)
    for e, expert in enumerate(simulation.state.experts[0]):
        mine = (records.status == FINISHED) & (records.route == e)
        least = (records.prompt_tokens * (records.finish_s - records.first_token_s))[mine & (records.preemptions == 0)].sum()
        capacity = scenario.experts[e].engine.usable_blocks * BLOCK_TOKENS
        assert least * (1 - 1e-9) <= expert["kv_token_s"] <= expert["busy_s"] * capacity * (1 + 1e-9)
        assert expert["preempted"] == records.preemptions[mine].sum()


@examples(60)
@given(seeds)
def test_the_intervals_between_decisions_fill_the_episode(seed: int) -> None:
    scenario, episode, actions = random_world(np.random.default_rng(seed))
    simulation = simulation_of(scenario, episode)
    spent_s = []
    for r in range(len(actions)):
        assert simulation.now_s[0] == episode.arrival_s[r]
        simulation.step(actions[r : r + 1])
        spent_s.append(simulation.steps["dt_s"][0])
    assert min(spent_s) >= 0
    np.testing.assert_allclose(sum(spent_s), simulation.now_s[0] - episode.arrival_s[0], rtol=1e-12)
    assert simulation.now_s[0] == max(episode.arrival_s[-1], np.nanmax(np.append(simulation.records(0).finish_s, 0)))
