"""Clusters that change within an episode: every request has one end, and engines do what the plain stepper does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from rllib_envs.baselines import HEURISTICS
from rllib_envs.dynamics import Blackouts, Dynamics, Failures, Outage, Patience, Throttling
from rllib_envs.env import EdgeRoutingEnv
from rllib_envs.scenario import Faults, Observation, Reward, Scenario, with_workload
from rllib_envs.sim.living import DARK, DOWN, EVENT, LIT, SPEED, THERMAL, UP
from rllib_envs.sim.reference import Arrival, Change, Engine, Outcome, Throttle, simulate
from rllib_envs.sim.rows import EXPERT_FEATURES, WHATIF_FEATURES
from rllib_envs.sim.state import CANCELLED, CONFINED, DROPPED, FAILED, FINISHED, FOLLOWED, LOST, REJECTED, TOO_LONG
from rllib_envs.sim.terms import users
from rllib_envs.simulation import Simulation
from rllib_envs.workload.disturbances import Disturbances
from rllib_envs.workload.episode import Episode
from tests.disturbed import disturbed, disturbed_world
from tests.draws import examples
from tests.worlds import REQUESTS, assert_same, begin, play, random_world, seeds, simulation_of, small
from tuning.evaluation.matrix import start_simulation
from tuning.specs.routers import parse_router

LOOKAHEAD = Observation(whatif=True, counterfactual=True, information=True, demand=True, calibrate=True)
HARD = Dynamics(
    throttling=Throttling(time_constant_s=3.0),
    failures=Failures(mtbf_s=8.0, mttr_s=3.0),
    patience=Patience(first_token_s=2.0, total_s=12.0),
    blackouts=Blackouts(mean_gap_s=5.0, mean_s=3.0),
)
ENDS = (FINISHED, DROPPED, REJECTED, TOO_LONG, CONFINED, CANCELLED, FAILED)
SENT = (FINISHED, CANCELLED, FAILED, LOST)


def nothing(episode: Episode, **changes: object) -> Disturbances:
    """No change in an episode, but for those given."""
    count, n = episode.output.shape
    still = {
        "events": (np.zeros(0, EVENT),) * n,
        "losses": (np.zeros(0),) * n,
        "thermal": np.array([(math.inf, 0, 1, 0, 1)] * n, THERMAL),
        "first_token_s": np.full(count, np.inf),
        "total_s": np.full(count, np.inf),
        "retries": 0,
        "hides": False,
    }
    return Disturbances(**still | changes)  # type: ignore[arg-type]


def events(*entries: tuple[float, float, int]) -> NDArray[np.void]:
    """EVENT records."""
    return np.array(list(entries), EVENT)


def run_to_the_end(simulation: Simulation, actions: NDArray[np.int64]) -> dict[str, float]:
    """Take decisions until all clusters are over; the sums of what the steps of cluster 0 say, and the number of decisions."""
    sums = dict.fromkeys(("qos", "finished", "late", "dropped", "rejected", "too_long", "cancelled", "failed", "retried"), 0.0)
    decisions = 0
    while not simulation.over.all():
        simulation.step(np.full(simulation.batch, actions[decisions]))
        decisions += 1
        for name in sums:
            sums[name] += simulation.steps[name][0].item()
    return sums | {"decisions": decisions}


@pytest.mark.parametrize("several", [False, True])
@examples(150)
@given(seed=seeds)
def test_every_arrival_has_exactly_one_end(several: bool, seed: int) -> None:
    scenario, episode, actions = disturbed_world(np.random.default_rng(seed), several=several)
    simulation = simulation_of(scenario, episode, show=False)
    sums = run_to_the_end(simulation, actions)
    records = simulation.records(0)
    assert records.status.size == REQUESTS
    assert np.isin(records.status, ENDS).all()
    np.testing.assert_array_equal(records.arrival_s, episode.arrival_s)
    np.testing.assert_array_equal(records.prompt_tokens, episode.prompt)
    assert sums["decisions"] == REQUESTS + records.retries.sum()
    assert sums["retried"] == records.retries.sum()
    assert records.retries.max() <= (scenario.dynamics or Dynamics()).retries
    counted = {"finished": (FINISHED,), "dropped": (DROPPED,), "rejected": (REJECTED, CONFINED), "too_long": (TOO_LONG,)}
    counted |= {"cancelled": (CANCELLED,), "failed": (FAILED,)}
    assert {name: sums[name] for name in counted} == {name: np.isin(records.status, s).sum() for name, s in counted.items()}
    assert sums["qos"] == records.qos.sum()
    assert sums["late"] == records.late.sum()
    assert not records.qos[records.status != FINISHED].any()
    assert np.isnan(records.finish_s[records.status != FINISHED]).all()
    experts = simulation.state.experts[0]
    for name in ("n_run", "n_wait", "n_dec", "context", "leaving", "leaving_blocks"):
        assert not experts[name].any(), name
    np.testing.assert_array_equal(experts["freed"] - experts["taken"], simulation.state.engines["blocks"][0])
    assert not experts["phase"].any()


@pytest.mark.parametrize("several", [False, True])
@examples(200)
@given(seed=seeds)
def test_each_expert_does_what_the_plain_stepper_does(several: bool, seed: int) -> None:
    scenario, episode, actions = disturbed_world(np.random.default_rng(seed), several=several)
    simulation = simulation_of(scenario, episode, show=False)
    run_to_the_end(simulation, actions)
    for e in range(scenario.n_experts):
        check_expert(simulation, episode, e)


def check_expert(simulation: Simulation, episode: Episode, e: int) -> None:
    """Replay what was sent to an expert in the plain stepper, and compare each outcome."""
    changing, living, table = episode.disturbances, simulation.living, simulation.workload
    count = table.total[0]
    records, requests = simulation.state.records[0, :count], simulation.state.requests[0, :count]
    rows = np.flatnonzero((records["route"] == e) & np.isin(records["status"], SENT))
    extras = simulation.state.extras
    if changing is None or living is None or extras is None or rows.size == 0:
        return
    first_s = requests["arrival_s"] - table.age_s[0, :count]
    arrivals = [
        Arrival(
            arrival_s=float(requests["arrival_s"][r]),
            prompt_tokens=int(requests["prompt"][r]),
            output_tokens=int(table.output[0, r, e]),
            priority=int(extras["priority"][0, r]),
            first_token_patience_s=float(first_s[r] + living.first_token_s[0, r] - requests["arrival_s"][r]),
            patience_s=float(first_s[r] + living.total_s[0, r] - requests["arrival_s"][r]),
        )
        for r in rows
    ]
    changes = [
        Change(at_s=event["at_s"].item(), slowness=event["value"].item() if event["kind"] == SPEED else None, down=down)
        for event in changing.events[e]
        for down in [{DOWN: True, UP: False}.get(event["kind"].item())]
        if event["kind"] in (SPEED, DOWN, UP)
    ]
    thermal = changing.thermal[e]
    throttle = Throttle(**{name: thermal[name].item() for name in thermal.dtype.names or ()})
    result = simulate(episode.engines[e], arrivals, changes=changes, throttle=throttle if throttle.every_s < math.inf else None)
    for r, outcome in zip(rows, result.outcomes, strict=True):
        check_outcome(records[r], requests[r], outcome)
    assert simulation.state.experts["busy_s"][0, e] == pytest.approx(result.busy_s, rel=1e-9)


def check_outcome(record: np.void, request: np.void, outcome: Outcome) -> None:
    status = record["status"]
    assert not outcome.rejected
    assert (status == FINISHED) == (not outcome.cancelled and not outcome.lost)
    if outcome.cancelled:
        assert status == CANCELLED
    if not outcome.lost:
        assert request["output"] == outcome.output_tokens
    for name in ("first_scheduled_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(record[name], getattr(outcome, name), rtol=1e-9, err_msg=name)
    assert record["preemptions"] == outcome.preemptions


@examples(60)
@given(seeds)
def test_changes_that_change_nothing_change_nothing(seed: int) -> None:
    """To the last bit: no speed but 1, clients with all the time in the world, and telemetry that is followed but never stops."""
    rng = np.random.default_rng(seed)
    late = bool(rng.integers(2))
    faults = Faults(telemetry_delay_s=0.07) if late else None
    scenario, episode, actions = random_world(rng, observation=LOOKAHEAD, faults=faults, several=bool(rng.integers(2)))
    plain = simulation_of(scenario, episode)
    still = nothing(
        episode,
        hides=True,
        thermal=np.array([(0.1, 0.5, 1.0, 0.1, 0.5)] * scenario.n_experts, THERMAL),
        events=(events((0.5, 1.0, SPEED), (0.9, 1.0, SPEED)),) * scenario.n_experts,
    )
    changing = simulation_of(replace(scenario, dynamics=Dynamics()), replace(episode, disturbances=still))
    for action in actions:
        assert_same(plain.view, changing.view)
        np.testing.assert_array_equal(plain.marginal, changing.marginal)
        np.testing.assert_array_equal(plain.step(np.array([action])), changing.step(np.array([action])))
    for field in ("status", "finish_s", "first_token_s", "qos", "output_tokens", "retries"):
        np.testing.assert_array_equal(getattr(plain.records(0), field), getattr(changing.records(0), field))


@examples(60)
@given(seeds)
def test_a_constant_speed_is_an_engine_of_that_speed(seed: int) -> None:
    """So all that is shown of what follows, predicted or true, is that of an engine with such iteration times."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=LOOKAHEAD, several=bool(rng.integers(2)))
    factor = float(rng.choice([0.5, 2.0]))  # exact, so that the same things happen in the same order
    engines = tuple(replace(engine, overhead=engine.overhead * factor) for engine in episode.engines)
    slow = simulation_of(scenario, replace(episode, engines=engines, nominal=engines))
    speed = nothing(episode, events=(events((0.0, factor, SPEED)),) * scenario.n_experts)
    throttled = simulation_of(replace(scenario, dynamics=Dynamics()), replace(episode, nominal=engines, disturbances=speed))
    for action in actions:
        assert_same(slow.view, throttled.view)
        np.testing.assert_array_equal(slow.marginal, throttled.marginal)
        slow.step(np.array([action]))
        throttled.step(np.array([action]))
    np.testing.assert_array_equal(slow.records(0).finish_s, throttled.records(0).finish_s)


