"""A fleet of your own, from measured layer times to a scenario that everything else takes.

What it does: it makes up the measurements of two GPUs, whose attention times scatter by 3 %, and writes them in the layout of
LLMServingSim's profiler (three CSV files each). It fits an engine to each and prints the errors on batches that the fit has not
seen. It puts the two experts into a scenario, measures what they can carry, runs two routers, and writes the scenario as YAML.
For measurements of your own, leave out ``measure`` and name your folders. ``edgeroute fit-profile`` is the same fit as a command.

Run it:

    python examples/own_fleet.py
    edgeroute evaluate --scenario my-fleet.yaml --routers best

Expect errors of .2 % (small) and .5 % (large) on unseen batches, and idle iterations of 24 and 14 ms, as they were made. The
experts carry 6.49 and 13.61 requests/s. QoS is .662 with join-shortest-queue and .739 with impact-greedy.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rllib_envs.capacity import expert_capacities
from rllib_envs.expert import Expert
from rllib_envs.profiles.fit import fit_profile, held_out
from rllib_envs.scenario import Scenario, Workload
from tuning.evaluation.matrix import EVALUATION_SEEDS, start_simulation
from tuning.specs.routers import parse_router

LAYERS, KV_BYTES = 32, 131_072
GPUS = {  # ms of an idle iteration, ms per prompt token, ms per context token; KV capacity; score and length of the answers
    "small": (24.0, 0.16, 3e-4, 60_000, 0.55, 260.0),
    "large": (14.0, 0.07, 1.5e-4, 160_000, 0.75, 330.0),
}


def measure(folder: Path, idle_ms: float, prompt_ms: float, context_ms: float, rng: np.random.Generator) -> Path:
    """Write layer times as a profiler would measure them on such a GPU."""
    operators = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj")
    dense = [
        # One operator has the time of a layer's arithmetic: up to 128 tokens the transfer of the weights hides it.
        (name, tokens, 1e3 / LAYERS * (idle_ms + prompt_ms * max(0, tokens - 128)) if name == "gate_up_proj" else 0.0)
        for name in (*operators, "embedding", "final_layernorm")
        for tokens in (1, *range(32, 2305, 32))
    ]
    attention = [
        (
            *(chunk, cached, decodes, context),
            1e3
            / LAYERS
            * (0.03 * decodes + context_ms * decodes * context + 4e-6 * chunk * (cached + chunk / 2) + (chunk > 0))
            * rng.normal(1.0, 0.03),
        )
        for chunk in (0, 64, 256, 512, 1024, 2048)
        for cached in ((0, 512, 2048) if chunk else (0,))
        for decodes in (0, 1, 8, 32, 64, 128)
        for context in ((64, 512, 1024, 2048) if decodes else (0,))
        if chunk or decodes
    ]
    sampler = [(name, sequences, 2.0 * sequences) for name in ("lm_head", "sampler") for sequences in (1, 64, 256)]
    folder.mkdir()
    write(folder / "dense.csv", ("layer", "tokens", "time_us"), dense)
    write(folder / "per_sequence.csv", ("layer", "sequences", "time_us"), sampler)
    write(folder / "attention.csv", ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"), attention)
    return folder


def write(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a CSV file."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def main() -> None:
    """Measure, fit, build the scenario and use it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("my-fleet.yaml"), help="scenario to write")
    parser.add_argument("--smoke", action="store_true", help="two short episodes")
    options = parser.parse_args()
    rng = np.random.default_rng(1)
    experts: list[Expert] = []
    for gpu, (idle_ms, prompt_ms, context_ms, kv_tokens, score, tokens) in GPUS.items():
        with tempfile.TemporaryDirectory() as folder:
            files = measure(Path(folder) / gpu, idle_ms, prompt_ms, context_ms, rng)
            fit = fit_profile(files, layers=LAYERS, kv_tokens=kv_tokens, kv_bytes_per_token=KV_BYTES)
            unseen = held_out(files, layers=LAYERS, kv_tokens=kv_tokens)
        error = np.abs(unseen.fitted_ms / unseen.measured_ms - 1).mean()
        print(f"{gpu}: {fit.profile.c0_ms:.1f} ms an idle iteration, mean error of unseen batches {error:.1%}")
        experts.append(
            Expert(name=gpu, model=gpu, gpu=gpu, params_b=8.0, engine=fit.profile, mean_score=score, mean_output_tokens=tokens)
        )
    requests = 200 if options.smoke else 2000
    fleet = Scenario(name="my-fleet", experts=tuple(experts), slo_s_per_token=0.06, workload=Workload(requests=requests))
    for expert, rate in zip(experts, expert_capacities(fleet), strict=True):
        print(f"{expert.name}: carries {rate:.2f} requests/s")
    for router in ("join-shortest-queue", "impact-greedy"):
        seeds = EVALUATION_SEEDS[: 2 if options.smoke else 10]
        simulation = start_simulation(parse_router(router), fleet, seeds)
        qos = np.mean([simulation.records(cluster).qos.mean() for cluster in range(len(seeds))])
        print(f"{router:20} QoS {qos:.3f}")
    options.out.write_text(fleet.to_yaml(), encoding="utf-8")
    print(f"Written: {options.out}")


if __name__ == "__main__":
    main()
