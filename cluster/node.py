"""Start and stop your own Ray node on this machine.

Ray's own stop command ends every Ray on the machine. This command ends only what it started. A node has a folder with its
temporary files, its log and its process id; several nodes on one machine have a folder each. The dashboard listens on loopback by
default. To join or use the cluster takes its token. The first head creates it in ~/.ray/auth_token; other machines need a copy.
RAY_AUTH_MODE=disabled turns tokens off. Example:

    edgeroute node start --head
    edgeroute train --address 127.0.0.1:6379 --run-dir runs/mine
    edgeroute node stop
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import tyro

from rllib_envs.errors import InputError
from rllib_envs.json_files import read_json
from tuning.ray_cluster.session import TOKEN_FILE, has_token
from tuning.run_dir.atomic import write_json, write_secret
from tuning.run_dir.home import in_home

_ABOUT, _LOG, _TEMPORARY = "node.json", "node.log", "ray"
_STARTED = "Ray runtime started."  # what ``ray start`` writes when the node answers
_START_S, _STOP_S = 90.0, 20.0
_LONGEST_FOLDER = 35  # characters: a Unix socket's path must stay under 108, and the dashboard's are deep below the folder
_EXIT_NOT_RUNNING = 1
_PORT_TRIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    action: tyro.conf.Positional[Literal["start", "stop", "status"]]
    """start: start a node, or say that it runs; stop: end its processes; status: say whether it runs (exit code 0) or not (1)."""
    head: bool = False
    """Start a new cluster with this node as its head."""
    address: str | None = None
    """HOST:PORT of the head of the cluster to join."""
    node_ip: str = "127.0.0.1"
    """Address of this machine under which the others reach it. Loopback: reached from this machine alone."""
    port: int = 6379
    """Port of the cluster, at the head."""
    dashboard_host: str = "127.0.0.1"
    """Address that the head's dashboard, which also takes jobs, listens on."""
    dashboard_port: int = 8265
    """Its port."""
    worker_ports: str = "10002-19999"
    """LOW-HIGH: ports of worker processes; nodes on the same machine need ranges of their own."""
    num_cpus: int | None = None
    """Cores to give to tasks. Default: all of the machine; 0 for a head that only directs."""
    num_gpus: int | None = None
    """GPUs to give to tasks. Default: all of the machine."""
    autoscaling_config: Path | None = None
    """What Ray's cluster launcher leaves on a head, which starts the workers that it describes."""
    folder: Path = Path("~/.edgeroute/node")
    """Folder of the node; the path must be short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that was started."""

    pid: int
    created_s: float  # when the process was created, since the epoch: another may come to have its number
    address: str  # HOST:PORT of its cluster
    dashboard: str | None  # URL, if it is the head

    def process(self) -> psutil.Process | None:
        """Its process, if it runs."""
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created_s) < 1 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def run(options: Options) -> int:
    """Run the requested action and print the result.

    Returns:
        0; for status 1 if no node runs.

    Raises:
        InputError: options that do not go together, a folder that cannot be used, a node that does not come up.
    """
    folder = in_home(options.folder).absolute()
    if options.action == "start":
        node, new = start_node(options)
        stop = shlex.join(["edgeroute", "node", "stop", "--folder", str(folder)])
        print(f"{'started' if new else 'runs already'}: {_describe(node)}; {stop} ends it")
        return 0
    node = find_node(folder)
    if options.action == "stop":
        count = stop_node(folder)
        print(f"stopped: {count} processes of the node in {folder}" if count else f"no node runs in {folder}")
        return 0
    print(f"runs: {_describe(node)}" if node else f"no node runs in {folder}")
    return 0 if node else _EXIT_NOT_RUNNING