@examples(100)
@given(seeds)
def test_an_expert_kept_as_it_was_is_seen_as_its_replica_is(seed: int) -> None:
    """The replica of late telemetry lives through the same changes at the same times, and stops where the view does."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = disturbed_world(rng, observation=LOOKAHEAD, several=bool(rng.integers(2)))
    if episode.disturbances is None:
        return
    episode = replace(episode, disturbances=replace(episode.disturbances, hides=True))
    kept, followed = simulation_of(scenario, episode), simulation_of(scenario, episode)
    followed.world.views.kind[:] = FOLLOWED  # as late as nothing at all
    followed.world.views.held[:] = True
    living, views, replica = kept.living, kept.world.views, followed.world.late
    assert living is not None
    compared = [name for name in replica.experts.dtype.names or () if name != "future_qos"]
    for action in actions:
        if kept.over[0]:
            break
        kept.step(np.array([action]))
        followed.step(np.array([action]))
        assert all(np.isfinite(shown).all() for shown in kept.view)
        assert_same(kept.view, followed.view)
        np.testing.assert_array_equal(views.held[0], living.lives["dark"][0] > 0)
        for name in ("first_pending", "view_s"):
            np.testing.assert_array_equal(getattr(views, name), getattr(followed.world.views, name))
        for e in np.flatnonzero(~views.held[0]):
            assert views.view_s[0, e] == kept.now_s[0]
            for name in compared:
                np.testing.assert_array_equal(kept.state.experts[name][0, e], replica.experts[name][0, e], err_msg=name)


@examples(60)
@given(seeds)
def test_an_expert_in_a_blackout_is_seen_as_with_late_telemetry(seed: int) -> None:
    """As late as the stop is long: its observation and its what-if results. The others are seen as they are."""
    rng = np.random.default_rng(seed)
    observation = Observation(whatif=True)
    scenario, episode, actions = random_world(rng, observation=observation, several=bool(rng.integers(2)))
    count = int(rng.integers(2, REQUESTS - 1))
    now_s = float(episode.arrival_s[count])
    since_s = now_s * float(rng.uniform(0.2, 0.98))
    stop = events((since_s, 0, DARK), (now_s + 1, 0, LIT))
    dark = nothing(episode, hides=True, events=(stop, *[np.zeros(0, EVENT)] * (scenario.n_experts - 1)))
    stopped = simulation_of(replace(scenario, dynamics=Dynamics()), replace(episode, disturbances=dark))
    late = simulation_of(scenario, replace(episode, telemetry_delay_s=now_s - since_s))
    plain = simulation_of(scenario, episode)
    for simulation in (stopped, late, plain):
        play(simulation, actions[:count])
    for name in ("experts", "running", "waiting", "running_mask", "waiting_mask", "whatif"):
        seen = getattr(stopped.view, name)[0]
        np.testing.assert_allclose(seen[0], getattr(late.view, name)[0, 0], rtol=1e-5, atol=1e-6, err_msg=name)
        np.testing.assert_array_equal(seen[1:], getattr(plain.view, name)[0, 1:], err_msg=name)


def two_experts(dynamics: Dynamics, *, requests: int = 60, gap_s: float = 0.1) -> tuple[Scenario, Episode]:
    """Two roomy engines and one request every ``gap_s``, each as long as predicted."""
    rng = np.random.default_rng(0)
    scenario, episode, _ = random_world(rng, observation=Observation(whatif=True))
    engine = replace(
        episode.engines[0], c0_ms=10.0, b_ms=0.0, c_ms=0.0, a_ms=0.0, q_ms=0.0, c_mixed_ms=0.0, kv_tokens=100_000,
        max_num_seqs=64, max_num_batched_tokens=4096, max_model_len=1000, max_waiting=64, handoff_s=0.0, async_scheduling=False,
    )  # fmt: skip
    experts = tuple(replace(expert, engine=engine) for expert in scenario.experts[:2])
    scenario = replace(with_workload(scenario, requests=requests), experts=experts, dynamics=dynamics, slo_s_per_token=0.05)
    shape = (requests, 2)
    episode = Episode(
        arrival_s=np.linspace(gap_s, gap_s * requests, requests),
        prompt=np.full(requests, 10, np.int32),
        score=np.full(shape, 0.5, np.float32),
        output=np.full(shape, 50, np.int32),
        predicted_score=np.full(shape, 0.5, np.float32),
        predicted_tokens=np.full(shape, 50, np.float32),
        predicted_log_sd=np.full(shape, 0.1, np.float32),
        predicted_log_median=np.zeros(2),
        judged=np.zeros(requests, np.bool_),
        user=users(requests),
        engines=(engine, engine),
        nominal=(engine, engine),
        telemetry_delay_s=0.0,
    )
    return scenario, episode


def start(scenario: Scenario, episode: Episode) -> Simulation:
    """A simulation of the episode with the changes that the scenario draws for it."""
    return simulation_of(scenario, disturbed(scenario, episode, np.random.default_rng(0)))


def masks(simulation: Simulation, choose: int) -> list[tuple[float, NDArray[np.float32]]]:
    """(time, action mask) of each decision, with every request sent to one expert."""
    seen: list[tuple[float, NDArray[np.float32]]] = []
    while not simulation.over[0]:
        seen.append((float(simulation.now_s[0]), simulation.view.action_mask[0].copy()))
        simulation.step(np.array([choose]))
    return seen


def test_a_failed_expert_is_masked_while_the_router_knows_it() -> None:
    dynamics = Dynamics(outages=(Outage(at_s=2.05, for_s=1.0, experts=("e0",)),), detection_s=0.5, retries=0)
    scenario, episode = two_experts(dynamics)
    simulation = start(scenario, episode)
    seen = masks(simulation, 0)
    for time_s, mask in seen:
        assert mask.tolist() == [float(not 2.55 <= time_s < 3.55), 1, 1], time_s
    records = simulation.records(0)
    arrival_s = records.arrival_s
    inside = (arrival_s + 50 * 0.01 > 2.05) & (arrival_s < 2.05)  # ten milliseconds a token, and no other time
    unknown = (arrival_s > 2.05) & (arrival_s < 2.55)
    np.testing.assert_array_equal(records.status == FAILED, inside | unknown)
    np.testing.assert_array_equal(records.status == REJECTED, (arrival_s > 2.55) & (arrival_s < 3.55))


def test_a_drained_expert_finishes_what_it_has_and_is_back_after_its_time() -> None:
    dynamics = Dynamics(outages=(Outage(at_s=2.05, for_s=1.0, planned=True, experts=("e0",)),), detection_s=0.5)
    scenario, episode = two_experts(dynamics)
    simulation = start(scenario, episode)
    seen = masks(simulation, 0)
    records = simulation.records(0)
    empty_s = np.nanmax(records.finish_s[records.arrival_s < 2.05])
    for time_s, mask in seen:
        assert mask.tolist() == [float(not 2.05 <= time_s < empty_s + 1.0), 1, 1], time_s
    refused = (records.arrival_s > 2.05) & (records.arrival_s < empty_s + 1.0)
    np.testing.assert_array_equal(records.status, np.where(refused, REJECTED, FINISHED))


def test_what_a_failure_took_is_decided_again_with_its_age() -> None:
    """The router learns of it, sends the requests elsewhere, and knows what they have left of their time."""
    dynamics = Dynamics(outages=(Outage(at_s=0.95, for_s=5.0, experts=("e0",)),), detection_s=0.2, retries=1)
    scenario, episode = two_experts(dynamics, requests=12)  # from .1 to 1.2 s
    simulation = start(scenario, episode)
    went: list[tuple[float, float]] = []
    while not simulation.over[0]:
        again = simulation.view.action_mask[0, 0] == 0
        age_s = float(simulation.workload.age_s[0, simulation.cursor[0]])
        own = float(simulation.view.whatif[0, 1, WHATIF_FEATURES.index("own_latency")])
        went.append((float(simulation.now_s[0]), age_s))
        if again:  # 50 tokens at 10 ms in a row, after the age, over 50 times 50 ms
            assert own == pytest.approx((age_s + 0.5) / 2.5, abs=0.01)
        simulation.step(np.array([1 if again else 0]))
    records = simulation.records(0)
    # Those of .5 to .9 s were inside, and those of 1 and 1.1 s came later: all are known to be lost at 1.15 s.
    lost = (records.arrival_s > 0.46) & (records.arrival_s < 1.15)
    np.testing.assert_array_equal(records.retries, lost)
    assert (records.status == FINISHED).all()
    np.testing.assert_array_equal(records.route, lost | (records.arrival_s > 1.15))
    again_at = [(now_s, age_s) for now_s, age_s in went if age_s > 0]
    assert [now_s for now_s, _ in again_at] == pytest.approx([1.15] * int(lost.sum()))
    assert [age_s for _, age_s in again_at] == pytest.approx((1.15 - records.arrival_s[lost]).tolist())
    np.testing.assert_allclose(records.finish_s[lost], 1.65, atol=0.011)
    late = records.latency_per_token_s > scenario.slo_s_per_token
    np.testing.assert_array_equal(records.late, late)


@pytest.mark.parametrize("router", sorted(HEURISTICS))
def test_every_heuristic_works_while_experts_come_and_go(router: str) -> None:
    """None sends a request where the mask forbids it, and every arrival has one end."""
    scenario = small("edge6-sites", 120, observation=Observation(whatif=True, calibrate=True), dynamics=HARD)
    simulation = start_simulation(parse_router(router), scenario, [1, 2])
    for cluster in range(2):
        records, decided = simulation.records(cluster), simulation.decisions(cluster)
        assert records.status.size == 120
        assert np.isin(records.status, ENDS).all()
        assert not (decided.status == REJECTED).any()
        assert decided.status.size == 120 + records.retries.sum()
        assert (decided.status == LOST).sum() == records.retries.sum()


@examples(40)
@given(seeds)
def test_clusters_that_change_do_not_meet(seed: int) -> None:
    """Also if one has more changes than any before it, and where one begins anew."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = disturbed_world(rng, observation=LOOKAHEAD)
    calm = replace(episode, disturbances=None)
    busy = disturbed(scenario, replace(episode, arrival_s=episode.arrival_s * 2), np.random.default_rng(seed + 1))
    together = simulation_of(scenario, calm, episode, busy)
    for turn in range(2):
        alone = [simulation_of(scenario, each) for each in (calm, episode, busy)]
        for action in actions[: 30 if turn == 0 else None]:
            together.step(np.full(3, action))
            for b, single in enumerate(alone):
                single.step(np.array([action]))
                for name, shown in together.view._asdict().items():
                    np.testing.assert_array_equal(shown[b], getattr(single.view, name)[0], err_msg=name)
                assert together.steps[b] == single.steps[0]
        for b, each in enumerate((calm, episode, busy)):
            begin(together, b, each)


