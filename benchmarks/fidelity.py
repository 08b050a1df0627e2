"""How close the simulated engine is to a measured vLLM server, and how close the fitted cost form is to the measured layer times.

Fits a profile to the layer times of an RTX PRO 6000 with Llama-3.1-8B, replays the 300 requests of a measured run
(max_num_seqs 128, max_num_batched_tokens 2048, KV never full) and compares each request. The coefficients are fitted to layer
times alone, and what the server adds to them are documented constants; the table shows what other overheads would give.
Where no run was measured, the same requests are served by the layer times themselves, interpolated: what the fitted form gets
wrong against them it would get wrong against a server. Run it from the repository root ::

    python -m benchmarks.fidelity PATH_TO_DATA

Prints the fits and the errors and writes ``docs/figures/fidelity.png``. Expect median absolute errors of 1 % in end-to-end
latency, 2 % in time per output token and 3 % in time to first token.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.layer_table import LayerTable, TableEngine
from rllib_envs.errors import InputError
from rllib_envs.profiles.fit import SERVER_OVERHEAD, FittedProfile, Floats, RunErrors, compare_run, fit_profile
from rllib_envs.profiles.measurements import MeasuredRun, read_run
from rllib_envs.sim.profile import BLOCK_TOKENS, EngineProfile
from rllib_envs.sim.reference import Arrival, Engine, simulate

RUN = "RTXPRO6000_Llama-3.1-8B"
MODELS = (  # folder, layers, KV tokens, KV bytes per token
    (RUN, 32, 430_000, 131_072),  # 0.75 * (0.9 * 96 GiB - weights - 1 GiB) / bytes per token; never full in the run
    ("RTX4090_Llama-3.1-8B", 32, 41_408, 131_072),  # 2,588 blocks, measured
    ("RTXPRO6000_Qwen3-32B", 64, 75_000, 262_144),  # as the first
)
OVERHEADS = (0.98, SERVER_OVERHEAD, 1.02, 1.05)
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "fidelity.png"


def replay(run: MeasuredRun, profile: EngineProfile, engine: Engine | None = None) -> tuple[Floats, Floats]:
    """Times of the first and the last token of each request, (R,) each, in s, of the run served by ``profile``.

    ``engine``: one of the profile whose iterations are priced otherwise.
    """
    rows = zip(run.arrival_s.tolist(), run.prompt_tokens.tolist(), run.output_tokens.tolist(), strict=True)
    arrivals = [Arrival(arrival_s=at, prompt_tokens=prompt, output_tokens=output) for at, prompt, output in rows]
    outcomes = simulate(profile, arrivals, engine=engine).outcomes
    return np.array([outcome.first_token_s for outcome in outcomes]), np.array([outcome.finish_s for outcome in outcomes])


def run_profile(data: Path, run: MeasuredRun) -> EngineProfile:
    """The profile of the run's engine: coefficients from the layer times, limits from its settings."""
    folder, layers, kv_tokens, kv_bytes = MODELS[0]
    fitted = fit_profile(
        data / "llmservingsim" / folder,
        layers=layers,
        kv_tokens=kv_tokens,
        kv_bytes_per_token=kv_bytes,
        overhead=SERVER_OVERHEAD,
    )
    return _with_limits(fitted, run)


def table_errors(data: Path, run: MeasuredRun, model: tuple[str, int, int, int]) -> RunErrors:
    """Errors of the fitted form, in kernel times, where the interpolated layer times serve the requests of the run."""
    folder, layers, kv_tokens, kv_bytes = model
    path = data / "llmservingsim" / folder
    fitted = fit_profile(path, layers=layers, kv_tokens=kv_tokens, kv_bytes_per_token=kv_bytes, server_mixed_ms=0.0)
    profile = _with_limits(fitted, run)
    table = LayerTable(path, layers=layers, pair_ms=profile.q_ms)
    first_token_s, finish_s = replay(run, profile, TableEngine(profile, table))
    return compare_run(replace(run, first_token_s=first_token_s, last_token_s=finish_s), *replay(run, profile))


def _with_limits(fitted: FittedProfile, run: MeasuredRun) -> EngineProfile:
    """The fitted profile with the settings of the run's server."""
    profile = fitted.profile
    longest = (profile.usable_blocks - 1) * BLOCK_TOKENS
    return replace(
        profile,
        max_num_seqs=run.max_num_seqs,
        max_num_batched_tokens=run.max_num_batched_tokens,
        max_model_len=min(131_072, longest),  # the model's own limit; the server was given none
        max_waiting=run.arrival_s.size,  # vLLM's queue has no limit
    )


