"""A cluster of two nodes, used from beside it and through its dashboard."""

import json
import sys

import pytest

from tests.cluster.local_cluster import ROOT, await_line

pytestmark = pytest.mark.cluster

WRONG = "0123456789abcdef" * 4
EVALUATE = ("evaluate", "--smoke", "--load", "light", "moderate", "--routers", "least-work", "impact-greedy")
TRAIN = ("train", "--fleets", "--no-variation", "--validate-every", "0", "--envs-per-runner", "4", "--requests", "50",
         "--steps-per-iteration", "256", "--generations", "1", "--population", "4", "--search-requests", "20",
         "--num-env-runners", "1")  # fmt: skip


def cells(folder):
    return {path.name: path.read_bytes() for path in (folder / "cells").iterdir()}


def test_an_evaluation_is_the_same_on_two_nodes_bit_for_bit(two_nodes, tmp_path):
    on_cluster = two_nodes.run(*EVALUATE, "--address", two_nodes.address, "--out", tmp_path / "cluster")
    here = two_nodes.run(*EVALUATE, "--jobs", 1, "--out", tmp_path / "here")
    assert (on_cluster.returncode, here.returncode) == (0, 0), on_cluster.stderr + here.stderr
    assert cells(tmp_path / "cluster") == cells(tmp_path / "here") != {}


