"""Replay buffer: a ring of past steps in columns, time first. The next observation is in the next row."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.utils.checkpoints import Checkpointable

from models.rllib.rollout.fragments import Fragment

DT_S = "dt_s"
"""Key of a sample's column of times to the next decision."""

MARGINAL = "marginal"
"""Key of a sample's column of the true marginal QoS of all actions, if fragments have it."""

_KEY, _OBS = "column.", "obs."


class Replay(Checkpointable):
    """The last steps of each scenario, in a ``Ring`` each, since scenarios may differ in the number of experts.

    Args:
        capacity: environment steps to keep, over all scenarios.
        groups: number of scenarios.
    """

    def __init__(self, capacity: int, groups: int) -> None:
        self._capacity, self._groups = capacity, groups
        self.rings = [Ring(capacity // groups) for _ in range(groups)]

    def __len__(self) -> int:
        return sum(len(ring) for ring in self.rings)

    def add(self, fragment: Fragment) -> None:
        """Store the steps of a fragment in the ring of its scenario."""
        self.rings[fragment.group].add(fragment)

    def shares(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """(groups,) number of ``n`` draws on each scenario, sampled in proportion to its stored steps.

        Raises:
            ValueError: nothing is stored.
        """
        lengths = np.array([len(ring) for ring in self.rings], np.float64)
        if not lengths.any():
            raise ValueError("the replay buffer is empty: nothing can be drawn")
        return rng.multinomial(n, lengths / lengths.sum())

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Everything stored."""
        return {"rings": [ring.get_state() for ring in self.rings]}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the result of ``get_state``."""
        for ring, own in zip(self.rings, state["rings"], strict=True):
            ring.set_state(own)

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of the constructor."""
        return (), {"capacity": self._capacity, "groups": self._groups}


class Ring:
    """The last steps of B environments.

    A fragment takes T + 1 rows, the last one for the observation that it ends with. A fragment that goes on where the last
    one ended begins in that row, so that its observation is stored once; after one of another worker, or a reset, the row stays
    as one that has no step. Rows without a valid step are never drawn. Since rows are overwritten in the order in which
    they were written, what precedes an overwritten row is either new itself or has no step: a next observation is never wrong.

    Args:
        capacity: steps to keep, valid or not; memory is bounded by it and taken at the first fragment.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._columns: dict[str, NDArray[Any]] = {}  # each (rows, B, ...)
        self._ready = np.zeros((0, 0), np.bool_)  # (rows, B) a valid step with its next observation
        self._cells = np.zeros(0, np.int64)  # flat indices of those
        self._last = -1  # the row written last
        self._mean_rewards = np.zeros(0, np.float32)  # (B,) over the valid steps stored

    def __len__(self) -> int:
        return self._cells.size

    @property
    def nbytes(self) -> int:
        """Memory of the columns."""
        return sum(column.nbytes for column in self._columns.values())

    def add(self, fragment: Fragment) -> None:
        """Store the steps of a fragment; of one that is longer than the ring, the last ones.

        Raises:
            ValueError: the capacity is less than two steps of each environment.
        """
        if not self._columns:
            self._allocate(fragment)
        rows = self._ready.shape[0]
        count = fragment.actions.shape[0]
        first = max(count - rows + 1, 0)
        start = self._last if first == 0 and self._goes_on(fragment) else self._last + 1
        at = (start + np.arange(count - first + 1)) % rows
        for key, column in self._columns.items():
            if key.startswith(_OBS):
                column[at] = fragment.obs[key.removeprefix(_OBS)][first:]
            else:
                column[at[:-1]] = getattr(fragment, key)[first:]
        self._ready[at[:-1]] = fragment.valid[first:]
        self._ready[at[-1]] = False
        self._last = int(at[-1])
        self._count()

    def sample(self, n: int, rng: np.random.Generator, *, centred: bool = False) -> dict[str, Any]:
        """``n`` steps drawn uniformly, with replacement, as the flat columns that learners take, (n, ...) each.

        With ``centred`` rewards are less the mean of their environment over all that is stored: no decision moves it much.

        Raises:
            ValueError: nothing is stored.
        """
        if not self._cells.size:
            raise ValueError("the replay buffer is empty: nothing can be drawn")
        cells = self._cells[rng.integers(self._cells.size, size=n)]
        after = (cells + self._ready.shape[1]) % self._ready.size

        def take(key: str, where: NDArray[np.int64]) -> NDArray[Any]:
            column = self._columns[key]
            return column.reshape(-1, *column.shape[2:])[where]

        rewards = take("rewards", cells)
        if centred:
            rewards = rewards - self._mean_rewards[cells % self._mean_rewards.size]
        observations = [key for key in self._columns if key.startswith(_OBS)]
        sample = {
            Columns.OBS: {key.removeprefix(_OBS): take(key, cells) for key in observations},
            Columns.NEXT_OBS: {key.removeprefix(_OBS): take(key, after) for key in observations},
            Columns.ACTIONS: take("actions", cells),
            Columns.REWARDS: rewards,
            Columns.TERMINATEDS: take("terminated", cells),
            DT_S: take("dt_s", cells),
        }
        return sample | {MARGINAL: take(MARGINAL, cells)} if MARGINAL in self._columns else sample

    def get_state(self) -> dict[str, Any]:
        """Everything stored; arrays are not copied."""
        return {"ready": self._ready, "last": self._last, **{_KEY + key: column for key, column in self._columns.items()}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a copy of what ``get_state`` returned."""
        self._ready, self._last = cast(NDArray[np.bool_], state["ready"]).copy(), state["last"]
        self._columns = {key.removeprefix(_KEY): column.copy() for key, column in state.items() if key.startswith(_KEY)}
        self._count()

    def _count(self) -> None:
        """What follows from the steps stored."""
        self._cells = np.flatnonzero(self._ready)
        if self._columns:
            sums = np.where(self._ready, self._columns["rewards"], 0).sum(axis=0, dtype=np.float64)
            self._mean_rewards = (sums / np.maximum(self._ready.sum(axis=0), 1)).astype(np.float32)

    def _allocate(self, fragment: Fragment) -> None:
        batch = fragment.actions.shape[1]
        rows = self._capacity // batch
        if rows < 2:
            raise ValueError(f"capacity = {self._capacity} for {batch} environments: must be two steps of each at least")
        for key, value in fragment.obs.items():
            self._columns[_OBS + key] = np.zeros((rows, *value.shape[1:]), value.dtype)
        for key in ("actions", "rewards", "terminated", "dt_s"):
            value = getattr(fragment, key)
            self._columns[key] = np.zeros((rows, batch), value.dtype)
        if fragment.marginal is not None:
            self._columns[MARGINAL] = np.zeros((rows, *fragment.marginal.shape[1:]), fragment.marginal.dtype)
        self._ready = np.zeros((rows, batch), np.bool_)

    def _goes_on(self, fragment: Fragment) -> bool:
        """Whether the fragment continues the last one."""
        return self._last >= 0 and all(
            np.array_equal(self._columns[_OBS + key][self._last], value[0]) for key, value in fragment.obs.items()
        )
