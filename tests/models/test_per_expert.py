"""The per-expert networks: laws that hold for any weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.per_expert import FEATURES, MASKED_LOGIT, PerExpertPolicy, PerExpertValue, expert_features, predicted_marginal
from rllib_envs import baselines
from rllib_envs.observation import ARRIVED_FEATURES, CLUSTER_FEATURES, EXPERT_FEATURES, REQUEST_FEATURES
from rllib_envs.sim.whatif import WHATIF_FEATURES

N = 5
PER_EXPERT = ("arrived", "experts", "running", "waiting", "running_mask", "waiting_mask", "whatif")


def draw_observation(seed, batch=3, n=N, slots=(6, 3), scale=1.0):
    """A random observation that keeps the contract: zero where the mask is zero, drop always possible."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return torch.from_numpy(scale * rng.standard_normal(shape)).float()

    observation = {
        "arrived": normal(batch, n, len(ARRIVED_FEATURES)),
        "experts": normal(batch, n, len(EXPERT_FEATURES)),
        "cluster": normal(batch, len(CLUSTER_FEATURES)),
        "whatif": normal(batch, n, len(WHATIF_FEATURES)),
        "action_mask": torch.from_numpy(rng.random((batch, n + 1)) < 0.7).float(),
    }
    observation["action_mask"][:, -1] = 1
    for name, count in zip(("running", "waiting"), slots, strict=True):
        mask = torch.from_numpy(np.arange(count) < rng.integers(count + 1, size=(batch, n, 1))).float()
        observation[f"{name}_mask"] = mask
        observation[name] = normal(batch, n, count, len(REQUEST_FEATURES)) * mask[..., None]
    return observation


def without_whatif(observation):
    return {key: value for key, value in observation.items() if key != "whatif"}


@pytest.fixture(params=[True, False], ids=["whatif", "no-whatif"])
def networks(request):
    """Policy and value with random weights, heads included, which are zero before training."""
    torch.manual_seed(1)
    policy, value = PerExpertPolicy(whatif=request.param, hidden=16), PerExpertValue(whatif=request.param, hidden=16)
    for head in (policy.expert_head, policy.drop_head):
        torch.nn.init.normal_(head.weight)
    return policy, value, (lambda o: o) if request.param else without_whatif


def test_features_are_named_one_by_one():
    assert expert_features(draw_observation(0)).shape == (3, N, len(FEATURES))
    assert expert_features(without_whatif(draw_observation(0))).shape == (3, N, len(FEATURES) - len(WHATIF_FEATURES))
    assert len(set(FEATURES)) == len(FEATURES)


def test_a_feature_is_where_its_name_says():
    observation = draw_observation(2)
    features = expert_features(observation)
    for name, raw in (
        ("arrived.told_score", observation["arrived"][..., ARRIVED_FEATURES.index("told_score")]),
        ("experts.kv_used", observation["experts"][..., EXPERT_FEATURES.index("kv_used")]),
        ("cluster.mean_waiting", observation["cluster"][:, None, CLUSTER_FEATURES.index("mean_waiting")].expand(-1, N)),
        ("whatif.soft_change", observation["whatif"][..., WHATIF_FEATURES.index("soft_change")]),
    ):
        torch.testing.assert_close(features[..., FEATURES.index(name)], raw.sign() * raw.abs().log1p())


def test_permuting_experts_permutes_their_logits(networks):
    policy, value, see = networks
    observation = draw_observation(3)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = {key: x[:, order] if key in PER_EXPERT else x for key, x in observation.items()}
    moved["action_mask"] = observation["action_mask"][:, [*order.tolist(), N]]
    logits, logits_moved = policy(see(observation)), policy(see(moved))
    torch.testing.assert_close(logits_moved[:, :-1], logits[:, order])
    torch.testing.assert_close(logits_moved[:, -1], logits[:, -1])
    torch.testing.assert_close(value(expert_features(see(moved))), value(expert_features(see(observation))))


def test_experts_in_other_states_have_other_logits(networks):
    policy, _, see = networks
    logits = policy(see(draw_observation(4) | {"action_mask": torch.ones(3, N + 1)}))
    assert (logits[:, :-1].sort(dim=-1).values.diff(dim=-1) > 1e-4).all()


@pytest.mark.parametrize("extra", [1, 7])
def test_padding_slots_change_nothing(networks, extra):
    policy, value, see = networks
    observation = draw_observation(5)
    padded = dict(observation)
    for name in ("running", "waiting"):
        padded[name] = torch.nn.functional.pad(observation[name], (0, 0, 0, extra))
        padded[f"{name}_mask"] = torch.nn.functional.pad(observation[f"{name}_mask"], (0, extra))
    torch.testing.assert_close(policy(see(padded)), policy(see(observation)))
    torch.testing.assert_close(value(expert_features(see(padded))), value(expert_features(see(observation))))


