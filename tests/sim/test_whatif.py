"""Rolling an expert forward: what it predicts is what the simulator then does, and the state never notices."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from scipy.special import expit

from rllib_envs.decision import write_observation
from rllib_envs.scenario import Faults, Observation, Reward, Scenario
from rllib_envs.sim.cluster import sync_telemetry
from rllib_envs.sim.jit import kernel
from rllib_envs.sim.kernels import work_of
from rllib_envs.sim.rows import WHATIF_FEATURES, WHATIF_ROW
from rllib_envs.sim.state import REJECTED, TOO_LONG, Arrived, Telemetry
from rllib_envs.sim.terms import network_s
from rllib_envs.sim.whatif import (
    OVERRUN,
    SOFTENED,
    STAY_SCALES_S,
    as_expected,
    desk_of,
    expected_output,
    join,
    latency_of,
    load,
    newcomer,
    predict_action,
    roll,
)
from rllib_envs.simulation import Simulation
from rllib_envs.workload.episode import Episode
from tests.draws import examples
from tests.worlds import (
    REQUESTS,
    Twin,
    first_requests,
    play,
    random_engine,
    random_episode,
    random_world,
    scenario_of,
    seeds,
    simulation_of,
    twins_at,
)

TAU = 0.13
TURNED_AWAY = (REJECTED, TOO_LONG)
OBSERVATION = Observation(whatif=True, whatif_tau=TAU, running_slots=2, waiting_slots=1)
COUNTERFACTUAL = Observation(whatif=True, counterfactual=True)
BOUNDS = {
    "per_token_s": lambda records: records.latency_per_token_s,
    "ttft_s": lambda records: records.ttft_s,
    "tpot_s": lambda records: np.nan_to_num(records.tpot_s),
    "e2e_s": lambda records: records.finish_s - records.arrival_s + records.network_s,
}
REGIMES = {"idle", "decode only", "prefill in progress", "queue waiting", "preempting", "full", "too long"}

World = tuple[Scenario, Episode, NDArray[np.int64]]


def nominal(told: float, generated: int, room: int) -> int:
    """The length to expect of a request: as told, but at least a quarter more than there is, and no more than fits."""
    return min(max(math.floor(told + 0.5), generated + max(1, math.floor(OVERRUN * generated))), room)


@pytest.mark.parametrize(
    ("told", "generated", "room", "length"),
    [(100, 0, 500, 100), (100.5, 0, 500, 101), (100, 80, 500, 100), (100, 100, 500, 125), (100, 101, 110, 110), (1, 1, 500, 2)],
)
def test_a_length_is_expected_as_told_and_at_least_a_quarter_more_than_there_is(
    told: float, generated: int, room: int, length: int
) -> None:
    assert expected_output(np.float32(told), np.int32(generated), np.int32(room)) == length == nominal(told, generated, room)


def beliefs_come_true(world: World, count: int, view_s: float) -> tuple[Episode, list[Twin]]:
    """The first ``count + 1`` requests where those present at ``view_s``, or on their way then, are as long as is believed.

    The past stays as it was: nobody becomes shorter than what it has generated.
    """
    scenario, episode, actions = world
    twins = twins_at(scenario, episode, actions, count, view_s)
    output = episode.output.copy()
    for e, twin in enumerate(twins):
        room = twin.engine.profile.max_model_len - episode.prompt
        for request in twin.present:
            r = twin.number[request]
            output[r, e] = nominal(episode.predicted_tokens[r, e], request.generated, room[r])
        for r in range(count + 1):
            if r == count or (actions[r] == e and episode.arrival_s[r] > view_s):
                output[r, e] = max(1, nominal(episode.predicted_tokens[r, e], 0, room[r]))
    return first_requests(replace(episode, output=output), count + 1), twins


def continuations(scenario: Scenario, episode: Episode, actions: NDArray[np.int64]) -> Simulation:
    """Clusters 0..N, drained, that differ in the last decision: cluster a takes action a."""
    n, count = scenario.n_experts, episode.arrival_s.size - 1
    plain = replace(scenario, observation=Observation(), reward=Reward())
    simulation = simulation_of(plain, *[replace(episode, telemetry_delay_s=0.0)] * (n + 1), show=False)
    play(simulation, actions[:count])
    simulation.step(np.arange(n + 1))
    assert simulation.over.all()
    return simulation


def latencies(simulation: Simulation, cluster: int, numbers: list[int]) -> NDArray[np.float64]:
    """Latencies of the requests in units of their SLO: the largest over its bound."""
    return np.array([latency(simulation, cluster, number) for number in numbers])


def latency(simulation: Simulation, cluster: int, number: int) -> float:
    """The largest of the request's latencies over the bound that its service class has."""
    records, scenario = simulation.records(cluster), simulation.scenario
    bounds = {"per_token_s": scenario.slo_s_per_token}
    if scenario.classes:
        entry = scenario.classes[records.service[number]]
        own = {name: getattr(entry, name) for name in BOUNDS}
        bounds = own if any(own.values()) else bounds
    return max(BOUNDS[name](records)[number] / bound for name, bound in bounds.items() if bound is not None)


