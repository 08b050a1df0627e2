"""Fit an expert's engine to measured layer times of your GPU and model.

The measurements are a folder with dense.csv, per_sequence.csv and attention.csv, as LLMServingSim's profiler writes them (see
docs/data.md). The command fits the engine's cost model and shows its errors on batches that the fit has not seen. It writes the
expert as YAML for the list `experts` of a scenario. Example:

    edgeroute fit-profile --measurements my-gpu --layers 32 --kv-tokens 41408
        --kv-bytes-per-token 131072 --name llama --gpu "RTX 4090" --params-b 8.03
        --mean-score 0.7 --mean-output-tokens 350
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.profiles.fit import SERVER_MIXED_MS, SERVER_OVERHEAD, FittedProfile, HeldOut, fit_profile, held_out
from rllib_envs.scenarios.load import explain
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.yaml_files import dump_yaml
from tuning.output.plot_style import COLOURS, GREY, canvas, log_axis, save
from tuning.output.tables import markdown_table
from tuning.run_dir.atomic import write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    measurements: Path
    """Folder of the layer times, plain or gzip."""
    layers: int
    """Decoder layers of the model (Llama-3.1-8B: 32)."""
    kv_tokens: int
    """KV capacity of the engine in tokens, as the server reports it."""
    kv_bytes_per_token: int
    """KV memory of a token: 2 x layers x KV heads x head size x bytes of a number."""
    name: str
    """Name of the expert, unique in its scenario."""
    gpu: str
    """Name of the GPU."""
    params_b: float
    """Parameters of the model in billions."""
    mean_score: float
    """Mean quality of the model's answers, between 0 and 1, on a benchmark like the expected requests."""
    mean_output_tokens: float
    """Mean length of its answers in tokens."""
    model: str | None = None
    """Name of the model, as files of prompts have it. Default: the name of the expert."""
    server_mixed_ms: float = SERVER_MIXED_MS
    """What an iteration with prefill takes a server beyond its kernels, in ms. 0: the engine has the times of the kernels."""
    overhead: float = SERVER_OVERHEAD
    """Step time of the server over the times of its kernels."""
    max_num_seqs: int = 256
    """Most requests that run at once, as the server is set."""
    max_num_batched_tokens: int = 2048
    """Most tokens in an iteration, as the server is set."""
    max_model_len: int = 4096
    """Longest prompt and answer together, in tokens."""
    max_waiting: int = 256
    """Most requests that wait; one more is rejected."""
    out: Path = Path("runs/fit-profile")
    """Folder for expert.yaml and fit.png."""


def run(options: Options) -> None:
    """Fit, print the errors and the expert, and write the files.

    Raises:
        InputError: measurements that are missing, malformed or too few; a figure that no engine or expert can have; a file that
            cannot be written.
    """
    fit = fit_profile(
        options.measurements,
        layers=options.layers,
        kv_tokens=options.kv_tokens,
        kv_bytes_per_token=options.kv_bytes_per_token,
        server_mixed_ms=_checked_server_ms(options),
        overhead=options.overhead,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        max_waiting=options.max_waiting,
    )
    expert = _expert(options, fit.profile)
    unseen = held_out(options.measurements, layers=options.layers, kv_tokens=options.kv_tokens)
    text = expert_yaml(expert)
    print(_report(fit, unseen))
    print(f"\n{text}")
    write_text(options.out / "expert.yaml", text)
    draw_fit(options.out / "fit.png", unseen, f"{expert.model} on {expert.gpu}")
    print(f"Written: {options.out / 'expert.yaml'} (for the list experts of a scenario), {options.out / 'fit.png'}")


def expert_yaml(expert: Expert) -> str:
    """The expert as a list of one, as the field ``experts`` of a scenario file takes it; defaults are left out."""
    return dump_yaml([_told(expert) | {"engine": _told(expert.engine)}])


def _told(value: Expert | EngineProfile) -> dict[str, Any]:
    """The fields that are not at their defaults, by name."""
    every = {field.name: (getattr(value, field.name), field.default) for field in fields(value)}
    return {name: own for name, (own, default) in every.items() if own != default}


def draw_fit(path: Path, unseen: HeldOut, title: str) -> None:
    """Draw the fitted against the measured iteration time of each batch, on logarithmic axes.

    Args:
        path: PNG file to write.
        unseen: the batches.
        title: of the figure.
    """
    figure, axes = canvas()
    for label, mask, colour in (
        ("with prefill", unseen.chunk > 0, COLOURS[1]),
        ("decode only", unseen.chunk == 0, COLOURS[0]),
    ):
        axes.plot(unseen.measured_ms[mask], unseen.fitted_ms[mask], ".", markersize=4, alpha=0.5, color=colour, label=label)
    every = np.concatenate([unseen.measured_ms, unseen.fitted_ms])
    ends = 0.9 * float(every[every > 0].min()), 1.1 * float(every.max())
    axes.plot(ends, ends, color=GREY, linewidth=1, label="equal")
    log_axis(axes, *ends)
    log_axis(axes, *ends, vertical=True)
    axes.set_xlabel("measured iteration, ms")
    axes.set_ylabel("fitted to other batches, ms")
    axes.set_title(title, loc="left")
    save(figure, axes, path)


def _checked_server_ms(options: Options) -> float:
    if not 0 <= options.server_mixed_ms <= 1e6:
        raise InputError(f"server-mixed-ms = {options.server_mixed_ms}: must be from 0 to 1,000,000")
    return options.server_mixed_ms


def _expert(options: Options, engine: EngineProfile) -> Expert:
    given: dict[str, Any] = {
        "name": options.name,
        "model": options.name if options.model is None else options.model,
        "gpu": options.gpu,
        "params_b": options.params_b,
        "mean_score": options.mean_score,
        "mean_output_tokens": options.mean_output_tokens,
    }
    try:
        return Expert(engine=engine, **given)
    except ValidationError as error:
        lines = explain(error, "options", "expert", lambda at: tuple(str(part).replace("_", "-") for part in at))
        raise InputError("\n".join(lines)) from None


def _report(fit: FittedProfile, unseen: HeldOut) -> str:
    rows = [
        [
            "decode only" if chunk == 0 else f"{chunk:,} prompt tokens",
            str(int(np.count_nonzero(unseen.chunk == chunk))),
            *(f"{100 * error.mape:.2f}" for error in (fit.by_chunk[chunk], held)),
            f"{100 * held.bias:+.2f}",
        ]
        for chunk, held in unseen.by_chunk.items()
    ]
    header = ["batches", "number", "mean error, %", "the same, held out, %", "mean signed error, held out, %"]
    held_ms = np.abs(unseen.fitted_ms - unseen.measured_ms).sum() / unseen.measured_ms.sum()
    return (
        f"{markdown_table(header, rows)}\n\nHeld out: each batch is priced by a fit to four fifths of the batches without it. "
        f"Weighted by time: {100 * held_ms:.2f} %. Errors are of the times of the kernels, without what a server adds."
    )
