"""``edgeroute node``: what is refused, and that it ends what it started alone."""

import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.node import Options, _free_ports, find_node, start_node, stop_node
from edgeroute import main
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
        ({"port": 26_002}, "dashboard-port = 26002: is the cluster's port, too"),
        ({"port": 12_000}, "port = 12000: is one of worker-ports = 10002-19999"),
        ({"worker_ports": "26002-26100"}, "dashboard-port = 26002: is one of worker-ports = 26002-26100"),
        ({"folder": FOLDER / ("long" * 20)}, "35 at most"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(changes, message):
    with pytest.raises(InputError, match=message):
        start_node(replace(HEAD, **changes))
    assert not FOLDER.exists()


@pytest.mark.parametrize("name", ["port", "dashboard-port"])
@pytest.mark.parametrize("where", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_port_that_is_taken_ends_in_one_line_that_names_it(name, where, capsys):
    both = ":" in where
    if both and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    family = socket.AF_INET6 if both else socket.AF_INET
    with socket.create_server((where, 0), family=family, dualstack_ipv6=both) as taken:
        port = taken.getsockname()[1]
        ports = {"port": 26_001, "dashboard-port": 26_002, name: port}
        options = [text for key, value in ports.items() for text in (f"--{key}", str(value))]
        assert main(["node", "start", "--head", *options, "--folder", str(FOLDER)]) == 2
    assert capsys.readouterr().err == f"edgeroute: error: {name} = {port}: cannot be had: Address already in use\n"
    assert not FOLDER.exists()


def test_ports_of_rays_own_are_apart_from_each_other_and_from_those_of_workers():
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())  # what the system gives out
    workers = range(low, (low + high) // 2)
    for _ in range(20):
        one, other = _free_ports(2, workers)
        assert one != other
        assert not {one, other} & set(workers)
    with pytest.raises(InputError, match="worker-ports = 1024-65535: leaves no port"):
        _free_ports(1, range(1024, 65_536))


@pytest.mark.cluster
def test_a_head_lives_though_the_usual_port_of_rays_clients_is_taken(own_cluster):
    with ExitStack() as stack:
        with suppress(OSError):  # by something else
            stack.enter_context(socket.create_server(("127.0.0.1", 10_001)))
        own_cluster.start("head")
        time.sleep(3)  # Ray looks after its processes once a second
        assert find_node(own_cluster.home / "head")


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
