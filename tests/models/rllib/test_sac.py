"""Discrete SAC: its losses by their laws, its module, and updates of a real RLlib learner. Only the last tests need a Ray."""

import math
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from models.action_value import ActionValue
from models.bounds import MASKED_SCORE
from models.features import read_columns
from models.paper.networks import PaperSpec
from models.rllib.learning.replay import DT_S, MARGINAL, Replay
from models.rllib.rollout.runner import VectorEnvRunner
from models.rllib.sac.algorithm import PAPER, sac_config
from models.rllib.sac.learner import critic_loss, impact_loss, join_twins, soft_target, taken_marginal, target_entropy
from models.rllib.sac.module import IMPACT, NEXT_LOGITS, NEXT_TARGET_Q, TARGET_Q, Q, SACModule, with_drop
from models.rllib.sac.settings import SACSettings
from models.router import RouterSpec
from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario

pytestmark = pytest.mark.slow

SPEC = RouterSpec(encoder="aggregates", hidden=8, impact_hidden=8)
MODEL = {"router": SPEC.to_dict(), "temperature": 0.05}
ENVS = 4


def config(scenario, **training):
    made = sac_config(
        [(scenario, ENVS)], seed=3, env_runners=0, rows=16, router=SPEC, temperature=0.05, lr=1e-2, save_replay=True
    )
    small = {"alpha_lr": 1e-2, "minibatch_size": 16, "steps_per_update": 8, "replay_capacity": 400, "learning_starts": 64}
    small |= {"critic_warmup": 0}
    return made.training(**small | training)


@pytest.fixture(scope="module")
def fragment(small_scenario):
    runner = VectorEnvRunner(config=config(small_scenario))
    return runner.sample(num_timesteps=ENVS * 40)[0]


@pytest.fixture(scope="module")
def columns(fragment):
    replay = Replay(400, 1)
    replay.add(fragment)
    return replay.rings[0].sample(64, np.random.default_rng(0))


@pytest.fixture
def learner(small_scenario, fragment):
    """A learner with the module of the scenario's spaces."""
    spaces = gym.spaces.Dict({key: gym.spaces.Box(-1e6, 1e6, value.shape[2:], np.float32) for key, value in fragment.obs.items()})

    def make(**training):
        settings = config(small_scenario, **training)
        settings.validate()
        spec = settings.get_multi_rl_module_spec(
            spaces={DEFAULT_MODULE_ID: (spaces, gym.spaces.Discrete(fragment.obs["action_mask"].shape[-1]))}
        )
        built = settings.get_default_learner_class()(config=settings, module_spec=spec)
        torch.manual_seed(0)
        built.build()
        return built

    return make


def update(learner, columns, **changes):
    rows = len(columns[Columns.ACTIONS])
    batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns | changes)}, env_steps=rows)
    return learner.update(batch=batch, minibatch_size=16, num_epochs=1)


def weights(learner):
    return {key: value.clone() for key, value in learner.module[DEFAULT_MODULE_ID].state_dict().items()}


def tensors(columns):
    return {
        key: {k: torch.from_numpy(v) for k, v in value.items()} if isinstance(value, dict) else torch.from_numpy(value)
        for key, value in columns.items()
    }


def test_an_update_moves_every_network_and_the_temperature(learner, columns):
    made = learner()
    before = weights(made)
    update(made, columns)
    after = weights(made)
    for part in ("policy", "critics.0", "critics.1", "target_critics.0", "target_critics.1", "log_alpha"):
        moved = [key for key in before if key.startswith(part) and not torch.equal(before[key], after[key])]
        assert moved, part


def test_slow_critics_follow_after_each_minibatch(learner, columns):
    made = learner(polyak=0.9)
    module = made.module[DEFAULT_MODULE_ID].unwrapped()
    expected = module.target_critics[0].expert_head[2].bias.clone()
    seen = []
    step = module.update_targets

    def follow(polyak):
        step(polyak)
        seen.append(module.critics[0].expert_head[2].bias.detach().clone())

    module.update_targets = follow
    update(made, columns)
    assert len(seen) == 64 // 16
    for bias in seen:
        expected = 0.9 * expected + 0.1 * bias
    torch.testing.assert_close(module.target_critics[0].expert_head[2].bias, expected)


