"""Memory use of a simulation, computed before it is allocated."""

from __future__ import annotations

import os

from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario
from rllib_envs.service_terms import service_of
from rllib_envs.sim.state import EXTRA, RECORD, REQUEST
from rllib_envs.sim.terms import USER

_GIB = 2**30
_REQUEST_BYTES = REQUEST.itemsize + RECORD.itemsize + USER.itemsize + 29  # the rest: arrival, age, prompt, judged, calibration
_WHATIF_BYTES = 4 * 32  # of an expert's what-if results, at most
_SHOWN_BYTES = 4 * 9  # of a slot: eight features and the mask
_TOLD_BYTES = 4 * 5  # of a request at one expert: true and predicted, score and length, and what the latter is worth


def machine_bytes() -> int:
    """Memory of this machine, bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def simulation_bytes(scenario: Scenario, batch: int, requests: int) -> dict[str, int]:
    """Bytes of the arrays of ``batch`` clusters with ``requests`` requests each, by the fields that they grow with.

    The estimate is within a tenth of the actual use.
    """
    n, seen = scenario.n_experts, scenario.observation
    engines = [expert.engine for expert in scenario.experts]
    running, waiting = max(e.max_num_seqs for e in engines), max(e.max_waiting for e in engines)
    queue = 1 << (running + waiting - 1).bit_length()
    request = _REQUEST_BYTES + (0 if service_of(scenario).plain and scenario.dynamics is None else EXTRA.itemsize)
    return {
        f"workload.requests = {requests:,}": batch * requests * (request + n * _TOLD_BYTES),
        f"observation.running_slots = {seen.running_slots:,}": batch * n * seen.running_slots * _SHOWN_BYTES,
        f"observation.waiting_slots = {seen.waiting_slots:,}": batch * n * seen.waiting_slots * _SHOWN_BYTES,
        f"max_num_seqs = {running:,} and max_waiting = {waiting:,}": batch * n * (8 * running + 4 * queue + _WHATIF_BYTES),
    }


def check_footprint(scenario: Scenario, batch: int, requests: int) -> None:
    """Check that the machine has the memory for ``batch`` clusters with ``requests`` requests each.

    Raises:
        InputError: it has not; names the fields that need most of it, and the bytes.
    """
    parts = simulation_bytes(scenario, batch, requests)
    total, machine = sum(parts.values()), machine_bytes()
    if total > machine:
        most = [f"{field}: {size / _GIB:,.1f} GiB" for field, size in parts.items() if 10 * size > total]
        raise InputError(
            f"scenario {scenario.name}: {batch:,} cluster{'s' if batch > 1 else ''} of {scenario.n_experts} experts would take "
            f"{total / _GIB:,.1f} GiB of memory ({'; '.join(most)}); this machine has {machine / _GIB:,.1f} GiB"
        )
