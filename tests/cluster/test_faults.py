"""What a run on a cluster loses when a machine fails: real nodes, killed with all their processes."""

import json
import sys
import time

import pytest

from tests.cluster.local_cluster import await_line

pytestmark = pytest.mark.cluster

SMALL = ("--fleets", "--no-variation", "--envs-per-runner", 4, "--requests", 50, "--generations", 1, "--population", 4,
         "--search-requests", 20, "--validate-every", 0)  # fmt: skip
EVALUATE = ("evaluate", "--seeds", 6, "--requests", 1500, "--load", "light", "moderate", "heavy",
            "--routers", "least-work", "quality-greedy", "impact-greedy")  # fmt: skip


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def cells(folder):
    return {path.name: path.read_bytes() for path in (folder / "cells").glob("*.json")}


def test_training_goes_on_without_a_node_and_with_it_again(own_cluster, tmp_path):
    own_cluster.start("head")
    own_cluster.start("worker")
    log, run = tmp_path / "log", tmp_path / "run"
    training = own_cluster.begin(
        "train", *SMALL, "--steps-per-iteration", 512, "--num-env-runners", 2, "--minutes", 4, "--address", own_cluster.address,
        "--run-dir", run, log=log,
    )  # fmt: skip
    await_line(log, "\niteration ", times=6)
    before = len(records(run))
    own_cluster.kill("worker")
    await_line(log, "\niteration ", times=before + 6)
    own_cluster.start("worker")
    there = len(records(run))
    sizes = lambda: [after["steps"] - at["steps"] for at, after in zip(records(run), records(run)[1:], strict=False)]  # noqa: E731
    end_s = time.monotonic() + 180
    while not any(size > 450 for size in sizes()[there:]):
        assert training.poll() is None, log.read_text()
        assert time.monotonic() < end_s, f"the worker did not come back: {sizes()}"
        time.sleep(0.5)
    training.terminate()
    assert training.wait(120) == 0, log.read_text()
    whole = sizes()
    assert min(whole[before - 1 : there]) < 300 < 450 < max(whole[: before - 1])  # half of it was left for a while
    assert len(list((run / "checkpoints").iterdir())) >= 1


def test_an_evaluation_is_the_same_though_a_node_is_lost(own_cluster, tmp_path):
    own_cluster.start("head")
    own_cluster.start("worker")
    evaluation = own_cluster.begin(
        *EVALUATE, "--address", own_cluster.address, "--out", tmp_path / "cluster", log=tmp_path / "log"
    )
    end_s = time.monotonic() + 300
    while not cells(tmp_path / "cluster"):
        assert evaluation.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < end_s
        time.sleep(0.05)
    left = 9 - len(cells(tmp_path / "cluster"))
    own_cluster.kill("worker")
    assert evaluation.wait(300) == 0, (tmp_path / "log").read_text()
    here = own_cluster.run(*EVALUATE, "--jobs", 1, "--out", tmp_path / "here")
    assert here.returncode == 0, here.stderr
    assert left > 0
    assert cells(tmp_path / "cluster") == cells(tmp_path / "here")


@pytest.mark.nightly
def test_a_job_whose_head_is_lost_goes_on_when_it_is_sent_again(own_cluster, tmp_path):
    own_cluster.start("head")
    run = tmp_path / "run"
    train = [*map(str, SMALL), "--steps-per-iteration", "256", "--num-env-runners", "0", "--auto-resume", "--run-dir", str(run)]

    def send(*options, iterations):
        job = ["job", "submit", "--address", own_cluster.url, *options, "--", "edgeroute", "train", "--address", "auto", *train]
        command = [sys.executable, "-m", "ray.scripts.scripts", *job, "--iterations", str(iterations)]
        done = own_cluster.execute(command, RAY_AUTH_MODE="token")
        assert done.returncode == 0, done.stdout + done.stderr

    send(iterations=2)
    send("--no-wait", iterations=10_000)
    await_line(run / "metrics.jsonl", "\n", times=4)
    own_cluster.kill("head")
    lost = len(records(run))
    own_cluster.start("head")
    send(iterations=4)
    assert lost >= 4
    assert [record["iteration"] for record in records(run)] == [1, 2, 3, 4]  # from the checkpoint of the second on
    about = json.loads((run / "checkpoints" / "000004" / "checkpoint.json").read_text())
    assert about["starts"] == 2
