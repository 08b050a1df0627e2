"""Policies compared on two real vLLM servers on this machine's processors, and predicted against measured times.

Run ``make real-engines``, or ``python -m benchmarks.real_engines`` where its environment is there. Two servers serve a Llama of
random weights each, with 8 and 24 layers. Their answers are nonsense, so their scores are assumed: .3 and .6. All else is real.
Both are calibrated, each alone, by the times of a designed load. Before that, servers that log their iterations are calibrated by
their times and by their log. Then each policy has a gateway of its own, all before the same two servers. In each round every
gateway in turn gets the same requests at the same times. The order turns from round to round, so what else the machine does meets
all alike. QoS is the score of an answer that kept its SLO, else 0, as clients see it. Intervals are over rounds, of differences
within a round. Expect half an hour.

The machine is to be quiet. Where other work cannot be stopped, ``nice -n -10 make real-engines`` as root makes it give way. The
report says how much of the processors it took all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import tyro

from benchmarks.gateway import ROOT, Target, free_port, program_running
from gateway import calibrate
from gateway.config import load_config
from gateway.engines.vllm_cpu import PYTHON, RunningVllm, VllmSpec, vllm_servers
from gateway.proof.latency import KINDS, Pairs, accuracy_of, draw_latency, pairs_of
from gateway.traffic_sample import DemoAnswer, send_traffic, slo_s_per_token, traffic_capacity_rps
from rllib_envs.decision_log.reader import DecisionLog, read_log
from rllib_envs.expert import Expert
from rllib_envs.yaml_files import dump_yaml
from tuning.metrics.statistics import Interval, mean_interval, paired_difference
from tuning.output.plot_style import COLOURS, GREY, head, panels, write_figure
from tuning.output.tables import markdown_table
from tuning.run_dir.atomic import write_json, write_text

SCORES = {"small": 0.3, "large": 0.6}
LAYERS = {"small": 8, "large": 24}
PROMPT_TOKENS, OUTPUT_TOKENS = (32, 512), (16, 96)
SLOTS, BATCHED_TOKENS = 8, 512
WARM_UP_S, PAUSE_S = 5.0, 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    policies: tuple[str, ...] = (
        "any-cluster-router",
        "impact-greedy",
        "calibrated-impact-greedy",
        "round-robin",
        "join-shortest-queue",
        "least-work",
    )
    """Policies, at least two; the others are compared with the first."""
    rounds: int = 6
    """Rounds over all policies at each load, at least two."""
    seconds: float = 15.0
    """Length of the traffic of a policy in a round."""
    loads: tuple[float, ...] = (0.2, 0.35)
    """Shares of what both servers carry together, one after the other."""
    slack: float = 3.0
    """The SLO over the time per token of the slower server alone."""
    calibration_seconds: float = 60.0
    """Longest time for the load that calibrates each server."""
    calibration_tokens: int = 200_000
    """Most tokens of that load."""
    by_log: bool = True
    """Whether servers that log their iterations are calibrated too, by times and by log."""
    python: Path = PYTHON
    """Python of an environment with vllm-cpu."""
    out: Path = Path("runs/real-engines")
    """Folder for models, profiles, logs, the report and its pictures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """What the requests of one policy got in one round."""

    qos: float
    late: float  # share of the answered ones
    large: float  # share that went to the large model
    failed: int
    ttft_ms: tuple[float, float]  # median and 95th percentile
    pace_ms: float  # median of the whole time per token
    beside: float = 0.0  # share of the processors that other work took


