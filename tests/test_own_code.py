"""A user's own routers and arrival processes, from a file that they name: they work everywhere, and run only where named."""

import json
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest

import edgeroute
from rllib_envs import baselines
from rllib_envs.baselines import HEURISTICS
from rllib_envs.errors import InputError
from rllib_envs.heuristic import Parameter, heuristic
from rllib_envs.own_code import load_own, parse_own
from rllib_envs.scenario import Arrivals, with_workload
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from rllib_envs.workload.arrival_process import arrival_process
from rllib_envs.workload.arrival_processes import PROCESSES
from rllib_envs.workload.arrivals import draw_arrivals
from tests.presets import short_edge6
from tuning.evaluation.matrix import Cell, run_cell, start_simulation
from tuning.evaluation.tuned import Entry
from tuning.specs.routers import build_router, parse_router
from tuning.specs.workloads import TraceOptions, is_process, make_workloads

pytestmark = pytest.mark.slow

ROUTER = """
from rllib_envs.heuristic import Parameter, available, best_expert, heuristic, present

def shortest(simulation, rng, *, weight=1.0):
    view = simulation.view
    return best_expert(-weight * present(view) - 0.5 * rng.random(present(view).shape), available(view))

@heuristic(needs=("whatif",), parameters={"floor": Parameter(low=0, high=1)})
def seeing(simulation, rng, *, floor=0.0):
    return best_expert(simulation.view.whatif[..., 0], available(simulation.view))

def wrong(simulation):
    return None

NUMBER = 3
"""
ARRIVALS = """
import numpy as np

def pairs(rate_rps, n, rng, *, apart=0.0):
    times = np.cumsum(rng.standard_exponential((n + 1) // 2)) * 2 / rate_rps
    return np.sort(np.repeat(times, 2)[:n] + apart * (np.arange(n) % 2))

def late(rate_rps, n, rng):
    return np.arange(n)[::-1] / rate_rps

def few(rate_rps, n, rng):
    return np.arange(n - 1) / rate_rps

def required(rate_rps, n, rng, *, apart):
    return np.arange(n) / rate_rps
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Names of functions in files of a user's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(ROUTER)
    (tmp_path / "comes.py").write_text(ARRIVALS)
    return lambda function: f"python:{'mine' if function in ROUTER else 'comes'}.py:{function}"


def end(simulation):
    return [simulation.records(cluster).finish_s for cluster in range(simulation.batch)]


def test_a_router_of_ones_own_decides_as_the_same_code_in_the_package(mine):
    ours = start_simulation(parse_router("join-shortest-queue"), short_edge6(), [1, 2])
    own = start_simulation(parse_router(mine("shortest")), short_edge6(), [1, 2])
    np.testing.assert_array_equal(end(own), end(ours))


def test_a_function_will_do_in_python():
    def first(simulation, rng):
        return np.zeros(simulation.batch, np.int64)

    routes = start_simulation(first, short_edge6(), [1]).records(0).route
    assert (routes == 0).all()
    shipped = start_simulation(baselines.least_work, short_edge6(), [1])
    np.testing.assert_array_equal(end(shipped), end(start_simulation(parse_router("least-work"), short_edge6(), [1])))
    with pytest.raises(TypeError, match=r"must take \(simulation, rng\), and after a \* numbers"):
        start_simulation(lambda simulation: simulation, short_edge6(), [1])


def test_a_router_of_ones_own_brings_what_it_needs_and_takes_its_numbers(mine):
    scenario = short_edge6()
    assert build_router(parse_router(mine("seeing")), scenario.observation)[1].whatif
    assert not build_router(parse_router(mine("shortest")), scenario.observation)[1].whatif
    spec = parse_router(mine("seeing") + ":tau=0.2,floor=0.5")
    assert parse_router(spec.text) == spec
    assert build_router(spec, scenario.observation)[1].whatif_tau == 0.2
    assert not spec.is_baseline
    assert not spec.is_trained


def test_a_change_of_the_file_is_another_result(mine, tmp_path):
    cell = Cell(router=parse_router(mine("shortest")), scenario=short_edge6(), seeds=(1,))
    before = cell.key
    assert run_cell(pickle.loads(pickle.dumps(cell))).key == before
    (tmp_path / "mine.py").write_text(ROUTER.replace("-weight", "weight"))
    assert cell.key != before
    assert run_cell(cell).metrics["qos"] != run_cell(replace(cell, router=parse_router("join-shortest-queue"))).metrics["qos"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("python:mine.py", "must be python:FILE.py:FUNCTION"),
        ("python:no.py:route", "no such file: no.py"),
        ("python:mine.py:shortes", "mine.py has no function 'shortes'; did you mean 'shortest'?"),
        ("python:mine.py:NUMBER", "mine.py has no function 'NUMBER'"),
        ("python:mine.py:wrong", "wrong(simulation): must take (simulation, rng)"),
        ("python:mine.py:shortest:wieght=2", "no parameter 'wieght'; did you mean 'weight'"),
        ("python:mine.py:seeing:floor=2", "floor = 2: must be from 0 to 1"),
        ("python:broken.py:route", "broken.py, line 3: ZeroDivisionError: division by zero"),
        ("python:garbled.py:route", "garbled.py, line 2: SyntaxError"),
    ],
)
def test_a_router_that_cannot_be_had_is_explained_in_one_line(mine, tmp_path, capsys, text, message):
    (tmp_path / "broken.py").write_text("x = 0\n\ny = 1 / x\n")
    (tmp_path / "garbled.py").write_text("x = 0\nif\n")
    assert edgeroute.main(["simulate", "--smoke", "--router", text]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert text.rpartition(":")[0] in error
    assert error.count("\n") == 1


def test_arrivals_of_ones_own_are_drawn_with_their_numbers(mine):
    (plain,) = make_workloads(short_edge6(), ["5"], [mine("pairs")], TraceOptions(), None)
    (apart,) = make_workloads(short_edge6(), ["5"], [mine("pairs") + ":apart=0.25"], TraceOptions(), None)
    assert (plain.name, apart.name) == (f"{mine('pairs')} at 5", f"{mine('pairs')}:apart=0.25 at 5")
    first, second = (
        draw_arrivals(w.scenario.workload.arrivals, 5.0, 60, np.random.default_rng(1)).arrival_s for w in (plain, apart)
    )
    assert (np.diff(first)[::2] == 0).all()
    assert np.diff(first).max() > 0
    assert not (np.diff(second) == 0).any()
    simulation = start_simulation(parse_router("least-work"), pickle.loads(pickle.dumps(plain.scenario)), [1])
    assert (np.diff(simulation.records(0).arrival_s)[::2] == 0).all()


def test_a_change_of_the_arrivals_file_is_another_result(mine, tmp_path):
    scenario = with_workload(short_edge6(), arrivals=Arrivals(kind=mine("pairs")))
    cell = Cell(router=parse_router("random"), scenario=scenario, seeds=(1,))
    before = cell.key
    (tmp_path / "comes.py").write_text(ARRIVALS + "\n")
    assert cell.key != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("python:comes.py", "must be python:FILE.py:FUNCTION"),
        ("python:comes.py:late", "times that are not all finite, >= 0 and ascending"),
        ("python:comes.py:few", "returned float64 of shape (49,): must be float64 of shape (50,)"),
        ("python:comes.py:required", "apart must have a default"),
        ("python:comes.py:pairs:close=1", "pairs has no parameter 'close'; allowed are apart"),
        ("python:mine.py:shortest", "must take (rate_rps, n, rng)"),
    ],
)
def test_arrivals_that_cannot_be_had_are_explained_in_one_line(mine, capsys, text, message):
    assert edgeroute.main(["simulate", "--smoke", "--load", "5", "--arrivals", text]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_data_can_have_code_run(tmp_path, mine):
    (tmp_path / "trap.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\ndef f(rate_rps, n, rng): pass"
    )
    own = with_workload(short_edge6(), arrivals=Arrivals(kind="python:trap.py:f"))
    with pytest.raises(InputError, match=r"kind = 'python:trap.py:f': code is run only where the command line .* names it"):
        parse_scenario(own.to_dict(), "a.yaml")
    (tmp_path / "a.yaml").write_text(own.to_yaml())
    with pytest.raises(InputError, match=r"a.yaml: workload.arrivals.kind"):
        load_scenario("a.yaml")
    assert not is_process("python:trap.py:f")  # of a file of tuned parameters
    assert Entry(arrivals="python:trap.py:f", share_of_capacity=1.0, parameters={})
    assert not (tmp_path / "sprung").exists()


def test_a_file_runs_once_for_each_content(mine, tmp_path):
    (tmp_path / "count.py").write_text("def f(rate_rps, n, rng): pass")
    name = parse_own("python:count.py:f", "arrivals")
    assert load_own(name, "x") is load_own(name, "x")
    first = load_own(name, "x")
    (tmp_path / "count.py").write_text("def f(rate_rps, n, rng): return 1")
    assert load_own(name, "x") is not first


def test_the_table_knows_every_heuristic_and_what_it_takes():
    for name, entry in HEURISTICS.items():
        assert entry.decide.__name__.replace("_", "-").lower() == name
        assert ("tau" in entry.parameters) == ("whatif" in entry.needs)
        assert all(p.low <= value <= p.high for p in entry.parameters.values() for value in p.grid)
        assert entry.tuned_as is None or entry.parameters.keys() == HEURISTICS[entry.tuned_as].parameters.keys()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda simulation, rng, cap=1: None, r"must take \(simulation, rng\)"),
        (lambda simulation, rng, *, cap: None, "cap: must have a default"),
        (lambda simulation, rng, **more: None, r"must take \(simulation, rng\)"),
        (lambda simulation, rng, *, other=1: None, "cap: described, but no keyword-only parameter"),
    ],
)
def test_a_function_that_is_no_heuristic_is_refused(function, message):
    with pytest.raises(TypeError, match=message):
        heuristic(parameters={"cap": Parameter()})(function)


def test_numbers_of_a_process_without_a_field_are_parameters(monkeypatch):
    """What a process added to the package takes, and that scenarios without such numbers stay what they are."""

    @arrival_process()
    def even(rate_rps, n, rng, *, cv, shift=0.0):
        return shift + cv * np.arange(n) / rate_rps

    assert (even.fields, even.parameters, even.numbers) == (("cv",), {"shift": 0.0}, ("cv", "shift"))
    monkeypatch.setitem(PROCESSES, "even", even)
    plain, shifted = (Arrivals(kind="even", cv=1.0, parameters=given) for given in ({}, {"shift": 3.0}))
    times = [draw_arrivals(a, 2.0, 4, np.random.default_rng(0)).arrival_s for a in (plain, shifted)]
    np.testing.assert_array_equal(times, [[0, 0.5, 1, 1.5], [3, 3.5, 4, 4.5]])
    worlds = [with_workload(short_edge6(), arrivals=arrivals) for arrivals in (plain, shifted)]
    assert worlds[0].fingerprint() != worlds[1].fingerprint()
    assert "parameters" not in worlds[0].to_dict()["workload"]["arrivals"]
    assert [parse_scenario(json.loads(json.dumps(world.to_dict())), "x") for world in worlds] == worlds
    assert asdict(plain)["parameters"] == ()
    with pytest.raises(ValueError, match=r"kind 'even' has no 'shfit': allowed are shift"):
        Arrivals(kind="even", parameters={"shfit": 1.0})
    with pytest.raises(ValueError, match=r"kind 'gamma' has no 'cv': it takes none here"):
        Arrivals(kind="gamma", parameters={"cv": 1.0})
