"""The Gymnasium environments: one cluster, and B clusters stepped in one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.scenarios.load import as_scenario
from rllib_envs.simulation import Simulation
from rllib_envs.view import View

Observations = dict[str, NDArray[np.float32]]

_BOUND = 1e6
"""Bound of the unbounded observation entries, which are of order one."""


class EdgeRoutingEnv(gym.Env[Observations, np.int64]):
    """Route each request of a workload to one of N LLM experts, or drop it.

    A decision epoch is an arrival. Time advances from one arrival to the next, and after the last one until the cluster is empty.

    Action: ``Discrete(N + 1)``: an expert's index, or N = drop. An expert is masked if its queue is full or it cannot hold the
    request. A request sent to a masked expert is rejected and earns 0. A request that no expert could ever hold is too long. It
    is not routed, whatever the action, and costs nothing. If the scenario has dynamics, a request that an expert's failure took
    arrives again, and an expert is masked while it is known to be down, or drained.

    Observation: a dict of float32 arrays, zero where there is no request. It never contains true lengths or scores:

    ================  ==========================  =====================================================================
    ``arrived``       (N, 3)                      the arrived request as predicted for each expert (ARRIVED_FEATURES)
    ``experts``       (N, 23)                     each expert: load, KV, backlog, its engine (EXPERT_FEATURES)
    ``running``       (N, running_slots, 8)       running requests, by admission (REQUEST_FEATURES)
    ``waiting``       (N, waiting_slots, 8)       waiting requests, by queue position; ``experts`` counts those beyond the slots
    ``running_mask``  (N, running_slots)          1 where there is a request
    ``waiting_mask``  (N, waiting_slots)          1 where there is a request
    ``cluster``       (8,)                        the cluster as a whole (CLUSTER_FEATURES)
    ``action_mask``   (N + 1,)                    1 where the action is possible; drop always is
    ``whatif``        (N, 18)                     predicted effect of each action (WHATIF_FEATURES), if the scenario sets it
    ``information``   (N, 4)                      what predictions are worth (INFORMATION_FEATURES), if the scenario sets it
    ``demand``        (7,)                        what late requests need (DEMAND_FEATURES), if the scenario sets it
    ``places``        (N, 2)                      how far each expert is from the user (PLACE_FEATURES), if the scenario sets it
    ================  ==========================  =====================================================================

    Reward: the scenario's weighted terms (``rllib_envs.reward``), summed from this decision to the next. With the default weights
    the rewards of an episode sum to the QoS of its requests, exactly.

    Termination: after the last request of the episode, whose step drains the cluster. Never truncated.

    Info: ``dt`` (seconds from this decision to the next), then ``qos``, ``finished``, ``late``, ``dropped``, ``rejected`` and
    ``too_long`` in that time. If experts have watts or prices, also ``energy_j`` of all experts in that time, and the ``cost`` of
    the request that was sent, with its true tokens. If the scenario sets it, also ``marginal_qos`` (N + 1,): the true marginal
    QoS of every action for the current request. It is a training target that a router must not see. If it has dynamics, also
    ``cancelled``, ``failed`` and ``retried``: requests of clients that gave up, that went down with their expert for good, and
    that arrive again.

    Example:
        >>> env = gym.make("EdgeRouting-v0", scenario="edge6")
        >>> observation, info = env.reset(seed=1)
        >>> observation, reward, terminated, truncated, info = env.step(0)
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, scenario: Scenario | str | PathLike[str] = "edge6", render_mode: str | None = None) -> None:
        """Set up the environment of a scenario, given as a value, a preset's name or a file.

        Raises:
            InputError: no such scenario, or not a valid one.
            ValueError: unknown render mode.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode = {render_mode!r}: allowed are None and {self.metadata['render_modes']}")
        self.scenario = as_scenario(scenario)
        self.render_mode = render_mode
        self._simulation = Simulation(self.scenario, 1)
        self.observation_space = observation_space(self._simulation)
        self.action_space = spaces.Discrete(self.scenario.n_experts + 1)
        self._history = None
        if render_mode:
            from rllib_envs.viewer import History  # here: matplotlib is imported only for rendering

            self._history = History(self.scenario)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observations, dict[str, Any]]:
        """Begin an episode; ``seed`` fixes it and seeds the generator of all later episodes without a seed."""
        super().reset(seed=seed)
        self._simulation.start(0, _episode_seed(self.np_random))
        if self._history is not None:
            self._history.restart(self._simulation)
        return self._observe(), self._info()

    def step(self, action: np.int64) -> tuple[Observations, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one decision."""
        reward = self._simulation.step(np.array([action], np.int64))
        if self._history is not None:
            self._history.record(self._simulation)
        return self._observe(), float(reward[0]), bool(self._simulation.over[0]), False, self._info()

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The episode so far as one (height, width, 3) picture; None without a render mode."""
        return None if self._history is None else self._history.draw()

    def _observe(self) -> Observations:
        return {key: value[0].copy() for key, value in _shown(self._simulation.view)}

    def _info(self) -> dict[str, Any]:
        return {
            key: value[0].copy() if value.ndim > 1 else value[0].item() for key, value in _step_info(self._simulation).items()
        }


class EdgeRoutingVectorEnv(VectorEnv[Observations, NDArray[np.int64], NDArray[Any]]):
    """B independent ``EdgeRoutingEnv`` stepped in one compiled call.

    Sub-environment i of ``reset(seed=s)`` is the single environment of seed s + i.

    Autoreset is NEXT_STEP: the step after a termination ignores its action and returns the next episode's first observation
    with reward 0.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self,
        num_envs: int = 1,
        scenario: Scenario | str | PathLike[str] = "edge6",
        copy: bool = True,
        render_mode: str | None = None,
        variants: Sequence[Scenario] = (),
    ) -> None:
        """Set up B = ``num_envs`` environments.

        ``copy=False`` returns the internal buffers, which the next call overwrites. ``variants`` has a scenario for each
        environment, if their episodes are drawn differently (``Simulation``).

        Raises:
            InputError: no such scenario, or not a valid one.
            ValueError: num_envs < 1, or a render mode is given.
        """
        if render_mode is not None:
            raise ValueError(f"render_mode = {render_mode!r}: the vector environment has none; render a single one")
        self.scenario = as_scenario(scenario)
        self.num_envs = num_envs
        self.render_mode = None
        self.simulation = Simulation(self.scenario, num_envs, variants=variants)
        self.single_observation_space = observation_space(self.simulation)
        self.single_action_space = spaces.Discrete(self.scenario.n_experts + 1)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._copy = copy
        self._generators = [seeding.np_random(None)[0] for _ in range(num_envs)]
        self._ended = np.zeros(num_envs, np.bool_)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin an episode in every sub-environment."""
        seeds = (
            [None if seed is None else seed + i for i in range(self.num_envs)] if seed is None or isinstance(seed, int) else seed
        )
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed has {len(seeds)} entries: must be one for each of the {self.num_envs} environments")
        self._generators = [old if s is None else seeding.np_random(s)[0] for s, old in zip(seeds, self._generators, strict=True)]
        for i in range(self.num_envs):
            self.simulation.start(i, _episode_seed(self._generators[i]))
        self._ended[:] = False
        return self._observe(), _step_info(self.simulation)

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[Observations, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Take one decision in each."""
        resetting = np.flatnonzero(self._ended)
        rewards = self.simulation.step(np.asarray(actions, np.int64))
        for i in resetting:
            self.simulation.start(int(i), _episode_seed(self._generators[i]))
        self._ended = self.simulation.over.copy()
        return self._observe(), rewards, self._ended.copy(), np.zeros(self.num_envs, np.bool_), _step_info(self.simulation)

    def _observe(self) -> Observations:
        return {key: value.copy() if self._copy else value for key, value in _shown(self.simulation.view)}


