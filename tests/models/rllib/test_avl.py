"""What AVL learns, and what it leaves alone: a real RLlib learner on real fragments. No Ray is started."""

import pickle
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from models.rllib.avl.learner import _weights
from models.rllib.rollout.runner import VectorEnvRunner
from models.router import RouterSpec
from tests.draws import examples
from tests.models.observed import stir
from tests.models.rllib.avl_learner import BETA, COUNTS, LAM, ROWS, config, module_of, same, weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fragments(small_scenario):
    return VectorEnvRunner(config=config(small_scenario)).sample(num_timesteps=ROWS * sum(COUNTS))


@pytest.fixture
def make(small_scenario, fragments):
    """Builds learners; the same ones for the same settings."""
    spaces = gym.spaces.Dict({key: gym.spaces.Box(-1e6, 1e6, x.shape[2:], np.float32) for key, x in fragments[0].obs.items()})

    def build(**settings):
        configured = config(small_scenario, **settings)
        space = {DEFAULT_MODULE_ID: (spaces, gym.spaces.Discrete(fragments[0].obs["action_mask"].shape[-1]))}
        spec = configured.get_multi_rl_module_spec(spaces=space)
        torch.manual_seed(0)
        built = configured.get_default_learner_class()(config=configured, module_spec=spec)
        built.build()
        return built

    return build


def update(learner, fragments, steps=0):
    result = learner.update(training_data=TrainingData(episodes=fragments), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps})
    return {key: value.peek() for key, value in result[DEFAULT_MODULE_ID].items() if hasattr(value, "peek")}


def moved(before, after, part):
    named = [key for key in before if key.startswith(part)]
    assert named, part
    return any(not torch.equal(before[key], after[key]) for key in named)


def test_the_future_part_waits_until_estimator_and_critic_have_warmed_up(make, fragments):
    learner = make(warmup=2)
    for warm in (False, False, True):
        before = weights(learner)
        update(learner, fragments)
        after = weights(learner)
        assert moved(before, after, "router.future") == warm
        for part in ("router.estimator", "value", "baseline"):
            assert moved(before, after, part), part


def test_an_encoder_that_is_not_heard_at_first_is_heard_and_learns_after_a_few_steps(make, fragments):
    learner = make()
    before = weights(learner)
    for _ in range(3):
        update(learner, fragments)
    module = module_of(learner)
    for network in (module.router.future, module.router.estimator.correction, module.value.network):
        assert network.branch.weight.any()
    assert moved(before, weights(learner), "router.encoder")


def test_the_served_router_follows_slowly_and_more_slowly_once_warm(make, fragments):
    learner = make(keep=0.9)
    for keep in (0.5, 0.5, 0.9, 0.9):
        before = weights(learner)
        update(learner, fragments)
        after = weights(learner)
        for key, ema_router in after.items():
            if key.startswith("served."):
                router = after[key.replace("served", "router", 1)]
                torch.testing.assert_close(ema_router, keep * before[key] + (1 - keep) * router)


def with_column(fragment, **changes):
    """The fragment with columns, or observations, of which some rows were changed by a function of a copy."""
    obs, columns = dict(fragment.obs), {}
    for name, change in changes.items():
        x = (obs[name] if name in obs else getattr(fragment, name)).copy()
        change(x)
        if name in obs:
            obs[name] = x
        else:
            columns[name] = x
    return replace(fragment, obs=obs, **columns)


def put(index, value):
    def change(x):
        x[index] = value

    return change


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"experts": put((3, 1, 0, 0), np.nan)}, "impact"),
        ({"dt_s": put((3, 1), np.nan)}, "value"),
        ({"arrived": put((3, 1, 0, 1), np.inf)}, "impact"),
    ],
)
def test_a_loss_that_is_not_finite_is_an_error_that_names_it_and_leaves_the_weights(make, fragments, changes, name):
    learner = make()
    update(learner, fragments)
    before = weights(learner)
    with np.errstate(invalid="ignore"), pytest.raises(FloatingPointError, match=f"{name} loss is (nan|inf)"):
        update(learner, [with_column(fragments[0], **changes), fragments[1]])
    assert same(before, weights(learner))


def test_a_learner_goes_on_from_its_state_as_if_nothing_had_happened(make, fragments):
    first, second = make(total_steps=1000), make(total_steps=1000)
    for steps in (100, 200):
        update(first, fragments, steps)
    second.set_state(pickle.loads(pickle.dumps(first.get_state())))
    assert rate(second) == rate(first)
    for learner in (first, second):
        update(learner, fragments, 300)
    assert same(weights(first), weights(second))
    assert rate(second) == rate(first)
    for key, ours in first.baselines.items():
        for name in ("reward", "return_variance", "impact_error", "advantage_variance", "samples"):
            assert np.array_equal(getattr(ours, name), getattr(second.baselines[key], name))


def rate(learner):
    return learner.get_optimizer(DEFAULT_MODULE_ID).param_groups[0]["lr"]