def start_node(options: Options) -> tuple[Node, bool]:
    """Start a node and wait until it answers.

    Returns:
        The node, and whether it is new: a running one in the folder is left as it is.

    Raises:
        InputError: options that do not go together, a folder that cannot be used, a node that does not come up.
    """
    folder = in_home(options.folder).absolute()
    running = find_node(folder)
    if running is not None:
        return running, False
    _check(options, folder)
    _make_token(options)
    stop_node(folder)  # what is left of one that was killed
    log = folder / _LOG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            process = subprocess.Popen(
                _command(options, folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,  # it outlives the shell that asked for it
            )
    except OSError as error:
        raise InputError(f"folder = {folder}: cannot be used: {error.strerror}") from None
    node = Node(
        pid=process.pid,
        created_s=psutil.Process(process.pid).create_time(),
        address=f"{options.node_ip}:{options.port}" if options.head else str(options.address),
        dashboard=f"http://{options.dashboard_host}:{options.dashboard_port}" if options.head else None,
    )
    write_json(folder / _ABOUT, asdict(node))
    try:
        _await(process, log)
    except BaseException:
        stop_node(folder)
        raise
    return node, True


def find_node(folder: Path) -> Node | None:
    """The node that runs in a folder, if there is one.

    Raises:
        InputError: the folder has a description that cannot be read.
    """
    if not (folder / _ABOUT).exists():
        return None
    node = _read(folder)
    return node if node.process() else None


def stop_node(folder: Path) -> int:
    """End the processes of the node in a folder, also leftovers of a killed one; returns their number."""
    if not (folder / _ABOUT).exists():
        return 0
    main = _read(folder).process()
    ours = _processes(folder, main)
    if main is not None:  # Ray ends the others in the right order
        with suppress(psutil.NoSuchProcess):
            main.terminate()
        psutil.wait_procs(ours, timeout=_STOP_S)
    for process in {*ours, *_processes(folder, None)}:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(ours, timeout=_STOP_S)
    (folder / _ABOUT).unlink(missing_ok=True)
    return len(ours)


def _check(options: Options, folder: Path) -> None:
    if options.head == (options.address is not None):
        raise InputError("head, address: one of them is needed: --head begins a cluster, --address HOST:PORT joins one")
    if len(str(folder)) > _LONGEST_FOLDER:
        raise InputError(f"folder = {folder}: {len(str(folder))} characters: Ray's sockets allow {_LONGEST_FOLDER} at most")
    low, _, high = options.worker_ports.partition("-")
    if not (low.isdigit() and high.isdigit() and 1024 <= int(low) < int(high) <= 65535):
        raise InputError(f"worker-ports = {options.worker_ports}: must be LOW-HIGH, from 1024 to 65535")
    for name in ("num_cpus", "num_gpus"):
        if (getattr(options, name) or 0) < 0:
            raise InputError(f"{name.replace('_', '-')} = {getattr(options, name)}: must be >= 0")
    if not options.head:
        return
    for name in ("port", "dashboard_port"):
        port: int = getattr(options, name)
        if not 1024 <= port <= 65535:
            raise InputError(f"{name.replace('_', '-')} = {port}: must be from 1024 to 65535")
        if port in _worker_ports(options):
            raise InputError(f"{name.replace('_', '-')} = {port}: is one of worker-ports = {options.worker_ports}")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((options.dashboard_host if name == "dashboard_port" else options.node_ip, port))
            except OSError as error:
                raise InputError(f"{name.replace('_', '-')} = {port}: cannot be had: {error.strerror}") from None
    if options.port == options.dashboard_port:
        raise InputError(f"dashboard-port = {options.dashboard_port}: is the cluster's port, too")


def _make_token(options: Options) -> None:
    """Create a token for a head if there is none; Ray logs if another node lacks it.

    Raises:
        InputError: it cannot be written.
    """
    if not options.head or has_token() or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    file = in_home(TOKEN_FILE)
    try:
        write_secret(file, secrets.token_hex(32).encode())
    except OSError as error:
        raise InputError(
            f"{file}: the cluster's token cannot be written: {error.strerror}: RAY_AUTH_TOKEN_PATH names a file that holds one, "
            "RAY_AUTH_MODE=disabled does without"
        ) from None


def _command(options: Options, folder: Path) -> list[str]:
    workers = _worker_ports(options)
    agent, client = _free_ports(2, workers)  # Ray's usual ones are one for each machine, not for each node
    settings: dict[str, Any] = {
        "node-ip-address": options.node_ip,
        "min-worker-port": workers[0],
        "max-worker-port": workers[-1],
        "num-cpus": options.num_cpus,
        "num-gpus": options.num_gpus,
        "dashboard-agent-listen-port": agent,
        "temp-dir": folder / _TEMPORARY,
    }
    if options.head:
        settings |= {
            "port": options.port,
            "ray-client-server-port": client,  # a head that cannot have it dies a moment after its start
            "dashboard-host": options.dashboard_host,
            "dashboard-port": options.dashboard_port,
            "autoscaling-config": options.autoscaling_config,
        }
    else:
        settings["address"] = options.address
    given = [f"--{name}={value}" for name, value in settings.items() if value is not None]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
            "--log-color=false", *(["--head"] if options.head else []), *given]  # fmt: skip


def _environment() -> dict[str, str]:
    """Environment in which jobs find this installation's Python and commands, even without activation."""
    own = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return {
        "OMP_NUM_THREADS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_AUTH_MODE": "token",
        **os.environ,
        "PATH": path if path.split(os.pathsep)[0] == own else os.pathsep.join([own, path]),
    }


def _await(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a new node answers.

    Raises:
        InputError: it ends, or takes too long.
    """
    end_s = time.monotonic() + _START_S
    while _STARTED not in (text := log.read_text(encoding="utf-8", errors="replace")):
        if process.poll() is not None:
            last = [line for line in text.splitlines() if line.strip()][-1:]
            raise InputError(f"Ray did not start: {last[0] if last else 'it says nothing'}; see {log}")
        if time.monotonic() > end_s:
            raise InputError(f"Ray did not start within {_START_S:g} s; see {log}")
        time.sleep(0.1)


def _processes(folder: Path, main: psutil.Process | None) -> list[psutil.Process]:
    """Child processes, and all with the node's temporary folder in their command line."""
    found: dict[int, psutil.Process] = {}
    if main is not None:
        with suppress(psutil.NoSuchProcess):
            found = {process.pid: process for process in [main, *main.children(recursive=True)]}
    temporary = f"{folder / _TEMPORARY}/"
    for process in psutil.process_iter(["cmdline"]):
        if any(temporary in argument for argument in process.info["cmdline"] or ()):
            found.setdefault(process.pid, process)
    return list(found.values())


def _read(folder: Path) -> Node:
    data = read_json(folder / _ABOUT)
    try:
        return Node(**data)
    except TypeError:
        raise InputError(f"{folder / _ABOUT}: not the description of a node: delete it when no Ray runs there") from None


def _worker_ports(options: Options) -> range:
    low, _, high = options.worker_ports.partition("-")
    return range(int(low), int(high) + 1)


def _free_ports(count: int, others: range) -> list[int]:
    """Free ports of this machine, apart from others.

    Raises:
        InputError: none is found.
    """
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(_PORT_TRIES)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))  # all are open at once, so that each has another port
        found = [port for probe in probes if (port := probe.getsockname()[1]) not in others]
    if len(found) < count:
        raise InputError(f"worker-ports = {others[0]}-{others[-1]}: leaves no port for the rest of Ray")
    return found[:count]


def _describe(node: Node) -> str:
    return f"process {node.pid}, cluster {node.address}" + (f", dashboard {node.dashboard}" if node.dashboard else "")
