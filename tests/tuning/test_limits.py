"""Numbers on the command line: what is out of bounds is refused before anything is done."""

from dataclasses import replace

import pytest

from cluster import preflight
from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation
from tuning import demo, evaluate, generality, simulate, sweep, tune_heuristics
from tuning.training.options import TrainOptions
from tuning.training.setup import _check_sample

NAN = float("nan")
WRONG = [(demo, {"minutes": value}) for value in (0.0, -1.0, NAN, float("inf"))] + [
    (preflight, {"cpus": -1}),
    (preflight, {"gpus": NAN}),
    (simulate, {"seed": -1}),
    (simulate, {"seed": 10**18}),
    (simulate, {"requests": 0}),
    (simulate, {"requests": 10**10}),
    (simulate, {"load": "0"}),
    (simulate, {"load": "1e300"}),
    (evaluate, {"seeds": 0}),
    (evaluate, {"seeds": 10**9}),
    (evaluate, {"first_seed": -1}),
    (evaluate, {"first_seed": 10**30}),
    (generality, {"cells": 0}),
    (generality, {"cells": 10_000}),
    (generality, {"episodes": 0}),
    (generality, {"requests": 0}),
    (generality, {"first_seed": 4999}),
    (generality, {"jobs": 0}),
    (tune_heuristics, {"seeds": 0}),
    (sweep, {"num_samples": 0}),
    (sweep, {"iterations": 0}),
    (sweep, {"gpus_per_trial": NAN}),
    (sweep, {"max_concurrent": 0}),
    (sweep, {"seed": 2**32}),
]


@pytest.mark.parametrize(("command", "wrong"), WRONG, ids=lambda value: value.__name__ if hasattr(value, "run") else str(value))
def test_a_number_out_of_bounds_is_refused_with_its_option(command, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ((name, _),) = wrong.items()
    with pytest.raises(InputError, match=rf"{name.replace('_', '[-_]')}\b.*(must be|should be|greater|less)"):
        command.run(command.Options(**wrong))


def test_a_sample_that_the_machine_cannot_hold_is_refused():
    simulation = Simulation(replace(load_scenario("edge2"), capacity_rps=1.0), 1)
    _check_sample(TrainOptions(), simulation)
    with pytest.raises(InputError, match=r"steps-per-iteration = 100,000,000: .* GiB"):
        _check_sample(TrainOptions(steps_per_iteration=10**8), simulation)