def weights(simulation: Simulation, numbers: list[int]) -> NDArray[np.float64]:
    """The weights of the requests' service classes."""
    classes = simulation.scenario.classes
    return np.array([classes[simulation.workload.user["service"][0, number]].weight if classes else 1.0 for number in numbers])


def soft(latency: NDArray[np.float64] | float, tau: float = TAU) -> NDArray[np.float64]:
    return expit((1 - np.asarray(latency)) / tau)


def stays(left_s: NDArray[np.float64]) -> list[float]:
    """For each scale the sum of the times until those present leave, each bent towards 1; those who left before now count 0."""
    return [float((left_s / (left_s + scale_s)).sum()) for scale_s in STAY_SCALES_S]


def features_before(
    predicted_score: NDArray[np.float64], before: NDArray[np.float64], left_s: NDArray[np.float64]
) -> dict[str, float]:
    """The WHATIF_FEATURES without the newcomer, from the latencies of those present and the time until each leaves."""
    left_s = np.maximum(left_s, 0)
    names = ("soft_before", "drain_before_s", "stay_1_before", "stay_4_before", "stay_16_before")
    values = (float(predicted_score @ soft(before)), float(left_s.max(initial=0)), *stays(left_s))
    return dict(zip(names, values, strict=True))


def features_with(
    predicted_score: NDArray[np.float64],
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    own: float,
    left_s: NDArray[np.float64],
) -> dict[str, float]:
    """The other WHATIF_FEATURES: latencies per token, in units of the SLO, are of those present without and with the newcomer.

    ``own`` is the newcomer's latency; ``left_s``, the time until each leaves, includes it.
    """
    slack = np.maximum(1 - after, -10)
    return {
        "own_latency": min(own, 10),
        "own_success": float(soft(own)),
        "soft_change": float(predicted_score @ (soft(after) - soft(before))),
        "hard_change": float(predicted_score @ ((after <= 1).astype(float) - (before <= 1))),
        "new_violations": int(((before <= 1) & (after > 1)).sum()),
        "least_slack": float(min(1, slack.min(initial=1))),
        "slack_sd": float(slack.std()) if slack.size else 0.0,
        "drain_s": float(left_s.max()),
        **dict(zip(("stay_1", "stay_4", "stay_16"), stays(np.maximum(left_s, 0)), strict=True)),
        "own_success_softened": float(soft(own, SOFTENED * TAU)),
        "soft_change_softened": float(predicted_score @ (soft(after, SOFTENED * TAU) - soft(before, SOFTENED * TAU))),
    }


@examples(200)
@given(seeds)
def test_if_beliefs_come_true_so_does_the_prediction(seed: int) -> None:
    check_predictions(*random_moment(seed))


