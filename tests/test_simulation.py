"""Clusters driven by decisions: what one does is its own affair, fixed by its seed, wherever and whenever it runs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from rllib_envs.scenario import Faults, Observation, Predictions, Reward, Scenario
from rllib_envs.sim.rows import EXPERT_FEATURES
from rllib_envs.sim.state import DROPPED, FINISHED, REJECTED, TOO_LONG
from rllib_envs.simulation import STATUS_NAMES, Records, Simulation
from tests.draws import examples
from tests.worlds import REQUESTS, begin, first_requests, play, random_world, seeds, simulation_of, small, tight

pytestmark = pytest.mark.slow

LOOKAHEAD = Observation(whatif=True, counterfactual=True)


def digest(records: Records) -> str:
    """Hash of every byte of the records."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(column).tobytes() for column in asdict(records).values())).hexdigest()


def played(scenario: Scenario, *, seeds: list[int], actions_seed: int = 0) -> Simulation:
    """Random decisions to the end, the same in every cluster."""
    simulation = Simulation(scenario, len(seeds))
    simulation.start_all(seeds)
    rng = np.random.default_rng(actions_seed)
    play(simulation, rng.integers(scenario.n_experts + 1, size=scenario.workload.requests))
    return simulation


def drawn(preset: str) -> Scenario:
    """A preset in which every named stream is in use."""
    faults = Faults(engine_expert_log_sd=0.1, telemetry_delay_s=0.5)
    return small(preset, faults=faults, predictions=Predictions(hidden_share=0.3), observation=LOOKAHEAD)


def print_digest(preset: str, seed: int) -> None:
    print(digest(played(drawn(preset), seeds=[seed]).records(0)))


@pytest.mark.parametrize("preset", ["edge6", "paper3"])
def test_another_process_gives_the_same_bytes(preset: str) -> None:
    root = Path(__file__).resolve().parents[1]
    code = f"from tests.test_simulation import print_digest; print_digest({preset!r}, 17)"
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONHASHSEED": "1"}
    run = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == digest(played(drawn(preset), seeds=[17]).records(0))
    assert run.stdout.strip() != digest(played(drawn(preset), seeds=[18]).records(0))


def test_noisier_predictions_change_what_is_told_and_nothing_else() -> None:
    scenario = small("edge6")
    noisy = replace(scenario, predictions=Predictions(score_sd=0.3, length_log_sd=0.8, hidden_share=0.2))
    one, other = (asdict(played(s, seeds=[5]).records(0)) for s in (scenario, noisy))
    for name in one:
        same = np.array_equal(one[name], other[name], equal_nan=True)
        assert same == (name not in ("predicted_score", "predicted_tokens")), name


@examples(40)
@given(seeds)
def test_clusters_side_by_side_do_not_meet(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=LOOKAHEAD, faults=Faults(telemetry_delay_s=0.03))
    shorter = first_requests(episode, 25)  # its cluster ends, and waits for the others
    moved = replace(episode, arrival_s=episode.arrival_s + 1.7)
    together = simulation_of(scenario, episode, shorter, moved)
    mixed = np.stack([actions, np.roll(actions, 1), actions[::-1]], axis=1)
    rewards = play(together, mixed)
    for b, alone_episode in enumerate((episode, shorter, moved)):
        alone = simulation_of(scenario, alone_episode)
        np.testing.assert_array_equal(play(alone, mixed[:, b])[:, 0], rewards[:, b])
        assert digest(alone.records(0)) == digest(together.records(b))
        for name, shown in together.view._asdict().items():
            np.testing.assert_array_equal(shown[b], getattr(alone.view, name)[0])


@examples(40)
@given(seeds)
def test_starting_one_cluster_leaves_the_others_alone_and_forgets_its_past(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=LOOKAHEAD, faults=Faults(telemetry_delay_s=0.03))
    _, other, _ = random_world(np.random.default_rng(seed), observation=LOOKAHEAD)
    other = replace(other, prompt=np.roll(other.prompt, 1), telemetry_delay_s=0.03)
    simulation = simulation_of(scenario, episode, episode)
    count = int(rng.integers(0, REQUESTS + 1))
    play(simulation, actions[:count])

    def of_the_other() -> list[bytes]:
        arrays = (*simulation.state, *simulation.world.late, *simulation.view, simulation.marginal)
        return [array[1].tobytes() for array in arrays if array is not None]

    kept = of_the_other()
    begin(simulation, 0, other)
    assert of_the_other() == kept
    fresh = simulation_of(scenario, other)
    for part in (actions[:20], actions[20:]):
        play(simulation, part)
        play(fresh, part)
        for name, shown in simulation.view._asdict().items():
            np.testing.assert_array_equal(shown[0], getattr(fresh.view, name)[0], err_msg=name)
    assert digest(simulation.records(0)) == digest(fresh.records(0))
    if count < REQUESTS:
        straight = simulation_of(scenario, episode)
        play(straight, np.concatenate([actions[:count], actions[: REQUESTS - count]]))
        assert digest(simulation.records(1)) == digest(straight.records(0))


def test_a_cluster_whose_episode_is_over_ignores_its_action() -> None:
    scenario = small("edge3", reward=Reward(violation=1, drop=1, paper_impact=1, marginal_qos=1))
    simulation = played(scenario, seeds=[1])
    before = digest(simulation.records(0)), simulation.now_s.copy(), [a.tobytes() for a in simulation.view]
    for action in range(4):
        assert simulation.step(np.array([action])) == 0
        assert not any(simulation.steps[0].item())
    assert (digest(simulation.records(0)), simulation.now_s, [a.tobytes() for a in simulation.view]) == before


