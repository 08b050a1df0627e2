"""Lambda-returns and generalised advantages of a fragment, discounted by time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]


def afterstate_returns(
    reward: Array, value: Array, dt_s: Array, continues: NDArray[np.bool_], *, beta_per_s: float, lam: float
) -> NDArray[np.float64]:
    """Lambda-returns of T afterstates: rewards of later requests, without the one just routed.

    ``G_t = exp(-beta*dt_t) * (r_{t+1} + (1 - lambda) * V_{t+1} + lambda * G_{t+1})``, with ``G_T = V_T`` for the last one
    (Sutton and Barto 2018, eq. 12.20, with a discount by time as decision epochs differ in length). Where an episode does not
    go on, ``G_t = V_t``: nothing is learned there, and nothing flows across.

    Args:
        reward: (T+1, B) what decision t earned.
        value: (T+1, B) value of the state at decision t, for the requests after t.
        dt_s: (T, B) time from decision t to the next.
        continues: (T, B) whether decision t + 1 belongs to the same episode as t.
        beta_per_s: discount rate.
        lam: lambda, from 0 (one step) to 1 (all of them).

    Returns:
        (T, B)
    """
    steps = len(dt_s)
    discount = np.exp(-beta_per_s * dt_s.astype(np.float64))
    returns = np.empty(dt_s.shape)
    later = value[steps].astype(np.float64)
    for t in range(steps - 1, -1, -1):
        ahead = (1 - lam) * value[t + 1] + lam * later
        later = np.where(continues[t], discount[t] * (reward[t + 1] + ahead), value[t])
        returns[t] = later
    return returns


def advantages(
    reward: Array, value: Array, dt_s: Array, continues: NDArray[np.bool_], *, beta_per_s: float, lam: float
) -> NDArray[np.float64]:
    """Generalised advantages of T decisions (Schulman et al., arXiv 1506.02438, eq. 16), discounted by time.

    ``A_t = r_t + exp(-beta*dt_t) * (V_{t+1} + lambda * A_{t+1}) - V_t``, with ``A_T = 0``. Where an episode does not go on, there
    is none: ``A_t = 0``, and nothing flows across.

    Args:
        reward: (T, B) what decision t earned.
        value: (T+1, B) value of the state at decision t.
        dt_s: (T, B) time from decision t to the next.
        continues: (T, B) whether decision t + 1 belongs to the same episode as t.
        beta_per_s: discount rate.
        lam: lambda, from 0 (one step) to 1 (all of them).

    Returns:
        (T, B)
    """
    discount = np.exp(-beta_per_s * dt_s.astype(np.float64))
    found = np.empty(dt_s.shape)
    later = np.zeros(dt_s.shape[1:])
    for t in range(len(dt_s) - 1, -1, -1):
        ahead = discount[t] * (value[t + 1] + lam * later)
        later = np.where(continues[t], reward[t] + ahead - value[t], 0.0)
        found[t] = later
    return found