def test_clusters_may_differ_in_their_changes() -> None:
    plain = small("edge6", observation=LOOKAHEAD)
    variants = (plain, replace(plain, dynamics=HARD), replace(plain, dynamics=Dynamics(patience=Patience(total_s=5.0))))
    together = Simulation(plain, 3, variants=variants)
    alone = [Simulation(variant, 1) for variant in variants]
    together.start_all([1, 2, 3])
    for b, single in enumerate(alone):
        single.start(0, b + 1)
    rng = np.random.default_rng(0)
    while not together.over.all():
        actions = rng.integers(0, 6, 3)
        together.step(actions)
        for b, single in enumerate(alone):
            single.step(actions[b : b + 1])
            for name, shown in together.view._asdict().items():
                np.testing.assert_array_equal(shown[b], getattr(single.view, name)[0], err_msg=name)
    assert [np.unique(together.records(b).status).size > 1 for b in range(3)] == [False, True, True]


@examples(40)
@given(seeds)
def test_who_gives_up_counts_as_late_and_who_fails_as_dropped(seed: int) -> None:
    scenario, episode, actions = disturbed_world(np.random.default_rng(seed))
    simulation = simulation_of(replace(scenario, reward=Reward(violation=0.25, drop=0.5)), episode, show=False)
    paid = 0.0
    for action in actions:
        paid += float(simulation.step(np.array([action]))[0])
    records = simulation.records(0)
    late = records.late.sum() + (records.status == CANCELLED).sum()
    lost = np.isin(records.status, (DROPPED, REJECTED, CONFINED, FAILED)).sum()
    assert paid == records.qos.sum() - 0.25 * late - 0.5 * lost