def print_fits(data: Path) -> None:
    """Print the coefficients fitted to each folder of layer times."""
    names = f"{'c0':>7}{'b':>8}{'c':>10}{'a':>8}{'n0':>5}{'q':>10}{'c_mixed':>10}{'c0_mixed':>9}"
    print(f"{'GPU and model':28}{names}  MAPE decode, mixed, then by chunk")
    for folder, layers, kv_tokens, kv_bytes in MODELS:
        fit = fit_profile(data / "llmservingsim" / folder, layers=layers, kv_tokens=kv_tokens, kv_bytes_per_token=kv_bytes)
        p = fit.profile
        figures = f"{p.c0_ms:7.2f}{p.b_ms:8.4f}{p.c_ms:10.2e}{p.a_ms:8.4f}{p.n0_tokens:5d}{p.q_ms:10.2e}{p.c_mixed_ms:10.2e}"
        print(f"{folder:28}{figures}{p.c0_mixed_ms:9.2f}  {fit.mape_decode:.1%}, {fit.mape_mixed:.1%}")
        print("    " + "  ".join(f"{chunk}: {error.mape:.1%}" for chunk, error in fit.by_chunk.items() if chunk))


def print_errors(run: MeasuredRun, profile: EngineProfile) -> None:
    """Print the errors of the replay for several overhead factors."""
    print(f"\n{'overhead':28}{_COLUMNS}")
    for overhead in OVERHEADS:
        errors = compare_run(run, *replay(run, replace(profile, overhead=overhead)))
        print(f"{overhead:<28}{_cells(errors)}")


def print_table_errors(data: Path, run: MeasuredRun) -> None:
    """Print the errors of the fitted form against the interpolated layer times."""
    print(f"\n{'against the layer times of':28}{_COLUMNS}")
    for model in MODELS:
        print(f"{model[0]:28}{_cells(table_errors(data, run, model))}")


_COLUMNS = "".join(f"{name + ' median':>14}{name + ' bias':>12}" for name in ("E2E", "TPOT", "TTFT"))


def _cells(errors: RunErrors) -> str:
    return "".join(f"{np.median(np.abs(e)):14.2%}{np.mean(e):+12.2%}" for e in (errors.e2e, errors.tpot, errors.ttft))


def plot(run: MeasuredRun, first_token_s: Floats, finish_s: Floats, errors: RunErrors) -> Figure:
    """Scatter of simulated against measured latency, time per output token and time to first token."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    per_step_ms = 1e3 / (run.output_tokens - 1)
    tpot_ms = per_step_ms * (run.last_token_s - run.first_token_s), per_step_ms * (finish_s - first_token_s)
    panels = (
        ("End-to-end latency, s", run.last_token_s - run.arrival_s, finish_s - run.arrival_s, errors.e2e),
        ("Time per output token, ms", *tpot_ms, errors.tpot),
        ("Time to first token, s", run.first_token_s - run.arrival_s, first_token_s - run.arrival_s, errors.ttft),
    )
    for axes, (title, measured, simulated, error) in zip(figure.subplots(1, 3), panels, strict=True):
        if title.endswith("first token, s"):  # from a tenth of a second, without a queue, to twenty
            axes.set(xscale="log", yscale="log")
        low, high = min(measured.min(), simulated.min()), max(measured.max(), simulated.max())
        ends = np.array([low, high])
        axes.fill_between(ends, 0.95 * ends, 1.05 * ends, color="0.9", label="within 5 %")
        axes.plot(ends, ends, color="0.4", linewidth=1)
        axes.scatter(measured, simulated, s=10, alpha=0.6, linewidths=0, color="tab:blue", label="request")
        axes.set(title=title, xlabel="measured", ylabel="simulated", xlim=(low, high), ylim=(low, high), aspect="equal")
        note = f"median |error| {np.median(np.abs(error)):.1%}\nmean error {np.mean(error):+.1%}"
        axes.text(0.97, 0.03, note, transform=axes.transAxes, ha="right", va="bottom")
        axes.legend(loc="upper left", frameon=False)
    figure.suptitle("vLLM 0.19, Llama-3.1-8B on an RTX PRO 6000, 300 requests at 10.3/s")
    return figure


def main() -> None:
    """Print the tables and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the public data files (docs/data.md)")
    data: Path = parser.parse_args().data
    try:
        print_fits(data)
        run = read_run(data / "llmservingsim" / "vllm_runs", RUN)
        profile = run_profile(data, run)
    except InputError as error:
        parser.error(str(error))
    print_errors(run, profile)
    print_table_errors(data, run)
    first_token_s, finish_s = replay(run, profile)
    mpl.rcParams["savefig.dpi"] = 120
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    plot(run, first_token_s, finish_s, compare_run(run, first_token_s, finish_s)).savefig(FIGURE)
    print(f"\nwrote {FIGURE}")


if __name__ == "__main__":
    main()
