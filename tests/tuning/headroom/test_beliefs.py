"""What a router believes of lengths and scores comes true on average, also of answers under way."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_envs.scenario import Predictions
from rllib_envs.workload.episode import draw_episode
from tests.worlds import small
from tuning.headroom.beliefs import Beliefs

LAWS = ("means", "measured", "oracle-noise")


def believing(law):
    world = small("edge6", 1500, predictions=Predictions(law=law))
    return Beliefs(world, 10.0, seed=1), draw_episode(world, 10.0, 2)


def at_experts(truth):
    """Each request at one of the experts in turn, and what was told of it there."""
    rows = np.arange(len(truth.prompt))
    expert = rows % truth.output.shape[1]
    tables = (truth.predicted_score, truth.predicted_tokens, truth.predicted_log_sd)
    return expert, rows, tuple(table[rows, expert] for table in tables)


@pytest.mark.parametrize("law", LAWS)
def test_lengths_and_scores_of_new_requests_come_true_on_average(law):
    beliefs, truth = believing(law)
    expert, rows, told = at_experts(truth)
    uniform = np.random.default_rng(3).random((8, rows.size))
    tokens, scores = beliefs.draw(told, expert, np.zeros_like(rows), uniform)
    assert tokens.mean() == pytest.approx(truth.output[rows, expert].mean(), rel=0.06)
    assert np.log(tokens).std() == pytest.approx(np.log(truth.output[rows, expert]).std(), rel=0.06)
    assert scores.mean() == pytest.approx(truth.score[rows, expert].mean(), abs=0.03)


@pytest.mark.parametrize("law", LAWS)
def test_lengths_of_answers_under_way_exceed_what_there_is_and_come_true_on_average(law):
    beliefs, truth = believing(law)
    expert, rows, told = at_experts(truth)
    length, generated = truth.output[rows, expert], (0.8 * told[1]).astype(np.int64)
    alive = length > generated
    uniform = np.random.default_rng(4).random((8, int(alive.sum())))
    tokens, scores = beliefs.draw(tuple(part[alive] for part in told), expert[alive], generated[alive], uniform)
    assert (tokens > generated[alive]).all()
    assert tokens.mean() == pytest.approx(length[alive].mean(), rel=0.06)
    assert scores.mean() == pytest.approx(truth.score[rows, expert][alive].mean(), abs=0.03)


def test_an_answer_longer_than_any_error_allows_goes_on_for_about_a_quarter():
    beliefs, truth = believing("oracle-noise")
    told = (truth.predicted_score[0, :1], np.array([10.0]), truth.predicted_log_sd[0, :1])
    uniform = (np.arange(4000)[:, None] + 0.5) / 4000
    tokens, _ = beliefs.draw(told, np.array([0]), np.array([100_000]), uniform)
    assert tokens.min() > 100_000
    assert tokens.mean() == pytest.approx(125_000, rel=0.01)