def test_the_learning_rate_falls_to_a_tenth(make, fragments):
    learner, rates = make(total_steps=1000, lr=0.01), []
    for steps in (0, 500, 1000, 2000):
        update(learner, fragments, steps)
        rates.append(rate(learner))
    np.testing.assert_allclose(rates, [0.01, 0.0055, 0.001, 0.001])


def test_rows_at_and_after_the_end_of_an_episode_are_never_learned_from(make, fragments):
    """What is done, earned or seen there may be anything."""
    changed = []
    for fragment in fragments:
        after, last = np.nonzero(~fragment.valid), np.nonzero(fragment.terminated)
        assert len(after[0])
        assert len(last[0])
        edges = tuple(np.concatenate(pair) for pair in zip(after, last, strict=True))
        shown = {key: put(after, 3 * fragment.obs[key][after] + 1) for key in ("experts", "whatif", "arrived", "cluster")}
        columns = {"actions": put(edges, 0), "marginal": put(edges, 0.9), "dt_s": put(edges, 7.0)}
        changed.append(with_column(fragment, **shown, **columns))
    ours, theirs = make(), make()
    for _ in range(3):
        update(ours, fragments)
        update(theirs, changed)
    assert same(weights(ours), weights(theirs))


@pytest.mark.parametrize("name", ["actions", "marginal", "dt_s", "arrived"])
def test_all_else_is_learned_from(make, fragments, name):
    row = 1, 0
    assert fragments[0].valid[row]
    assert not fragments[0].terminated[row]

    def change(x):
        x[row] = (x[row] + 1) % 6 if name == "actions" else x[row] + 0.5

    ours, theirs = make(), make()
    for _ in range(3):
        update(ours, fragments)
        update(theirs, [with_column(fragments[0], **{name: change}), fragments[1]])
    assert not same(weights(ours), weights(theirs))


def test_an_expert_that_cannot_take_the_request_teaches_nothing(make, fragments):
    row, expert = (2, 1), 3
    blocked = with_column(fragments[0], action_mask=put((*row, expert), 0.0), actions=put(row, 0))
    results = []
    for marginal in (np.nan, 5.0, -1.0):
        learner = make()
        update(learner, [with_column(blocked, marginal=put((*row, expert), marginal)), fragments[1]])
        results.append(weights(learner))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_a_marginal_that_nobody_knows_is_left_out(make, fragments):
    learner = make()
    unknown = with_column(fragments[0], marginal=put((slice(None), slice(None), slice(None)), np.nan))
    before = weights(learner)
    result = update(learner, [unknown])
    assert result["impact_loss"] == 0
    after = weights(learner)
    assert not moved(before, after, "router.estimator")
    assert moved(before, after, "value")


def test_the_estimator_learns_the_true_marginals(make, fragments):
    learner = make(router="aggregates", warmup=100, epochs=8, minibatch=64)
    errors = [update(learner, fragments)["impact_error"] for _ in range(5)]
    assert errors[-1] < 0.9 * errors[0]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_the_weights_of_environments_average_one_and_fall_with_the_error(errors):
    x = np.array(errors)
    w = _weights(x)
    assert w.mean() == pytest.approx(1)
    assert (w > 0).all()
    assert (np.diff(w[np.argsort(x)]) <= 1e-12).all()


@examples(30)
@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=20))
def test_no_environment_counts_for_nearly_all(errors):
    """Errors down to nothing weigh no more than so many times those of the median environment."""
    w, middle = _weights(np.array(errors)), np.median(errors)
    at_middle = 1 / (1.3 * middle) / np.mean(1 / (np.array(errors) + 0.3 * middle))
    assert w.max() <= at_middle * 1.3 / 0.3 * (1 + 1e-9)


def outputs(module, fragment):
    """Impact, policy, usual quality and value of every observation, each (T+1, B, ...), from the module as it is used to act."""
    shape = fragment.obs["action_mask"].shape[:2]
    observation = {key: torch.from_numpy(x).flatten(0, 1) for key, x in fragment.obs.items()}
    with torch.no_grad():
        parts = module.router.parts(observation)
        policy = (module.router(observation) / 0.05).softmax(dim=-1)
        results = parts.impact, policy, module.baseline(parts.columns), module.state_value(parts)
    return [x.unflatten(0, shape).double().numpy() for x in results]


