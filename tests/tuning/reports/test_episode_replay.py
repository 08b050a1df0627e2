"""The replay of an episode: what the router chose, what came of it, and which decisions stand out."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgeroute
from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.sim.state import FINISHED
from tuning.reports import replay_figures
from tuning.reports.episode_replay import OUTCOMES, Question, replay_episode
from tuning.reports.explanations import notable_decisions
from tuning.specs.prompts import with_predictions

pytestmark = pytest.mark.slow

SHIPPED = Path(edgeroute.__file__).parent / "tuning" / "presets" / "edge6-router"


@pytest.fixture(scope="module")
def replay():
    """Under heavy load, where something is dropped and something comes late; predictions are those of its training."""
    scenario = with_predictions(load_scenario("edge6"), "oracle-noise")
    return replay_episode(
        Question(bundle=SHIPPED, router="the router", scenario=scenario, load="heavy", minute=1, seed=1_000_007)
    )


def test_traffic_is_what_the_router_chose_and_what_came_of_it(replay):
    score = np.where(replay.possible, replay.expected("marginal") + replay.future, -np.inf)
    best = np.concatenate([score, replay.drop[:, None]], axis=1)
    assert (np.take_along_axis(best, replay.choice[:, None], axis=1)[:, 0] >= best.max(axis=1) - 1e-4).all()
    records = replay.records
    assert (records.route == replay.choice).all()
    in_time = replay.outcome == OUTCOMES.index("in time")
    assert (in_time == ((records.status == FINISHED) & ~records.late)).all()
    assert (records.qos[~in_time] == 0).all()
    nowhere = [OUTCOMES.index("dropped"), OUTCOMES.index("too long")]
    assert (np.isin(replay.outcome, nowhere) == ~replay.sent).all()
    assert (np.isnan(replay.of_choice(replay.marginal)) == ~replay.sent).all()
    start_s, end_s = replay.window_s
    assert (start_s, end_s) == (60, 120)
    assert records.arrival_s[-1] > end_s
    assert ((records.arrival_s[replay.in_window] - start_s) // 60 == 0).all()


def test_the_estimator_is_not_far_off(replay):
    """Nor are its predictions and what came of them those of different requests."""
    sent = replay.sent
    predicted, true = (replay.of_choice(x)[sent] for x in (replay.expected("marginal"), replay.marginal))
    assert np.corrcoef(predicted, true)[0, 1] > 0.8
    latency = replay.of_choice(replay.expected("latency"))[sent] * replay.workload.scenario.slo_s_per_token
    assert np.corrcoef(latency, replay.records.latency_per_token_s[sent])[0, 1] > 0.5


def test_notable_decisions_are_of_the_minute_and_say_why(replay):
    decisions = notable_decisions(replay)
    start_s, end_s = replay.window_s
    times = [decision.time_s for decision in decisions]
    assert times == sorted(times)
    assert all(start_s <= time < end_s for time in times)
    assert {decision.outcome for decision in decisions} >= {"in time", "dropped"}
    arrival_s = replay.records.arrival_s.tolist()
    for decision in decisions:
        i = arrival_s.index(decision.time_s)
        assert decision.choice == [*replay.experts, "drop"][replay.choice[i]]
        assert decision.qos == replay.records.qos[i]
        assert np.isnan(decision.in_time) == (decision.choice == "drop")
        if decision.why.startswith("Not to "):
            other = re.match(r"Not to (\S+), ", decision.why)[1]
            quality = replay.expected("quality")[i]
            assert quality[replay.experts.index(other)] == quality[replay.possible[i]].max() > quality[replay.choice[i]]


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0.01, 20)), max_size=40))
def test_bars_of_a_lane_do_not_overlap_and_take_as_many_rows_as_needed(bars):
    begin = np.sort([b for b, _ in bars])
    end = begin + [length for _, length in bars]
    rows, _ = replay_figures._rows(begin, end)
    for row in set(rows.tolist()):
        mine = rows == row
        assert (end[mine][:-1] <= begin[mine][1:]).all()
    at_once = max((int(((begin <= b) & (end > b)).sum()) for b in begin), default=0)
    assert len(set(rows.tolist())) == at_once


@pytest.mark.parametrize(
    ("change", "message"), [({"seed": 3}, "seed = 3: must be from 1000000"), ({"minute": -1}, "minute = -1")]
)
def test_traffic_that_cannot_be_asked_for(change, message):
    asked = {"bundle": SHIPPED, "router": "", "scenario": load_scenario("edge6"), "load": "light", "minute": 0, "seed": 1_000_000}
    with pytest.raises(InputError, match=message):
        replay_episode(Question(**asked | change))
