"""The arrays of an observation: named records, filled by compiled code, and float32 columns in the same memory for networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.expert import Expert
from rllib_envs.scenario import Observation
from rllib_envs.sim.rows import (
    ARRIVED_ROW,
    CLUSTER_ROW,
    DEMAND_ROW,
    EXPERT_ROW,
    INFORMATION_ROW,
    PLACE_ROW,
    REQUEST_ROW,
    WHATIF_ROW,
)


class ObservationRows(NamedTuple):
    """Observation buffers of B clusters as records (``rllib_envs.sim.rows``), zero wherever the mask is zero."""

    arrived: NDArray[np.void]  # (B, N) ARRIVED_ROW
    experts: NDArray[np.void]  # (B, N) EXPERT_ROW
    running: NDArray[np.void]  # (B, N, running_slots) REQUEST_ROW
    waiting: NDArray[np.void]  # (B, N, waiting_slots) REQUEST_ROW
    running_mask: NDArray[np.float32]  # (B, N, running_slots)
    waiting_mask: NDArray[np.float32]  # (B, N, waiting_slots)
    cluster: NDArray[np.void]  # (B,) CLUSTER_ROW
    action_mask: NDArray[np.float32]  # (B, N+1); drop is always allowed
    whatif: NDArray[np.void]  # (B, N) WHATIF_ROW, or (B, 0) if the scenario does not set it
    information: NDArray[np.void]  # (B, N) INFORMATION_ROW, or (B, 0) likewise
    demand: NDArray[np.void]  # (B,) DEMAND_ROW, or (0,) likewise
    places: NDArray[np.void]  # (B, N) PLACE_ROW, or (B, 0) likewise


class View(NamedTuple):
    """The same as float32 columns, in the memory of the records."""

    arrived: NDArray[np.float32]  # (B, N, 3)
    experts: NDArray[np.float32]  # (B, N, 23)
    running: NDArray[np.float32]  # (B, N, running_slots, 8)
    waiting: NDArray[np.float32]  # (B, N, waiting_slots, 8)
    running_mask: NDArray[np.float32]  # (B, N, running_slots)
    waiting_mask: NDArray[np.float32]  # (B, N, waiting_slots)
    cluster: NDArray[np.float32]  # (B, 8)
    action_mask: NDArray[np.float32]  # (B, N+1)
    whatif: NDArray[np.float32]  # (B, N, 18), or (B, N, 0) if the scenario does not set it
    information: NDArray[np.float32]  # (B, N, 4), or (B, N, 0) likewise
    demand: NDArray[np.float32]  # (B, 7), or (B, 0) likewise
    places: NDArray[np.float32]  # (B, N, 2), or (B, N, 0) likewise


def allocate_rows(batch: int, experts: Sequence[Expert], spec: Observation) -> ObservationRows:
    """Buffers for the observations of B clusters, zero except for the experts' mean scores, which are constant."""
    shape = batch, len(experts)
    rows = ObservationRows(
        arrived=np.zeros(shape, ARRIVED_ROW),
        experts=np.zeros(shape, EXPERT_ROW),
        running=np.zeros((*shape, spec.running_slots), REQUEST_ROW),
        waiting=np.zeros((*shape, spec.waiting_slots), REQUEST_ROW),
        running_mask=np.zeros((*shape, spec.running_slots), np.float32),
        waiting_mask=np.zeros((*shape, spec.waiting_slots), np.float32),
        cluster=np.zeros(batch, CLUSTER_ROW),
        action_mask=np.zeros((batch, len(experts) + 1), np.float32),
        whatif=np.zeros(shape if spec.whatif else (batch, 0), WHATIF_ROW),
        information=np.zeros(shape if spec.information else (batch, 0), INFORMATION_ROW),
        demand=np.zeros(batch if spec.demand else 0, DEMAND_ROW),
        places=np.zeros(shape if spec.places else (batch, 0), PLACE_ROW),
    )
    rows.experts["mean_score"] = [expert.mean_score for expert in experts]
    return rows


def view_of(rows: ObservationRows) -> View:
    """The rows as float32 columns for networks."""
    return View(
        arrived=_columns(rows.arrived, rows.arrived.shape),
        experts=_columns(rows.experts, rows.experts.shape),
        running=_columns(rows.running, rows.running.shape),
        waiting=_columns(rows.waiting, rows.waiting.shape),
        running_mask=rows.running_mask,
        waiting_mask=rows.waiting_mask,
        cluster=_columns(rows.cluster, rows.cluster.shape),
        action_mask=rows.action_mask,
        whatif=_columns(rows.whatif, rows.experts.shape),
        information=_columns(rows.information, rows.experts.shape),
        demand=_columns(rows.demand, rows.cluster.shape),
        places=_columns(rows.places, rows.experts.shape),
    )


def _columns(records: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Records of float32 fields as columns, (*shape, fields)."""
    return records.view(np.float32).reshape(*shape, -1)