@examples(40)
@given(seeds)
def test_late_telemetry_changes_what_is_seen_and_nothing_else(seed: int) -> None:
    digests, rewards = set(), []
    for delay_s in (0.0, 0.01, 1.0):
        world = random_world(np.random.default_rng(seed), observation=LOOKAHEAD, faults=Faults(telemetry_delay_s=delay_s))
        simulation = simulation_of(world[0], world[1])
        rewards.append(play(simulation, world[2]))
        digests.add(digest(simulation.records(0)))
    assert len(digests) == 1
    np.testing.assert_array_equal(rewards[0], rewards[1])
    np.testing.assert_array_equal(rewards[0], rewards[2])


@examples(40)
@given(seeds)
def test_twice_as_slow_and_fed_half_as_fast_it_does_the_same_in_twice_the_time(seed: int) -> None:
    scenario, episode, actions = random_world(np.random.default_rng(seed))
    slow = replace(
        episode,
        arrival_s=2 * episode.arrival_s,
        engines=tuple(
            replace(engine, overhead=2 * engine.overhead, handoff_s=2 * engine.handoff_s) for engine in episode.engines
        ),
    )
    one = simulation_of(scenario, episode)
    other = simulation_of(replace(scenario, slo_s_per_token=2 * scenario.slo_s_per_token), slow)
    np.testing.assert_array_equal(play(one, actions), play(other, actions))
    a, b = one.records(0), other.records(0)
    for name in ("first_scheduled_s", "first_token_s", "finish_s"):
        np.testing.assert_array_equal(2 * getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.preemptions, b.preemptions)


def test_records_say_what_became_of_each_request() -> None:
    scenario = tight(small("edge3", 400))
    simulation = played(scenario, seeds=[3])
    records = simulation.records(0)
    assert {STATUS_NAMES[s] for s in np.unique(records.status)} == {"finished", "dropped", "rejected", "too_long"}
    done = records.status == FINISHED
    np.testing.assert_array_equal(records.route == scenario.n_experts, np.isin(records.status, (DROPPED, TOO_LONG)))
    latency = (records.finish_s - records.arrival_s) / records.output_tokens
    np.testing.assert_array_equal(records.latency_per_token_s, latency)
    in_time = latency <= scenario.slo_s_per_token
    np.testing.assert_array_equal(records.qos, np.where(done & in_time, records.score, 0))
    np.testing.assert_array_equal(records.late, done & ~in_time)
    assert 0 < records.late.sum() < done.sum()
    np.testing.assert_array_equal(records.ttft_s, records.first_token_s - records.arrival_s)
    decode_s = records.finish_s - records.first_token_s
    np.testing.assert_allclose((records.tpot_s * (records.output_tokens - 1))[done], decode_s[done], rtol=1e-12)
    assert not records.qos[records.status == REJECTED].any()
    np.testing.assert_array_equal(records.score[records.status == DROPPED], 0)
    taken = records.route < scenario.n_experts
    rows = np.flatnonzero(taken)
    np.testing.assert_array_equal(records.score[taken], simulation.workload.score[0, rows, records.route[taken]])
    whole = simulation.workload.output[0, rows, records.route[taken]]
    room = 1000 - records.prompt_tokens[taken]
    cut = np.where(records.status[taken] == REJECTED, whole, np.minimum(whole, room))
    np.testing.assert_array_equal(records.output_tokens[taken], cut)


def test_a_clusters_engines_are_those_of_its_episode() -> None:
    scenario = small("edge6", faults=Faults(engine_expert_log_sd=0.3))
    simulation = Simulation(scenario, 2)
    simulation.start_all([1, 2])
    times = simulation.state.engines["c0_s"]
    assert (times[0] != times[1]).all()
    told = [expert.engine.c0_ms * expert.engine.overhead * 1e-3 for expert in scenario.experts]
    np.testing.assert_allclose(simulation.world.nominal["c0_s"], np.tile(told, (2, 1)), rtol=1e-12)


def test_with_less_memory_requests_are_preempted_and_the_router_knows_why() -> None:
    """The same requests sent to the same experts: only memory differs."""
    plain = replace(small("edge6", 300), workload=replace(small("edge6", 300).workload, load=20.0))
    whole, less = (played(replace(plain, faults=Faults(kv_factor=share)), seeds=[4]) for share in (1.0, 0.35))
    assert less.records(0).preemptions.sum() > 2 * whole.records(0).preemptions.sum()
    column = EXPERT_FEATURES.index("kv_capacity")
    blocks = less.state.engines["blocks"]
    np.testing.assert_array_equal(less.world.nominal["blocks"], blocks)
    np.testing.assert_allclose(less.view.experts[..., column], np.log2(blocks * 16 / 16_384) / 4, rtol=1e-6)
    assert (blocks < whole.state.engines["blocks"]).all()


def test_telemetry_is_as_late_as_the_episode_says() -> None:
    """One cluster after the other becomes late, in the same simulation, and one is in time again."""
    scenario, episode, actions = random_world(np.random.default_rng(3), observation=LOOKAHEAD)
    episodes = [replace(episode, telemetry_delay_s=delay_s) for delay_s in (0.0, 0.04, 0.5)]
    together = simulation_of(scenario, *[episodes[0]] * 3)
    play(together, actions[:10])
    for order in ((0, 1, 2), (2, 0, 1)):
        for cluster, which in enumerate(order):
            begin(together, cluster, episodes[which])
        play(together, actions[:30])
        for cluster, which in enumerate(order):
            alone = simulation_of(scenario, episodes[which])
            play(alone, actions[:30])
            for name, shown in together.view._asdict().items():
                np.testing.assert_array_equal(shown[cluster], getattr(alone.view, name)[0], err_msg=name)
    assert (together.view.experts[0] != together.view.experts[1]).any()


def test_no_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="batch = 0: must be >= 1"):
        Simulation(small("edge3"), 0)
