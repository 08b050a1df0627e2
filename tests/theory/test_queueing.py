"""Queueing theory as an oracle: experts that are classical queues must wait as the formulas say.

An expert with one seat whose iteration takes a constant time c0 serves a request of d output tokens in d * c0 seconds: it is an
M/G/1 queue. Every comparison is a t statistic over independent replications (clusters), of a mean whose expectation is known.
It fails beyond 4.5 standard errors: by chance (127 degrees of freedom) that happens 15 times in a million comparisons, of which
there are about thirty.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from rllib_envs.service import ServiceClass
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.sim.rows import EXPERT_FEATURES
from rllib_envs.sim.terms import users
from rllib_envs.simulation import Records, Simulation
from rllib_envs.workload.episode import Episode
from tests.worlds import random_scores, scenario_of, simulation_of

pytestmark = pytest.mark.slow

CLUSTERS, REQUESTS, WARM_UP = 128, 3000, 500
C0_S = 0.01
LIMIT = 4.5

SINGLE = EngineProfile(
    c0_ms=C0_S * 1e3,
    b_ms=0,
    c_ms=0,
    a_ms=0,
    n0_tokens=0,
    q_ms=0,
    kv_tokens=10_000,
    kv_bytes_per_token=1,
    max_num_seqs=1,
    max_model_len=1000,
    max_waiting=1000,
    async_scheduling=False,  # the formulas let a server begin on the next request at once
)
CONSTANT = np.array([10])
TWO_KINDS = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 51])  # mostly short, rarely long: the variance makes the queue
SPREAD = np.arange(1, 30)


def z(sample: NDArray[np.float64], expected: float = 0.0) -> float:
    """Distance of the mean of the replications from what is expected, in standard errors."""
    return float((sample.mean() - expected) / (sample.std(ddof=1) / math.sqrt(sample.size)))


def poisson_episodes(
    profile: EngineProfile, rate_rps: float, lengths: NDArray[np.int64], rng: np.random.Generator
) -> list[Episode]:
    """One episode a cluster: Poisson arrivals, prompts of one token, output lengths drawn from ``lengths``."""
    return [
        Episode(
            arrival_s=np.cumsum(rng.exponential(1 / rate_rps, REQUESTS)),
            prompt=np.ones(REQUESTS, np.int32),
            score=random_scores((REQUESTS, 2), rng),
            output=np.repeat(rng.choice(lengths, (REQUESTS, 1)), 2, axis=1).astype(np.int32),
            predicted_score=np.zeros((REQUESTS, 2), np.float32),
            predicted_tokens=np.ones((REQUESTS, 2), np.float32),
            predicted_log_sd=np.zeros((REQUESTS, 2), np.float32),
            predicted_log_median=np.zeros(2),
            judged=np.zeros(REQUESTS, np.bool_),
            user=users(REQUESTS),
            engines=(profile, profile),
            nominal=(profile, profile),
            telemetry_delay_s=0.0,
        )
        for _ in range(CLUSTERS)
    ]


def served_alone(
    profile: EngineProfile, rate_rps: float, lengths: NDArray[np.int64], seed: int
) -> tuple[Simulation, list[Records]]:
    """Expert 0 alone serves everything, in every cluster."""
    scenario = scenario_of([profile, profile], requests=REQUESTS)
    episodes = poisson_episodes(profile, rate_rps, lengths, np.random.default_rng(seed))
    simulation = simulation_of(scenario, *episodes, show=False)
    for _ in range(REQUESTS):
        simulation.step(np.zeros(CLUSTERS, np.int64))
    return simulation, [simulation.records(cluster) for cluster in range(CLUSTERS)]


@pytest.mark.parametrize("load", [0.4, 0.8])
@pytest.mark.parametrize("lengths", [CONSTANT, TWO_KINDS, SPREAD], ids=["M/D/1", "two kinds", "spread"])
def test_mean_wait_is_pollaczek_khinchines(lengths: NDArray[np.int64], load: float) -> None:
    service_s = lengths * C0_S
    rate = load / service_s.mean()
    expected_s = rate * (service_s**2).mean() / (2 * (1 - load))
    simulation, records = served_alone(SINGLE, rate, lengths, seed=1)
    waits_s = np.array([(r.first_scheduled_s - r.arrival_s)[WARM_UP:] for r in records])
    assert abs(z(waits_s.mean(axis=1), expected_s)) < LIMIT
    # Poisson arrivals see time averages: the server is free for the share 1 - load of them.
    assert abs(z((waits_s == 0).mean(axis=1), 1 - load)) < LIMIT
    # Service takes what it should, and nothing else takes time.
    for r in records:
        np.testing.assert_allclose(r.finish_s - r.first_scheduled_s, r.output_tokens * C0_S, rtol=1e-9)
    utilisation = simulation.state.experts["busy_s"][:, 0] / [r.finish_s.max() for r in records]
    assert abs(z(utilisation, load)) < LIMIT


def test_the_check_has_power() -> None:
    """A mean wait that is 5 % off is found out."""
    rate = 0.4 / (10 * C0_S)
    expected_s = rate * (10 * C0_S) ** 2 / (2 * 0.6)
    _, records = served_alone(SINGLE, rate, CONSTANT, seed=2)
    mean_s = np.array([(r.first_scheduled_s - r.arrival_s)[WARM_UP:].mean() for r in records])
    assert abs(z(mean_s, 1.05 * expected_s)) > LIMIT


@pytest.mark.parametrize("urgent", ["some", "the short ones"])
def test_mean_waits_by_priority_are_cobhams(urgent: str) -> None:
    """Two classes, and nobody who is served is interrupted (Cobham 1954).

    With W0 = rate * E[S^2] / 2 the urgent wait W0 / (1 - load1) and the others W0 / ((1 - load1) * (1 - load)).
    """
    load, service_s = 0.7, SPREAD * C0_S
    rate = load / service_s.mean()
    remaining_s = rate * (service_s**2).mean() / 2
    rng = np.random.default_rng(6)
    profile = replace(SINGLE, scheduling="priority")
    episodes = poisson_episodes(profile, rate, SPREAD, rng)
    limit = 15
    if urgent == "some":
        service = [(rng.random(REQUESTS) < 0.6).astype(np.int32) for _ in episodes]
        load_urgent = 0.4 * load
    else:
        service = [(episode.output[:, 0] > limit).astype(np.int32) for episode in episodes]
        load_urgent = rate * service_s[:limit].sum() / SPREAD.size
    classes = (ServiceClass(name="urgent", priority=-1), ServiceClass(name="other", priority=2))
    scenario = replace(scenario_of([profile, profile], requests=REQUESTS), classes=classes)
    given: list[Episode] = []
    for episode, of_class in zip(episodes, service, strict=True):
        user = users(REQUESTS)
        user["service"] = of_class
        given.append(replace(episode, user=user))
    simulation = simulation_of(scenario, *given, show=False)
    for _ in range(REQUESTS):
        simulation.step(np.zeros(CLUSTERS, np.int64))
    records = [simulation.records(cluster) for cluster in range(CLUSTERS)]
    for number, expected_s in enumerate((remaining_s, remaining_s / (1 - load))):
        waits_s = [(r.first_scheduled_s - r.arrival_s)[WARM_UP:][r.service[WARM_UP:] == number].mean() for r in records]
        assert abs(z(np.array(waits_s), expected_s / (1 - load_urgent))) < LIMIT


def test_a_queue_fed_by_a_coin_is_again_an_m_g_1_queue() -> None:
    """A Poisson stream split at random gives two independent Poisson streams."""
    load, service_s = 0.7, SPREAD * C0_S
    rate = load / service_s.mean()
    expected_s = rate * (service_s**2).mean() / (2 * (1 - load))
    rng = np.random.default_rng(3)
    simulation = simulation_of(
        scenario_of([SINGLE, SINGLE], requests=REQUESTS), *poisson_episodes(SINGLE, 2 * rate, SPREAD, rng), show=False
    )
    for _ in range(REQUESTS):
        simulation.step(rng.integers(2, size=CLUSTERS))
    for e in range(2):
        waits_s = []
        for cluster in range(CLUSTERS):
            r = simulation.records(cluster)
            waits_s.append((r.first_scheduled_s - r.arrival_s)[WARM_UP:][r.route[WARM_UP:] == e].mean())
        assert abs(z(np.array(waits_s), expected_s)) < LIMIT


def test_admission_to_a_batch_waits_for_half_an_iteration_while_busy() -> None:
    """With seats for everybody and iterations of one length, an arrival waits for the end of the one under way, if any.

    Iterations do not know of arrivals during them, so that those are uniform in it: the mean wait is c0/2 times the share of
    time that the expert is busy.
    """
    simulation, records = served_alone(replace(SINGLE, max_num_seqs=64), 12.0, CONSTANT, seed=4)
    waits_s = np.array([(r.first_scheduled_s - r.arrival_s).mean() for r in records])
    busy = simulation.state.experts["busy_s"][:, 0] / [r.finish_s.max() for r in records]
    assert 0.5 < busy.mean() < 0.8
    assert abs(z(waits_s - busy * C0_S / 2)) < LIMIT


def test_littles_law_and_arrivals_that_see_time_averages() -> None:
    """In a batch whose members slow each other, arrivals find on average rate * mean stay requests in the system."""
    profile = replace(SINGLE, b_ms=2.0, c_ms=0.02, a_ms=0.5, max_num_seqs=6)
    rate = 20.0
    rng = np.random.default_rng(5)
    scenario = scenario_of([profile, profile], requests=REQUESTS)
    simulation = simulation_of(scenario, *poisson_episodes(profile, rate, SPREAD, rng))
    columns = [EXPERT_FEATURES.index(name) for name in ("running", "waiting")]
    seen = np.zeros((REQUESTS, CLUSTERS))
    for r in range(REQUESTS):
        seen[r] = 32 * simulation.view.experts[..., columns].sum(axis=(1, 2))
        simulation.step(rng.integers(2, size=CLUSTERS))
    records = [simulation.records(cluster) for cluster in range(CLUSTERS)]
    stay_s = np.array([(r.finish_s - r.arrival_s)[WARM_UP:].mean() for r in records])
    found = seen[WARM_UP:].mean(axis=0)
    assert 5 < found.mean() < 60  # batches and queues, no collapse
    assert abs(z(found - rate * stay_s)) < LIMIT
    # Exactly, on each run from empty to empty: the integral of the number present is the sum of the stays.
    for r, cluster in zip(records, range(CLUSTERS), strict=True):
        ends_s = np.sort(r.finish_s)
        present_at = np.searchsorted(ends_s, r.arrival_s, side="left")  # gone by each arrival
        np.testing.assert_array_equal(np.arange(REQUESTS) - present_at, seen[:, cluster])
