"""What changes in an episode: laws of the draws, and scenarios that ask for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rllib_envs.dynamics import Blackouts, Dynamics, Failures, Neighbour, Outage, Patience, PowerMode, Throttling
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario
from rllib_envs.scenarios.load import parse_scenario
from rllib_envs.sim.living import DARK, DOWN, DRAIN, KNOWN_DOWN, KNOWN_UP, LIT, SPEED, UP
from rllib_envs.workload.disturbances import DYNAMIC_STREAMS, Disturbances, draw_disturbances
from rllib_envs.workload.episode import draw_episode
from tests.worlds import small

LONG_S = 100_000.0
EVERYTHING = Dynamics(
    throttling=Throttling(experts=("phi-3.5-mini",)),
    power_modes=(PowerMode(at_s=5.0, factor=1.2),),
    neighbour=Neighbour(),
    failures=Failures(),
    outages=(Outage(at_s=30.0, for_s=9.0, planned=True, experts=("gemma-2-2b",)), Outage(at_s=50.0, for_s=9.0)),
    patience=Patience(first_token_s=3.0, total_s=20.0),
    blackouts=Blackouts(),
)


def drawn(dynamics: Dynamics, until_s: float = LONG_S, count: int = 2, seed: int = 1) -> Disturbances:
    """Changes of the experts of edge6 until some time."""
    scenario = replace(small("edge6"), dynamics=dynamics)
    streams = {name: np.random.default_rng([seed, i]) for i, name in enumerate(DYNAMIC_STREAMS)}
    changing = draw_disturbances(scenario, np.linspace(0, until_s, count), streams)
    assert changing is not None
    return changing


def times(events: NDArray[np.void], kind: int) -> NDArray[np.float64]:
    return events["at_s"][events["kind"] == kind]


def test_experts_fail_and_return_at_the_given_means_and_are_known_to_be_so_later() -> None:
    changing = drawn(Dynamics(failures=Failures(mtbf_s=100.0, mttr_s=20.0), detection_s=3.0))
    gaps, lengths = list[float](), list[float]()
    for events, losses in zip(changing.events, changing.losses, strict=True):
        assert (np.diff(events["at_s"]) >= 0).all()
        down, known, up, known_up = (times(events, kind) for kind in (DOWN, KNOWN_DOWN, UP, KNOWN_UP))
        np.testing.assert_allclose(known, np.minimum(down + 3, up))
        np.testing.assert_array_equal(known, losses)
        np.testing.assert_allclose(known_up, up + 3)
        assert (down[1:] > known_up[:-1]).all()
        assert down.max() <= LONG_S
        gaps += (down[1:] - known_up[:-1]).tolist()
        lengths += (up - down).tolist()
    assert np.mean(gaps) == pytest.approx(100, abs=5 * 100 / np.sqrt(len(gaps)))
    assert np.mean(lengths) == pytest.approx(20, abs=5 * 20 / np.sqrt(len(lengths)))


def test_neighbours_and_power_modes_multiply() -> None:
    modes = (PowerMode(at_s=1e4, factor=2.0), PowerMode(at_s=5e4, factor=1.0))
    changing = drawn(Dynamics(power_modes=modes, neighbour=Neighbour(factor=1.5, mean_on_s=30.0, mean_off_s=70.0)))
    shares = list[float]()
    for events in changing.events:
        assert (events["kind"] == SPEED).all()
        at_s, value = events["at_s"], events["value"]
        slow = (at_s > 1e4) & (at_s < 5e4)
        assert set(value[slow]) == {2.0, 3.0}
        assert set(value[~slow]) >= {1.0, 1.5}
        lasts_s = np.diff(at_s)
        shares.append(float(lasts_s[np.isin(value[:-1], (1.5, 3.0))].sum() / lasts_s.sum()))
    assert np.mean(shares) == pytest.approx(0.3, abs=0.03)


def test_telemetry_stops_and_returns_at_the_given_means() -> None:
    for events in drawn(Dynamics(blackouts=Blackouts(mean_gap_s=40.0, mean_s=10.0))).events:
        dark, lit = times(events, DARK), times(events, LIT)
        assert (lit > dark).all()
        assert (dark[1:] > lit[:-1]).all()
        assert (lit - dark).sum() / LONG_S == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("law", ["log-normal", "exponential"])
def test_patience_has_the_given_means(law: Any) -> None:
    changing = drawn(Dynamics(patience=Patience(law=law, first_token_s=3.0, total_s=20.0)), count=40_000)
    for patience_s, mean_s in ((changing.first_token_s, 3.0), (changing.total_s, 20.0)):
        assert (patience_s > 0).all()
        assert patience_s.mean() == pytest.approx(mean_s, rel=0.03)
    assert abs(np.corrcoef(changing.first_token_s, changing.total_s)[0, 1]) < 0.03
    without = drawn(Dynamics(patience=Patience(law=law, total_s=20.0)), count=40_000)
    assert np.isinf(without.first_token_s).all()
    np.testing.assert_array_equal(without.total_s, changing.total_s)


def test_only_the_experts_that_are_named_change() -> None:
    changing = drawn(EVERYTHING)
    slow = np.isfinite(changing.thermal["every_s"])
    names = [expert.name for expert in small("edge6").experts]
    assert [name for name, is_slow in zip(names, slow, strict=True) if is_slow] == ["phi-3.5-mini"]
    drains = [times(events, DRAIN).tolist() for events in changing.events]
    assert drains == [[30.0] if name == "gemma-2-2b" else [] for name in names]
    assert all(50.0 in times(events, DOWN) for events in changing.events)


def test_given_and_drawn_failures_do_not_meet() -> None:
    given = tuple(Outage(at_s=100.0 * i, for_s=60.0) for i in range(1, 50))
    changing = drawn(Dynamics(failures=Failures(mtbf_s=30.0, mttr_s=10.0), outages=given))
    for events in changing.events:
        down, known_up = times(events, DOWN), times(events, KNOWN_UP)
        assert (down[1:] >= known_up[:-1]).all()
        assert set(down) >= {outage.at_s for outage in given}


def test_one_kind_of_change_leaves_the_draws_of_the_others_alone() -> None:
    whole = drawn(EVERYTHING)
    for name in ("neighbour", "failures", "blackouts", "patience"):
        alone = drawn(Dynamics(outages=EVERYTHING.outages, **{name: getattr(EVERYTHING, name)}))
        kinds = {"neighbour": (), "failures": (DOWN, UP, KNOWN_DOWN, KNOWN_UP), "blackouts": (DARK, LIT), "patience": ()}[name]
        for kind in kinds:
            for one, other in zip(whole.events, alone.events, strict=True):
                np.testing.assert_array_equal(times(one, kind), times(other, kind))
    np.testing.assert_array_equal(drawn(Dynamics(patience=EVERYTHING.patience)).total_s, whole.total_s)


def test_all_else_of_an_episode_stays_as_it_was() -> None:
    plain = small("edge6")
    without, changing = (draw_episode(replace(plain, dynamics=dynamics), 20.0, 3) for dynamics in (None, EVERYTHING))
    assert without.disturbances is None
    assert changing.disturbances is not None
    assert draw_episode(replace(plain, dynamics=Dynamics(retries=3)), 20.0, 3).disturbances is None
    for name in ("arrival_s", "prompt", "score", "output", "predicted_score", "predicted_tokens", "user"):
        np.testing.assert_array_equal(getattr(without, name), getattr(changing, name))


def test_a_scenario_with_changes_is_read_back_from_its_text() -> None:
    scenario = replace(small("edge6"), dynamics=EVERYTHING)
    assert parse_scenario(scenario.to_dict(), "here") == scenario
    assert "dynamics" not in small("edge6").to_dict()
    assert scenario.fingerprint() != small("edge6").fingerprint()


@pytest.mark.parametrize(
    ("dynamics", "message"),
    [
        ({"throttling": {"slowest": 0.5}}, "here: dynamics.throttling.slowest"),
        ({"throttling": {"from_heat": 0.9, "to_heat": 0.5}}, "to_heat = 0.5 with from_heat = 0.9: must be above it"),
        ({"failures": {"mtbf_s": 0.0}}, "here: dynamics.failures.mtbf_s"),
        ({"failures": {"experts": ["nobody"]}}, "dynamics: experts has 'nobody': no expert has this name or label"),
        ({"patience": {"law": "weibull"}}, "here: dynamics.patience.law"),
        ({"retries": 11}, "here: dynamics.retries"),
        ({"outages": [{"at_s": 1.0, "for_s": 5.0}, {"at_s": 3.0, "for_s": 5.0}]}, "another with at_s = 3.0: must be after 7.0"),
    ],
)
def test_impossible_changes_are_refused(dynamics: dict[str, Any], message: str) -> None:
    data = small("edge6").to_dict() | {"dynamics": dynamics}
    with pytest.raises(InputError) as error:
        parse_scenario(data, "here")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_scenarios_know_what_their_changes_need() -> None:
    scenario: Scenario = replace(small("edge6"), dynamics=EVERYTHING)
    assert scenario.dynamics is not None
    assert (scenario.dynamics.most_attempts, scenario.dynamics.hides_experts) == (2, True)
    calm = Dynamics(throttling=Throttling(), patience=Patience(total_s=9.0), outages=(Outage(at_s=1.0, for_s=1.0, planned=True),))
    assert (calm.most_attempts, calm.hides_experts) == (1, False)
