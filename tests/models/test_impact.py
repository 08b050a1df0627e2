"""The impact estimator: what it starts from, what it explains, and the paper's closed form against the simulator's."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from models.features import CHOICE_COLUMNS, read_columns
from models.impact import GatedMLP, ImpactEstimator, paper_impact
from rllib_envs.reward import paper_impact as true_impact
from rllib_envs.scenario import Observation
from rllib_envs.sim.rows import ARRIVED_FEATURES, WHATIF_FEATURES
from tests.draws import examples
from tests.models.observed import ENCODERS, any_action, busy, encoders, seen, stir, stirred, untrained, world
from tests.worlds import play, random_world, seeds, simulation_of

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def observation():
    """Clusters where some present would be late because of the newcomer."""
    now = seen(busy(world(load=14.0), clusters=8, decisions=300), DOUBLE)
    assert now["whatif"][..., WHATIF_FEATURES.index("hard_change")].min() < 0
    return now


@pytest.mark.parametrize("name", encoders())
def test_an_explanation_adds_up_to_what_is_predicted(name, observation):
    router = stirred(ENCODERS[name], DOUBLE)
    told = router.explain(observation)
    torch.testing.assert_close(told.own + told.others + told.correction, told.marginal)
    torch.testing.assert_close(told.marginal, router.parts(observation).impact)
    torch.testing.assert_close(told.quality * told.in_time, told.own)
    assert told.correction.std() > 0
    assert all(getattr(told, field.name).shape == (8, 6) for field in fields(told))


def test_an_explanation_says_what_the_roll_out_says(observation):
    told = untrained(ENCODERS["han"], DOUBLE).explain(observation)
    rolled = dict(zip(WHATIF_FEATURES, observation["whatif"].unbind(dim=-1), strict=True))
    for ours, name in (("latency", "own_latency"), ("in_time", "own_success"), ("others", "soft_change")):
        assert torch.equal(getattr(told, ours), rolled[name])
    assert torch.equal(told.newly_late, rolled["new_violations"])
    assert torch.equal(told.quality, observation["arrived"][..., ARRIVED_FEATURES.index("predicted_score")])
    harmed = rolled["hard_change"] < 0
    assert torch.equal(told.lost[harmed], -rolled["hard_change"][harmed])
    assert not told.lost[~harmed].any()
    assert not told.correction.any()


def test_ruin_is_bounded(observation):
    ruined = observation | {"whatif": 1e5 * observation["whatif"]}
    told = untrained(ENCODERS["han"], DOUBLE).explain(ruined)
    assert (told.others < -20).any()
    assert (told.marginal.abs() <= 20).all()


def test_without_hidden_layers_nothing_is_corrected(observation):
    columns = read_columns(observation)
    estimator = ImpactEstimator(hidden=0, embedding=3)
    assert not list(estimator.parameters())
    assert torch.equal(estimator(columns, None), columns.marginal)


@pytest.mark.parametrize("embedding", [0, 4])
def test_a_branched_network_begins_without_its_embedding_and_can_learn_from_it(embedding):
    torch.manual_seed(1)
    network = GatedMLP(CHOICE_COLUMNS, 8, 2, embedding)
    columns, heard = torch.randn(5, CHOICE_COLUMNS), torch.randn(5, 4)
    assert not network(columns, heard).any()
    stir(network.last)
    assert torch.equal(network(columns, heard), network(columns))
    if embedding:
        network(columns, heard).square().sum().backward()
        assert network.branch.weight.grad.abs().max() > 0
        stir(network)
        assert not torch.allclose(network(columns, heard), network(columns))


def truth(simulation):
    """(B, N) what the simulator says of the arrived requests."""
    state, w = simulation.state, simulation.workload
    out = np.zeros((simulation.batch, simulation.scenario.n_experts))
    for b, e in np.ndindex(*out.shape):
        r = simulation.cursor[b]
        arrived = w.prompt[b, r], w.output[b, r, e]
        out[b, e] = true_impact(state, simulation.world.service.terms, b, e, simulation.now_s[b], *arrived)
    return out


def test_the_papers_closed_form_is_that_of_the_simulator_where_told_lengths_are_true():
    simulation = busy(world(exact=True, load=9.0, running_slots=64, whatif=False), clusters=8, decisions=120)
    rng, expected, got = np.random.default_rng(0), [], []
    for _ in range(40):
        expected.append(truth(simulation))
        got.append(paper_impact(seen(simulation)).numpy())
        simulation.step(any_action(simulation, rng))
    expected, got = np.array(expected), np.array(got)
    assert (expected > 0).mean() > 0.05
    assert len(np.unique(expected)) > 20
    np.testing.assert_allclose(got, expected, atol=1e-4)


def told_the_truth(seed):
    """A random world with memory enough and no wrong prediction, its episode, and some decisions."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=Observation(running_slots=8))
    engines = tuple(replace(expert.engine, kv_tokens=16 * 2000) for expert in scenario.experts)
    experts = tuple(replace(x, engine=engine) for x, engine in zip(scenario.experts, engines, strict=True))
    room = np.array([engine.max_model_len for engine in engines]) - episode.prompt[:, None]
    output = np.minimum(episode.output, np.maximum(room, 1))
    told = {"predicted_tokens": output.astype(np.float32), "predicted_score": episode.score}
    exact = replace(episode, output=output, engines=engines, nominal=engines, **told)
    return replace(scenario, experts=experts), exact, actions[: int(rng.integers(1, 40))], rng


