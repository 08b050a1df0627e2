"""Calibrate an expert's engine with a running server, its log, or records of its requests.

With --url the command sends a designed load to an OpenAI-compatible server and takes the times. It needs no other traffic there.
Interrupted, it keeps what it has measured, and the same command goes on with it. With --requests it reads records that a client
or proxy has kept. With --vllm-log it reads a log of vLLM's with --enable-logging-iteration-details.

It writes the expert as YAML, which scenarios and gateways take alike. A picture shows predicted against measured times. Example:

    edgeroute calibrate --url http://127.0.0.1:8000 --out llama.yaml --mean-score 0.7
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from pydantic import ValidationError

from gateway.calibration.facts import ServerFacts
from gateway.calibration.measuring import LoadBounds, measure_engine
from gateway.calibration.report import draw_latencies, interval_table, latency_errors, log_errors
from gateway.config import Secret
from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.profiles.estimate import LEAST_PERIODS, ServerSettings, busy_periods, estimate_profile, predicted_run
from rllib_envs.profiles.fit import compare_run, fit_batches
from rllib_envs.profiles.iteration_log import read_iteration_log
from rllib_envs.profiles.measurements import MeasuredRun
from rllib_envs.profiles.records import read_requests
from rllib_envs.scenarios.load import explain
from rllib_envs.sim.profile import EngineProfile
from tuning.fit_profile import draw_fit, expert_yaml
from tuning.run_dir.atomic import write_text

HELP = {
    "what is measured": ("url model token_env token_file vllm_log requests", "records max_seconds max_tokens"),
    "the expert": ("name gpu params_b mean_score", "mean_output_tokens kv_bytes_per_token"),
    "limits of the server, where it does not say them": ("kv_tokens max_num_seqs max_num_batched_tokens max_model_len", ""),
    "output": ("out", ""),
}

_SEQS, _TOKENS, _LENGTH = 256, 2048, 4096  # as vLLM sets them by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    url: str | None = None
    """Base of the engine's OpenAI-compatible API, with or without /v1."""
    model: str | None = None
    """Name of the model there. Default: the one that the server has."""
    token_env: str | None = None
    """Environment variable with the bearer token that the server wants."""
    token_file: str | None = None
    """File whose first line is that token."""
    vllm_log: Path | None = None
    """Log of a vLLM server, with the lines of its start."""
    requests: Path | None = None
    """Records of requests, JSON lines or CSV: arrival_s, prompt_tokens, output_tokens, first_token_s, last_token_s."""
    records: Path | None = None
    """File for what --url measures. Default: beside --out, with the end .records.jsonl."""
    max_seconds: float = 120.0
    """Longest time for the designed load. Its first 21 requests are sent however long they take."""
    max_tokens: int = 200_000
    """Most prompt and output tokens of the designed load."""
    name: str | None = None
    """Name of the expert. Default: that of the model."""
    gpu: str = "not named"
    """Name of the GPU."""
    params_b: float | None = None
    """Parameters of the model in billions. Default: as the server says, else 1."""
    mean_score: float = 0.5
    """Mean quality of the model's answers, between 0 and 1. Nothing measures it here."""
    mean_output_tokens: float | None = None
    """Mean length of its answers. Default: that of the records of --requests, else 200."""
    kv_bytes_per_token: int = 1
    """KV memory of a token."""
    kv_tokens: int | None = None
    """KV capacity in tokens."""
    max_num_seqs: int | None = None
    """Most requests that run at once. Default: as the server says, else 256."""
    max_num_batched_tokens: int | None = None
    """Most tokens in an iteration. Default: as the log says, else 2048."""
    max_model_len: int | None = None
    """Longest prompt and answer together. Default: as the server says, else 4096."""
    out: Path = Path("profile.yaml")
    """File for the expert. The picture has the same name with the end .png."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calibrated:
    """What one of the sources gave."""

    profile: EngineProfile
    source: str
    report: str
    notes: list[str]
    model: str | None = None
    params_b: float | None = None
    mean_output_tokens: float | None = None


def run(options: Options) -> None:
    """Measure or read, fit, print the errors and write the files.

    Raises:
        InputError: no source or several, a server that does not serve, records or a log that cannot be used, impossible figures.
    """
    _check(options)
    if options.vllm_log is not None:
        found = _from_log(options, options.vllm_log)
    elif options.requests is not None:
        found = _from_requests(options, options.requests)
    else:
        found = _from_server(options)
    expert = _expert(options, found)
    head = [f"Calibrated from {found.source}.", *found.report.splitlines(), *found.notes]
    print(found.report)
    for note in found.notes:
        print(f"Note: {note}")
    write_text(options.out, "".join(f"# {line}".rstrip() + "\n" for line in head) + expert_yaml(expert))
    print(f"Written: {options.out} (an expert of a scenario, and a profile of a gateway), {options.out.with_suffix('.png')}")


def _check(options: Options) -> None:
    sources = {"url": options.url, "vllm-log": options.vllm_log, "requests": options.requests}
    given = [name for name, value in sources.items() if value is not None]
    if not given or (len(given) > 1 and given != ["vllm-log", "requests"]):
        raise InputError(
            f"options: {', '.join(f'--{name}' for name in given) or 'no source'}: must be one of --url, --vllm-log, --requests, "
            "or the last two together"
        )
    if options.token_env is not None and options.token_file is not None:
        raise InputError("options: --token-env and --token-file: one of them at most")
    for name, value, low, high in (
        ("max-seconds", options.max_seconds, 1, 86_400),
        ("max-tokens", options.max_tokens, 1000, 10**9),
        ("kv-tokens", options.kv_tokens, 1, 2**30),
        ("kv-bytes-per-token", options.kv_bytes_per_token, 1, 2**30),
        ("max-num-seqs", options.max_num_seqs, 1, 2**14),
        ("max-num-batched-tokens", options.max_num_batched_tokens, 1, 2**30),
        ("max-model-len", options.max_model_len, 2, 2**30),
    ):
        if value is not None and not low <= value <= high:
            raise InputError(f"options: {name} = {value}: must be from {low:,} to {high:,}")


def _from_server(options: Options) -> _Calibrated:
    url = _base(options.url or "")
    records = options.records or options.out.with_suffix(".records.jsonl")
    bounds = LoadBounds(seconds=options.max_seconds, tokens=options.max_tokens)

    def settle(facts: ServerFacts) -> ServerSettings:
        return _settings(options, facts)

    try:
        facts, settings, model = asyncio.run(
            measure_engine(
                url, options.model, _token(options), records, bounds, settle, lambda line: print(line, file=sys.stderr)
            )
        )
    except KeyboardInterrupt:
        kept = f"{records} keeps what was measured" if records.exists() else "nothing was measured yet"
        print(f"\n{kept}: the same command goes on, and --requests fits what there is", file=sys.stderr)
        raise
    if not records.exists():
        raise InputError(f"{url}: no request of the load shows tokens and times: nothing can be fitted")
    run = read_requests(records, max_num_seqs=settings.max_num_seqs, max_num_batched_tokens=settings.max_num_batched_tokens)
    found = _estimated(options, run, settings, f"{run.arrival_s.size} requests to {model} at {url} ({facts.kind})", model)
    return replace(
        found, model=model, params_b=facts.params_b, notes=_unsaid(options, facts) + found.notes, mean_output_tokens=None
    )


def _from_requests(options: Options, path: Path) -> _Calibrated:
    settings = _settings(options, ServerFacts(kind="unknown", models=()))
    run = read_requests(path, max_num_seqs=settings.max_num_seqs, max_num_batched_tokens=settings.max_num_batched_tokens)
    return _estimated(options, run, settings, str(path), options.model or path.stem)


def _estimated(options: Options, run: MeasuredRun, settings: ServerSettings, source: str, title: str) -> _Calibrated:
    estimate = estimate_profile(run, settings)
    first_s, last_s = estimate.unseen_s
    draw_latencies(options.out.with_suffix(".png"), estimate.run, first_s, last_s, title)
    notes = [] if estimate.run is run else [f"only the last {estimate.run.arrival_s.size:,} records were fitted"]
    periods = int(busy_periods(estimate.run)[-1]) + 1
    if periods < LEAST_PERIODS:
        notes.append(
            f"the engine was busy {periods} times only: requests held out resemble those fitted, and errors look too small"
        )
    return _Calibrated(
        profile=estimate.profile,
        source=source,
        report=f"{latency_errors(estimate.unseen)}\n\n{interval_table(estimate)}",
        notes=notes,
        mean_output_tokens=float(run.output_tokens.mean()),
    )


def _from_log(options: Options, path: Path) -> _Calibrated:
    log = read_iteration_log(path, kv_tokens=options.kv_tokens, max_num_batched_tokens=options.max_num_batched_tokens)
    facts = ServerFacts(
        kind="vllm",
        models=(),
        kv_tokens=log.kv_tokens,
        max_num_seqs=log.limits.get("max_num_seqs"),
        max_model_len=log.limits.get("max_model_len"),
    )
    budget = options.max_num_batched_tokens or log.limits.get("max_num_batched_tokens")
    settings = _settings(replace(options, max_num_batched_tokens=budget), facts)
    fitted, unseen = fit_batches(
        log.batches,
        str(path),
        kv_tokens=settings.kv_tokens,
        kv_bytes_per_token=settings.kv_bytes_per_token,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_model_len=settings.max_model_len,
    )
    profile = fitted.profile if log.async_scheduling is None else replace(fitted.profile, async_scheduling=log.async_scheduling)
    report, notes, length = log_errors(unseen), _unsaid(replace(options, max_num_batched_tokens=budget), facts), None
    picture, title = options.out.with_suffix(".png"), log.model or path.stem
    if options.requests is None:
        draw_fit(picture, unseen, title)
        notes.append("iterations alone were fitted: --requests would show what the server adds to them")
    else:
        run = read_requests(
            options.requests, max_num_seqs=settings.max_num_seqs, max_num_batched_tokens=settings.max_num_batched_tokens
        )
        first_s, last_s = predicted_run(run, profile)
        report += f"\n\nThe requests of {options.requests}, which the fit has not seen:\n\n"
        report += latency_errors(compare_run(run, run.arrival_s + first_s, run.arrival_s + last_s))
        draw_latencies(picture, run, first_s, last_s, title)
        length = float(run.output_tokens.mean())
    return _Calibrated(profile=profile, source=str(path), report=report, notes=notes, model=log.model, mean_output_tokens=length)


def _base(url: str) -> str:
    """The URL without ``/v1``; no secret may stand in it."""
    at = urlsplit(url)
    if at.scheme not in ("http", "https") or not at.hostname or at.username or at.password or at.query or at.fragment:
        shown = f"{at.scheme}://{at.hostname or ''}" if at.password or at.query else repr(url)
        raise InputError(f"--url {shown}: must be http://HOST:PORT or https://HOST:PORT, perhaps with a path, and no more")
    return url.rstrip("/").removesuffix("/v1")


def _token(options: Options) -> str | None:
    if options.token_env is None and options.token_file is None:
        return None
    return Secret(env=options.token_env, file=options.token_file).read(Path(), "options: token")


def _settings(options: Options, facts: ServerFacts) -> ServerSettings:
    """What is given, else what the server says, else what vLLM sets by itself."""
    seqs = options.max_num_seqs or facts.max_num_seqs or _SEQS
    budget = max(options.max_num_batched_tokens or _TOKENS, seqs if options.max_num_batched_tokens is None else 0)
    length = options.max_model_len or facts.max_model_len or _LENGTH
    kv_tokens = options.kv_tokens or facts.kv_tokens
    if kv_tokens is None and facts.kind == "vllm":
        raise InputError("kv-tokens: the server does not say its KV capacity: give --kv-tokens")
    return ServerSettings(
        kv_tokens=kv_tokens or 16 * (seqs * (length // 16 + 1) + 1),  # never short of it
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        max_model_len=length,
        kv_bytes_per_token=options.kv_bytes_per_token,
        async_scheduling=facts.async_scheduling,
    )


def _unsaid(options: Options, facts: ServerFacts) -> list[str]:
    """What was neither given nor said by the server."""
    unsaid = [
        f"{name} is not known and was set to {value:,}"
        for name, given, value in (
            ("max_num_seqs", options.max_num_seqs or facts.max_num_seqs, _SEQS),
            ("max_num_batched_tokens", options.max_num_batched_tokens, _TOKENS),
            ("max_model_len", options.max_model_len or facts.max_model_len, _LENGTH),
        )
        if not given
    ]
    if not (options.kv_tokens or facts.kv_tokens):
        unsaid.append("the KV capacity is not known, and no request was taken to wait for it")
    return unsaid


def _expert(options: Options, found: _Calibrated) -> Expert:
    model = options.model or found.model or (options.name or "expert")
    given: dict[str, Any] = {
        "name": options.name or model.rsplit("/", 1)[-1],
        "model": model,
        "gpu": options.gpu,
        "params_b": options.params_b or found.params_b or 1.0,
        "mean_score": options.mean_score,
        "mean_output_tokens": options.mean_output_tokens or max(found.mean_output_tokens or 200.0, 2.0),
    }
    try:
        return Expert(engine=_rounded(found.profile), **given)
    except ValidationError as error:
        lines = explain(error, "options", "expert", lambda at: tuple(str(part).replace("_", "-") for part in at))
        raise InputError("\n".join(lines)) from None


def _rounded(profile: EngineProfile) -> EngineProfile:
    """Coefficients to four figures: more would be noise."""
    names = ("c0_ms", "b_ms", "c_ms", "a_ms", "q_ms", "c_mixed_ms", "c0_mixed_ms", "handoff_s")
    figures: dict[str, Any] = {
        name: float(np.format_float_positional(getattr(profile, name), 4, fractional=False)) for name in names
    }
    return replace(profile, **figures)
