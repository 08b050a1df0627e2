"""``edgeroute node``: what is refused, and that it ends what it started alone."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.node import Options, find_node, start_node, stop_node
from rllib_envs.errors import InputError

FOLDER = Path("/tmp/er-refused")  # never made: it must be short
HEAD = Options(action="start", head=True, port=26_001, dashboard_port=26_002, folder=FOLDER)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": False}, "one of them is needed"),
        ({"address": "127.0.0.1:6379"}, "one of them is needed"),
        ({"worker_ports": "10-20"}, "worker-ports = 10-20"),
        ({"worker_ports": "3000-2000"}, "worker-ports = 3000-2000"),
        ({"num_cpus": -1}, "num-cpus = -1"),
        ({"port": 80}, "port = 80"),
        ({"dashboard_port": 70_000}, "dashboard-port = 70000"),
        ({"folder": FOLDER / ("long" * 20)}, "35 at most"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(changes, message):
    with pytest.raises(InputError, match=message):
        start_node(replace(HEAD, **changes))
    assert not FOLDER.exists()


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port = {port}: cannot be had"):
            start_node(replace(HEAD, port=port))


def test_where_nothing_was_started_nothing_is_stopped(tmp_path):
    assert find_node(tmp_path) is None
    assert stop_node(tmp_path) == 0


@pytest.mark.cluster
def test_stopping_a_node_leaves_the_other_alone(own_cluster):
    own_cluster.start("head")
    own_cluster.start("worker")
    head = find_node(own_cluster.home / "head")
    assert own_cluster.run("node", "stop", "--folder", own_cluster.home / "worker").returncode == 0
    assert find_node(own_cluster.home / "worker") is None
    assert find_node(own_cluster.home / "head") == head
    again = own_cluster.run("node", "start", "--head", "--folder", own_cluster.home / "head")
    assert (again.returncode, "runs already" in again.stdout) == (0, True)