def test_each_parameter_has_the_gradient_of_its_own_loss(learner, columns):
    batch, actors = {DEFAULT_MODULE_ID: tensors(columns)}, []
    now = batch[DEFAULT_MODULE_ID]
    for share in (0.0, 1.0):
        made = learner(target_entropy_share=share)
        made.compute_gradients(made.compute_losses(fwd_out=made.module.forward_train(batch), batch=batch))
        module = made.module[DEFAULT_MODULE_ID].unwrapped()
        output = module.forward_train(now)
        target = soft_target(now, output, module.log_alpha.exp(), gamma=1.0, beta=0.05, twins="mean")
        target = target - taken_marginal(now[MARGINAL], now[Columns.ACTIONS])
        loss = critic_loss(output[Q], output[TARGET_Q], now[Columns.ACTIONS], target, 0.5)
        for param, gradient in zip(
            module.critics.parameters(), torch.autograd.grad(loss, list(module.critics.parameters())), strict=True
        ):
            torch.testing.assert_close(param.grad, gradient)
        entropy = torch.distributions.Categorical(logits=output[Columns.ACTION_DIST_INPUTS]).entropy()
        surplus = entropy - target_entropy(now[Columns.OBS]["action_mask"], share)
        torch.testing.assert_close(module.log_alpha.grad, surplus.mean())
        assert all(param.grad is None for param in module.target_critics.parameters())
        actors.append([param.grad.clone() for param in module.policy.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*actors, strict=True))  # the target entropy is no matter of the actor's


def test_critics_warm_up_alone(learner, columns):
    made = learner(critic_warmup=6)  # four steps an update
    for number, moves in ((1, False), (2, True)):
        before = weights(made)
        update(made, columns)
        moved = {key for key, value in weights(made).items() if not torch.equal(before[key], value)}
        assert any(key.startswith("critics") for key in moved), number
        assert any(key.startswith("policy") for key in moved) == ("log_alpha" in moved) == moves


def test_before_training_critics_and_actor_agree(learner, columns):
    module = learner().module[DEFAULT_MODULE_ID].unwrapped()
    output = module.forward_train(tensors(columns))
    values = output[Q] + with_drop(output[IMPACT])
    scores = module.policy(tensors(columns)[Columns.OBS])
    possible = tensors(columns)[Columns.OBS]["action_mask"] > 0
    for twin in values:
        torch.testing.assert_close(twin[possible], scores[possible])


def test_values_are_the_impact_and_what_is_beyond_it(learner, columns):
    made = learner(critic_warmup=10**6)
    for _ in range(40):
        result = update(made, columns)
    module = made.module[DEFAULT_MODULE_ID].unwrapped()
    now = tensors(columns)
    known = now[MARGINAL][:, :-1].isfinite()
    with torch.no_grad():
        before = impact_loss(read_columns(now[Columns.OBS]).marginal, now[MARGINAL])
        after = impact_loss(module.forward_train(now)[IMPACT], now[MARGINAL])
    assert known.any()
    assert after < 0.8 * before  # of all actions, most of which nobody took
    assert result[DEFAULT_MODULE_ID]["impact_loss"].peek() < before


def test_an_actor_that_begins_from_nothing_is_indifferent(small_scenario, fragment):
    spec = RouterSpec(encoder="han", graph_hidden=8, heads=2, hidden=8, impact_hidden=8, impact=False, future=False)
    scenario = replace(small_scenario, observation=replace(small_scenario.observation, whatif=False))
    made = sac_config([(scenario, ENVS)], seed=3, env_runners=0, rows=4, router=spec, settings=SACSettings(gamma=0.9))
    assert (made.gamma, made.beta) == (0.9, 0.0)
    observation = VectorEnvRunner(config=made).sample(num_timesteps=ENVS * 4)[0].obs
    spaces = gym.spaces.Dict({key: gym.spaces.Box(-1e6, 1e6, value.shape[2:], np.float32) for key, value in observation.items()})
    module = SACModule(
        observation_space=spaces,
        action_space=gym.spaces.Discrete(7),
        model_config={**made.model_config, "router": spec.to_dict()},
    )
    now = {key: torch.from_numpy(value[2]) for key, value in observation.items()}
    probabilities = module.logits(now).softmax(-1)
    torch.testing.assert_close(probabilities, now["action_mask"] / now["action_mask"].sum(-1, keepdim=True))


@pytest.mark.parametrize(("share", "sign"), [(0.0, -1), (1.0, 1)])
def test_the_temperature_falls_above_the_target_entropy_and_rises_below(learner, columns, share, sign):
    made = learner(target_entropy_share=share)
    before = made.module[DEFAULT_MODULE_ID].unwrapped().log_alpha.item()
    update(made, columns)
    assert sign * (made.module[DEFAULT_MODULE_ID].unwrapped().log_alpha.item() - before) > 0


