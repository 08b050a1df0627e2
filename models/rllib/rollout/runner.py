"""A rollout worker that steps vector environments and module in one loop, without episode objects."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner import ENV_STEP_FAILURE
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import RLMODULE_INFERENCE_TIMER

from models.bounds import MASKED_SCORE
from models.rllib.rollout.env_groups import EnvGroups, groups_of
from models.rllib.rollout.fragments import STEP_COLUMNS, Fragment, Recorder


class VectorEnvRunner(SingleAgentEnvRunner):
    """Samples a ``Fragment`` for each scenario, not episodes.

    ``env_config`` holds ``scenario``, or ``scenarios``: (scenario, number of environments) pairs. With ``staggered`` (default
    True) the first episode of training environment i of B is cut to (i + 1) / B of its requests, so that episodes do not fill and
    empty in step; evaluation sees whole episodes.

    The module gives logits (``Columns.ACTION_DIST_INPUTS``), from which actions are drawn when exploring, the largest one taken
    otherwise. Connectors and callbacks of single episodes and steps are ignored. Episodes and draws are fixed by
    ``config.seed``, the worker's index and the steps that were sampled before it began: a restarted worker does not repeat
    episodes. Evaluation always repeats them.

    Metrics beside RLlib's own: the sums of ``STEP_COLUMNS`` and of ``reward`` over the sample, and ``qos_mean``, QoS per valid
    step, which is there even when no episode has ended.

    Attributes:
        broken: whether a call has failed here.
    """

    env: Any
    broken = False
    _environments_made = 0
    _rng: np.random.Generator
    # Of each group: the last observation, in the environment's own buffers, its info, and (B,) whether the episode is over.
    _observations: list[dict[str, NDArray[np.float32]]]
    _infos: list[dict[str, NDArray[Any]]]
    _ended: list[NDArray[np.bool_]]

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        own, self._configured_seed = config.copy(copy_frozen=False), config.seed
        worker = kwargs.get("worker_index")
        if worker and config.seed is not None:
            own.seed = None  # until RLlib would have seeded
            _seed_for_others(config.seed + worker + 1_000_000 * bool(config.in_evaluation))
        super().__init__(config=own, **kwargs)

    def make_env(self) -> None:
        """Build or rebuild the environments."""
        self.config.seed = self._configured_seed
        if self.env is not None:
            self.env.close()
        context = EnvContext(self.config.env_config, worker_index=self.worker_index or 0, num_workers=self.num_workers)
        self.env = EnvGroups(groups_of(context, self.config.num_envs_per_env_runner or 1))
        self.num_envs = self.env.num_envs
        self._needs_initial_reset = True
        self._environments_made += 1
        make_callback(
            "on_environment_created",
            callbacks_objects=self._callbacks,
            callbacks_functions=self.config.callbacks_on_environment_created,  # pyright: ignore[reportArgumentType]
            kwargs={"env_runner": self, "metrics_logger": self.metrics, "env": self.env, "env_context": context},
        )

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the result of ``get_state``. Unlike RLlib it always takes the weights, also older ones."""
        if COMPONENT_RL_MODULE in state:
            self._weights_seq_no = -1
        super().set_state(state)
        self._weights_seq_no = max(self._weights_seq_no, 0)

    def prepare(self, state: dict[str, Any]) -> None:
        """Restore a state, after a failure with new environments, as the old ones may be in any state."""
        if self.broken:
            self.make_env()
            self.broken = False
        self.set_state(state)

    def _sample(  # pyright: ignore[reportIncompatibleMethodOverride] (fragments for episodes)
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[Fragment]:
        """Sample at least this many valid steps from where the last call ended, or this many whole episodes from a reset."""
        if force_reset or num_episodes is not None or self._needs_initial_reset:
            self._reset(staggered=num_episodes is None)
        recorders = self._recorders(num_timesteps)
        steps = episodes = 0
        while episodes < num_episodes if num_episodes is not None else steps < (num_timesteps or 0):
            actions = [self._act(i, recorder.observation, explore, random_actions) for i, recorder in enumerate(recorders)]
            results: Any = self._try_env_step(actions)
            if results == ENV_STEP_FAILURE:  # the environments are new: what was sampled is lost
                self._reset(staggered=num_episodes is None)
                recorders, steps, episodes = self._recorders(num_timesteps), 0, 0
                continue
            steps += self.num_envs - sum(int(ended.sum()) for ended in self._ended)
            self._observations, rewards, self._ended, _, self._infos = results
            for i, recorder in enumerate(recorders):
                recorder.add(actions[i], self._observations[i], rewards[i], self._ended[i], self._infos[i])
            episodes += self._follow_episodes(np.concatenate(rewards), np.concatenate(self._ended))
        if num_episodes is not None:
            self._needs_initial_reset = True
        fragments = [
            recorder.fragment(worker=self.worker_index or 0, group=i, whole_episodes=num_episodes is not None)
            for i, recorder in enumerate(recorders)
        ]
        self._log(fragments, episodes)
        return fragments

    def _reset(self, *, staggered: bool) -> None:
        seed = None
        if self._needs_initial_reset:
            seed, self._rng = self._streams()
        self._observations, self._infos = self._try_env_reset(seed=seed)  # pyright: ignore[reportArgumentType]
        if staggered and not self.config.in_evaluation and self.config.env_config.get("staggered", True):
            self.env.stagger()
        self._ended = [np.zeros(group.num_envs, np.bool_) for group in self.env.groups]
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, np.int64)
        self._begun_s = np.full(self.num_envs, time.perf_counter())
        self._needs_initial_reset = False

    def _streams(self) -> tuple[list[int], np.random.Generator]:
        """Seeds of the environments, and the generator that draws actions."""
        if self.config.seed is None:
            source = np.random.SeedSequence()
        else:
            before = 0 if self.config.in_evaluation else self.num_env_steps_sampled_lifetime
            where = (self.worker_index or 0, int(self.config.in_evaluation), before, self._environments_made)
            source = np.random.SeedSequence([self.config.seed, *where])
        episodes, draws = source.spawn(2)
        return [int(seed) for seed in episodes.generate_state(self.num_envs)], np.random.default_rng(draws)

    def _recorders(self, num_timesteps: int | None) -> list[Recorder]:
        # A row more than the steps need: there is an invalid one for each episode that ends.
        rows = 256 if num_timesteps is None else -(-num_timesteps // self.num_envs) + 1
        return [Recorder(rows, *begun) for begun in zip(self._observations, self._infos, self._ended, strict=True)]

    def _act(
        self, group: int, observation: Mapping[str, NDArray[np.float32]], explore: bool, random_actions: bool
    ) -> NDArray[np.int64]:
        """(B,) actions on the observations of a group, known by its place among the environments' groups."""
        if random_actions:
            logits = np.where(observation["action_mask"] > 0, 0.0, MASKED_SCORE)
            return self._draw(logits)
        batch = {Columns.OBS: {key: torch.from_numpy(value).to(self._device) for key, value in observation.items()}}
        with self.metrics.log_time(RLMODULE_INFERENCE_TIMER), torch.inference_mode():
            assert self.module is not None
            output = self.module.forward_exploration(batch) if explore else self.module.forward_inference(batch)
        logits = output[Columns.ACTION_DIST_INPUTS].cpu().numpy()
        return self._draw(logits) if explore else logits.argmax(axis=-1)

    def _draw(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
        """Sample from softmax(logits): the largest after adding Gumbel noise."""
        return (logits + self._rng.gumbel(size=logits.shape)).argmax(axis=-1)

    def _follow_episodes(self, rewards: NDArray[np.float64], ended: NDArray[np.bool_]) -> int:
        """Add a step to the running episodes and log those that end; their number."""
        self._returns += rewards
        self._lengths += 1
        for i in np.flatnonzero(ended):
            now_s = time.perf_counter()
            self._log_episode_metrics(int(self._lengths[i]), float(self._returns[i]), now_s - self._begun_s[i])
            self._returns[i], self._lengths[i], self._begun_s[i] = 0.0, -1, now_s  # the autoreset's row is no step
        return int(ended.sum())

    def _log(self, fragments: list[Fragment], episodes: int) -> None:
        steps = sum(fragment.env_steps() for fragment in fragments)
        self.num_env_steps_sampled_lifetime += steps
        self._increase_sampled_metrics(steps, episodes)
        if steps:
            self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=steps)
        for key in (*STEP_COLUMNS, "reward"):
            columns = [(f.rewards if key == "reward" else f.sums[key], f.valid) for f in fragments]
            total = sum(float(column.sum(where=valid)) for column, valid in columns)
            self.metrics.log_value(key, total, reduce="sum")
            if key == "qos":
                self.metrics.log_value("qos_mean", total / max(steps, 1), window=1)


def _seed_for_others(seed: int) -> None:
    """Seed the global generators as RLlib does: we never draw from them, but a user's callback may.

    RLlib sets PyTorch's deterministic mode too. That imports its compiler, which takes each worker seconds.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the global generator is the point)
    torch.manual_seed(seed)