def observation_space(simulation: Simulation) -> spaces.Dict:
    """Space of one cluster's observation."""

    def box(key: str, shape: tuple[int, ...]) -> spaces.Box:
        low, high = (0.0, 1.0) if key.endswith("_mask") else (-_BOUND, _BOUND)
        return spaces.Box(low, high, shape, np.float32)

    return spaces.Dict({key: box(key, value.shape[1:]) for key, value in _shown(simulation.view)})


def _shown(view: View) -> list[tuple[str, NDArray[np.float32]]]:
    return [(key, value) for key, value in view._asdict().items() if value.size]


def _step_info(simulation: Simulation) -> dict[str, NDArray[Any]]:
    steps = simulation.steps
    info: dict[str, NDArray[Any]] = {"dt": steps["dt_s"].copy()}
    info.update({name: steps[name].copy() for name in ("qos", "finished", "late", "dropped", "rejected", "too_long")})
    if simulation.meter is not None:
        info.update({name: steps[name].copy() for name in ("energy_j", "cost")})
    if simulation.living is not None:
        info.update({name: steps[name].copy() for name in ("cancelled", "failed", "retried")})
    if simulation.scenario.observation.counterfactual:
        info["marginal_qos"] = simulation.marginal.copy()
    return info


def _episode_seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**63))
