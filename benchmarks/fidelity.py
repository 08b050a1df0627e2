"""How close the simulated engine is to a measured vLLM server.

Fits a profile to the layer times of an RTX PRO 6000 with Llama-3.1-8B, replays the 300 requests of a measured run
(max_num_seqs 128, max_num_batched_tokens 2048, KV never full) and compares each request. Nothing is fitted to the run: the
overhead factor is the documented constant; the table shows what other values would give. Run it from the repository root ::

    python -m benchmarks.fidelity PATH_TO_DATA

Prints the fits and the errors and writes ``docs/figures/fidelity.png``. Expect a median absolute error under 4 % in end-to-end
latency and in time per output token, and a visibly low time to first token while queues are short: the model leaves out
tokenisation and the one iteration of delay of asynchronous scheduling.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from rllib_envs.errors import InputError
from rllib_envs.measurements import MeasuredRun, read_run
from rllib_envs.profile_fit import SERVER_OVERHEAD, Floats, RunErrors, compare_run, fit_profile
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.sim.reference import Arrival, simulate

RUN = "RTXPRO6000_Llama-3.1-8B"
MODELS = (  # folder, layers, KV tokens, KV bytes per token
    (RUN, 32, 430_000, 131_072),  # 0.75 * (0.9 * 96 GiB - weights - 1 GiB) / bytes per token; never full in the run
    ("RTX4090_Llama-3.1-8B", 32, 41_408, 131_072),  # 2,588 blocks, measured
    ("RTXPRO6000_Qwen3-32B", 64, 75_000, 262_144),  # as the first
)
OVERHEADS = (1.0, 1.02, SERVER_OVERHEAD, 1.08, 1.16)
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "fidelity.png"


def replay(run: MeasuredRun, profile: EngineProfile) -> tuple[Floats, Floats]:
    """Times of the first and the last token of each request, (R,) each, in s, of the run served by ``profile``."""
    rows = zip(run.arrival_s.tolist(), run.prompt_tokens.tolist(), run.output_tokens.tolist(), strict=True)
    arrivals = [Arrival(arrival_s=at, prompt_tokens=prompt, output_tokens=output) for at, prompt, output in rows]
    outcomes = simulate(profile, arrivals).outcomes
    return np.array([outcome.first_token_s for outcome in outcomes]), np.array([outcome.finish_s for outcome in outcomes])


def run_profile(data: Path, run: MeasuredRun) -> EngineProfile:
    """The profile of the run's engine: coefficients from the layer times, limits from its settings."""
    folder, layers, kv_tokens, kv_bytes = MODELS[0]
    return fit_profile(
        data / "llmservingsim" / folder,
        layers=layers,
        kv_tokens=kv_tokens,
        kv_bytes_per_token=kv_bytes,
        overhead=SERVER_OVERHEAD,
        max_num_seqs=run.max_num_seqs,
        max_num_batched_tokens=run.max_num_batched_tokens,
        max_model_len=131_072,  # the model's own limit; the server was given none
        max_waiting=run.arrival_s.size,  # vLLM's queue has no limit
    ).profile


def print_fits(data: Path) -> None:
    """Print the coefficients fitted to each folder of layer times."""
    print(f"{'GPU and model':28}{'c0':>7}{'b':>8}{'c':>10}{'a':>8}{'n0':>5}{'q':>10}{'c_mixed':>10}  MAPE decode, mixed")
    for folder, layers, kv_tokens, kv_bytes in MODELS:
        fit = fit_profile(data / "llmservingsim" / folder, layers=layers, kv_tokens=kv_tokens, kv_bytes_per_token=kv_bytes)
        p = fit.profile
        figures = f"{p.c0_ms:7.2f}{p.b_ms:8.4f}{p.c_ms:10.2e}{p.a_ms:8.4f}{p.n0_tokens:5d}{p.q_ms:10.2e}{p.c_mixed_ms:10.2e}"
        print(f"{folder:28}{figures}  {fit.mape_decode:.1%}, {fit.mape_mixed:.1%}")


def print_errors(run: MeasuredRun, profile: EngineProfile) -> None:
    """Print the errors of the replay for several overhead factors."""
    print(f"\n{'overhead':10}" + "".join(f"{name + ' median':>14}{name + ' bias':>12}" for name in ("E2E", "TPOT", "TTFT")))
    for overhead in OVERHEADS:
        errors = compare_run(run, *replay(run, replace(profile, overhead=overhead)))
        cells = [f"{np.median(np.abs(e)):14.1%}{np.mean(e):+12.1%}" for e in (errors.e2e, errors.tpot, errors.ttft)]
        print(f"{overhead:<10}" + "".join(cells))


def plot(run: MeasuredRun, first_token_s: Floats, finish_s: Floats, errors: RunErrors) -> Figure:
    """Scatter of simulated against measured latency and time per output token."""
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    per_step_ms = 1e3 / (run.output_tokens - 1)
    tpot_ms = per_step_ms * (run.last_token_s - run.first_token_s), per_step_ms * (finish_s - first_token_s)
    panels = (
        ("End-to-end latency, s", run.last_token_s - run.arrival_s, finish_s - run.arrival_s, errors.e2e),
        ("Time per output token, ms", *tpot_ms, errors.tpot),
    )
    for axes, (title, measured, simulated, error) in zip(figure.subplots(1, 2), panels, strict=True):
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
    first_token_s, finish_s = replay(run, profile)
    mpl.rcParams["savefig.dpi"] = 120
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    plot(run, first_token_s, finish_s, compare_run(run, first_token_s, finish_s)).savefig(FIGURE)
    print(f"\nwrote {FIGURE}")


if __name__ == "__main__":
    main()
