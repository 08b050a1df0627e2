"""A cluster of two nodes on this machine: ports, folders and a home of its own, so that it meets no other Ray."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.node import find_node

ROOT = Path(__file__).resolve().parents[2]
EDGEROUTE = [sys.executable, str(ROOT / "edgeroute.py")]


class LocalCluster:
    """Nodes ``head`` and ``worker``, of one core each unless told otherwise, with token authentication."""

    def __init__(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="er", dir="/tmp"))  # short: Ray's sockets are below it
        self.port, self.dashboard_port, *self._worker_ports = _free_ports(2, 200, 200)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "EDGEROUTE_CHECKPOINT"))}
        compiled = {"NUMBA_CACHE_DIR": str(Path.home() / ".cache" / "edgeroute")}  # to compile anew takes minutes
        self.environment = compiled | kept | {"HOME": str(self.home), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}

    @property
    def address(self) -> str:
        """Where commands attach."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """Of the dashboard."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def token(self) -> str:
        return (self.home / ".ray" / "auth_token").read_text()

    def start(self, name: str, cpus: int = 1) -> None:
        """Start a node."""
        low = self._worker_ports[name != "head"]
        where = ["--head", "--port", self.port, "--dashboard-port", self.dashboard_port]
        options = where if name == "head" else ["--address", self.address]
        common = ["--worker-ports", f"{low}-{low + 199}", "--num-cpus", cpus, "--folder", self.home / name]
        done = self.run("node", "start", *options, *common)
        assert done.returncode == 0, done.stderr

    def run(
        self, *arguments: object, cwd: Path | None = None, timeout_s: float = 600, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """The outcome of ``edgeroute`` with these arguments, and these changes of the environment."""
        return self.execute([*EDGEROUTE, *map(str, arguments)], cwd=cwd, timeout_s=timeout_s, **changes)

    def execute(
        self, command: Sequence[str], *, cwd: Path | None = None, timeout_s: float = 600, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """The outcome of any command in the cluster's environment, with these changes."""
        return subprocess.run(
            command, cwd=cwd or self.home, env=self.environment | changes, text=True, capture_output=True, timeout=timeout_s
        )

    def begin(self, *arguments: object, log: Path) -> subprocess.Popen[bytes]:
        """``edgeroute`` in the background, its output in a file."""
        with log.open("wb") as output:
            return subprocess.Popen(
                [*EDGEROUTE, *map(str, arguments)], cwd=self.home, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def kill(self, name: str) -> int:
        """kill -9 of every process of a node, as when its machine fails; the number of them."""
        node = find_node(self.home / name)
        assert node is not None
        main = node.process()
        assert main is not None
        victims = [main, *main.children(recursive=True)]
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.suspend()  # or those that are left notice, and tidy up
        for process in victims:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(victims, timeout=60)
        return len(victims)

    def stop(self) -> list[str]:
        """Stop all; what is still running afterwards."""
        for name in ("worker", "head"):
            if (self.home / name).exists():
                self.run("node", "stop", "--folder", self.home / name)
        end_s = time.monotonic() + 60
        while (left := self._left()) and time.monotonic() < end_s:
            time.sleep(0.2)
        told = [f"{process.pid} {process.name()}" for process in left]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)
        return told

    def _left(self) -> list[psutil.Process]:
        """Processes with our home: everything that was started with ``environment``, and all that came of it."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("HOME") == str(self.home):
                    found.append(process)
        return found


def await_line(log: Path, text: str, *, times: int = 1, timeout_s: float = 180) -> None:
    """Wait until a text has come up in a file so often."""
    end_s = time.monotonic() + timeout_s
    while not log.exists() or log.read_text(errors="replace").count(text) < times:
        assert time.monotonic() < end_s, f"{text!r} did not come {times} times: {log.read_text(errors='replace')[-2000:]}"
        time.sleep(0.1)


def _free_ports(count: int, *ranges: int) -> list[int]:
    """Free ports below those that the system gives out: some, and the first of each range of so many."""
    found: list[int] = []
    lane = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # tests that run beside each other are apart
    at = 20_000 + 4_000 * lane + os.getpid() % 3_000
    for width in (*[1] * count, *ranges):
        while not all(_free(port) for port in range(at, at + width)):
            at += 1
        found.append(at)
        at += width
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
