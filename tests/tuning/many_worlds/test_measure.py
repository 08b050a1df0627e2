"""Many worlds measured: tuning, opponents, what is kept, and what the command writes."""

import csv
import json
import re

import numpy as np
import pytest

import tuning.many_worlds.measure as measure_module
from models.export.bundle import load_bundle
from rllib_envs.errors import InputError
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning import generality
from tuning.evaluation.matrix import Cell, run_cell
from tuning.many_worlds.measure import PLAIN
from tuning.many_worlds.tuned import BASELINE, DEFAULTS, mean_qos_of, tune
from tuning.specs.grammar import format_spec
from tuning.specs.routers import ANY_CLUSTER_ROUTER, parse_router

pytestmark = pytest.mark.slow

SCENARIO = with_workload(load_scenario("edge3"), requests=80, load="heavy")
SEEDS = (1, 2)
POINTS = [DEFAULTS, DEFAULTS | {"price": 4.0, "tau": 0.2}, DEFAULTS | {"shrink": 1.25}, DEFAULTS | {"price": 16.0}]
OWN = "from pathlib import Path\ndef route(simulation, rng):\n"
SMALL = {"smoke": True, "cells": 3, "jobs": 1}
FILES = ("results.md", "results.json", "worlds.csv", "differences.png")


def alone(text):
    return run_cell(Cell(router=parse_router(text), scenario=SCENARIO, seeds=SEEDS)).metrics["qos"]


def test_a_batch_of_points_gives_each_what_it_gives_alone():
    assert mean_qos_of(SCENARIO, SEEDS, POINTS) == [np.mean(alone(format_spec(BASELINE, point))) for point in POINTS]


def test_the_defaults_are_those_of_the_heuristic():
    assert mean_qos_of(SCENARIO, SEEDS, [DEFAULTS]) == [np.mean(alone(BASELINE))]


def test_tuning_is_no_worse_than_the_defaults_on_its_own_episodes():
    best = tune(SCENARIO, SEEDS)
    assert best == tune(SCENARIO, SEEDS)
    tuned, untuned = mean_qos_of(SCENARIO, SEEDS, [best, DEFAULTS])
    assert tuned > untuned


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    """Nothing here depends on how long an episode is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generality, "_SMOKE_REQUESTS", 50)
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A small measurement of the baseline itself."""
    folder = tmp_path_factory.mktemp("generality")
    generality.run(generality.Options(router=BASELINE, out=folder, **SMALL))
    return folder


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def rows(folder):
    return list(csv.DictReader((folder / "worlds.csv").read_text().splitlines()))


def test_a_router_differs_from_itself_by_exactly_nothing(out):
    found = rows(out)
    assert len(found) == SMALL["cells"]
    assert [(float(row["over_untuned"]), float(row["noise_over_untuned"])) for row in found] == [(0.0, 0.0)] * len(found)
    row = json.loads((out / "results.json").read_text())["rows"]["untuned"][0]
    assert (row["mean"], row["low"], row["close"], row["worst"]) == (0.0, 0.0, 1.0, 0.0)


def test_the_csv_has_every_opponent_and_agrees_with_its_differences(out):
    for row in rows(out):
        for baseline in ("untuned", "tuned"):
            assert float(row[f"over_{baseline}"]) == pytest.approx(float(row["router"]) - float(row[baseline]), abs=2e-6)
        best = max(float(row[name]) for name in PLAIN)
        assert float(row["over_best_plain"]) == pytest.approx(float(row["router"]) - best, abs=2e-6)


def test_a_second_run_simulates_nothing_and_writes_the_same(out, monkeypatch):
    before = contents(out)
    monkeypatch.setattr(measure_module, "start_simulation", None)
    generality.run(generality.Options(router=BASELINE, out=out, **SMALL))
    assert contents(out) == before


def test_a_bad_router_meets_the_same_baselines_and_holds_no_bound(out, tmp_path, capsys):
    for name in ("fleets", "baselines"):
        (tmp_path / name).symlink_to(out / name)
    kept = sorted(file.name for file in (out / "baselines").iterdir())
    generality.run(generality.Options(router="random", out=tmp_path, **SMALL))
    assert sorted(file.name for file in (out / "baselines").iterdir()) == kept
    assert "not held" in capsys.readouterr().out
    judged = json.loads((tmp_path / "results.json").read_text())["bounds"]
    assert judged
    assert not any(bound["held"] for bound in judged)


def test_the_report_of_a_trained_router_says_what_it_was_trained_with(out, tmp_path):
    for name in ("fleets", "baselines"):
        (tmp_path / name).symlink_to(out / name)
    generality.run(generality.Options(router=None, out=tmp_path, **SMALL))
    table = (tmp_path / "results.md").read_text().split("## Training range")[1]
    trained_on = load_bundle(ANY_CLUSTER_ROUTER).trained_on
    assert trained_on is not None
    for row in trained_on.rows():
        assert re.search(r"\|\s+".join(re.escape(cell) + r"\s+" for cell in row), table), row
    assert "## Training range" not in (out / "results.md").read_text()


def test_an_interrupted_run_goes_on_to_the_same_files(out, tmp_path, monkeypatch, capsys):
    (tmp_path / "fleets").symlink_to(out / "fleets")
    baselines, done = measure_module._baselines, []

    def interrupted(task):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.world.name)
        return baselines(task)

    options = generality.Options(router=BASELINE, out=tmp_path, **SMALL)
    monkeypatch.setattr(measure_module, "_baselines", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generality.run(options)
    assert "2 of 3 are finished" in capsys.readouterr().err
    assert not any((tmp_path / name).exists() for name in FILES)
    monkeypatch.setattr(measure_module, "_baselines", lambda task: done.append(task.world.name) or baselines(task))
    generality.run(options)
    assert len(done) == len(set(done)) == 3
    assert contents(tmp_path) == contents(out)


@pytest.mark.cluster
def test_results_do_not_depend_on_the_number_of_processes(out, tmp_path):
    generality.run(generality.Options(router=BASELINE, out=tmp_path, **SMALL | {"jobs": 2}))
    assert contents(tmp_path) == contents(out)


def test_a_router_that_changes_on_the_way_leaves_no_result(out, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(f"{OWN}    Path({str(own)!r}).write_text('')\n    return simulation.view.action_mask.argmax(axis=1)\n")
    for name in ("fleets", "baselines"):
        (tmp_path / name).symlink_to(out / name)
    with pytest.raises(InputError, match="the source code or the router changed"):
        generality.run(generality.Options(router=f"python:{own}:route", out=tmp_path, **SMALL))
    assert not (tmp_path / "router").exists()


def test_a_file_that_is_no_result_is_named(out, tmp_path):
    (tmp_path / "fleets").symlink_to(out / "fleets")
    for name in ("baselines", "router"):
        (tmp_path / name).mkdir()
        for file in (out / name).iterdir():
            (tmp_path / name / file.name).write_text("{}")
    with pytest.raises(InputError, match=r"not the result of a world: delete both"):
        generality.run(generality.Options(router=BASELINE, out=tmp_path, **SMALL))