@examples(200)
@given(seeds)
def test_so_it_does_where_telemetry_is_late(seed: int) -> None:
    # Nobody may be turned away for a full queue between then and now: that would depend on what is not known.
    check_predictions(*random_moment(seed, faults=Faults(telemetry_delay_s=0.07), max_waiting=REQUESTS))


def test_any_number_of_requests_may_have_been_sent_since_telemetry_was_taken() -> None:
    """More than the expert could hold at once: they come one by one, and each is served before the next."""
    engine = replace(random_engine(np.random.default_rng(0)), c0_ms=1.0, max_num_seqs=1, max_waiting=1)
    scenario = scenario_of([engine, engine], observation=OBSERVATION, faults=Faults(telemetry_delay_s=100.0))
    episode = random_episode(scenario, np.random.default_rng(0))
    short = np.ones_like(episode.output)
    episode = replace(
        episode, arrival_s=np.arange(REQUESTS) + 1.0, prompt=short[:, 0], output=short, predicted_tokens=short.astype(np.float32)
    )
    count = REQUESTS - 2
    check_predictions((scenario, episode, np.zeros(REQUESTS, np.int64)), count)
    scratch = simulation_of(scenario, episode).world.scratch
    assert min(scratch.order.size, scratch.before.size, scratch.per_slo.size, scratch.state.requests.size) > count


@examples(200)
@given(seeds)
def test_so_it_does_for_every_kind_of_service_level(seed: int) -> None:
    check_predictions(*random_moment(seed, several=True))


@examples(50)
@given(seeds)
def test_so_it_does_for_service_classes_where_telemetry_is_late(seed: int) -> None:
    check_predictions(*random_moment(seed, faults=Faults(telemetry_delay_s=0.07), max_waiting=REQUESTS, several=True))


def random_moment(
    seed: int, *, faults: Faults | None = None, max_waiting: int | None = None, several: bool = False
) -> tuple[World, int]:
    """A random world, and how many of its decisions have been taken."""
    rng = np.random.default_rng(seed)
    world = random_world(rng, observation=OBSERVATION, faults=faults, max_waiting=max_waiting, several=several)
    return world, int(rng.integers(0, REQUESTS - 1))


def check_predictions(world: World, count: int) -> set[str]:
    """Compare the what-if results of a state with what the simulator does once beliefs are the truth; regimes met."""
    scenario, episode, actions = world
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[:count])
    now_s = simulation.now_s[0]
    view_s = max(now_s - scenario.faults.telemetry_delay_s, 0.0)
    true_episode, twins = beliefs_come_true(world, count, view_s)
    then = continuations(scenario, true_episode, actions)
    regimes: set[str] = set()
    for e, twin in enumerate(twins):
        on_way = [r for r in range(count) if actions[r] == e and episode.arrival_s[r] > view_s]
        present = [twin.number[q] for q in twin.present] + [r for r in on_way if then.records(e).status[r] not in TURNED_AWAY]
        finish_s = predicted_finish_s(simulation, e, view_s, 1 + len(present))
        got = dict(zip(WHATIF_FEATURES, simulation.view.whatif[0, e].tolist(), strict=True))
        regimes |= regimes_of(twin, then, e, present)
        with_it, without = then.records(e), then.records(scenario.n_experts)
        before, weight = latencies(then, scenario.n_experts, present), weights(then, [*present, count])
        predicted_score = without.predicted_score[present] * weight[:-1] / weight[-1]
        expected = dict.fromkeys(WHATIF_FEATURES, 0.0) | {"own_latency": 10.0}
        expected |= features_before(predicted_score, before, without.finish_s[present] - now_s)
        if with_it.status[count] not in TURNED_AWAY:
            np.testing.assert_allclose(finish_s, with_it.finish_s[[*present, count]], rtol=1e-9)
            after, own = latencies(then, e, present), float(latencies(then, e, [count])[0])
            expected |= features_with(predicted_score, before, after, own, with_it.finish_s[[*present, count]] - now_s)
        assert got == pytest.approx(expected, rel=2e-6, abs=2e-6)
    return regimes


