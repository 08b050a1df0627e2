"""The router by its laws, in real clusters under load and in impossible ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.bounds import MASKED_SCORE
from models.export.traced import fast_scores
from models.router import Router, RouterSpec
from rllib_envs.baselines import impact_greedy
from rllib_envs.errors import InputError
from rllib_envs.sim.rows import CLUSTER_FEATURES, EXPERT_FEATURES, WHATIF_FEATURES
from rllib_envs.simulation import Simulation
from tests.models.observed import BARE_PRICE, ENCODERS, busy, encoders, seen, stir, stirred, untrained, world

N = 6
OURS = [name for name in ENCODERS if name != "pooled"]
EXPERTS_TOO = ("cluster", "action_mask")  # keys whose second axis is not the experts'
DOUBLE = torch.float64

every_encoder = pytest.mark.parametrize("name", encoders())
every_encoder_of_ours = pytest.mark.parametrize("name", OURS)


@pytest.fixture(scope="module")
def observation():
    """Clusters under load, of which the second has no request; some experts cannot take any."""
    now = seen(busy(world()), DOUBLE)
    idle = seen(busy(world(), decisions=0), DOUBLE)
    now = {key: torch.cat([x[:1], idle[key][:1], x[1:]]) for key, x in now.items()}
    now["action_mask"][0, 2] = now["action_mask"][3, :4] = 0
    return now


def permute(observation, order):
    moved = {key: x if key in EXPERTS_TOO else x[:, order] for key, x in observation.items()}
    return moved | {"action_mask": observation["action_mask"][:, [*order, N]]}


@every_encoder
def test_permuting_the_experts_permutes_their_scores_and_leaves_that_of_drop(name, observation):
    router, order = stirred(ENCODERS[name], DOUBLE), [3, 0, 5, 1, 4, 2]
    scores = router(observation)
    torch.testing.assert_close(router(permute(observation, order)), scores[:, [*order, N]])
    assert scores[1].unique().numel() > N / 2  # else this would say nothing


@every_encoder
def test_padding_slots_change_nothing(name, observation):
    router = stirred(ENCODERS[name], DOUBLE)
    padded = dict(observation)
    for name in ("running", "waiting"):
        padded[name] = F.pad(observation[name], (0, 0, 0, 3), value=7.0)
        padded[f"{name}_mask"] = F.pad(observation[f"{name}_mask"], (0, 3))
    torch.testing.assert_close(router(padded), router(observation))


def alone(router, observation):
    rows = [{key: x[i : i + 1] for key, x in observation.items()} for i in range(len(observation["cluster"]))]
    return torch.cat([router(row) for row in rows])


@every_encoder_of_ours
def test_a_cluster_has_the_same_scores_alone_and_in_a_batch(name, observation):
    router = stirred(ENCODERS[name], DOUBLE)
    torch.testing.assert_close(alone(router, observation), router(observation))


@pytest.mark.slow
def test_the_stock_operator_of_the_pooled_arm_mixes_what_is_in_a_batch(observation):
    """Its known weakness: ``torch_geometric.nn.HANConv`` weighs edge types by all nodes of the call."""
    router = stirred(ENCODERS["pooled"], DOUBLE)
    together = router.embed(observation)
    assert not torch.allclose(alone(router.embed, observation), together, atol=1e-5)


@every_encoder
def test_an_impossible_action_has_no_chance_at_all(name, observation):
    narrow = {key: x.float() for key, x in observation.items()}
    for scores in (stirred(ENCODERS[name])(narrow), stirred(ENCODERS[name])(narrow) / 0.01):
        chances = scores.softmax(dim=-1)
        impossible = narrow["action_mask"] == 0
        assert impossible.any()
        assert (chances[impossible] == 0).all()
        torch.testing.assert_close(chances.sum(dim=-1), torch.ones(len(chances)))
    assert (stirred(ENCODERS[name])(narrow)[impossible] == MASKED_SCORE).all()


def loaded(expert, requests=12):
    """A cluster with requests sent to one expert, and the same cluster without."""
    simulation = Simulation(world(load=20.0), 2)
    simulation.start(0, 7)
    simulation.start(1, 7)
    for _ in range(requests):
        simulation.step(np.array([expert, N]))
    return seen(simulation, DOUBLE)


@pytest.mark.parametrize("expert", [0, 4])
@every_encoder
def test_loading_an_expert_moves_its_own_score(name, expert):
    now = loaded(expert)
    moved = stirred(ENCODERS[name], DOUBLE)(now).diff(dim=0).abs()[0, :N]
    assert moved.argmax() == expert
    assert moved[expert] > 2 * moved[[e for e in range(N) if e != expert]].mean()


@pytest.mark.parametrize("name", encoders("han", "han-two-layers", "pooled"))
def test_loading_an_expert_moves_its_own_embedding_and_only_a_pooled_one_cannot_say_whose_it_is(name):
    moved = stirred(ENCODERS[name], DOUBLE).embed(loaded(2)).diff(dim=0)[0].norm(dim=-1)
    if name == "pooled":
        assert torch.equal(moved, moved[:1].expand(N))
    else:
        assert moved.argmax() == 2
        assert moved[2] > 5 * moved[[0, 1, 3, 4, 5]].max()


def test_before_training_a_loaded_expert_has_the_lower_score_and_the_others_keep_theirs():
    now = loaded(2)
    less, more = bare(ENCODERS["han"], DOUBLE)(now)
    assert less[2] < more[2]
    torch.testing.assert_close(less[[0, 1, 3, 4, 5, 6]], more[[0, 1, 3, 4, 5, 6]])


@pytest.fixture(scope="module", params=[2, 3, 10, pytest.param(256, marks=pytest.mark.slow)])
def fleet(request):
    """Two clusters of so many experts."""
    return seen(busy(world(request.param), clusters=2, decisions=min(3 * request.param, 60)))


@every_encoder
def test_any_number_of_experts_will_do_for_the_same_weights(name, fleet):
    n = fleet["experts"].shape[1]
    scores = stirred(ENCODERS[name])(fleet)
    assert scores.shape == (2, n + 1)
    assert scores.isfinite().all()
    assert scores.std() > 0


@every_encoder
@pytest.mark.parametrize("kind", ["huge", "empty", "nothing-possible"])
def test_gradients_are_finite_whatever_the_state(name, kind, observation):
    now = {key: x.float().clone() for key, x in observation.items()}
    if kind == "huge":
        described = [EXPERT_FEATURES.index(name) for name in ("kv_capacity", "max_running")]  # logarithms of what is set up
        kept = now["experts"][..., described].clone()
        for key, x in now.items():
            if "mask" not in key:
                x.fill_(1e6)
        now["experts"][..., described] = kept
    elif kind == "empty":
        for key, x in now.items():
            if key != "action_mask":
                x.zero_()
    else:
        now["action_mask"][:, :-1] = 0
    router = stirred(ENCODERS[name])
    scores = router(now) / 0.01
    assert scores.isfinite().all()
    chosen = scores.log_softmax(dim=-1)[now["action_mask"] > 0]
    chosen.clamp(min=-1e6).sum().backward()
    gradients = [p.grad for p in router.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


@every_encoder
def test_single_precision_will_do(name, observation):
    narrow = {key: x.float() for key, x in observation.items()}
    wide = {key: x.double() for key, x in narrow.items()}
    precise = stirred(ENCODERS[name], DOUBLE)
    rough = stirred(ENCODERS[name])
    rough.load_state_dict(precise.state_dict())
    precise.load_state_dict(rough.state_dict())
    torch.testing.assert_close(rough(narrow).double(), precise(wide), atol=1e-4, rtol=1e-5)


def bare(*spec):
    """An untrained router whose price is that of ``price_of``."""
    router = untrained(*spec)
    router.price.terms.copy_(torch.tensor(list(BARE_PRICE.values())))
    return router


def price_of(simulation):
    """(B,) the bare price, from the load that the router has measured."""
    load = np.exp(simulation.view.cluster[:, CLUSTER_FEATURES.index("log_load_long_run")].astype(float))
    return np.exp(0.9) * (load.clip(0.02, 1) / 0.5) ** 2


@pytest.mark.parametrize("load", [1.0, 4.0, 12.0])
@pytest.mark.parametrize("name", encoders("han", "pooled"))
def test_before_training_it_is_impact_greedy_with_a_price(name, load):
    simulation = busy(world(load=load), clusters=8, decisions=0)
    router, rng, chosen = bare(ENCODERS[name]), np.random.default_rng(0), []
    for _ in range(30):
        price = price_of(simulation)
        expected = impact_greedy(simulation, rng, price=price[:, None], shrink=1.0)
        got = router(seen(simulation)).argmax(dim=-1).numpy()
        assert np.array_equal(got, expected)
        chosen.append(got)
        simulation.step(expected)
    assert len(np.unique(chosen)) >= N


@pytest.mark.parametrize("name", encoders("han", "han-two-layers", "pooled"))
def test_with_and_without_an_encoder_it_begins_the_same(name, observation):
    without = untrained(ENCODERS["aggregates"], DOUBLE)(observation)
    assert torch.equal(untrained(ENCODERS[name], DOUBLE)(observation), without)


def with_trained_heads(name):
    """A router whose heads are those of a trained one that has no encoder."""
    router, trained = untrained(ENCODERS[name], DOUBLE), stirred(ENCODERS["aggregates"], DOUBLE)
    missing = router.load_state_dict(trained.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert all(key.startswith("encoder") or key.endswith("branch.weight") for key in missing.missing_keys)
    return router, trained


@pytest.mark.parametrize("name", encoders("han", "han-two-layers", "pooled"))
def test_an_encoder_changes_nothing_at_first_and_can_earn_its_place(name, observation):
    router, trained = with_trained_heads(name)
    scores = router(observation)
    torch.testing.assert_close(scores, trained(observation))
    scores[observation["action_mask"] > 0].square().sum().backward()
    for network in (router.estimator.correction, router.future):
        assert network.branch.weight.grad.abs().max() > 0
        stir(network.branch)
    assert not torch.allclose(router(observation), scores)


@every_encoder
def test_without_drop_a_request_is_dropped_only_where_nobody_can_take_it(name, observation):
    now = dict(observation) | {"action_mask": observation["action_mask"].clone()}
    now["action_mask"][4, :N] = 0
    chances = (stirred(replace(ENCODERS[name], drop=False), DOUBLE)(now) / 0.01).softmax(dim=-1)[:, N]
    assert torch.equal(chances, torch.tensor([0.0, 0, 0, 0, 1], dtype=DOUBLE))
    pressed = dict(now) | {"whatif": -100 * now["whatif"].abs()}
    assert (stirred(replace(ENCODERS[name], drop=False), DOUBLE)(pressed)[:4].argmax(dim=-1) != N).all()
    assert (untrained(ENCODERS[name], DOUBLE)(pressed).argmax(dim=-1) == N).any()


def parts_of(observation, **changes):
    router = stirred(replace(ENCODERS["han"], **changes), DOUBLE)
    return router, router.parts(observation)


def test_without_a_future_the_score_is_the_impact(observation):
    router, parts = parts_of(observation, future=False)
    assert router.future is None
    possible = observation["action_mask"] > 0
    zero = torch.zeros_like(parts.impact[:, :1])
    assert torch.equal(router(observation)[possible], torch.cat([parts.impact, zero], dim=-1)[possible])
    assert (parts.impact != parts.columns.marginal).any()  # the correction is there


def test_without_a_correction_the_impact_is_that_of_the_roll_out(observation):
    router, parts = parts_of(observation, impact_hidden=0)
    assert router.estimator.correction is None
    assert torch.equal(parts.impact, parts.columns.marginal)
    assert parts.future.any()


def test_without_what_if_results_all_of_the_impact_is_learned():
    now = seen(busy(world(whatif=False)), DOUBLE)
    _, parts = parts_of(now, impact=False)
    assert not parts.columns.marginal.any()
    assert parts.impact[0].unique().numel() == N
    router, parts = parts_of(now, impact=False, impact_hidden=0)
    assert not parts.impact.any()
    assert torch.equal(router(now)[:, :N], parts.future)


def test_an_encoder_that_is_not_heard_costs_nothing_and_says_nothing(observation):
    router = stirred(ENCODERS["han"], DOUBLE)
    heard = router(observation)
    router.enable_encoder(False)
    assert router.embed(observation) is None
    alone = router(observation)
    assert not torch.allclose(alone, heard)
    for network in (router.estimator.correction, router.future):
        torch.nn.init.zeros_(network.branch.weight)
    torch.testing.assert_close(router(observation), alone)
    router.enable_encoder(True)
    torch.testing.assert_close(router(observation), alone)


@every_encoder
def test_without_what_if_results_it_still_tells_experts_apart(name):
    now = seen(busy(world(whatif=False)), DOUBLE)
    scores = stirred(replace(ENCODERS[name], impact=False), DOUBLE)(now)
    assert scores.isfinite().all()
    assert scores[0].unique().numel() == N + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "gat"}, "encoder = 'gat': allowed are han, aggregates, pooled"),
        ({"graph_hidden": 30}, "graph_hidden = 30, heads = 4: must be a multiple of heads"),
        ({"layers": 3}, "layers = 3: must be 1 or 2"),
        ({"hidden": -1}, "hidden = -1: must be from 0 to 8192"),
        ({"impact_hidden": -1}, "impact_hidden = -1: must be from 0 to 8192"),
    ],
)
def test_what_cannot_be_built_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        RouterSpec(**change)


def test_a_spec_is_what_it_was_written_as():
    assert all(RouterSpec(**spec.to_dict()) == spec for spec in ENCODERS.values())


def test_a_router_that_begins_with_the_roll_out_refuses_an_observation_without():
    observation = seen(busy(world(whatif=False)), DOUBLE)
    router = Router(RouterSpec()).double()
    for use in (router, router.parts, lambda example: fast_scores(router, example)):
        with pytest.raises(InputError, match=r"observation.whatif = False: a router with impact = True"):
            use(observation)
    assert Router(RouterSpec(impact=False)).double()(observation).isfinite().all()
    masked = {**observation, "whatif": torch.zeros(*observation["experts"].shape[:2], len(WHATIF_FEATURES)).double()}
    assert router(masked).isfinite().all()  # results that are all 0 are results
