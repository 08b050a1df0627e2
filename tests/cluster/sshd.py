"""Machines in miniature on this one, with real SSH servers: a laptop, and a head and a worker on a network of their own.

Each is a set of Linux namespaces: it sees its own processes, home and network alone, so the usual ports are free, and whatever
runs in it ends with it. Other files are those of the machine that they are on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

HEAD, WORKER = "10.77.0.1", "10.77.0.2"
_TOOLS = ("sshd", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter", "ip", "bash")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SSHD = """\
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One of them."""

    home: Path  # the folder that is its home
    home_there: Path  # where it sees it
    pid: int  # of its first process

    def run(self, *command: str, cwd: Path | None = None, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """The outcome of a command on it, with the environment of a user who has just logged in."""
        enter = ["nsenter", "--net", "--mount", "--pid", "--target", str(self.pid), "env", f"--chdir={cwd or self.home_there}"]
        return subprocess.run(
            [*enter, *command],
            env={"HOME": str(self.home_there), "PATH": f"{Path(sys.executable).parent}:{_PATH}", "TERM": "dumb"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def processes(self) -> list[str]:
        """Command lines of what runs on it, but for its first process and connections to it."""
        lines: list[str] = []
        for process in psutil.Process(self.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # it ended just now
                lines.append(" ".join(process.cmdline()))
        return [line for line in lines if not line.startswith("sshd:")]


def missing() -> str | None:
    """What this machine lacks for them, if anything."""
    tools = [tool for tool in _TOOLS if shutil.which(tool, path=_PATH) is None]
    if tools:
        return f"{', '.join(tools)}: not found (Debian, Ubuntu: apt-get install openssh-server rsync iproute2)"
    if os.geteuid() != 0:
        return "namespaces with SSH servers need root"
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "true"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"namespaces cannot be had: {tried.stderr.strip()}" if tried.returncode else None


@contextmanager
def machines() -> Iterator[tuple[Machine, Machine, Machine, Path]]:
    """A laptop, a head at ``HEAD`` and a worker at ``WORKER``, and the private key of root on the two.

    The laptop is on the head's network.
    """
    folder = Path(tempfile.mkdtemp(prefix="edgeroute-machines-"))
    home = Path(tempfile.mkdtemp(prefix="er", dir="/tmp"))  # a short path, because a node's sockets are below it
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name in ("host_key", "user_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        (folder / "passwd").write_text(f"root:x:0:0::{home}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
        head = _machine(folder / "head", home, ["unshare", "--net"], _server(folder, HEAD), started)
        worker = _machine(folder / "worker", home, ["unshare", "--net"], _server(folder, WORKER), started)
        _join(head, worker)
        on_its_net = ["nsenter", f"--net=/proc/{head.pid}/ns/net", "unshare"]
        laptop = _machine(folder / "laptop", home, on_its_net, "sleep infinity", started)
        for machine, address in ((head, HEAD), (worker, WORKER)):
            _as_installed(machine.home)
            _await_server(laptop, folder / "user_key", address)
        yield laptop, head, worker, folder / "user_key"
    finally:
        for process in started:
            process.kill()  # and with it the first process of its namespace, and so all others in there
            process.wait()
        shutil.rmtree(folder)
        home.rmdir()


def _machine(folder: Path, home: Path, enter: list[str], command: str, started: list[subprocess.Popen[bytes]]) -> Machine:
    folder.mkdir()
    Path("/tmp/ray").mkdir(exist_ok=True)  # where Ray's launcher keeps what it knows of clusters, to each machine its own
    mounts = [
        f"mount --bind {folder} {home}",
        f"mount --bind {folder.parent}/passwd /etc/passwd",
        "mount -t tmpfs none /tmp/ray",
        "mount -t tmpfs none /run",
        "mkdir /run/sshd",
    ]
    own = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        [*enter, *own, "sh", "-ec", "; ".join([*mounts, f"exec {command}"])], env={"PATH": _PATH}, stdin=subprocess.DEVNULL
    )
    started.append(process)
    end_s = time.monotonic() + 60
    while not (children := psutil.Process(process.pid).children()):
        assert time.monotonic() < end_s, f"{folder.name} does not start"
        time.sleep(0.05)
    return Machine(home=folder, home_there=home, pid=children[0].pid)


def _server(folder: Path, address: str) -> str:
    """What a machine with an SSH server runs: it waits for the address, which comes with the cable."""
    config = folder / f"{address}.conf"
    config.write_text(_SSHD.format(address=address, folder=folder))
    wait = f"ip link set lo up; until ip address show | grep -q {address}/; do sleep 0.1; done"
    return f"sh -c '{wait}; exec /usr/sbin/sshd -D -f {config}'"


def _join(head: Machine, worker: Machine) -> None:
    """The cable from one network to the other."""
    at_head, at_worker = ([*f"nsenter --net=/proc/{machine.pid}/ns/net ip".split()] for machine in (head, worker))
    subprocess.run([*at_head, *f"link add cable type veth peer name cable netns {worker.pid}".split()], check=True)
    for at, address in ((at_head, HEAD), (at_worker, WORKER)):
        subprocess.run([*at, "address", "add", f"{address}/24", "dev", "cable"], check=True)
        subprocess.run([*at, "link", "set", "cable", "up"], check=True)


def _as_installed(home: Path) -> None:
    """What the project needs is found without a download, as if it were installed on the node; the project itself is not."""
    site = Path(sysconfig.get_path("purelib"))
    own = home / "edgeroute" / ".venv" / "lib" / site.parent.name / "site-packages"
    own.mkdir(parents=True)
    (own / "tested.pth").write_text(f"{site}\n")
    python = Path(os.path.realpath(sys.executable)).parent
    (home / ".bashrc").write_text(f"export PATH={python}:$PATH PIP_NO_INDEX=1 PIP_NO_BUILD_ISOLATION=0\n")


def _await_server(laptop: Machine, key: Path, address: str) -> None:
    options = ["-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=2"]
    end_s = time.monotonic() + 60
    while (tried := laptop.run("ssh", *options, f"root@{address}", "true")).returncode:
        assert time.monotonic() < end_s, f"no SSH server at {address}: {tried.stdout}"
        time.sleep(0.2)