def moment_at(simulation: Simulation, e: int) -> tuple[Telemetry, Arrived]:
    """What is known of the cluster now, and the arrived request as expert e would get it."""
    world, r = simulation.world, simulation.cursor[0]
    telemetry = sync_telemetry(world.state, world.late, world.views, world.cursor, world.delay_s, world.now_s, 0)
    told, engine = simulation.workload, world.nominal[0, e]
    away_s = network_s(world.state.extras, world.service, told.user["site"][0, r], e, told.prompt[0, r], 1.0)
    predicted = told.prompt[0, r], told.predicted_score[0, r, e], told.predicted_tokens[0, r, e]
    return telemetry, as_expected(engine, telemetry.now_s, *predicted, told.user["service"][0, r], away_s)


def predicted_finish_s(simulation: Simulation, e: int, view_s: float, n: int) -> NDArray[np.float64]:
    """(n,) predicted finish times of those present at expert e and of the newcomer, who is sent there."""
    world = simulation.world
    telemetry, arrived = moment_at(simulation, e)
    assert telemetry.view_s[e] == view_s
    assert telemetry.arrived == simulation.cursor[0]
    effects = np.zeros(simulation.scenario.n_experts, WHATIF_ROW)
    predict_action(telemetry, 0, e, arrived, world.scratch, world.nominal[0, e], simulation.rules.tau, effects)
    return world.scratch.state.records["finish_s"][0, :n].copy()


@kernel
def _roll_apart(telemetry, e, arrived, scratch, engine, before, finish_s):
    """Roll expert e out without and with the newcomer, each from its own copy; returns the number of those present."""
    desk = desk_of(scratch, scratch.state)
    source, lists, sent = telemetry.source.experts[0, e], work_of(telemetry.source, 0, e), work_of(telemetry.actual, 0, e)
    pending, view_s = (telemetry.first_pending[e], telemetry.arrived), telemetry.view_s[e]
    n = load(source, lists, sent, pending, e, desk, engine, view_s)
    if n > 0:
        roll(desk, engine, 0)
    for i in range(n):
        before[i] = latency_of(desk, desk.lists.extras, i)
    n = load(source, lists, sent, pending, e, desk, engine, view_s)
    newcomer(desk, n, arrived)
    if join(desk, engine, n, telemetry.now_s):
        roll(desk, engine, 0)
        for i in range(n + 1):
            finish_s[i] = desk.lists.records[i].finish_s
    return n


@pytest.mark.parametrize("several", [False, True])
def test_where_roll_outs_share_a_part_they_give_the_same_bits_as_apart(several: bool) -> None:
    shared = Counter[bool]()
    for seed in range(150):
        (scenario, episode, actions), count = random_moment(seed, several=several)
        simulation = simulation_of(scenario, episode)
        play(simulation, actions[:count])
        world = simulation.world
        scratch = world.scratch
        for e in range(scenario.n_experts):
            telemetry, arrived = moment_at(simulation, e)
            before, finish_s = np.full((2, scratch.order.size), np.nan)
            n = _roll_apart(telemetry, e, arrived, scratch, world.nominal[0, e], before, finish_s)
            scratch.spare.experts["routed"] = -1
            effects = np.zeros(scenario.n_experts, WHATIF_ROW)
            predict_action(telemetry, 0, e, arrived, scratch, world.nominal[0, e], TAU, effects)
            shared[bool(scratch.spare.experts["routed"][0, 0] >= 0)] += 1
            assert scratch.before[:n].tobytes() == before[:n].tobytes()
            if not np.isnan(finish_s[n]):
                assert scratch.state.records["finish_s"][0, : n + 1].tobytes() == finish_s[: n + 1].tobytes()
    assert min(shared[True], shared[False]) >= 5  # most engines by priority share nothing


