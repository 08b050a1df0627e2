"""``ray up`` and ``ray submit`` with the file that users start from, over real SSH, on machines in miniature."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from tests.cluster.sshd import HEAD, WORKER, machines, missing

ROOT = Path(__file__).resolve().parents[2]
NODE = Path(".edgeroute/node/node.json")

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster():
    """Laptop, head, worker and the file of the cluster, which is up: head and worker run Ray, started by one command."""
    lack = missing()
    if lack and os.environ.get("EDGEROUTE_CLUSTER_TESTS") == "required":
        pytest.fail(lack)
    if lack:
        pytest.skip(lack)
    with machines() as (laptop, head, worker, key):
        # What a user changes, and nothing else.
        config = yaml.safe_load((ROOT / "cluster" / "ray-cluster.yaml").read_text())
        config["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
        config["auth"] |= {"ssh_user": "root", "ssh_private_key": str(key)}
        (laptop.home / "ray-cluster.yaml").write_text(yaml.safe_dump(config))
        file = laptop.home_there / "ray-cluster.yaml"
        with (worker.home / ".bashrc").open("a") as start_up:  # or it looks for a head that is gone for a minute or two
            start_up.write("export RAY_gcs_rpc_server_reconnect_timeout_s=10\n")
        assert laptop.run("ray", "get-auth-token", "--generate").returncode == 0
        up = laptop.run("ray", "up", "--yes", str(file), cwd=ROOT)
        assert up.returncode == 0, up.stdout
        until(lambda: (worker.home / NODE).exists() and is_up(worker), 120, lambda: last_lines(head))
        yield laptop, head, worker, file


def until(holds, limit_s, otherwise):
    end_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end_s, otherwise()
        time.sleep(0.5)


def last_lines(head):
    """What the head says of its workers."""
    return [log.read_text()[-3000:] for log in (head.home / ".edgeroute/node/ray").glob("session_2*/logs/monitor.*")]


def is_up(machine):
    return machine.run("edgeroute", "node", "status").returncode == 0


def on_head(laptop, file, command):
    return laptop.run("ray", "exec", str(file), command, cwd=ROOT)


def test_a_run_submitted_from_the_laptop_trains_on_the_cluster(cluster):
    laptop, head, _, file = cluster
    run = ["train", "--smoke", "--address", "auto", "--run-dir", "runs/mine"]
    done = laptop.run("ray", "submit", str(file), "edgeroute.py", "--", *run, cwd=ROOT, timeout_s=500)
    assert done.returncode == 0, done.stdout
    assert "Written: runs/mine/checkpoints/" in done.stdout
    assert list((head.home / "runs" / "mine" / "checkpoints").iterdir())


def test_a_wrong_option_comes_back(cluster):
    laptop, _, _, file = cluster
    done = laptop.run("ray", "submit", str(file), "edgeroute.py", "--", "train", "--smok", cwd=ROOT)
    assert done.returncode != 0
    assert "Unrecognized options: --smok" in done.stdout


def test_bringing_it_up_again_leaves_what_runs_as_it_is(cluster):
    laptop, head, worker, file = cluster
    before = [json.loads((machine.home / NODE).read_text())["pid"] for machine in (head, worker)]
    start_up = (head.home / ".bashrc").read_text()
    assert start_up.count(".venv/bin") == 1
    up = laptop.run("ray", "up", "--yes", str(file), cwd=ROOT)
    assert up.returncode == 0, up.stdout
    assert [json.loads((machine.home / NODE).read_text())["pid"] for machine in (head, worker)] == before
    assert (head.home / ".bashrc").read_text() == start_up


def test_the_token_guards_the_cluster_and_is_on_no_command_line(cluster):
    laptop, head, worker, _ = cluster
    token = (laptop.home / ".ray" / "auth_token").read_text()
    assert not [line for line in [*head.processes(), *worker.processes()] if token in line]

    def answer(host, shown):
        ask = (
            "import sys, urllib.request as r; print(r.urlopen(r.Request(sys.argv[1], headers={sys.argv[2]: sys.argv[3]})).status)"
        )
        return laptop.run("python", "-c", ask, f"http://{host}:8265/api/version", "Authorization", f"Bearer {shown}").stdout

    assert answer("127.0.0.1", token) == "200\n"
    assert "403" in answer("127.0.0.1", "another")
    assert "refused" in answer(HEAD, token)


def test_stopping_the_head_takes_the_cluster_down(cluster):
    laptop, head, worker, file = cluster
    done = on_head(laptop, file, "edgeroute node stop")
    assert done.returncode == 0, done.stdout
    assert "stopped: " in done.stdout
    until(lambda: not head.processes(), 30, head.processes)
    until(lambda: not worker.processes(), 300, worker.processes)  # it looks for its head for a while