def test_preflight_looks_at_every_node(two_nodes, tmp_path):
    done = two_nodes.run("preflight", "--address", two_nodes.address, "--cpus", 2, "--shared", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 answer" in done.stdout
    assert "Verdict: ready" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outside", [False, True])
def test_preflight_refuses_what_the_cluster_does_not_have(two_nodes, outside):
    address = two_nodes.url if outside else two_nodes.address
    done = two_nodes.run("preflight", "--address", address, "--cpus", 3, "--gpus", 1)
    assert done.returncode == 2
    assert "CPUs: ask for 2 at most" in done.stdout
    assert "2 of" in done.stdout.splitlines()[-1]


def test_preflight_refuses_a_folder_that_nodes_do_not_share(two_nodes, tmp_path):
    shared = "/proc/self/cwd/runs"  # what a process finds there depends on where it is
    done = two_nodes.run("preflight", "--address", two_nodes.address, "--shared", shared, cwd=tmp_path)
    assert done.returncode == 2
    assert "name a folder that all nodes share (NFS), or a URL with --storage" in done.stdout


def test_preflight_refuses_storage_that_cannot_be_written_to(two_nodes):
    done = two_nodes.run("preflight", "--address", two_nodes.address, "--storage", "file:///proc/nowhere")
    assert done.returncode == 2
    assert "not writable from every node" in done.stdout


def test_a_run_that_wants_more_cores_than_there_are_is_refused(two_nodes, tmp_path):
    five = [*TRAIN[:-1], "5"]
    done = two_nodes.run(*five, "--iterations", 1, "--address", two_nodes.address, "--run-dir", tmp_path / "run")
    assert done.returncode == 2
    assert "CPUs" in done.stderr
    assert "ask for 2 at most" in done.stderr


def test_a_wrong_token_is_refused_in_one_clear_line(two_nodes, tmp_path):
    attached = two_nodes.run("preflight", "--address", two_nodes.address, RAY_AUTH_TOKEN=WRONG)
    outside = two_nodes.run("submit", "--address", two_nodes.url, *EVALUATE, RAY_AUTH_TOKEN=WRONG)
    for done in (attached, outside):
        assert done.returncode == 2
        ours = [line for line in done.stderr.splitlines() if line.startswith("edgeroute: error: ")]
        assert len(ours) == 1
        assert "the token here is not the cluster's: set RAY_AUTH_TOKEN_PATH" in ours[0]
        assert "Traceback" not in done.stderr
        assert WRONG not in done.stdout + done.stderr
        assert two_nodes.token not in done.stdout + done.stderr


def test_no_token_and_no_cluster_are_told_apart(two_nodes):
    none = two_nodes.run("submit", "--address", two_nodes.url, *EVALUATE, HOME="/nonexistent")
    assert none.returncode == 2
    assert "the cluster wants a token, and there is none here" in none.stderr
    nobody = two_nodes.run("submit", "--address", "http://127.0.0.1:1", *EVALUATE)
    assert nobody.returncode == 2
    assert "nothing answers there" in nobody.stderr


def test_a_job_is_followed_and_its_results_are_fetched(two_nodes, tmp_path):
    done = two_nodes.run(
        "submit", "--address", two_nodes.url, "--job-id", "one", *TRAIN, "--iterations", 2, "--run-dir", "runs/one"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "iteration    2" in done.stdout
    assert (two_nodes.home / "edgeroute" / "runs" / "one" / "checkpoints").is_dir()  # not in the job's own folder, which goes
    fetched = two_nodes.run("job", "fetch", "one", "--address", two_nodes.url, "--out", tmp_path / "one")
    assert fetched.returncode == 0, fetched.stderr
    here, there = tmp_path / "one", two_nodes.home / "edgeroute" / "runs" / "one"
    files = sorted(path.relative_to(there) for path in there.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(here) for path in here.rglob("*") if path.is_file())
    assert all((here / path).read_bytes() == (there / path).read_bytes() for path in files)
    missing = two_nodes.run(
        "submit", "--address", two_nodes.url, "--job-id", "none", "evaluate", "--routers", "none", "--out", "nothing"
    )
    assert missing.returncode == 2
    nothing = two_nodes.run("job", "fetch", "none", "--address", two_nodes.url, "--out", tmp_path / "none")
    assert nothing.returncode == 2
    assert "cannot be fetched" in nothing.stderr
    assert not (tmp_path / "none").exists()
    again = two_nodes.run("job", "fetch", "one", "--address", two_nodes.url, "--out", tmp_path / "one")
    assert again.returncode == 2
    assert "is not empty" in again.stderr
    exported = two_nodes.run("export", here, "--out", tmp_path / "bundle")
    assert exported.returncode == 0, exported.stderr


def test_the_exit_code_is_that_of_the_job(two_nodes):
    assert two_nodes.run("submit", "--address", two_nodes.url, "train", "--no-such-option").returncode == 2
    missing = two_nodes.run("submit", "--address", two_nodes.url, "train", "--resume", "--run-dir", "runs/missing")
    assert missing.returncode == 2
    assert "runs/missing" in missing.stdout  # it is the job that says so


@pytest.mark.nightly
def test_a_job_that_is_stopped_leaves_a_checkpoint(two_nodes, tmp_path):
    sent = two_nodes.run("submit", "--address", two_nodes.url, "--no-wait", *TRAIN, "--minutes", 10, "--run-dir", "runs/long")
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.strip()
    run = two_nodes.home / "edgeroute" / "runs" / "long"
    await_line(run / "metrics.jsonl", "\n", times=2)
    assert two_nodes.run("job", "stop", job, "--address", two_nodes.url).returncode == 0
    logs = two_nodes.run("job", "logs", job, "--address", two_nodes.url)
    assert "SIGTERM" in logs.stdout
    assert "--resume goes on from there" in logs.stdout
    assert len(list((run / "checkpoints").iterdir())) == 1
    listed = two_nodes.run("job", "list", "--address", two_nodes.url)
    assert [line.split("|")[3].strip() for line in listed.stdout.splitlines() if f" {job} " in line] == ["STOPPED"]


def test_ray_job_submit_runs_the_uploaded_project(two_nodes, tmp_path):
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", two_nodes.url]
    entry = ["--runtime-env", "cluster/runtime_env.yaml", "--working-dir", ".", "--", "python", "edgeroute.py", *EVALUATE]
    command = [*ray, *entry, "--address", "auto", "--out", str(tmp_path / "out")]
    done = two_nodes.execute(command, cwd=ROOT, RAY_AUTH_MODE="token")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["comparisons"]
    wrong = two_nodes.execute(command, cwd=ROOT, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=WRONG)
    assert wrong.returncode != 0
    assert "token" in wrong.stderr


@pytest.mark.nightly
def test_the_trials_of_a_sweep_run_on_both_nodes(two_nodes, tmp_path):
    small = {
        "fleets": [],
        "variation": False,
        "envs_per_runner": 4,
        "requests": 200,
        "steps_per_iteration": 256,
        "generations": 0,
    }
    (tmp_path / "small.yaml").write_text(json.dumps(small))
    done = two_nodes.run(
        "sweep", "--space", "reward-weights", "--config", tmp_path / "small.yaml", "--scheduler", "none", "--num-samples", 2,
        "--iterations", 12, "--finalists", 1, "--final-seeds", 2, "--address", two_nodes.address,
        "--run-dir", tmp_path / "sweep", timeout_s=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "sweep" / "best.yaml").exists()
    rows = [json.loads(line) for path in (tmp_path / "sweep").rglob("result.json") for line in path.read_text().splitlines()]
    # A trial takes the one core of a node, and a process that is free takes the next one: two processes were on two nodes.
    # A trial lasts longer than the other process needs to be there.
    assert len({row["pid"] for row in rows}) == 2


@pytest.mark.nightly
def test_a_run_directory_need_not_be_shared(two_nodes, tmp_path):
    elsewhere = "/proc/self/cwd/run"  # what a process finds there depends on where it is
    two = [*TRAIN[:-1], "2"]
    done = two_nodes.run(*two, "--iterations", 2, "--address", two_nodes.address, "--run-dir", elsewhere, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    exported = two_nodes.run("export", tmp_path / "run", "--out", tmp_path / "bundle")
    assert exported.returncode == 0, exported.stderr