def pushed(simulation):
    """Of each request shown that has a token, what it has of its tokens and ``l_now,j + D_j`` over the SLO, written out."""
    rows, values = simulation.rows, []
    for b, e, j in np.argwhere(rows.running_mask > 0):
        told, engine, arrived = (
            dict(zip(row.dtype.names, row.tolist(), strict=True))
            for row in (rows.running[b, e, j], rows.experts[b, e], rows.arrived[b, e])
        )
        p, d_i = 1024 * arrived["prompt"], 256 * arrived["predicted_length"]
        d_j, o_j = 256 * told["predicted_length"], 256 * told["generated"]
        k1, k2 = engine["prefill_time"] / 1024, engine["context_time"] / 16_384
        slowed = k1 * p + k2 * sum(p + k for k in range(1, round(min(d_j - o_j, d_i))))
        values += [(o_j / d_j, 4 * told["latency_so_far"] + slowed / d_j)] if o_j else []
    return values


@examples(60)
@given(seeds, st.booleans())
def test_the_papers_closed_form_decides_as_the_simulator_on_the_very_edge(seed, nearly_done):
    """The SLO, on which nothing else depends, is put just under and just over what one request comes to."""
    scenario, episode, actions, rng = told_the_truth(seed)
    scenario = replace(scenario, slo_s_per_token=1.0)
    simulation = simulation_of(scenario, episode)
    play(simulation, actions)
    candidates = [pair for pair in pushed(simulation) if pair[1] > 0]
    assume(candidates)
    value = max(candidates)[1] if nearly_done else rng.permutation(candidates)[0][1]
    for slo_s in (0.9999 * value, 1.0001 * value):
        simulation = simulation_of(replace(scenario, slo_s_per_token=slo_s), episode)
        play(simulation, actions)
        np.testing.assert_allclose(paper_impact(seen(simulation, DOUBLE)).numpy(), truth(simulation), atol=1e-5)


def test_the_more_is_running_the_more_there_is_to_push():
    impacts = []
    for load in (1.0, 4.0, 12.0):
        simulation = busy(world(load=load, running_slots=64), clusters=16, decisions=200)
        impacts.append(float(paper_impact(seen(simulation)).mean()))
    assert impacts[0] < impacts[1] < impacts[2]
