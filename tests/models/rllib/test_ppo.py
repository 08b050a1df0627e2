"""PPO on columns: its advantages, its rewards, its steps. No Ray is started: a runner and a learner work without."""

import copy

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from models.rllib.distribution import MaskedCategorical
from models.rllib.learning.all_reduce import DataParallel
from models.rllib.learning.minibatches import flatten, minibatches
from models.rllib.learning.returns import advantages
from models.rllib.ppo.algorithm import ppo_config
from models.rllib.rollout.runner import VectorEnvRunner
from models.rllib.router_module import BaselineModule
from models.router import RouterSpec
from rllib_envs.errors import InputError
from tests.draws import examples

pytestmark = pytest.mark.slow

ROUTER = RouterSpec(encoder="aggregates", hidden=8, impact_hidden=8)
ENVS, ROWS = 4, 40
BETA = 0.3


def config(scenario, **training):
    made = ppo_config([(scenario, ENVS)], seed=3, lr=1e-3, env_runners=0, rows=ROWS, router=ROUTER, temperature=0.05)
    return made.training(**{"warmup_steps": 0, "minibatch": 40, **training})


@pytest.fixture(scope="module")
def fragment(small_scenario):
    return VectorEnvRunner(config=config(small_scenario)).sample(num_timesteps=ENVS * ROWS)[0]


@pytest.fixture
def learner(small_scenario, fragment):
    spaces = gym.spaces.Dict({key: gym.spaces.Box(-1e6, 1e6, value.shape[2:], np.float32) for key, value in fragment.obs.items()})

    def make(**training):
        settings = config(small_scenario, **training)
        settings.validate()
        spec = settings.get_multi_rl_module_spec(spaces={DEFAULT_MODULE_ID: (spaces, gym.spaces.Discrete(7))})
        built = settings.get_default_learner_class()(config=settings, module_spec=spec)
        torch.manual_seed(0)
        built.build()
        return built

    return make


def module_of(learner):
    return learner.module[DEFAULT_MODULE_ID].unwrapped()


def learn(learner, fragment, steps=0):
    return learner.update(training_data=TrainingData(episodes=[fragment]), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps})


def weights(learner):
    return {key: value.clone() for key, value in learner.module[DEFAULT_MODULE_ID].state_dict().items()}


def draw(seed, steps, batch=3):
    rng = np.random.default_rng(seed)
    return {
        "reward": rng.normal(size=(steps, batch)),
        "value": rng.normal(size=(steps + 1, batch)),
        "dt_s": rng.exponential(size=(steps, batch)),
        "continues": rng.random((steps, batch)) >= 0.25,
    }


@examples(60)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 9), lam=st.sampled_from([0.0, 0.4, 1.0]))
def test_advantages_are_the_discounted_sum_of_surprises(seed, steps, lam):
    data = draw(seed, steps)
    discount = np.exp(-BETA * data["dt_s"])
    surprise = data["reward"] + discount * data["value"][1:] - data["value"][:-1]
    expected = np.zeros_like(surprise)
    for b in range(surprise.shape[1]):
        for t in range(steps):
            factor = 1.0
            for k in range(t, steps):
                if not data["continues"][k, b]:
                    break
                expected[t, b] += factor * surprise[k, b]
                factor *= lam * discount[k, b]
    np.testing.assert_allclose(advantages(**data, beta_per_s=BETA, lam=lam), expected, atol=1e-9)


def test_with_lambda_one_and_a_true_value_there_is_no_advantage():
    data = draw(0, 6) | {"continues": np.ones((6, 3), np.bool_)}
    for t in range(5, -1, -1):
        data["value"][t] = data["reward"][t] + np.exp(-BETA * data["dt_s"][t]) * data["value"][t + 1]
    np.testing.assert_allclose(advantages(**data, beta_per_s=BETA, lam=1.0), 0.0, atol=1e-12)


@examples(30)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3), count=st.integers(1, 5))
def test_minibatches_hold_every_row_once_with_shares_that_add_up(sizes, count):
    samples = [{"id": torch.arange(size), "deep": {"id": torch.arange(size)}} for size in sizes]
    seen = [[] for _ in sizes]
    for batch in minibatches(samples, sizes, count, torch.Generator().manual_seed(0), DataParallel()):
        assert not batch or sum(share for _, share in batch) == pytest.approx(1.0)
        for rows, share in batch:
            assert torch.equal(rows["id"], rows["deep"]["id"])
            assert share == pytest.approx(len(rows["id"]) / sum(len(other["id"]) for other, _ in batch))
        if len(sizes) == 1:
            seen[0] += [row for rows, _ in batch for row in rows["id"].tolist()]
    if len(sizes) == 1:
        assert sorted(seen[0]) == list(range(sizes[0]))


def test_rows_are_those_taken_in_order():
    x = np.arange(24.0).reshape(4, 3, 2)
    taken = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]], np.bool_)
    rows = flatten({"x": x, "deep": {"action": x.astype(np.int64)}}, taken, "cpu")
    np.testing.assert_array_equal(rows["x"].numpy(), x[taken])
    assert rows["x"].dtype == torch.float32
    assert rows["deep"]["action"].dtype == torch.int64


