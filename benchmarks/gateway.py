"""What the gateway costs: added time to first token, processor time of a stream, memory of many streams, beside its peers.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.gateway [--peers FOLDER] [--soak-minutes 10]`` from the repository root. FOLDER is
the ``bin`` of an environment with ``pip install 'litellm[proxy]' vllm-router``. Two mock engines answer with 16 tokens each. A
closed loop of clients asks them directly and through each gateway in turn, round by round. *Paced* engines send the first token
after 50 ms and one more every 20 ms: the difference of the times to first token is what a gateway adds. *Unpaced* ones answer at
once: processor time of the gateway's process for a request. The gateway decides among six experts, three to an engine. The soak
holds many streams of 40 tokens, half a second apart, and reads the process's memory. Expect a millisecond and a half of processor
time or less for a stream, and some milliseconds added on a machine with other work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import tyro
import uvloop

from tests.gateway.running import MockEngine, ask, engines, settings, wait_for
from tuning.output.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]
TOKENS, FIRST_S, PACE_S = 16, 0.05, 0.02
PROMPT = " ".join(f"word{i}" for i in range(100))
SPREAD_S = FIRST_S + TOKENS * PACE_S
START_S = 180.0
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_END = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    peers: Path | None = None
    """Folder with the programs litellm and vllm-router. Default: no peers."""
    policies: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ("least-work", "impact-greedy", "any-cluster-router")
    """Policies of the gateway to measure."""
    streams: int = 32
    """Requests under way at once."""
    seconds: float = 6.0
    """Length of each measurement."""
    rounds: int = 3
    """Rounds over all gateways. 0: the soak alone."""
    soak_minutes: float = 0.0
    """Length of the soak. 0: none."""
    soak_streams: int = 1024
    """Streams of the soak."""


@dataclass(slots=True)
class Load:
    """What a closed loop of clients met."""

    ttft_s: list[float] = field(default_factory=list[float])
    failed: int = 0
    finished: int = 0


class _Client(asyncio.Protocol):
    """One connection that asks again as soon as an answer is complete."""

    def __init__(self, load: Load, request: bytes, until_s: float, tokens: int) -> None:
        """``tokens``: of a whole stream; 0: the answers are no streams."""
        self.load, self.request, self.until_s, self.tokens, self.streams = load, request, until_s, tokens, tokens > 0
        self.over = asyncio.get_running_loop().create_future()
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        if time.perf_counter() >= self.until_s:
            self.transport.close()
            return
        self.busy, self.first, self.seen, self.kept = True, True, 0, b""
        self.sent_s = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.first and b"data: " in data:
            self.first = False
            self.load.ttft_s.append(time.perf_counter() - self.sent_s)
        self.seen += data.count(b'"content":')
        self.kept = self.kept[-64:] + data if self.first is False else self.kept + data
        if self.kept.endswith(_END) or self._is_whole():
            whole = self.seen >= self.tokens or not self.streams
            self.busy = False
            self.load.finished += whole
            self.load.failed += not whole
            self.ask()

    def _is_whole(self) -> bool:
        """Whether an answer that is no stream is complete."""
        head, end, body = self.kept.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        return bool(end) and length is not None and len(body) >= int(length[1])

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.failed += self.busy
        if not self.over.done():
            self.over.set_result(None)


async def _press(url: str, request: bytes, streams: int, seconds: float, tokens: int) -> Load:
    load, (host, port) = Load(), url.removeprefix("http://").split(":")
    until_s = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    clients: list[_Client] = []
    for _ in range(streams):
        _, client = await loop.create_connection(lambda: _Client(load, request, until_s, tokens), host, int(port))
        clients.append(client)
        await asyncio.sleep(SPREAD_S / streams)  # in step, all would ask in the same millisecond again and again
    await asyncio.gather(*(client.over for client in clients))
    return load


def press(url: str, streams: int, seconds: float, *, stream: bool, tokens: int = TOKENS) -> Load:
    """A closed loop of ``streams`` clients for some seconds."""
    body = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}], "stream": stream, "max_tokens": tokens}
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return uvloop.run(_press(url, head.encode() + data, streams, seconds, tokens if stream else 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A gateway to measure, or an engine itself."""

    name: str
    url: str
    process: psutil.Process | None

    def cpu_s(self) -> float:
        """Processor time so far, with that of its children."""
        if self.process is None:
            return 0.0
        family = [self.process, *self.process.children(recursive=True)]
        return sum(sum(x.cpu_times()[:2]) for x in family)

    def memory_mb(self) -> float:
        """Resident memory."""
        assert self.process is not None
        return self.process.memory_info().rss / 2**20


