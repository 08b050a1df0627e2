"""Service classes that come with the arrivals, by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.service import ServiceClass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenClasses:
    """The service class of each of M requests."""

    number: NDArray[np.int32]  # (M,) index in ``names``
    names: tuple[str, ...]
    where: tuple[str, ...]  # where each name was read first, for messages

    def at(self, index: slice | NDArray[np.integer[Any]]) -> GivenClasses:
        """The classes of some of the requests."""
        return replace(self, number=self.number[index])

    def among(self, classes: Sequence[ServiceClass]) -> NDArray[np.int32]:
        """(M,) index in ``classes`` of each request's own.

        Raises:
            InputError: the name of a request's class is not among them.
        """
        known = [entry.name for entry in classes]
        for i in np.unique(self.number):
            if self.names[i] not in known:
                raise InputError(f"{self.where[i]}: {self.names[i]!r} is no service class; there are {', '.join(known)}")
        place = np.array([known.index(name) if name in known else 0 for name in self.names], np.int32)
        return place[self.number]