def test_a_picture_shows_which_experts_are_away() -> None:
    pictures = list[NDArray[np.uint8]]()
    for dynamics in (Dynamics(), Dynamics(outages=(Outage(at_s=1.0, for_s=10.0, planned=True, experts=("e0",)),))):
        scenario, _ = two_experts(dynamics)
        env = EdgeRoutingEnv(scenario, render_mode="rgb_array")
        env.reset(seed=1)
        for _ in range(20):
            _, _, _, _, info = env.step(np.int64(1))
            assert info.keys() >= {"cancelled", "failed", "retried"}
        picture = env.render()
        assert picture is not None
        pictures.append(picture)
    assert not np.array_equal(pictures[0], pictures[1])


@examples(40)
@given(seeds)
def test_requests_that_are_sent_again_stay_where_they_may_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = disturbed_world(rng, several=True)
    classes = tuple(replace(c, confined_to=() if rng.random() < 0.3 else ("e1",)) for c in scenario.classes)
    simulation = simulation_of(replace(scenario, classes=classes), episode, show=False)
    run_to_the_end(simulation, actions)
    count = simulation.workload.total[0]
    records = simulation.state.records[0, :count]
    confined = np.array([bool(c.confined_to) for c in classes])[simulation.workload.user["service"][0, :count]]
    sent = np.isin(records["status"], SENT)
    assert (records["route"][confined & sent] == 1).all()
    assert not (records["status"][~confined] == CONFINED).any()


