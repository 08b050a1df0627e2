"""Serve on this machine: start two real engines, calibrate both, and route a minute of traffic with a trained router.

The engines are llama.cpp servers with SmolLM2, with 4 and with 16 of its 30 layers. Shortened models are fast and answer
nonsense. So their scores are assumed: .3 and .6. Everything else is real. At its end the command ends all that it started, and
replays the log of decisions with other policies.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from gateway import calibrate, replay
from gateway.config import load_config
from gateway.engines.process import EngineSpec, RunningEngine, running
from gateway.traffic_sample import send_traffic, slo_s_per_token, traffic_capacity_rps, traffic_table
from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.yaml_files import dump_yaml
from tuning.output.tables import markdown_table
from tuning.run_dir.atomic import write_text
from tuning.specs.routers import ANY_CLUSTER_ROUTER

PROMPT_TOKENS, OUTPUT_TOKENS = (20, 160), (8, 48)
"""Smallest and largest request of the traffic."""

_LOG = "decisions"  # folder of the decision log, in that of the demo
_SCORES = {"small": 0.3, "large": 0.6}
_LOAD = 0.6  # of what both engines carry together
_SLACK = 2.5  # the SLO over the time per token of the large engine alone
_READY_S, _DRAIN_S = 600.0, 60.0  # a first start compiles kernels, on a busy machine for minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    seconds: float = 60.0
    """Length of the traffic."""
    calibration_seconds: float = 45.0
    """Longest time for the load that calibrates each engine."""
    policy: str = f"bundle:{ANY_CLUSTER_ROUTER}"
    """Router: a heuristic, or bundle:PATH. Default: the router for any cluster that ships with the project."""
    out: Path = Path("runs/serve-demo")
    """Folder for the profiles, the gateway's settings and the logs."""
    smoke: bool = False
    """Two tiny engines and seconds of traffic."""


def run(options: Options) -> int:
    """Start, calibrate, serve, send, show, and end everything.

    Returns:
        0; 1 if a request failed.

    Raises:
        InputError: the engines are not installed or do not start, or an option is impossible.
    """
    if not (1 <= options.seconds <= 3600 and 1 <= options.calibration_seconds <= 600):
        raise InputError("options: seconds must be from 1 to 3,600, calibration-seconds from 1 to 600")
    large, small = (3, 2) if options.smoke else (16, 4)
    specs = [EngineSpec(name="small", layers=small), EngineSpec(name="large", layers=large)]
    shutil.rmtree(options.out / _LOG, ignore_errors=True)  # of an earlier demo
    with ExitStack() as stack:
        print("1. Starting two real engines (llama.cpp with SmolLM2-135M)")
        engines = [stack.enter_context(running(spec, options.out / "engines")) for spec in specs]
        for engine in engines:
            print(f"   {engine.spec.name}: {engine.spec.layers} layers, {engine.url}, process {engine.pid}")
        for engine in engines:
            print(f"\n2. Calibrating {engine.spec.name}\n")
            _calibrate(engine, options)
        config = _write_config(engines, options)
        experts = load_config(config).scenario.experts
        rate = _LOAD * sum(traffic_capacity_rps(expert, PROMPT_TOKENS, OUTPUT_TOKENS) for expert in experts)
        seconds = 5.0 if options.smoke else options.seconds
        print(f"\n3. Serving: edgeroute serve --config {config}")
        url = stack.enter_context(_serving(config, options.out / "serve.log"))
        print(f"   {url}, with a live page: {url}/ui")
        print(f"\n4. Sending {seconds:.0f} s of traffic, {rate:.2f} requests/s: model auto, streams\n")
        answers = asyncio.run(send_traffic(url, rate, seconds, PROMPT_TOKENS, OUTPUT_TOKENS))
        print(traffic_table(answers, experts, slo_s_per_token(experts, PROMPT_TOKENS, OUTPUT_TOKENS, _SLACK)))
        samples = asyncio.run(_metrics(url))
        print(who_decided(samples, options))
        print(f"\nMeans of what the gateway predicted and measured ({url}/metrics):\n\n{_predicted(samples, experts)}")
    pids = ", ".join(str(engine.pid) for engine in engines)
    print(f"\n5. Ended: the gateway, and the engines by their processes {pids}. Logs and profiles: {options.out}")
    print(f"\n6. What other policies would have done: edgeroute replay {options.out / _LOG}\n")
    replay.run(replay.Options(log=options.out / _LOG, out=options.out / "replay"))
    return int(any(answer.status != 200 for answer in answers))


