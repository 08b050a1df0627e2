"""The arms of the paper's system: each differs from its whole by what its name says, and the reward's table by its laws."""

from dataclasses import replace

import numpy as np
import pytest
import tyro

from benchmarks.paper_arms import ABLATION, DEPARTURES, MENDED, PUBLISHED, figure
from benchmarks.paper_reward import PAID, REQUESTS, drop_all, paid
from rllib_envs.baselines import HEURISTICS
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning.training.options import TrainOptions, complete, defaults, to_mapping


def read(arguments):
    return to_mapping(complete(tyro.cli(TrainOptions, args=arguments, default=defaults(arguments))))


def changed(arguments, whole):
    """Names of the options that differ."""
    ours, theirs = read(arguments), read(whole)
    assert ours.keys() == theirs.keys()
    return {name for name in ours if ours[name] != theirs[name]}


def test_each_departure_changes_one_setting_and_the_last_has_them_all():
    first, *singles, last = (changed(options, PUBLISHED) for options in DEPARTURES.values())
    assert first == set()
    assert all(len(one) == 1 for one in singles)
    assert sum(len(one) for one in singles) == len(set().union(*singles))
    assert last - {"preset"} == set().union(*singles)


def test_each_ablation_leaves_out_one_part():
    parts = {name: changed(options, MENDED) for name, options in ABLATION.items()}
    assert parts == {
        "whole": set(),
        "without HAN": {"encoder"},
        "without impact estimator": {"impact_estimator"},
        "without tailored reward": {"impact_estimator", "reward"},
    }


def test_a_figure_is_the_mean_over_the_episodes():
    row = {"router": "bundle:x", "metrics": {"qos": {"values": [0.5, 0.75]}}}
    assert figure({"routers": [{"router": "y"}, row]}, "bundle:x", "qos") == "0.625"


@pytest.mark.parametrize("name", ["join-shortest-queue", "random"])
def test_the_reward_is_at_most_the_qos_and_nothing_for_dropping_everything(name):
    scenario = replace(with_workload(load_scenario("edge6"), load="heavy", requests=REQUESTS // 10), reward=PAID)
    reward, qos = paid(scenario, HEURISTICS[name].policy())
    assert np.isfinite([reward, qos]).all()
    assert reward < qos  # under heavy load newcomers are charged
    assert paid(scenario, drop_all) == (0.0, 0.0)
