"""The paper's networks: what they see, what they cannot, and how they are kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.bounds import MASKED_SCORE
from models.export.bundle import bundle_router, load_bundle, save_bundle
from models.paper.networks import PaperPolicy, PaperSpec, PaperValues
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation
from rllib_envs.sim.rows import EXPERT_FEATURES
from rllib_envs.simulation import Simulation
from tests.models.observed import busy, seen, stir, world

pytestmark = pytest.mark.slow

SPEC = PaperSpec(experts=6, hidden=8, heads=2)
OBSERVATION = Observation(running_slots=4, waiting_slots=3)


@pytest.fixture(scope="module")
def observation():
    return seen(busy(world(load=8.0), clusters=3))


@pytest.fixture
def policy():
    torch.manual_seed(1)
    made = PaperPolicy(SPEC)
    stir(made)
    return made


def test_it_has_an_output_for_each_action_and_none_for_what_is_not_possible(policy, observation):
    blocked = observation | {"action_mask": observation["action_mask"].clone()}
    blocked["action_mask"][:, 2] = 0
    logits = policy(blocked)
    assert logits.shape == (3, 7)
    assert (logits[:, 2] == MASKED_SCORE).all()
    assert (logits.softmax(-1)[:, 2] == 0).all()
    kept = [0, 1, 3, 4, 5, 6]
    torch.testing.assert_close(logits[:, kept], policy.values(observation)[:, kept])


def test_it_sees_what_the_paper_shows_and_nothing_else(policy, observation):
    before = policy.values(observation)
    for name, changes in (("kv_used", True), ("running", True), ("waiting", True), ("step_time", False), ("drift", False)):
        experts = observation["experts"].clone()
        column = EXPERT_FEATURES.index("length_drift" if name == "drift" else name)
        experts[..., column] += 100 * torch.randn(experts.shape[:-1])  # enough for any unit to notice
        assert torch.equal(policy.values(observation | {"experts": experts}), before) != changes, name
    assert torch.equal(policy.values({key: x for key, x in observation.items() if key != "whatif"}), before)


def test_it_cannot_tell_which_expert_is_in_which_state(policy, observation):
    order = [3, 1, 2, 0, 4, 5]
    moved = {key: x if key in ("cluster", "action_mask") else x[:, order] for key, x in observation.items()}
    torch.testing.assert_close(policy.values(moved), policy.values(observation))  # the weakness that ours is without


def test_told_apart_it_can(observation):
    torch.manual_seed(1)
    policy = PaperPolicy(replace(SPEC, told_apart=True))
    stir(policy)
    order = [3, 1, 2, 0, 4, 5]
    moved = {key: x if key in ("cluster", "action_mask") else x[:, order] for key, x in observation.items()}
    assert not torch.allclose(policy.values(moved), policy.values(observation))


def test_another_number_of_experts_is_refused(policy):
    with pytest.raises(InputError, match=r"4 experts: .* trained for 6"):
        policy(seen(busy(world(4), clusters=1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 0}, "experts = 0: must be >= 1"),
        ({"hidden": 0}, "hidden = 0"),
        ({"hidden": 30, "heads": 8}, "must be a multiple of heads"),
    ],
)
def test_what_cannot_be_built_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        PaperSpec(**{"experts": 6, **changes})


def test_its_figures_are_the_papers():
    assert (PaperSpec(experts=3).hidden, PaperSpec(experts=3).heads) == (64, 8)
    assert PaperSpec(**SPEC.to_dict()) == SPEC


def test_a_critic_values_actions_that_are_not_possible_too(observation):
    assert (PaperValues(SPEC)(observation).abs() < 1e3).all()


def test_a_bundle_keeps_it(policy, tmp_path):
    save_bundle(tmp_path / "bundle", policy, OBSERVATION, {"algo": "sac"})
    loaded = load_bundle(tmp_path / "bundle")
    assert type(loaded.router) is PaperPolicy
    assert loaded.router.spec == SPEC
    assert loaded.observation == OBSERVATION
    assert all(torch.equal(a, b) for a, b in zip(loaded.router.parameters(), policy.parameters(), strict=True))
    route, _ = bundle_router(tmp_path / "bundle")
    simulation = Simulation(world(whatif=False, running_slots=4, waiting_slots=3), 2)
    simulation.start_all([1, 2])
    observed = seen(simulation)
    np.testing.assert_array_equal(route(simulation, np.random.default_rng(0)), policy(observed).argmax(-1).numpy())
