"""Vector environments of several scenarios, which may differ in the number of experts, stepped as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rllib_envs.env import EdgeRoutingVectorEnv, Observations
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario
from rllib_envs.scenarios.load import as_scenario

Group = tuple[Scenario | Sequence[Scenario], int]
"""A scenario and the number of its environments; or a scenario for each, which differ in how episodes are drawn alone."""


class EnvGroups(VectorEnv[Any, Any, Any]):
    """Groups of vector environments. Where one takes or gives an array, this has a list with an entry for each group.

    Observations are the environments' own buffers, which the next call overwrites. The spaces are those of the first group.

    Attributes:
        groups: the vector environments.

    Raises:
        InputError: no group, an empty one, or groups whose observations are not of one kind.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(self, groups: Sequence[Group]) -> None:
        _check(groups)
        self.groups = [_environments(scenarios, count) for scenarios, count in groups]
        self.num_envs = sum(group.num_envs for group in self.groups)
        self.single_observation_space = self.groups[0].single_observation_space
        self.single_action_space = self.groups[0].single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(  # pyright: ignore[reportIncompatibleMethodOverride] (lists, see above)
        self, *, seed: Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Observations], list[dict[str, Any]]]:
        """Begin an episode in every environment; ``seed`` has an entry for each of them."""
        seeds: list[int | None] = [None] * self.num_envs if seed is None else list(seed)
        results: list[tuple[Observations, dict[str, Any]]] = []
        for group in self.groups:
            own, seeds = seeds[: group.num_envs], seeds[group.num_envs :]
            results.append(group.reset(seed=own))
        return [observation for observation, _ in results], [info for _, info in results]

    def step(  # pyright: ignore[reportIncompatibleMethodOverride] (lists, see above)
        self, actions: Sequence[NDArray[np.int64]]
    ) -> tuple[list[Any], list[Any], list[Any], list[Any], list[Any]]:
        """Take one decision in each."""
        results = [group.step(own) for group, own in zip(self.groups, actions, strict=True)]
        observations, rewards, terminated, truncated, infos = zip(*results, strict=True)
        return list(observations), list(rewards), list(terminated), list(truncated), list(infos)

    def stagger(self) -> None:
        """Cut the new episodes to evenly spread lengths, so that later ones do not begin and end together."""
        for group in self.groups:
            total = group.simulation.workload.total
            total[:] = np.maximum(total * np.arange(1, group.num_envs + 1) // group.num_envs, 1)


def groups_of(env_config: Mapping[str, Any], num_envs: int) -> list[Group]:
    """Build the groups of an ``env_config``: from ``scenarios``, a list of ``Group``, or from ``scenario``.

    Args:
        env_config: with one of the two; a scenario is a value, a preset's name or a file.
        num_envs: environments of the runner; those of ``scenarios`` must add up to it.

    Raises:
        InputError: neither or both are given, the numbers do not add up, or a scenario is not valid.
    """
    if ("scenario" in env_config) == ("scenarios" in env_config):
        raise InputError("env_config: must hold either scenario or scenarios")
    pairs = env_config["scenarios"] if "scenarios" in env_config else [(env_config["scenario"], num_envs)]
    total = sum(count for _, count in pairs)
    if total != num_envs:
        raise InputError(
            f"num_envs_per_env_runner = {num_envs}: must be the number of environments in env_config.scenarios, {total}"
        )
    return [(_as_scenarios(scenarios), count) for scenarios, count in pairs]


def first_scenarios(env_config: Mapping[str, Any]) -> list[Scenario]:
    """The scenario of each group that an ``env_config`` asks for; the first, where each environment has its own.

    Raises:
        InputError: as ``groups_of``.
    """
    pairs = env_config.get("scenarios", [(None, 1)])
    return [_first(scenarios) for scenarios, _ in groups_of(env_config, sum(count for _, count in pairs))]


def _as_scenarios(scenarios: Any) -> Scenario | tuple[Scenario, ...]:
    """One scenario, or one for each environment; each as it may be given."""
    return tuple(map(as_scenario, scenarios)) if isinstance(scenarios, list | tuple) else as_scenario(scenarios)


def _environments(scenarios: Scenario | Sequence[Scenario], count: int) -> EdgeRoutingVectorEnv:
    variants = () if isinstance(scenarios, Scenario) else tuple(scenarios)
    return EdgeRoutingVectorEnv(count, _first(scenarios), copy=False, variants=variants)


def _first(scenarios: Scenario | Sequence[Scenario]) -> Scenario:
    return scenarios if isinstance(scenarios, Scenario) else scenarios[0]


def _check(groups: Sequence[Group]) -> None:
    if not groups:
        raise InputError("env_config.scenarios = []: must hold at least one (scenario, number of environments)")
    kind = _first(groups[0][0]).observation
    for i, (scenarios, count) in enumerate(groups):
        scenario = _first(scenarios)
        where, seen = f"env_config.scenarios[{i}] ({scenario.name})", scenario.observation
        if count < 1:
            raise InputError(f"{where}: {count} environments: must be >= 1")
        if not isinstance(scenarios, Scenario) and len(scenarios) != count:
            raise InputError(f"{where}: {len(scenarios)} scenarios for {count} environments: must be one, or one for each")
        for name in ("whatif", "information", "demand", "places", "counterfactual"):
            if getattr(seen, name) != getattr(kind, name):
                raise InputError(f"{where}: observation.{name} = {getattr(seen, name)}: must be as in the first scenario")