def test_the_target_entropy_can_be_reached():
    mask = torch.tensor([[1.0] * 7, [0.0] * 6 + [1.0], [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(target_entropy(mask, 0.3), 0.3 * torch.tensor([math.log(7), 0.0, math.log(3)]))


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [(Columns.REWARDS, np.nan, "critic"), (DT_S, np.nan, "critic"), ("predicted_score", np.inf, "actor")],
)
def test_what_is_not_finite_is_an_error_that_names_the_loss_and_changes_nothing(learner, columns, column, value, name):
    made = learner()
    before = weights(made)
    if column == "predicted_score":
        arrived = columns[Columns.OBS]["arrived"].copy()
        arrived[3] = value
        change = {Columns.OBS: columns[Columns.OBS] | {"arrived": arrived}}
    else:
        bad = columns[column].copy()
        bad[3] = value
        change = {column: bad}
    with pytest.raises(FloatingPointError, match=f"{name} loss is (nan|inf)"):
        update(made, columns, **change)
    assert all(torch.equal(before[key], value) for key, value in weights(made).items())


def test_a_gradient_that_is_not_finite_is_an_error(learner, columns):
    made = learner()
    before = weights(made)
    param = next(iter(made._params.values()))
    with pytest.raises(FloatingPointError, match="gradients' norm is nan"):
        made.apply_gradients({param: torch.full_like(param, torch.nan)})
    assert all(torch.equal(before[key], value) for key, value in weights(made).items())


def test_the_target_is_the_soft_value_discounted_by_time():
    logits = torch.tensor([[0.3, -0.2, MASKED_SCORE]]).expand(3, -1)
    values = torch.randn(2, 3, 3)
    batch = {
        Columns.REWARDS: torch.tensor([0.1, 0.2, 0.3]),
        DT_S: torch.tensor([0.0, 2.0, 0.5]),
        Columns.TERMINATEDS: torch.tensor([False, False, True]),
    }
    alpha = torch.tensor(0.7)
    output = {NEXT_LOGITS: logits, NEXT_TARGET_Q: values}
    for twins, joined in (("mean", values.mean(0)), ("min", values.min(0).values)):
        # the soft value of the policy that is a softmax of the logits, on the two possible actions alone
        p = logits[0, :2].softmax(-1)
        soft = (p * (joined[:, :2] - alpha * p.log())).sum(-1)
        expected = batch[Columns.REWARDS] + 0.9 * torch.tensor([1.0, math.exp(-0.2), 0.0]) * soft
        got = soft_target(batch, output, alpha, gamma=0.9, beta=0.1, twins=twins)
        torch.testing.assert_close(got, expected)


def test_the_clipped_loss_is_never_less_than_the_plain_one_and_equal_near_the_slow_critic():
    values, target, actions = torch.randn(2, 9, 4), torch.randn(9), torch.randint(4, (9,))
    slow = values + 0.01 * torch.randn_like(values)
    plain = critic_loss(values, slow, actions, target, None)
    taken = torch.stack([values[i, torch.arange(9), actions] for i in range(2)])
    torch.testing.assert_close(plain, (taken - target).square().mean(-1).sum())
    torch.testing.assert_close(critic_loss(values, slow, actions, target, 0.1), plain)
    assert critic_loss(values, slow + 3, actions, target, 0.1) > plain


def test_the_minimum_of_the_twins_is_not_above_their_mean():
    values = torch.randn(2, 5, 4)
    assert (join_twins(values, "min") <= join_twins(values, "mean")).all()


def test_an_impossible_action_has_probability_zero_and_finite_gradients(learner, columns):
    made = learner()
    blocked = {key: value.copy() for key, value in columns[Columns.OBS].items()}
    blocked["action_mask"][:, 1:4] = 0
    result = update(
        made, columns, **{Columns.OBS: blocked, Columns.NEXT_OBS: blocked, Columns.ACTIONS: columns[Columns.ACTIONS] * 0}
    )
    assert np.isfinite(result[DEFAULT_MODULE_ID]["entropy"].peek())
    module = made.module[DEFAULT_MODULE_ID].unwrapped()
    logits = module.forward_exploration({Columns.OBS: {k: torch.from_numpy(v) for k, v in blocked.items()}})
    assert (logits[Columns.ACTION_DIST_INPUTS].softmax(-1)[:, 1:4] == 0).all()


def test_the_critic_permutes_with_the_experts(columns):
    now = tensors(columns)[Columns.OBS]
    torch.manual_seed(1)
    critic = ActionValue(hidden=8)
    for head in (critic.expert_head, critic.drop_head, critic.state_head):
        torch.nn.init.normal_(head[-1].weight)
    n = now["experts"].shape[1]
    order = torch.randperm(n)
    moved = {key: value if key in ("cluster", "action_mask") else value[:, order] for key, value in now.items()}
    values, permuted = critic(read_columns(now)), critic(read_columns(moved))
    torch.testing.assert_close(permuted, values[:, [*order.tolist(), n]])
    assert (values[:, :-1].std(dim=-1) > 0).all()


def test_a_worker_has_the_actor_alone(learner, fragment, columns):
    module = learner().module[DEFAULT_MODULE_ID].unwrapped()
    worker = SACModule(
        observation_space=module.observation_space, action_space=module.action_space, model_config=MODEL, inference_only=True
    )
    assert not any(hasattr(worker, name) for name in ("critics", "target_critics", "log_alpha"))
    worker.set_state(module.get_state(inference_only=True))
    batch = {Columns.OBS: tensors(columns)[Columns.OBS]}
    torch.testing.assert_close(
        worker.forward_inference(batch)[Columns.ACTION_DIST_INPUTS], module.policy(batch[Columns.OBS]) / 0.05
    )


def test_the_paper_has_its_own_hyperparameters(small_scenario):
    made = sac_config([(small_scenario, 2)], seed=0, env_runners=0, rows=4, router=PaperSpec(experts=6))
    assert {name: getattr(made, name) for name in PAPER} == dict(PAPER)
    given = sac_config([(small_scenario, 2)], seed=0, env_runners=0, rows=4, router=PaperSpec(experts=6), lr=0.5)
    assert {name: getattr(given, name) for name in PAPER} == {**PAPER, "lr": 0.5}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"lr": -1}, "lr = -1: must be positive"),
        ({"gamma": 1.1}, r"gamma = 1\.1: must be from 0 to 1"),
        ({"twins": "max"}, "twins = 'max'"),
        ({"beta": float("nan")}, "beta = nan"),
    ],
)
def test_a_wrong_setting_is_named(small_scenario, training, message):
    with pytest.raises(InputError, match=message):
        config(small_scenario, **training).validate()


