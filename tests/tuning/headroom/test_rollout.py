"""Roll-outs: they see nothing that is hidden, find what is better, and leave alone what does not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rllib_envs.errors import InputError
from rllib_envs.scenario import Arrivals, Faults, Predictions, with_workload
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.simulation import Simulation
from tests.worlds import scenario_of
from tuning.headroom.episodes import improve
from tuning.headroom.hidden import replace_truth, tell_generated
from tuning.headroom.rollout import Improver, Search, base_world
from tuning.many_worlds.tuned import DEFAULTS

SEARCH = Search(copies=24, batches=2, horizon=8, gap=1.0)
REQUESTS = 40
AT = 25


def engine(c0_ms):
    return EngineProfile(
        c0_ms=c0_ms, b_ms=0.2, c_ms=0.001, a_ms=0.05, n0_tokens=64, q_ms=0.0, kv_tokens=3000, kv_bytes_per_token=1,
        max_model_len=1000, max_num_seqs=8,
    )  # fmt: skip


def world(*c0_ms, alike=False, arrivals=None, **changes):
    scenario = scenario_of([engine(c0) for c0 in c0_ms or (20, 30, 40)], requests=REQUESTS)
    if alike:  # the same answers too
        scenario = replace(scenario, experts=tuple(replace(e, model="m") for e in scenario.experts))
    scenario = with_workload(scenario, load=12.0, arrivals=arrivals or Arrivals())
    return base_world(replace(scenario, **{"predictions": Predictions(law="measured")} | changes), DEFAULTS)


def improver(scenario, search=SEARCH, **parameters):
    return Improver(scenario, DEFAULTS | parameters, search, 1.0, 5)


def simulated(scenario, chooser, decisions, seed=7):
    simulation = Simulation(scenario, 1)
    simulation.start(0, seed)
    for _ in range(decisions):
        simulation.step(chooser.base(simulation))
    return simulation


def perturb(simulation, rng):
    """Change all that a router cannot know."""
    state, table, r = simulation.state, simulation.workload, int(simulation.cursor[0])
    generated = np.empty(REQUESTS, np.int32)
    tell_generated(state, 0, simulation.now_s[0], generated)
    assert (generated >= 0).sum() > 3
    before = state.requests["output"].copy()
    length = generated + 1 + rng.integers(0, 400, REQUESTS)
    replace_truth(
        state,
        simulation.workload,
        simulation.world.service,
        simulation.now_s[0],
        length[None].astype(np.int32),
        rng.random((1, REQUESTS)).astype(np.float32),
    )
    assert (state.requests["output"] != before).sum() > 3
    state.records["score"][:] = rng.random(REQUESTS)
    for name in ("score", "output"):
        getattr(table, name)[0, r:] = rng.permutation(getattr(table, name)[0, r:], axis=0)
    table.score[0, r:] *= 0.5
    table.output[0, r:] += 3
    for name in ("prompt", "predicted_score", "predicted_tokens", "predicted_log_sd"):
        getattr(table, name)[0, r + 1 :] = getattr(table, name)[0, r + 1 :][::-1].copy()
    table.arrival_s[0, r + 1 :] += 0.37
    for name in ("prompt", "arrival_s"):
        state.requests[name][0, r + 1 :] = getattr(table, name)[0, r + 1 :]


@pytest.mark.parametrize("arrivals", [Arrivals(), Arrivals(kind="mmpp", burst_ratio=4.0, burst_share=0.25, cycle_s=3.0)])
def test_what_is_hidden_does_not_change_the_choice(arrivals):
    scenario = world(arrivals=arrivals)
    chooser = improver(scenario)
    honest, perturbed = (simulated(scenario, chooser, AT) for _ in range(2))
    perturb(perturbed, np.random.default_rng(1))
    candidates = chooser.candidates(honest, 0)
    assert candidates == chooser.candidates(perturbed, 0)
    assert len(candidates) == 3
    qos = [chooser.qos(each, 0, candidates, np.random.default_rng(2)) for each in (honest, perturbed)]
    np.testing.assert_array_equal(*qos)
    assert np.ptp(qos[0], axis=1).max() > 0  # the actions do differ
    choices = [chooser.choose(each, 0, candidates, np.random.default_rng(3)) for each in (honest, perturbed)]
    assert choices[0] == choices[1]


def test_roll_outs_leave_the_cluster_as_it_is():
    scenario = world()
    chooser = improver(scenario)
    rolled, plain = (simulated(scenario, chooser, AT) for _ in range(2))
    chooser.choose(rolled, 0, chooser.candidates(rolled, 0), np.random.default_rng(1))
    for each in (rolled, plain):
        while not each.over.all():
            each.step(chooser.base(each))
    assert rolled.state.records.tobytes() == plain.state.records.tobytes()


def test_between_experts_that_are_alike_there_is_no_advantage():
    scenario = world(30, 30, alike=True, predictions=Predictions(law="means"))
    chooser = improver(scenario)
    simulation = simulated(scenario, chooser, 0)
    qos = chooser.qos(simulation, 0, [0, 1], np.random.default_rng(1))
    assert qos.mean() > 0
    np.testing.assert_allclose(qos[:, 0], qos[:, 1], atol=1e-9)
    choice = chooser.choose(simulation, 0, [1, 0], np.random.default_rng(2))
    assert (choice.action, choice.advantage, choice.error) == (1, 0.0, 0.0)


def test_an_action_that_is_better_for_sure_is_found_and_its_advantage_told():
    scenario = world(20, 48)
    chooser = improver(scenario)
    simulation = simulated(scenario, chooser, 0)
    choice = chooser.choose(simulation, 0, [2, 0], np.random.default_rng(1))  # at an empty cluster, a drop gains nothing
    assert choice.action == 0
    assert choice.advantage > 3 * choice.error > 0


def test_an_action_that_must_be_ahead_by_more_than_ever_happens_is_never_taken():
    scenario = world()
    (episode,) = improve(scenario, DEFAULTS, replace(SEARCH, errors=1e6), [3], every=4)
    assert episode.improved == episode.base
    assert (episode.changed, episode.gain, episode.gain_error) == (0, 0.0, 0.0)
    assert 0 < episode.compared <= REQUESTS / 4
    assert episode.decisions == REQUESTS


def test_roll_outs_mend_a_policy_that_drops_too_much_and_say_what_they_gain():
    search, parameters = replace(SEARCH, gap=10.0, batches=1), DEFAULTS | {"shrink": 10.0}
    found = improve(world(), parameters, search, [3, 4], every=2)
    assert [found[1]] == improve(world(), parameters, search, [4], every=2)  # each episode depends on its own seed alone
    assert min(episode.changed for episode in found) > 3
    assert sum(episode.gain for episode in found) > 3 * np.hypot(*(episode.gain_error for episode in found)) > 0


def test_a_world_in_which_engines_err_is_refused():
    with pytest.raises(InputError, match="faults: roll-outs take the engines as they are told"):
        improver(world(faults=Faults(engine_factor=1.2)))