@dataclass(slots=True)
class Beside:
    """How much of the processors other work takes."""

    own_s: float = field(default_factory=lambda: _own_s())
    busy_s: float = field(default_factory=lambda: _busy_s())
    start_s: float = field(default_factory=time.monotonic)

    def share(self) -> float:
        """Of all processors, since this was made."""
        other_s = _busy_s() - self.busy_s - (_own_s() - self.own_s)
        return max(other_s, 0.0) / (time.monotonic() - self.start_s) / (os.cpu_count() or 1)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def _own_s() -> float:
    """Processor time of this process and of what it started and has not ended."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


def stretch_of(answers: Sequence[DemoAnswer], scores: Mapping[str, float], slo_s: float) -> Stretch:
    """Judge answers.

    Args:
        answers: at least one.
        scores: of each expert's answers.
        slo_s: bound on the whole time per token.
    """
    good = [answer for answer in answers if answer.status == 200 and answer.tokens > 0]
    in_time = [answer for answer in good if answer.e2e_s <= slo_s * answer.tokens]
    ttft_ms = [1e3 * answer.ttft_s for answer in good] or [float("nan")]
    return Stretch(
        qos=sum(scores[answer.expert] for answer in in_time) / len(answers),
        late=1 - len(in_time) / len(good) if good else float("nan"),
        large=sum(answer.expert == "large" for answer in answers) / len(answers),
        failed=len(answers) - len(good),
        ttft_ms=(float(np.median(ttft_ms)), float(np.quantile(ttft_ms, 0.95))),
        pace_ms=float(np.median([1e3 * answer.e2e_s / answer.tokens for answer in good])) if good else float("nan"),
    )


def qos_table(found: Mapping[str, Sequence[Stretch]], fallbacks: Mapping[str, float]) -> str:
    """A row for each policy, over the rounds; the first one's QoS less that of each other, in the same rounds.

    Args:
        found: policy -> what it got in each round.
        fallbacks: policy -> share of the decisions that its fallback made.
    """
    first, *_ = found
    rows: list[list[str]] = []
    for name, rounds in found.items():
        less = paired_difference([x.qos for x in found[first]], [x.qos for x in rounds])
        rows.append(
            [
                name,
                _shown(mean_interval([x.qos for x in rounds])),
                "–" if name == first else _shown(less, signed=True),
                f"{100 * np.mean([x.late for x in rounds]):.1f}",
                f"{100 * np.mean([x.large for x in rounds]):.0f}",
                *(f"{np.mean([x.ttft_ms[i] for x in rounds]):.0f}" for i in (0, 1)),
                f"{np.mean([x.pace_ms for x in rounds]):.1f}",
                f"{100 * fallbacks[name]:.0f}",
                f"{100 * np.mean([x.beside for x in rounds]):.0f}",
                str(sum(x.failed for x in rounds)),
            ]
        )
    header = ["policy", "QoS", f"{first} less this", "late, %", "to large, %", "TTFT p50, ms", "p95, ms", "time per token, ms"]
    return markdown_table([*header, "fallback decided, %", "other work, %", "failed"], rows)


def latency_table(found: Mapping[str, Mapping[str, Pairs]]) -> str:
    """A row for each policy, expert and kind of time: predicted at the decision against measured at the gateway."""
    rows = [
        [policy, name, kind.upper(), f"{x.count:,}", f"{x.ratio:.2f}", f"{100 * x.error:.0f}", f"{100 * x.within:.0f}"]
        for policy, kinds in found.items()
        for kind, pairs in kinds.items()
        for name, points in pairs.items()
        for x in (accuracy_of(points),)
    ]
    header = ["policy", "expert", "time", "streams", "measured / predicted", "median error, %", "within a quarter, %"]
    return markdown_table(header, rows, names=3)


def together(found: Sequence[Mapping[str, Pairs]]) -> dict[str, dict[str, np.ndarray]]:
    """The pairs of several logs in one: kind -> expert -> (2, K)."""
    return {
        kind: {
            name: np.concatenate([one[kind][name] for one in found if name in one[kind]], axis=1)
            for name in SCORES
            if any(name in one[kind] for one in found)
        }
        for kind in KINDS
    }


def draw_qos(found: Mapping[str, Sequence[Stretch]], path: Path) -> None:
    """QoS in each round, and the paired differences to the first policy with their intervals."""
    first, *others = found
    figure, (left, right) = panels(2, 2, 4.6)
    for (name, rounds), colour in zip(found.items(), COLOURS, strict=False):
        left.plot(1 + np.arange(len(rounds)), [x.qos for x in rounds], "o-", markersize=4, color=colour, label=name)
    left.set(xlabel="round", ylabel="QoS")
    left.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0.0, -0.15), ncol=2)
    head(left, "the same requests in each round")
    for place, name in enumerate(others):
        less = paired_difference([x.qos for x in found[first]], [x.qos for x in found[name]])
        right.errorbar(less.mean, place, xerr=less.half_width, fmt="o", color=COLOURS[(place + 1) % len(COLOURS)], capsize=3)
    right.axvline(0, color=GREY, linewidth=1)
    right.set_yticks(range(len(others)), others)
    right.set(xlabel="QoS", ylim=(len(others) - 0.5, -0.5))
    head(right, f"{first} less this, 95 %")
    write_figure(figure, path)


def _shown(interval: Interval, *, signed: bool = False) -> str:
    return f"{interval.mean:{'+' if signed else ''}.4f} ± {interval.half_width:.4f}"


def calibrated(server: RunningVllm, options: Options) -> str:
    """Calibrate a server by its times, and by its log where it logs iterations: tables of errors."""
    name = server.spec.name
    profile = options.out / (f"{name}-logged.yaml" if server.spec.logs_iterations else f"{name}.yaml")
    records = profile.with_suffix(".records.jsonl")
    records.unlink(missing_ok=True)  # of a server that an earlier run started
    about = calibrate.Options(
        gpu="CPU",
        mean_score=SCORES[name],
        mean_output_tokens=float(OUTPUT_TOKENS[1]),  # a request asks for as many as it gets: so its length is known
        max_num_seqs=server.spec.max_num_seqs,
        max_num_batched_tokens=server.spec.max_num_batched_tokens,
        max_seconds=options.calibration_seconds,
        max_tokens=options.calibration_tokens,
        out=profile,
    )
    beside = Beside()
    calibrate.run(replace(about, url=server.url))
    share = beside.share()
    parts = [_comments(profile)]
    if server.spec.logs_iterations:
        log = profile.with_suffix(".vllm.log")
        shutil.copyfile(server.log, log)  # the server goes on writing
        by_log = options.out / f"{name}-by-log.yaml"
        calibrate.run(replace(about, vllm_log=log, requests=records, out=by_log, name=name))
        parts.append(_comments(by_log))
    return "\n\n".join([*parts, f"Other work took {100 * share:.0f} % of the processors meanwhile."])


def _comments(profile: Path) -> str:
    """What the head of a profile says of its errors."""
    lines = profile.read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#"))


def write_settings(policy: str, servers: Sequence[RunningVllm], slo_s: float | None, out: Path) -> tuple[Path, int]:
    """The settings of a policy's gateway, and its port."""
    port, path = free_port(), out / f"gateway-{policy}.yaml"
    experts = [
        {
            "name": server.spec.name,
            "url": server.url,
            "profile": f"{server.spec.name}.yaml",
            "tokenizer": f"engines/llama-{server.spec.layers}-layers/tokenizer.json",
        }
        for server in servers
    ]
    data = {"experts": experts, "policy": policy, "listen": {"port": port}, "log": {"folder": f"decisions-{policy}"}}
    write_text(path, dump_yaml(data | ({} if slo_s is None else {"slo_s_per_token": slo_s})))
    return path, port


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """All rounds at one load."""

    load: float
    rate_rps: float
    slo_s: float  # bound on the whole time per token
    found: dict[str, list[Stretch]]  # policy -> what it got in each round
    fallbacks: dict[str, float]  # policy -> share of the decisions that its fallback made
    pairs: dict[str, dict[str, Pairs]]  # policy -> kind of time -> predicted and measured
    beside: float  # share of the processors that other work took

    def report(self) -> str:
        """Its tables."""
        return "\n\n".join(
            [
                f"## At {self.load:.0%} of what the profiles carry",
                f"{self.rate_rps:.1f} requests/s, SLO {1e3 * self.slo_s:.0f} ms a token. "
                f"Other work took {100 * self.beside:.0f} % of the processors.",
                qos_table(self.found, self.fallbacks),
                latency_table({"all": together(list(self.pairs.values())), **self.pairs}),
            ]
        )