@pytest.fixture(scope="module")
def trained(small_scenario, one_ray):
    """An algorithm after a few iterations, in a world of two scenarios of different size."""
    three = replace(
        load_scenario("edge3"),
        **{name: getattr(small_scenario, name) for name in ("workload", "capacity_rps", "reward", "observation")},
    )
    made = config(small_scenario)
    made.environment(env_config={"scenarios": [(small_scenario, 3), (three, 1)]})
    algorithm = made.build_algo()
    results = [algorithm.train() for _ in range(3)]
    yield algorithm, results
    algorithm.stop()


def test_an_algorithm_samples_stores_and_learns(trained):
    algorithm, results = trained
    sampled = [result["num_env_steps_sampled_lifetime"] for result in results]
    assert sampled == sorted(sampled)
    assert all(len(ring) for ring in algorithm.replay.rings)
    learned = results[-1]["learners"][DEFAULT_MODULE_ID]
    assert np.isfinite([learned[key] for key in ("actor_loss", "critic_loss", "alpha_loss", "alpha", "entropy", "q_mean")]).all()
    assert 0 <= results[-1]["env_runners"]["qos_mean"] <= 1
    updates = learned["num_module_steps_trained_lifetime"] / 16
    assert updates == pytest.approx((sampled[-1] - sampled[0] * (sampled[0] < 64)) / 8, abs=16)


def test_the_workers_have_the_learners_weights(trained):
    algorithm, _ = trained
    ours = algorithm.env_runner.module.policy.state_dict()
    theirs = algorithm.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped().policy.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_checkpoint_has_the_temperature_the_optimizers_and_the_replay_buffer(trained, tmp_path):
    algorithm, _ = trained
    algorithm.save_to_path(tmp_path / "saved")
    other = algorithm.config.copy(copy_frozen=False).build_algo()
    try:
        other.restore_from_path(tmp_path / "saved")
        for get in (
            lambda a: a.learner_group._learner.module[DEFAULT_MODULE_ID].state_dict(),
            lambda a: a.learner_group._learner.get_optimizer(DEFAULT_MODULE_ID, "alpha").state_dict()["state"][0],
        ):
            ours, theirs = get(algorithm), get(other)
            assert ours
            assert all(torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(theirs[key])) for key in ours)
        alpha = other.learner_group._learner.module[DEFAULT_MODULE_ID].unwrapped().log_alpha.exp().item()
        assert alpha != pytest.approx(MODEL["temperature"], rel=1e-4)
        for ours, theirs in zip(algorithm.replay.rings, other.replay.rings, strict=True):
            a, b = (ring.sample(30, np.random.default_rng(0)) for ring in (ours, theirs))
            assert np.array_equal(a[Columns.REWARDS], b[Columns.REWARDS])
            assert np.array_equal(a[Columns.NEXT_OBS]["experts"], b[Columns.NEXT_OBS]["experts"])
        other.train()
    finally:
        other.stop()