def test_what_one_action_has_over_another_is_exact(learner, fragment):
    """With lambda 0 and equal values, the advantages of two actions differ by what their true marginals differ by."""
    made = learner(lam=0.0, beta_per_s=0.0)
    other = dict.fromkeys(("a", "b"))
    for name, action in (("a", 0), ("b", 6)):
        made.means.clear()
        changed = _with(fragment, actions=np.full_like(fragment.actions, action))
        rows = made.rows_of(changed)
        other[name] = rows["returns"]
    marginal = np.nan_to_num(fragment.marginal)
    continues = fragment.valid & ~fragment.terminated
    expected = torch.from_numpy(marginal[..., 0] - marginal[..., 6])[torch.from_numpy(continues)]
    difference = other["a"] - other["b"]
    environment = torch.from_numpy(np.broadcast_to(np.arange(ENVS), continues.shape)[continues])
    for b in range(ENVS):  # each environment's mean is its own
        mine = environment == b
        a, e = difference[mine], expected[mine]
        torch.testing.assert_close(a - a.mean(), e - e.mean(), atol=1e-4, rtol=1e-4)


def test_advantages_are_centred_and_scaled_in_each_environment(learner, fragment):
    made = learner()
    rows = made.rows_of(fragment)
    continues = fragment.valid & ~fragment.terminated
    environment = np.broadcast_to(np.arange(ENVS), continues.shape)[continues]
    for b in range(ENVS):
        mine = rows["advantage"][torch.from_numpy(environment == b)]
        assert abs(float(mine.mean())) < 1e-5
        assert 0 < float(mine.std()) < 1.1
    assert len(rows["action"]) == continues.sum() < fragment.env_steps()


def test_a_step_moves_actor_and_critic_and_the_report_is_finite(learner, fragment):
    made = learner()
    before = weights(made)
    logged = learn(made, fragment)[DEFAULT_MODULE_ID]
    after = weights(made)
    for part in ("router.future", "router.estimator", "value", "baseline"):
        assert any(not torch.equal(before[key], after[key]) for key in before if key.startswith(part)), part
    for name in ("policy_loss", "value_loss", "baseline_loss", "entropy", "kl", "returns_sd"):
        assert np.isfinite(logged[name].peek()), name


def test_the_actor_waits_until_the_critic_has_warmed_up(learner, fragment):
    made = learner(warmup_steps=1000)
    before = weights(made)
    learn(made, fragment, steps=500)
    learn(made, fragment, steps=900)
    after = weights(made)
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"value", "baseline"}
    learn(made, fragment, steps=1500)
    learn(made, fragment, steps=1600)
    assert any(not torch.equal(after[key], value) for key, value in weights(made).items() if key.startswith("router"))


def test_what_is_not_finite_is_an_error_that_names_the_loss(learner, fragment):
    cluster = fragment.obs["cluster"].copy()
    cluster[3] = np.nan
    made = learner()
    before = weights(made)
    with pytest.raises(FloatingPointError, match="policy loss is nan: training cannot go on"):
        learn(made, _with(fragment, obs=fragment.obs | {"cluster": cluster}))
    assert all(torch.equal(before[key], value) for key, value in weights(made).items())


def test_state_goes_on_with_its_means(learner, fragment):
    made, other = learner(), learner()
    learn(made, fragment)
    other.set_state(copy.deepcopy(made.get_state()))  # the optimizers' own is handed out as it is
    assert other._samples == 1
    np.testing.assert_array_equal(other.means[0, 0], made.means[0, 0])
    learn(made, fragment)
    learn(other, fragment)
    ours, theirs = weights(made), weights(other)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_worker_has_the_router_alone(learner, fragment):
    module = module_of(learner())
    worker = BaselineModule(
        observation_space=module.observation_space,
        action_space=module.action_space,
        model_config=module.model_config,
        inference_only=True,
    )
    assert not any(hasattr(worker, name) for name in ("value", "baseline"))
    worker.set_state(module.get_state(inference_only=True))
    batch = {Columns.OBS: {key: torch.from_numpy(value[0]) for key, value in fragment.obs.items()}}
    logits = worker.forward_inference(batch)[Columns.ACTION_DIST_INPUTS]
    torch.testing.assert_close(logits, module.router_to_serve()(batch[Columns.OBS]) / 0.05)


def test_divergence_is_zero_to_itself_and_finite_where_an_action_is_impossible():
    sharp = MaskedCategorical(torch.tensor([[-1e9, 0.0, -300.0]]))
    flat = MaskedCategorical(torch.tensor([[-1e9, 0.0, 0.0]]))
    assert sharp.kl(sharp).item() == 0
    assert torch.isfinite(flat.kl(sharp))
    assert flat.kl(sharp).item() > 100
    torch.testing.assert_close(sharp.kl(flat).item(), np.log(2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"lr": -1.0}, r"lr = -1\.0: must be positive"),
        ({"lam": 1.5}, r"lam = 1\.5: must be from 0 to 1"),
        ({"warmup_steps": -1}, "warmup_steps = -1: must be >= 0"),
        ({"clip": float("nan")}, "clip = nan"),
    ],
)
def test_a_wrong_setting_is_named(small_scenario, training, message):
    with pytest.raises(InputError, match=message):
        config(small_scenario, **training).validate()


def _with(fragment, **changes):
    return type(fragment)(**{**{name: getattr(fragment, name) for name in fragment.__slots__}, **changes})