def serve(gateways: Mapping[str, Target], experts: Sequence[Expert], slo_s: float, load: float, options: Options) -> Phase:
    """Send all rounds at a load.

    Args:
        gateways: policy -> its gateway.
        experts: as calibrated.
        slo_s: bound on the whole time per token.
        load: share of what they carry together.
        options: of the benchmark.
    """
    rate = load * sum(traffic_capacity_rps(expert, PROMPT_TOKENS, OUTPUT_TOKENS) for expert in experts)
    scores = {expert.name: expert.mean_score for expert in experts}
    for target in gateways.values():
        asyncio.run(send_traffic(target.url, rate, WARM_UP_S, PROMPT_TOKENS, OUTPUT_TOKENS, seed=0))
    time.sleep(PAUSE_S)
    begun_s, throughout = time.time(), Beside()
    found: dict[str, list[Stretch]] = {policy: [] for policy in gateways}
    names = list(gateways)
    for i in range(options.rounds):
        turn = i % len(names)
        for policy in names[turn:] + names[:turn]:
            url, seed = gateways[policy].url, 1 + i
            beside = Beside()
            answers = asyncio.run(send_traffic(url, rate, options.seconds, PROMPT_TOKENS, OUTPUT_TOKENS, seed=seed))
            found[policy].append(replace(stretch_of(answers, scores, slo_s), beside=beside.share()))
            time.sleep(PAUSE_S)
        shown = ", ".join(f"{policy} {rounds[-1].qos:.4f}" for policy, rounds in found.items())
        print(f"load {load:.0%}, round {i + 1}: {shown}", flush=True)
    logs = {policy: _since(read_log(options.out / f"decisions-{policy}"), begun_s) for policy in gateways}
    return Phase(
        load=load,
        rate_rps=rate,
        slo_s=slo_s,
        found=found,
        fallbacks={policy: float(np.mean([x.fallback is not None for x in log.requests])) for policy, log in logs.items()},
        pairs={policy: {kind: pairs_of(log, kind) for kind in KINDS} for policy, log in logs.items()},
        beside=throughout.share(),
    )