@pytest.mark.parametrize("name", ["running", "waiting"])
def test_what_a_slot_without_a_request_holds_does_not_matter(networks, name):
    policy, _, see = networks
    observation = draw_observation(6)
    empty = observation[f"{name}_mask"] == 0
    filled = observation | {name: torch.where(empty[..., None], 7.0, observation[name])}
    assert empty.any()
    torch.testing.assert_close(policy(see(filled)), policy(see(observation)))


@pytest.mark.parametrize("name", ["running", "waiting"])
def test_twice_the_same_requests_is_not_the_same_load(networks, name):
    policy, _, see = networks
    observation = draw_observation(7)
    observation[f"{name}_mask"][:] = 1
    double = observation | {key: torch.cat([observation[key]] * 2, dim=2) for key in (name, f"{name}_mask")}
    assert not torch.allclose(policy(see(double)), policy(see(observation)), atol=1e-3)


def test_alone_is_as_in_a_batch(networks):
    policy, value, see = networks
    observation = see(draw_observation(8, batch=9))
    logits, values = policy(observation), value(expert_features(observation))
    for b in range(9):
        alone = {key: x[b : b + 1] for key, x in observation.items()}
        torch.testing.assert_close(policy(alone)[0], logits[b])
        torch.testing.assert_close(value(expert_features(alone))[0], values[b])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 1e3, 1e6]))
def test_a_masked_action_has_probability_zero(seed, scale):
    observation = draw_observation(seed, scale=scale)
    probabilities = PerExpertPolicy(whatif=True, hidden=8)(observation).softmax(dim=-1)
    assert (probabilities[observation["action_mask"] == 0] == 0).all()
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(3))


def test_where_nothing_else_is_possible_the_request_is_dropped(networks):
    policy, _, see = networks
    observation = draw_observation(9)
    observation["action_mask"][:, :-1] = 0
    logits = policy(see(observation))
    assert (logits.argmax(dim=-1) == N).all()
    assert (logits[:, :-1] == MASKED_LOGIT).all()


@pytest.mark.parametrize("n", [2, 3, 17, 64])
def test_the_same_weights_serve_any_number_of_experts(networks, n):
    policy, value, see = networks
    observation = see(draw_observation(10, n=n))
    assert policy(observation).shape == (3, n + 1)
    assert value(expert_features(observation)).shape == (3,)
    assert torch.isfinite(policy(observation)).all()


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e6])
def test_gradients_are_finite_whatever_comes_in(networks, scale):
    policy, value, see = networks
    observation = see(draw_observation(11, scale=scale))
    log_probabilities = policy(observation).log_softmax(dim=-1)
    (log_probabilities.sum() + value(expert_features(observation)).square().sum()).backward()
    for parameter in [*policy.parameters(), *value.parameters()]:
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_untrained_it_follows_the_predicted_marginal_qos():
    observation = draw_observation(12, batch=50)
    marginal = torch.nn.functional.pad(predicted_marginal(observation), (0, 1))  # drop is worth 0
    expected = torch.where(observation["action_mask"] > 0, marginal, -torch.inf).argmax(dim=-1)
    assert (PerExpertPolicy(whatif=True)(observation).argmax(dim=-1) == expected).all()


def test_untrained_it_is_impact_greedy_with_scores_as_told(small_simulation):
    policy, rng = PerExpertPolicy(whatif=True), np.random.default_rng(0)
    agreed = decided = 0
    while not small_simulation.over.all():
        observation = {key: torch.from_numpy(x) for key, x in small_simulation.view._asdict().items()}
        actions = policy(observation).argmax(dim=-1).numpy()
        heuristic = baselines.impact_greedy(small_simulation, rng, price=0.0, shrink=1.0)
        going_on = ~small_simulation.over
        agreed += (actions == heuristic)[going_on].sum()
        decided += going_on.sum()
        small_simulation.step(actions)
    assert agreed > 0.995 * decided  # float32 against float64 may order equal ones differently


def test_a_hotter_policy_is_closer_to_uniform():
    observation = draw_observation(13)
    cold, hot = (
        torch.distributions.Categorical(logits=PerExpertPolicy(whatif=True, temperature=t)(observation)) for t in (0.1, 1.0)
    )
    assert (hot.entropy() > cold.entropy()).all()
