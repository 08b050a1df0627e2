"""What the networks read: an expert as it would be with the request must be what it is once the request was sent there."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given

from models.features import (
    _GROWING,
    _ROLLED,
    _STEADY,
    CHOICE_COLUMNS,
    REQUEST_COLUMNS,
    STATE_COLUMNS,
    congestion,
    kv_tokens,
    read_columns,
    squash,
    units,
    whatif_column,
)
from rllib_envs.baselines import _congestion
from rllib_envs.scenario import Observation
from rllib_envs.sim.rows import ARRIVED_FEATURES, WHATIF_FEATURES
from tests.draws import examples
from tests.models.observed import busy, seen, world
from tests.worlds import play, random_world, seeds, simulation_of

CHANGING = (*_GROWING, *_ROLLED)
WHOLE_TOKENS = ("decode_backlog", "kv_reserved")  # told lengths are rounded when they are counted


def of_state(columns, name):
    return columns.state[..., (*_STEADY, *CHANGING).index(name)]


def would_be(columns, name):
    """Of the afterstate."""
    return columns.choice[..., STATE_COLUMNS + CHANGING.index(name)]


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-5)


def sent(seed):
    """Clusters in the same state, before and after each has sent its request to another expert, seen at the very same instant.

    Returns the scenario, both observations, and the experts that could take the request; expert e is that of cluster e.
    """
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, max_waiting=40, observation=Observation(whatif=True))
    count, n = int(rng.integers(2, 39)), scenario.n_experts
    arrival_s = episode.arrival_s.copy()
    arrival_s[count + 1] = arrival_s[count]
    episode = replace(episode, arrival_s=np.maximum.accumulate(arrival_s))
    simulation = simulation_of(scenario, *[episode] * n)
    play(simulation, actions[:count])
    before = seen(simulation)
    simulation.step(np.arange(n))
    taken = [e for e in range(n) if before["action_mask"][e, e] > 0]
    return scenario, before, seen(simulation), taken


@example(90139)  # an engine of two blocks, one of which it keeps to itself
@examples(30)
@given(seeds)
def test_the_afterstate_is_the_state_once_the_request_was_sent(seed):
    scenario, before, after, taken = sent(seed)
    columns, later = read_columns(before), read_columns(after)

    def expected(name):
        return would_be(columns, name)[taken, taken]

    def became(name):
        return of_state(later, name)[taken, taken]

    close(expected("score_present"), became("score_present"))
    close(expected("prefill_backlog"), became("prefill_backlog"))
    for name in _ROLLED:
        close(expected(name), became(name), atol=1e-4)
    for name in ("kv_used", "step_time", "max_budget_used"):
        close(of_state(columns, name)[taken, taken], became(name))
    roomy = ~told_too_long(scenario, before, taken)
    fewest = min(kv_tokens(before)[taken, taken].tolist(), default=1.0)
    for name, unit in zip(WHOLE_TOKENS, (1024, fewest), strict=True):
        close(expected(name)[roomy], became(name)[roomy], atol=0.6 / unit)
    present = unsquashed(of_state(columns, "running")[taken, taken]) + unsquashed(expected("waiting"))
    close(present, unsquashed(became("running")) + unsquashed(became("waiting")))


def unsquashed(x):
    return x.sign() * x.abs().expm1()


def told_too_long(scenario, before, taken):
    """Whether the prompt leaves less than the told length of max_model_len: nobody counts on more than there is room for."""
    prompt, _, length = before["arrived"][taken, taken].unbind(-1)
    room = torch.tensor([scenario.experts[e].engine.max_model_len for e in taken]) - 1024 * prompt
    return 256 * length > room + 0.5


@examples(10)
@given(seeds)
def test_where_the_request_did_not_go_nothing_has_changed(seed):
    scenario, before, after, _ = sent(seed)
    elsewhere = ~torch.eye(scenario.n_experts, dtype=torch.bool)
    own = len(_STEADY) + len(CHANGING)
    close(read_columns(after).state[elsewhere][:, :own], read_columns(before).state[elsewhere][:, :own])


def test_a_choice_begins_with_the_state():
    columns = read_columns(seen(busy(world())))
    assert torch.equal(columns.choice[..., :STATE_COLUMNS], columns.state)


def test_columns_are_as_many_as_is_said_and_all_loads_tell_clusters_apart():
    columns = read_columns(seen(busy(world(seats=4, load=10.0), clusters=8, decisions=240)))
    for got, count in ((columns.choice, CHOICE_COLUMNS), (columns.state, STATE_COLUMNS), (columns.request, REQUEST_COLUMNS)):
        assert got.shape == (8, 6, count)
        assert got.isfinite().all()
    for name in (*_STEADY, *CHANGING):
        assert of_state(columns, name).std() > 0, name
    for name in CHANGING:
        assert would_be(columns, name).std() > 0, name


def test_congestion_is_what_impact_greedy_prices():
    simulation = busy(world(calibrate=True))
    observation = seen(simulation)
    torch.testing.assert_close(congestion(observation), torch.from_numpy(_congestion(simulation.view)))
    assert congestion(observation).min() > 0


def test_what_a_request_uses_up_grows_with_what_is_told_of_it():
    observation = seen(busy(world()))
    longer = {**observation, "arrived": observation["arrived"] * torch.tensor([2.0, 1.0, 2.0])}
    for less, more in zip(units(observation), units(longer), strict=True):
        assert (less > 0).all()
        assert (more > 1.99 * less).all()
        assert (more < 4.01 * less).all()


def test_the_marginal_is_what_the_roll_out_says():
    observation = seen(busy(world()))
    own = observation["arrived"][..., ARRIVED_FEATURES.index("predicted_score")] * whatif_column(observation, "own_success")
    marginal = read_columns(observation).marginal
    close(marginal, own + whatif_column(observation, "soft_change"))
    observation["whatif"][..., WHATIF_FEATURES.index("soft_change")] *= 1e6
    assert (read_columns(observation).marginal >= -20).all()
    assert read_columns(observation).marginal.min() == -20


def test_permuting_the_experts_permutes_the_columns():
    observation = seen(busy(world()))
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    moved = {key: x if key == "cluster" else x[:, order] for key, x in observation.items() if key != "action_mask"}
    for ours, theirs in zip(read_columns(moved), read_columns(observation), strict=True):
        close(ours, theirs[:, order])


def test_what_no_decision_has_an_influence_on_is_the_same_whatever_was_decided():
    """Two clusters in the same episode, of which one drops everything and the other sends everything to one expert."""
    scenario = world()
    drop_all, one_expert = (busy(scenario, clusters=1, decisions=0) for _ in range(2))
    for _ in range(30):
        dropped, sent_on = read_columns(seen(drop_all)), read_columns(seen(one_expert))
        assert torch.equal(dropped.request, sent_on.request)
        drop_all.step(np.array([scenario.n_experts]))
        one_expert.step(np.array([0]))
    assert not torch.allclose(dropped.state, sent_on.state)


def test_without_what_if_results_its_columns_are_zero():
    observation = seen(busy(world(whatif=False)))
    assert "whatif" not in observation
    columns = read_columns(observation)
    assert not columns.marginal.any()
    assert not any(of_state(columns, name).any() for name in _ROLLED)
    assert of_state(columns, "score_present").any()
    assert columns.choice.shape[-1] == CHOICE_COLUMNS


@pytest.mark.parametrize("sign", [1, -1])
def test_squash_is_odd_rises_and_is_the_identity_near_zero(sign):
    x = torch.linspace(0, 50, 101, dtype=torch.float64)
    assert torch.equal(squash(sign * x), sign * squash(x))
    assert (squash(x).diff() > 0).all()
    torch.testing.assert_close(squash(sign * 1e-4 * x), sign * 1e-4 * x, rtol=3e-3, atol=0.0)