def tell(servers: Sequence[RunningVllm]) -> None:
    """Say where they are."""
    print(", ".join(f"{server.spec.name}: {server.url}, process {server.pid}" for server in servers), flush=True)


def run(options: Options) -> list[Phase]:
    """Start, calibrate, serve, send, write the report, and end everything.

    Raises:
        InputError: vLLM is not installed or does not start, or a server cannot be calibrated.
    """
    if len(options.policies) < 2 or options.rounds < 2 or not options.loads:
        raise SystemExit("real_engines: at least two policies, two rounds and one load")
    for policy in options.policies:
        shutil.rmtree(options.out / f"decisions-{policy}", ignore_errors=True)  # of an earlier run
    specs = [
        VllmSpec(
            name=name,
            layers=LAYERS[name],
            core=i % (os.cpu_count() or 1),
            max_num_seqs=SLOTS,
            max_num_batched_tokens=BATCHED_TOKENS,
        )
        for i, name in enumerate(SCORES)
    ]
    calibrations: dict[str, str] = {}
    if options.by_log:
        logging = [replace(spec, logs_iterations=True) for spec in specs]
        with vllm_servers(logging, options.out / "engines", options.python) as servers:
            tell(servers)
            calibrations |= {f"{server.spec.name}, with a log": calibrated(server, options) for server in servers}
    with contextlib.ExitStack() as stack:
        servers = stack.enter_context(vllm_servers(specs, options.out / "engines", options.python))
        tell(servers)
        calibrations |= {f"{server.spec.name}, as it serves": calibrated(server, options) for server in servers}
        draft, _ = write_settings(options.policies[0], servers, None, options.out)
        experts = load_config(draft).scenario.experts
        slo_s = slo_s_per_token(experts, PROMPT_TOKENS, OUTPUT_TOKENS, options.slack)
        gateways: dict[str, Target] = {}
        for policy in options.policies:
            settings, port = write_settings(policy, servers, slo_s, options.out)
            command = [sys.executable, str(ROOT / "edgeroute.py"), "serve", "--config", str(settings)]
            log = options.out / f"serve-{policy}.log"
            gateways[policy] = stack.enter_context(program_running(policy, command, port, "/ready", log, ours=True))
        phases = [serve(gateways, experts, slo_s, load, options) for load in options.loads]
    everything = together([pairs for phase in phases for pairs in phase.pairs.values()])
    parts = [
        f"{options.rounds} rounds of {options.seconds:.0f} s for each policy at each load. QoS with 95 % intervals over rounds, "
        "differences paired. Times are those predicted at the decision, and as the gateway measured them.",
        *(phase.report() for phase in phases),
        *(f"## Calibration of {name}\n\n{text}" for name, text in calibrations.items()),
    ]
    pictures = [f"qos-{phase.load:.0%}.png".replace("%", "") for phase in phases]
    report = "\n\n".join(parts)
    print(f"\n{report}")
    shown = "\n\n".join(f"![{name}]({name})" for name in [*pictures, "latency.png"])
    write_text(options.out / "report.md", f"{report}\n\n{shown}\n")
    write_json(
        options.out / "results.json",
        {
            "options": json.loads(json.dumps(asdict(options), default=str)),
            "phases": [
                {
                    "load": phase.load,
                    "rate_rps": phase.rate_rps,
                    "slo_s": phase.slo_s,
                    "beside": phase.beside,
                    "rounds": {policy: [asdict(x) for x in rounds] for policy, rounds in phase.found.items()},
                    "fallbacks": phase.fallbacks,
                    "latency": {
                        policy: {
                            kind: {name: asdict(accuracy_of(points)) for name, points in by_name.items()}
                            for kind, by_name in kinds.items()
                        }
                        for policy, kinds in phase.pairs.items()
                    },
                }
                for phase in phases
            ],
        },
    )
    for phase, name in zip(phases, pictures, strict=True):
        draw_qos(phase.found, options.out / name)
    draw_latency(everything, options.out / "latency.png")
    print(f"\nWritten: {options.out}/report.md, results.json and pictures")
    return phases


def _since(log: DecisionLog, begun_s: float) -> DecisionLog:
    """The log from a time on."""
    return DecisionLog(
        source=log.source,
        scenario=log.scenario,
        requests=tuple(request for request in log.requests if request.time >= begun_s),
        feedback=log.feedback,
        elsewhere=log.elsewhere,
        cut=log.cut,
    )


def _end(*_: object) -> None:
    """End as an interrupted program does: what was started is ended too."""
    sys.exit(143)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    run(tyro.cli(Options, description=__doc__))
