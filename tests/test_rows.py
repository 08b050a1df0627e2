"""The rows of an observation: named records and float32 columns are one memory, and no field moves."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from importlib import resources

import numpy as np
import pytest

from models.export.description import LAYOUT, layout_of
from models.former_names import current_names
from rllib_envs.scenario import Observation
from rllib_envs.sim.rows import (
    ARRIVED_ROW,
    ARRIVED_TABLE,
    CLUSTER_ROW,
    CLUSTER_TABLE,
    DEMAND_ROW,
    DEMAND_TABLE,
    EXPERT_ROW,
    EXPERT_TABLE,
    INFORMATION_ROW,
    INFORMATION_TABLE,
    PLACE_ROW,
    PLACE_TABLE,
    REQUEST_ROW,
    REQUEST_TABLE,
    WHATIF_ROW,
    WHATIF_TABLE,
)
from rllib_envs.simulation import Simulation
from tests.worlds import play, random_network, small, tight

ROWS = {
    "experts": (EXPERT_ROW, EXPERT_TABLE),
    "requests": (REQUEST_ROW, REQUEST_TABLE),
    "arrived": (ARRIVED_ROW, ARRIVED_TABLE),
    "cluster": (CLUSTER_ROW, CLUSTER_TABLE),
    "whatif": (WHATIF_ROW, WHATIF_TABLE),
    "information": (INFORMATION_ROW, INFORMATION_TABLE),
    "demand": (DEMAND_ROW, DEMAND_TABLE),
    "places": (PLACE_ROW, PLACE_TABLE),
}
PARTS = {"running": "requests", "waiting": "requests"}


@pytest.mark.parametrize("part", ROWS)
def test_a_record_is_its_table_in_order_and_what_bundles_were_trained_on(part: str) -> None:
    row, table = ROWS[part]
    assert row.names == tuple(table) == layout_of(Observation(information=True, demand=True, places=True))[part]
    assert row.fields is not None
    assert [row.fields[name] for name in table] == [(np.dtype(np.float32), 4 * i) for i in range(len(table))]
    assert row.itemsize == 4 * len(table)
    shipped = json.loads((resources.files("tuning") / "presets" / "edge6-router" / "router.json").read_text())
    if part in shipped["layout"]:  # what it was trained with
        assert current_names(shipped["layout"][part]) == list(table)


@pytest.mark.parametrize("part", ROWS)
def test_scales_cost_no_precision(part: str) -> None:
    for name, feature in ROWS[part][1].items():
        assert math.frexp(feature.scale)[0] == 0.5, name  # a power of two
        assert feature.meaning, name


def pickled(simulation: Simulation) -> Simulation:
    return pickle.loads(pickle.dumps(simulation))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_networks_read_the_memory_of_the_records(copied: Callable[[Simulation], Simulation]) -> None:
    observation = Observation(whatif=True, information=True, demand=True, places=True, running_slots=3, waiting_slots=2)
    scenario = tight(random_network(small("edge3", observation=observation), np.random.default_rng(0)))
    simulation = Simulation(scenario, 2)
    simulation.start_all([0, 1])
    play(simulation, np.zeros(20, np.int64))
    simulation = copied(simulation)
    for part, columns in simulation.view._asdict().items():
        records = getattr(simulation.rows, part)
        assert np.shares_memory(records, columns)
        if records.dtype.names is None:
            continue
        assert columns.any()
        assert columns.dtype == np.float32
        assert columns.flags.c_contiguous
        for i, name in enumerate(ROWS[PARTS.get(part, part)][1]):
            np.testing.assert_array_equal(columns[..., i], records[name])
    simulation.world.rows.experts["base_time"] = 7.0
    assert (simulation.view.experts[..., LAYOUT["experts"].index("base_time")] == 7.0).all()


@pytest.mark.parametrize("part", ["whatif", "information", "places"])
def test_what_is_not_asked_for_has_no_memory(part: str) -> None:
    simulation = Simulation(small("edge3"), 2)
    assert getattr(simulation.view, part).shape == (2, 3, 0)
    assert getattr(simulation.rows, part).size == 0
    assert simulation.view.demand.shape == (2, 0)
