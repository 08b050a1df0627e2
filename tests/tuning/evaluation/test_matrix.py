"""Cells: what determines them, in parallel as alone, and what is left of a run that was stopped."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tuning.evaluation.matrix as matrix
from rllib_envs.errors import InputError
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.matrix import EVALUATION_SEEDS, TUNING_SEEDS, Cell, run_cells
from tuning.specs.routers import parse_router

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SCENARIO = with_workload(load_scenario("edge6"), requests=30)
CELLS = [
    Cell(router=parse_router(name), scenario=SCENARIO, seeds=(1, 2))
    for name in ("random", "power-of-two", "least-work", "impact-greedy")
]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_results_do_not_depend_on_the_number_of_processes(tmp_path):
    for jobs in (1, 2):
        run_cells(CELLS, tmp_path / str(jobs), jobs, "test")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_equal_cells_run_once_and_come_back_in_order(tmp_path):
    results = run_cells([CELLS[2], CELLS[0], CELLS[2]], tmp_path, 1, "test")
    assert [result.router for result in results] == ["least-work", "random", "least-work"]
    assert repr(results[0]) == repr(results[2])  # unlike ==, where a metric is NaN
    assert len(list(tmp_path.iterdir())) == 2


def test_a_seed_means_the_same_episode_to_every_router(tmp_path):
    results = run_cells(CELLS, tmp_path, 1, "test")
    assert len({tuple(result.metrics["arrival_rps"]) for result in results}) == 1


def test_finished_cells_are_not_run_again(tmp_path, monkeypatch):
    before = run_cells(CELLS, tmp_path, 1, "test")
    lost = tmp_path / f"{CELLS[1].key}.json"
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir() if file != lost}
    lost.unlink()
    ran = []
    run_cell = matrix.run_cell
    monkeypatch.setattr(matrix, "run_cell", lambda cell: ran.append(cell) or run_cell(cell))
    assert repr(run_cells(CELLS, tmp_path, 1, "test")) == repr(before)
    assert ran == [CELLS[1]]
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_an_interruption_keeps_what_is_finished(tmp_path, monkeypatch, capsys):
    run_cell = matrix.run_cell

    def interrupted(cell):
        if cell == CELLS[2]:
            raise KeyboardInterrupt
        return run_cell(cell)

    monkeypatch.setattr(matrix, "run_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cells(CELLS, tmp_path, 1, "test")
    assert sorted(contents(tmp_path)) == sorted(f"{cell.key}.json" for cell in CELLS[:2])
    assert "2 of 4 are finished" in capsys.readouterr().err


SLOW_RUN = """
import sys
from pathlib import Path
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.matrix import Cell, run_cells
from tuning.specs.routers import parse_router
if __name__ == "__main__":
    quick = with_workload(load_scenario("edge6"), requests=30)
    slow = with_workload(load_scenario("edge6"), requests=20_000, load=60.0)
    cells = [Cell(router=parse_router("least-work"), scenario=quick, seeds=(seed,)) for seed in range(3)]
    cells += [Cell(router=parse_router("quality-greedy"), scenario=slow, seeds=(seed,)) for seed in range(8)]
    run_cells(cells, Path(sys.argv[1]), 2, "slow")
"""


@pytest.mark.cluster
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 1), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_run_leaves_whole_cells_and_no_process(tmp_path, how, code):
    script, folder = tmp_path / "slow.py", tmp_path / "cells"
    script.write_text(SLOW_RUN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script, folder], env=environment, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 300
        while len(list(folder.glob("[!.]*.json"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(process.pid, how)
        assert process.wait(120) in (code, -how)
        while (alive := in_session(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive
    files = list(folder.glob("[!.]*.json"))
    assert len(files) >= 3
    for file in files:
        assert json.loads(file.read_text())["key"] == file.stem


def in_session(session):
    """Processes of a session, zombies aside."""
    listing = subprocess.run(["ps", "-e", "-o", "pid=,sess=,stat="], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return [pid for pid, sess, stat in rows if int(sess) == session and not stat.startswith("Z")]


def test_a_key_changes_with_whatever_determines_the_result(tmp_path, monkeypatch):
    cell = CELLS[3]
    checkpoint = tmp_path / "weights"
    checkpoint.write_bytes(b"1")
    trained = dataclasses.replace(cell, router=parse_router(f"checkpoint:{checkpoint}"))
    keys = [
        cell.key,
        dataclasses.replace(cell, seeds=(1, 3)).key,
        dataclasses.replace(cell, scenario=with_workload(SCENARIO, requests=31)).key,
        dataclasses.replace(cell, router=parse_router("impact-greedy:price=0.1")).key,
        trained.key,
    ]
    checkpoint.write_bytes(b"2")
    keys.append(trained.key)
    monkeypatch.setattr(matrix, "code_digest", lambda: "other sources")
    keys.append(cell.key)
    assert len(set(keys)) == len(keys)


def test_a_key_counts_only_what_determines_the_result():
    assert CELLS[0].key == dataclasses.replace(CELLS[0]).key
    renamed = dataclasses.replace(CELLS[0].router, name="another name")
    assert dataclasses.replace(CELLS[0], router=renamed).key == CELLS[0].key


def test_bad_input_in_a_worker_is_bad_input_here(tmp_path):
    arrivals = dataclasses.replace(SCENARIO.workload.arrivals, kind="gamma", cv=1e6)
    bad = Cell(router=parse_router("random"), scenario=with_workload(SCENARIO, arrivals=arrivals), seeds=(1,))
    with pytest.raises(InputError, match=r"arrivals\.cv"):
        run_cells([bad, CELLS[0]], tmp_path, 2, "test")


def test_a_file_that_is_no_cell_is_named(tmp_path):
    file = tmp_path / f"{CELLS[0].key}.json"
    file.write_text("{}")
    with pytest.raises(InputError, match=r"json: not the result of a cell: delete it"):
        run_cells(CELLS[:1], tmp_path, 1, "test")


def test_jobs_must_be_positive(tmp_path):
    with pytest.raises(InputError, match="jobs = 0"):
        run_cells(CELLS, tmp_path, 0, "test")


def test_no_seed_is_for_tuning_and_for_comparison():
    assert not set(EVALUATION_SEEDS) & set(TUNING_SEEDS)