def test_targets_are_what_is_said_of_them(make, fragments):
    """The formulas, decision by decision."""
    learner, fragment = make(), fragments[1]
    module = module_of(learner)
    for part in (module.router, module.value):
        stir(part)
    got = learner.rows_of(fragment)
    impact, policy, usual, value = outputs(module, fragment)
    continues = fragment.valid & ~fragment.terminated
    expected = (policy[..., :-1] * impact).sum(axis=-1)
    returns, advantage = np.zeros(continues.shape), np.zeros(continues.shape)
    for b in range(COUNTS[1]):
        learned = continues[:, b]
        reward = expected[:, b] - usual[:, b]
        reward = reward - reward[:-1][learned].mean()
        for t in reversed(np.flatnonzero(learned)):
            follows = t + 1 < len(continues) and continues[t + 1, b]
            later = returns[t + 1, b] if follows else value[t + 1, b]
            ahead = (1 - LAM) * value[t + 1, b] + LAM * later
            returns[t, b] = np.exp(-BETA * fragment.dt_s[t, b]) * (reward[t + 1] + ahead)
            action = fragment.actions[t, b]
            own = impact[t, b, action] if action < impact.shape[-1] else 0.0
            advantage[t, b] = own - expected[t, b] + returns[t, b] - value[t, b]
        advantage[learned, b] -= advantage[learned, b].mean()
    variance = (advantage**2).sum(axis=0) / continues.sum(axis=0)
    scaled = advantage / np.sqrt(variance + 0.3 * np.median(variance))
    near = {"rtol": 1e-3, "atol": 1e-4}
    np.testing.assert_allclose(got["returns"], (returns - returns[continues].mean())[continues], **near)
    np.testing.assert_allclose(got["advantage"], scaled[continues], **near)
    np.testing.assert_allclose(got["baseline"], expected[:-1][continues], **near)
    np.testing.assert_allclose(got["log_policy"].exp(), policy[:-1][continues], **near)
    np.testing.assert_allclose(got["marginal"], np.nan_to_num(fragment.marginal[..., :-1])[continues], **near)
    assert np.array_equal(got["action"][:, 0], fragment.actions[continues])
    for key, x in fragment.obs.items():
        assert np.array_equal(got["observation"][key], x[:-1][continues])


def test_the_usual_reward_holds_nothing_but_the_marginal_qos_of_the_action(make, fragments):
    learner = make()
    for fragment in fragments:
        continues = fragment.valid & ~fragment.terminated
        assert np.abs(fragment.rewards[continues]).max() > 0.1
        np.testing.assert_allclose(learner._other_terms(fragment, continues), 0.0, atol=1e-6)


def test_what_a_reward_holds_beside_belongs_to_the_decision_before_it(make, fragments):
    """A penalty lowers the return of its decision and of those before, less and less, and of none after it or elsewhere."""
    fragment = fragments[0]
    continues = fragment.valid & ~fragment.terminated
    row, column = next((t, b) for t, b in zip(*np.nonzero(continues), strict=True) if t > 5 and continues[t - 5 : t + 3, b].all())

    def fine(x):
        x[row, column] -= 1.0

    before, after = (make().rows_of(one)["returns"] for one in (fragment, with_column(fragment, rewards=fine)))
    change = np.zeros(continues.shape)
    change[continues] = (after - before).numpy()
    change -= change[row + 1, column]  # the level of all returns moves a little, and what is usual in this environment
    assert change[row, column] < -0.5
    assert (np.diff(change[row - 5 : row + 1, column]) < 0).all()
    later = continues.copy()
    later[: row + 1, column] = False
    assert np.abs(change[later & (np.arange(continues.shape[1]) == column)]).max() < 0.2


def test_actions_of_greater_advantage_become_likelier(make, fragments):
    learner = make(warmup=0, kl_stop=10.0)
    module = module_of(learner)
    update(learner, fragments)
    targets = [learner.rows_of(fragment) for fragment in fragments]
    update(learner, fragments)
    for rows in targets:
        parts = module.router.parts(rows["observation"])._replace(impact=rows["impact"])
        log_policy = (module.router.scores(rows["observation"], parts) / 0.05).log_softmax(dim=-1).gather(-1, rows["action"])
        ratio = (log_policy - rows["log_policy"].gather(-1, rows["action"])).exp()[:, 0]
        assert (ratio * rows["advantage"]).mean() > rows["advantage"].mean() + 1e-3


def test_once_the_router_has_moved_far_enough_its_future_part_rests_until_the_next_sample(make, fragments):
    learner = make(warmup=0, minibatch=16, kl_stop=1e-5, router="aggregates")
    module, steps = module_of(learner), []
    optimizer = learner.get_optimizer(DEFAULT_MODULE_ID)
    bias = module.router.future.first.bias
    step = optimizer.step

    def watched():
        before = bias.detach().clone()
        step()
        steps.append(not torch.equal(before, bias))

    optimizer.step = watched
    for _ in range(2):
        steps.clear()
        update(learner, fragments)
        rests = steps.index(False, 1)  # the first step has nothing to go by where heads are zero
        assert 1 < rests < len(steps) / 2
        assert all(steps[1:rests])
        assert not any(steps[rests:])


def test_a_router_without_a_future_part_learns_the_rest(make, fragments):
    learner = make(router=RouterSpec(encoder="aggregates", hidden=8, impact_hidden=8, future=False))
    before = weights(learner)
    for _ in range(3):
        update(learner, fragments)
    assert moved(before, weights(learner), "router.estimator")
    assert moved(before, weights(learner), "value")
