"""Rollout fragments: columns of T steps of B environments, time first, each observation once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP_COLUMNS = ("qos", "finished", "late", "dropped", "rejected", "too_long")
"""Entries of a step's info that a fragment keeps under their own names, and whose sums a runner logs."""

Info = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fragment:
    """T steps of B environments of one scenario. Row t of a column is the decision on observation t.

    Next-step autoreset leaves one row an episode that is no decision: the action is ignored, nothing is earned, no time passes,
    and the observation goes from the end of one episode to the beginning of the next. ``valid`` is False there.

    RLlib accepts it as a sample: it has a length and counts its steps, without invalid rows.
    """

    obs: dict[str, NDArray[np.float32]]  # each (T+1, B, ...); the last is what the values of the last step bootstrap from
    actions: NDArray[np.int64]  # (T, B)
    rewards: NDArray[np.float32]  # (T, B)
    dt_s: NDArray[np.float32]  # (T, B) time from this decision to the next
    terminated: NDArray[np.bool_]  # (T, B) the episode ends with this step
    valid: NDArray[np.bool_]  # (T, B)
    marginal: NDArray[np.float32] | None  # (T, B, N+1) ``marginal_qos`` of observation t (NaN: expert full), if there is one
    sums: dict[str, NDArray[np.float32]]  # STEP_COLUMNS, each (T, B)
    worker: int  # index of the rollout worker
    group: int  # index of the scenario within the worker: environment b is known by (worker, group, b)

    def __len__(self) -> int:
        return self.env_steps()

    def env_steps(self) -> int:
        """Valid steps."""
        return int(np.count_nonzero(self.valid))

    def agent_steps(self) -> int:
        """The same: there is one agent."""
        return self.env_steps()


class Recorder:
    """Records a fragment: begins with an observation, adds a step at a time, grows when full.

    Args:
        rows: steps that there is room for at first.
        observation: what the first action is decided on, each (B, ...); copied.
        info: the info that came with it.
        ended: (B,) environments whose episode is over: their first row is not valid.
    """

    def __init__(self, rows: int, observation: Mapping[str, NDArray[np.float32]], info: Info, ended: NDArray[np.bool_]) -> None:
        batch = ended.size
        self.rows = 0
        self._ended = ended
        self._room = max(rows, 1)
        self._obs = {key: np.empty((self._room + 1, *value.shape), np.float32) for key, value in observation.items()}
        types = {"actions": np.int64, "rewards": np.float32, "dt": np.float32, "terminated": np.bool_, "valid": np.bool_}
        self._columns: dict[str, NDArray[Any]] = {key: np.empty((self._room, batch), dtype) for key, dtype in types.items()}
        self._columns |= {key: np.empty((self._room, batch), np.float32) for key in STEP_COLUMNS}
        self._marginal = None
        if "marginal_qos" in info:
            self._marginal = np.empty((self._room + 1, *info["marginal_qos"].shape), np.float32)
        self._show(0, observation, info)

    @property
    def observation(self) -> dict[str, NDArray[np.float32]]:
        """The observation for the next action, each (B, ...), contiguous."""
        return {key: value[self.rows] for key, value in self._obs.items()}

    def add(
        self,
        actions: NDArray[np.int64],
        observation: Mapping[str, NDArray[np.float32]],
        rewards: NDArray[np.floating[Any]],
        ended: NDArray[np.bool_],
        info: Info,
    ) -> None:
        """Add a step: the actions on the last observation, and their results."""
        if self.rows == self._room:
            self._grow()
        row, columns = self.rows, self._columns
        columns["actions"][row] = actions
        columns["rewards"][row] = rewards
        columns["dt"][row] = info["dt"]
        columns["terminated"][row] = ended
        columns["valid"][row] = ~self._ended
        for key in STEP_COLUMNS:
            columns[key][row] = info[key]
        self._show(row + 1, observation, info)
        self._ended = ended
        self.rows = row + 1

    def fragment(self, *, worker: int, group: int, whole_episodes: bool = False) -> Fragment:
        """The columns so far; with ``whole_episodes``, steps of episodes that have not ended are marked invalid."""
        columns = {key: column[: self.rows] for key, column in self._columns.items()}
        if whole_episodes:
            columns["valid"] &= np.logical_or.accumulate(columns["terminated"][::-1], axis=0)[::-1]
        return Fragment(
            obs={key: value[: self.rows + 1] for key, value in self._obs.items()},
            actions=columns["actions"],
            rewards=columns["rewards"],
            dt_s=columns["dt"],
            terminated=columns["terminated"],
            valid=columns["valid"],
            marginal=None if self._marginal is None else self._marginal[: self.rows],
            sums={key: columns[key] for key in STEP_COLUMNS},
            worker=worker,
            group=group,
        )

    def _show(self, row: int, observation: Mapping[str, NDArray[np.float32]], info: Info) -> None:
        for key, value in self._obs.items():
            value[row] = observation[key]
        if self._marginal is not None:
            self._marginal[row] = info["marginal_qos"]

    def _grow(self) -> None:
        def longer(column: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([column, np.empty_like(column[: self._room])])

        self._obs = {key: longer(value) for key, value in self._obs.items()}
        self._columns = {key: longer(column) for key, column in self._columns.items()}
        if self._marginal is not None:
            self._marginal = longer(self._marginal)
        self._room *= 2