def regimes_of(twin: Twin, then: Simulation, e: int, present: list[int]) -> set[str]:
    """The kinds of state that this expert is in, and of what follows if the newcomer joins it."""
    count = len(then.records(e).route) - 1
    records, engine = then.records(e), twin.engine
    preempted = {twin.number[q]: q.preemptions for q in twin.present}
    return {
        name
        for name, holds in {
            "idle": not present,
            "decode only": bool(twin.decoding) and len(twin.decoding) == len(present),
            "prefill in progress": len(twin.decoding) < len(engine.running),
            "queue waiting": bool(engine.waiting),
            "preempting": any(records.preemptions[r] > preempted.get(r, 0) for r in (*present, count)),
            "full": len(engine.waiting) >= engine.profile.max_waiting,
            "too long": records.prompt_tokens[count] >= engine.profile.max_model_len,
        }.items()
        if holds
    }


@pytest.mark.slow
def test_random_worlds_come_into_every_state() -> None:
    seen = Counter[str]()
    for seed in range(60):
        seen.update(check_predictions(*random_moment(seed)))
    assert {name for name in REGIMES if seen[name] >= 3} == REGIMES, seen


@pytest.mark.parametrize("several", [False, True])
@examples(200)
@given(seed=seeds)
def test_the_counterfactual_of_each_action_is_what_then_happens(several: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=COUNTERFACTUAL, several=several)
    count = int(rng.integers(0, REQUESTS - 1))
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[:count])
    then = continuations(scenario, first_requests(episode, count + 1), actions)
    qos = np.array([then.records(a).qos.sum() for a in range(scenario.n_experts + 1)])
    np.testing.assert_array_equal(simulation.marginal[0], qos - qos[-1])  # scores lie on a grid: the sums are exact
    turned_away = [a for a in range(scenario.n_experts) if then.records(a).status[count] in TURNED_AWAY]
    assert not simulation.marginal[0, turned_away].any()
    assert simulation.marginal[0, -1] == 0


@pytest.mark.parametrize("several", [False, True])
@examples(100)
@given(seed=seeds)
def test_marginals_sum_to_the_realised_qos(several: bool, seed: int) -> None:
    reward = Reward(realised_qos=0, marginal_qos=1)
    taken, all_, realised = (
        random_world(np.random.default_rng(seed), observation=observation, reward=weights, several=several)
        for observation, weights in ((Observation(), reward), (COUNTERFACTUAL, reward), (Observation(), Reward()))
    )
    sums = []
    for scenario, episode, actions in (taken, all_, realised):
        simulation = simulation_of(scenario, episode)
        sums.append(play(simulation, actions).sum())
        assert sums[-1] == simulation.records(0).qos.sum()
    assert sums[0] == sums[1] == sums[2]


@examples(200)
@given(seeds)
def test_looking_ahead_leaves_no_trace(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=COUNTERFACTUAL)
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[: int(rng.integers(0, REQUESTS))])
    before = [array.tobytes() for array in simulation.state if array is not None]
    seen = [array.tobytes() for array in (*simulation.view, simulation.marginal)]
    write_observation(simulation.world, simulation.rules, 0)
    assert [array.tobytes() for array in simulation.state if array is not None] == before
    assert [array.tobytes() for array in (*simulation.view, simulation.marginal)] == seen  # nor in what is seen next


@examples(100)
@given(seeds)
def test_an_episode_goes_the_same_way_whether_or_not_somebody_looks_ahead(seed: int) -> None:
    states = []
    for observation, show in ((COUNTERFACTUAL, True), (Observation(), True), (Observation(), False)):
        scenario, episode, actions = random_world(np.random.default_rng(seed), observation=observation)
        simulation = simulation_of(scenario, episode, show=show)
        play(simulation, actions)
        simulation.state.experts["future_qos"] = 0  # where counterfactuals add up
        states.append([array.tobytes() for array in simulation.state if array is not None])
    assert states[0] == states[1] == states[2]
