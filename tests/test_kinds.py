"""Kinds of drawn worlds: valid, fixed by their seed, and with a way for every request."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario
from rllib_envs.scenarios.kinds import KINDS, check_kinds, of_kind
from rllib_envs.scenarios.load import parse_scenario
from rllib_envs.scenarios.procedural import draw_scenario
from rllib_envs.service_terms import allowed_experts
from rllib_envs.sim.state import PENDING
from rllib_envs.simulation import Simulation

SEEDS = range(12)
HAS = {
    "classes": ("classes",), "sites": ("network",), "private": ("tenants",), "edge": ("classes", "network", "tenants"),
    "changing": ("dynamics",),
}  # fmt: skip


def drawn(seed: int, experts: int = 4) -> Scenario:
    return draw_scenario(np.random.default_rng([seed]), experts=experts, requests=40)


@pytest.mark.parametrize("kind", KINDS)
def test_a_world_of_a_kind_is_valid_and_has_what_its_kind_says(kind: str) -> None:
    for seed in SEEDS[:4]:
        plain = drawn(seed)
        world = of_kind(kind, plain, (seed, 7))
        assert world == of_kind(kind, plain, (seed, 7))
        assert parse_scenario(world.to_dict(), "here") == world
        for part in ("classes", "network", "tenants", "dynamics"):
            assert bool(getattr(world, part)) == (part in HAS.get(kind, ()))
        assert (world == plain) == (kind == "plain")
        assert world.workload == plain.workload


def test_another_seed_or_kind_gives_other_draws() -> None:
    plain = drawn(0)
    worlds = [of_kind(kind, plain, (seed,)) for kind in KINDS if kind != "plain" for seed in SEEDS]
    assert len({world.fingerprint() for world in worlds}) == len(worlds)


def test_weights_are_1_in_the_mean_over_requests() -> None:
    for seed in SEEDS:
        classes = of_kind("classes", drawn(0), (seed,)).classes
        share = np.array([entry.share for entry in classes])
        assert share @ [entry.weight for entry in classes] / share.sum() == pytest.approx(1, rel=0.01)  # three digits each


@pytest.mark.parametrize("experts", [2, 3, 5])
def test_every_request_may_go_somewhere_and_some_not_everywhere(experts: int) -> None:
    for seed in SEEDS:
        allowed = allowed_experts(of_kind("edge", drawn(0, experts), (seed,)))
        assert allowed.any(axis=-1).all()
        assert not allowed.all()


def test_a_world_of_every_part_runs() -> None:
    world = of_kind("edge", drawn(1), (3,))
    simulation = Simulation(world, 2)
    simulation.start_all([1, 2])
    while not simulation.over.all():
        simulation.step(simulation.view.action_mask[:, :-1].argmax(axis=1))
    records = simulation.records(0)
    assert (records.network_s > 0).any()
    assert len(np.unique(records.service)) > 1


def test_in_a_changing_world_every_request_has_one_end() -> None:
    for seed in SEEDS[:6]:
        simulation = Simulation(of_kind("changing", drawn(2), (seed,)), 1)
        simulation.start(0, seed)
        while not simulation.over.all():
            simulation.step(simulation.view.action_mask[:, :-1].argmax(axis=1))
        assert simulation.records(0).status.size == 40
        assert (simulation.records(0).status != PENDING).all()


@pytest.mark.parametrize("names", [(), ("plain", "odd")])
def test_kinds_that_there_are_not_are_named(names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"kinds = .*allowed are plain, classes, sites, private, edge, changing"):
        check_kinds(names)
