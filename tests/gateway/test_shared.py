"""Gateways that map the same file see what all of them have under way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.decider import Decider, share_ledgers
from gateway.request import RouteRequest
from gateway.shared import map_shared
from rllib_envs.heuristic import present
from rllib_envs.scenarios.load import load_scenario
from tests.gateway.clocks import steady_decider

ALL = [True] * 6


def gateways(path: Path, count: int) -> list[Decider]:
    return [steady_decider(load_scenario("edge6"), shared=path, gateway=i, gateways=count, capacity=256) for i in range(count)]


def test_each_sees_the_requests_of_all(tmp_path: Path) -> None:
    path = tmp_path / "ledgers"
    share_ledgers(path, load_scenario("edge6"), 3, capacity=256)
    assert path.stat().st_mode & 0o777 == 0o600
    deciders = gateways(path, 3)
    for decider in deciders:
        decider.warm_up()  # in private
    rng = np.random.default_rng(0)
    keys: list[tuple[Decider, str]] = []
    for i in range(900):
        now_s = 0.05 * i
        decider = deciders[int(rng.integers(3))]
        decision = decider.decide(RouteRequest(prompt_tokens=int(rng.integers(1, 500))), now_s, ALL)
        there = [0] * 6
        for other in deciders:
            for e, load in enumerate(other.ledger.loads()):
                there[e] += load.waiting + load.running
        assert decision.expert is not None
        there[decision.expert] -= 1  # it was shown what there was before it
        assert present(decider.live.view)[0].tolist() == there
        keys.append((decider, decision.id))
        for where, key in [keys[k] for k in rng.integers(len(keys), size=5)]:
            where.ledger.streamed(key, 2, now_s)
        if len(keys) > 25:
            where, key = keys.pop(int(rng.integers(25)))
            where.ledger.finished(key, now_s)


def test_who_takes_the_place_of_a_dead_gateway_clears_it(tmp_path: Path) -> None:
    path = tmp_path / "ledgers"
    share_ledgers(path, load_scenario("edge6"), 2, capacity=256)
    one, other = gateways(path, 2)
    for i in range(5):
        other.decide(RouteRequest(prompt_tokens=10), 0.01 * i, ALL)
    one.decide(RouteRequest(prompt_tokens=10), 0.1, ALL)
    assert present(one.live.view).sum() == 5
    steady_decider(load_scenario("edge6"), shared=path, gateway=1, gateways=2, capacity=256)
    one.decide(RouteRequest(prompt_tokens=10), 0.2, ALL)
    assert present(one.live.view).sum() == 1


def test_a_file_for_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledgers"
    share_ledgers(path, load_scenario("edge6"), 2, capacity=256)
    with pytest.raises(FileExistsError):
        share_ledgers(path, load_scenario("edge6"), 2, capacity=256)
    with pytest.raises(OSError, match=r"must have \d+ for 3 gateways"):
        map_shared(path, 3, 512, 6)