def test_calibration_follows_a_throttled_engine() -> None:
    """The router's figures stay those of a cool engine; it sees iterations that take longer, and nothing else."""
    scenario, episode = two_experts(Dynamics())
    observation = Observation(calibrate=True, whatif=True)
    speed = nothing(episode, events=(events((1.0, 1.5, SPEED)), np.zeros(0, EVENT)))
    simulation = simulation_of(replace(scenario, observation=observation), replace(episode, disturbances=speed))
    drift = EXPERT_FEATURES.index("step_drift")
    for r in range(59):
        assert simulation.view.experts[0, 1, drift] == 0
        if r < 9:
            assert simulation.view.experts[0, 0, drift] == pytest.approx(0, abs=1e-9)
        simulation.step(np.array([r % 2]))
    assert 0.75 * math.log(1.5) < simulation.view.experts[0, 0, drift] < 1.01 * math.log(1.5)


def test_an_engine_at_work_heats_up_and_cools_when_idle() -> None:
    """By the defaults it is slowest after some 105 s of work, as a measured GPU was, and cool two minutes after it."""
    shape = Throttling()
    kept = math.exp(-shape.every_s / shape.time_constant_s)
    throttle = Throttle(every_s=shape.every_s, kept=kept, slowest=shape.slowest, from_heat=shape.from_heat, to_heat=shape.to_heat)
    heat, slowness = 0.0, [1.0]
    for _ in range(110):
        heat = throttle.heat(heat, 1.0)
        slowness.append(throttle.slowness(heat))
    assert heat == pytest.approx(1 - math.exp(-110 / shape.time_constant_s))
    assert slowness == sorted(slowness)
    assert slowness[100] < shape.slowest == slowness[105]
    assert slowness[30] == 1.0
    for _ in range(30):
        heat = throttle.heat(heat, 0.0)
    assert throttle.slowness(heat) == 1.0


def test_an_engine_that_fails_yields_nothing_more_and_starts_empty() -> None:
    scenario, episode = two_experts(Dynamics())
    profile = episode.engines[0]
    arrivals = [Arrival(arrival_s=0.1 * r, prompt_tokens=10, output_tokens=50) for r in range(10)]
    engine = Engine(profile)
    changes = [Change(at_s=0.55, down=True), Change(at_s=0.75, down=False)]
    result = simulate(profile, arrivals, changes=changes, engine=engine)
    assert [outcome.lost for outcome in result.outcomes] == [0.05 < 0.1 * r < 0.75 for r in range(10)]
    assert len(engine.free) == profile.usable_blocks
    assert scenario.n_experts == 2