def _calibrate(engine: RunningEngine, options: Options) -> None:
    name = engine.spec.name
    profile = options.out / f"{name}.yaml"
    profile.with_suffix(".records.jsonl").unlink(missing_ok=True)  # of an engine that an earlier demo started
    calibrate.run(
        calibrate.Options(
            url=engine.url,
            out=profile,
            gpu="CPU",
            mean_score=_SCORES[name],
            mean_output_tokens=float(np.mean(OUTPUT_TOKENS)),
            max_seconds=600.0 if options.smoke else options.calibration_seconds,
            max_tokens=4_000 if options.smoke else 100_000,
        )
    )


def _write_config(engines: Sequence[RunningEngine], options: Options) -> Path:
    """The gateway's settings, at a port that is free now."""
    experts = [{"name": engine.spec.name, "url": engine.url, "profile": f"{engine.spec.name}.yaml"} for engine in engines]
    path = options.out / "gateway.yaml"
    data = {"experts": experts, "policy": options.policy, "listen": {"port": _free_port()}, "log": {"folder": _LOG}}
    write_text(path, dump_yaml(data))
    slo_s = slo_s_per_token(load_config(path).scenario.experts, PROMPT_TOKENS, OUTPUT_TOKENS, _SLACK)
    write_text(path, dump_yaml(data | {"slo_s_per_token": slo_s}))
    return path


@contextmanager
def _serving(config: Path, log: Path) -> Generator[str]:
    """A gateway in a process of its own, ready: its URL. It is ended by SIGTERM and drains."""
    settings = load_config(config).config.listen
    url = f"http://{settings.host}:{settings.port}"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[1] / "edgeroute.py"), "serve", "--config", str(config)],
            stdout=file,
            stderr=file,
        )
    try:
        asyncio.run(_await_ready(url, process, log))
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_DRAIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _await_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + _READY_S
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
        while time.monotonic() < end_s and process.poll() is None:
            try:
                async with session.get(f"{url}/ready") as response:
                    if response.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.1)
    raise InputError(f"the gateway did not become ready: see {log}")


async def _metrics(url: str) -> dict[str, str]:
    """The samples of the gateway's metrics, by name with labels."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        return dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if not line.startswith("#"))


def who_decided(samples: Mapping[str, str], options: Options) -> str:
    """A line on the policy, and one for each reason for which its fallback decided instead."""
    prefix = 'edgeroute_fallback_total{reason="'
    instead = {name[len(prefix) : -2]: float(count) for name, count in samples.items() if name.startswith(prefix)}
    lines = [f"  {reason}: {count:.0f} decisions (see {options.out / 'serve.log'})" for reason, count in instead.items() if count]
    if not lines:
        return f"\nAll were decided by {options.policy}."
    return "\n".join([f"\n{options.policy} did not decide where its fallback did, by reason:", *lines])


def _predicted(samples: Mapping[str, str], experts: Sequence[Expert]) -> str:
    """A table of the mean TTFT and TPOT of each expert, as predicted at the decision and as measured."""

    def mean_ms(name: str, expert: str) -> str:
        total, count = (
            float(samples.get(f'edgeroute_{name}_seconds_{part}{{expert="{expert}"}}', 0)) for part in ("sum", "count")
        )
        return f"{1e3 * total / count:.0f}" if count else "–"

    names = ("predicted_ttft", "request_ttft", "predicted_tpot", "request_tpot")
    rows = [[expert.name, *(mean_ms(name, expert.name) for name in names)] for expert in experts]
    return markdown_table(["expert", "TTFT predicted, ms", "TTFT measured, ms", "TPOT predicted, ms", "TPOT measured, ms"], rows)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