def free_port() -> int:
    """A port that nobody listens at."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def program_running(name: str, command: list[str], port: int, path: str, log: Path, *, ours: bool = False) -> Generator[Target]:
    """A program that answers at ``path`` of ``port``, until the block ends."""
    url = f"http://127.0.0.1:{port}"
    with (
        log.open("w", encoding="utf-8") as out,
        subprocess.Popen(command, stdout=out, stderr=out, env=_environment(ours)) as process,
    ):
        try:
            wait_for(lambda: process.poll() is not None or _answers(url, path), START_S)
            if process.poll() is not None:
                raise SystemExit(f"{name} ended:\n{log.read_text(encoding='utf-8')[-2000:]}")
            yield Target(name=name, url=url, process=psutil.Process(process.pid))
        finally:
            process.terminate()


def _environment(of_ours: bool) -> dict[str, str]:
    """Peers must not find our packages, whose names others use too."""
    if of_ours:
        return os.environ | {"PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return kept | {"LITELLM_LOG": "ERROR", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}


def _answers(url: str, path: str) -> bool:
    with contextlib.suppress(OSError):
        return ask(url, "GET", path).status == 200
    return False


@contextlib.contextmanager
def own(mocks: list[MockEngine], policy: str, folder: Path) -> Generator[Target]:
    """Our gateway, with six experts at two engines."""
    port = free_port()
    presets = ["gemma-2-2b", "phi-3.5-mini", "qwen2-7b", "llama-3.1-8b", "gemma-2-9b", "yi-1.5-9b"]
    experts = [{"name": name, "url": mocks[i % 2].url, "preset": f"edge6/{name}"} for i, name in enumerate(presets)]
    path = folder / f"{policy}.yaml"
    path.write_text(json.dumps(settings(mocks, experts=experts, policy=policy, listen={"port": port}, timeouts={}, breaker={})))
    command = [sys.executable, str(ROOT / "edgeroute.py"), "serve", "--config", str(path)]
    with program_running(f"edgeroute, {policy}", command, port, "/ready", folder / f"{policy}.log", ours=True) as target:
        yield target


@contextlib.contextmanager
def vllm_router(mocks: list[MockEngine], programs: Path, folder: Path) -> Generator[Target]:
    """vllm-router, in Rust: round robin."""
    port, metrics = free_port(), free_port()
    command = [str(programs / "vllm-router"), "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--prometheus-port", str(metrics), "--log-level", "error", "--worker-urls", *(mock.url for mock in mocks)]
    with program_running("vllm-router", command, port, "/health", folder / "vllm-router.log") as target:
        yield target


@contextlib.contextmanager
def litellm(mocks: list[MockEngine], programs: Path, folder: Path) -> Generator[Target]:
    """LiteLLM's proxy with one worker: least busy."""
    port = free_port()
    parts = [{"model": "openai/auto", "api_base": f"{mock.url}/v1", "api_key": "none"} for mock in mocks]
    models = [{"model_name": "auto", "litellm_params": part} for part in parts]
    data = {"model_list": models, "router_settings": {"routing_strategy": "least-busy"}}
    path = folder / "litellm.yaml"
    path.write_text(json.dumps(data))
    command = [str(programs / "litellm"), "--config", str(path), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    with program_running("LiteLLM, least-busy", command, port, "/health/liveliness", folder / "litellm.log") as target:
        yield target


@dataclass(slots=True)
class Found:
    """Measurements of one target, over the rounds."""

    p50_ms: list[float] = field(default_factory=list[float])
    p99_ms: list[float] = field(default_factory=list[float])
    stream_ms: list[float] = field(default_factory=list[float])
    json_ms: list[float] = field(default_factory=list[float])
    failed: int = 0


def measure(mocks: list[MockEngine], target: Target, options: Options, found: Found) -> None:
    """One round of one target."""
    for mock in mocks:
        mock.told(tokens=TOKENS, first_s=FIRST_S, pace_s=PACE_S)
    press(target.url, 4, 0.5, stream=True)
    load = press(target.url, options.streams, options.seconds, stream=True)
    found.p50_ms.append(1e3 * float(np.percentile(load.ttft_s, 50)))
    found.p99_ms.append(1e3 * float(np.percentile(load.ttft_s, 99)))
    found.failed += load.failed
    for mock in mocks:
        mock.told(tokens=TOKENS)
    if target.process is None:
        return
    for stream, into in ((True, found.stream_ms), (False, found.json_ms)):
        before_s = target.cpu_s()
        load = press(target.url, options.streams, options.seconds / 2, stream=stream)
        into.append(1e3 * (target.cpu_s() - before_s) / max(load.finished, 1))
        found.failed += load.failed


def compare(options: Options) -> None:
    """All targets, round by round."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        mocks = stack.enter_context(engines("a", "b"))
        targets = [Target(name="none: an engine itself", url=mocks[0].url, process=None)]
        targets += [stack.enter_context(own(mocks, policy, folder)) for policy in options.policies]
        if options.peers is not None:
            targets.append(stack.enter_context(vllm_router(mocks, options.peers, folder)))
            targets.append(stack.enter_context(litellm(mocks, options.peers, folder)))
        found = {target.name: Found() for target in targets}
        for _ in range(options.rounds):
            for target in targets:
                measure(mocks, target, options, found[target.name])
    bare = found[targets[0].name]
    rows = [
        [
            name,
            f"{min(x.p50_ms) - min(bare.p50_ms):.1f}",
            f"{min(x.p99_ms) - min(bare.p99_ms):.1f}",
            f"{min(x.stream_ms):.2f}" if x.stream_ms else "",
            f"{min(x.json_ms):.2f}" if x.json_ms else "",
            str(x.failed),
        ]
        for name, x in found.items()
    ]
    header = ["gateway", "added TTFT p50, ms", "added TTFT p99, ms", "CPU-ms a stream", "CPU-ms a whole answer", "failed"]
    print(markdown_table(header, rows))
    print(f"\nAn engine itself: TTFT p50 {min(bare.p50_ms):.1f} ms, p99 {min(bare.p99_ms):.1f} ms at {options.streams} streams.")


def soak(options: Options) -> None:
    """Many streams for a long time: memory, and streams that were lost."""
    with tempfile.TemporaryDirectory() as name, engines("a", "b") as mocks, own(mocks, options.policies[0], Path(name)) as target:
        for mock in mocks:
            mock.told(tokens=40, first_s=0.1, pace_s=0.5)
        memory: list[float] = []
        minutes = max(options.soak_minutes, 1.0)
        before_s = target.cpu_s()
        finished = failed = 0
        for _ in range(round(minutes)):
            load = press(target.url, options.soak_streams, 60.0 * minutes / round(minutes), stream=True, tokens=40)
            finished, failed = finished + load.finished, failed + load.failed
            memory.append(target.memory_mb())
            print(f"{len(memory)} min: {memory[-1]:.0f} MB, {finished:,} streams finished, {failed} failed", flush=True)
        cpu_s = target.cpu_s() - before_s
        print(f"{options.soak_streams:,} streams: {memory[0]:.0f} MB after a minute, {memory[-1]:.0f} MB at the end")
        print(f"{1e3 * cpu_s / finished:.2f} CPU-ms a stream of 40 tokens; open at the end: {target_open(target)}")


def target_open(target: Target) -> str:
    """Requests that the gateway still counts as under way."""
    lines = ask(target.url, "GET", "/metrics").text.splitlines()
    return str(sum(float(line.split()[-1]) for line in lines if line.startswith("edgeroute_inflight{")))


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options)
    if options.rounds:
        compare(options)
    if options.soak_minutes:
        soak(options)


if __name__ == "__main__":
    main()
