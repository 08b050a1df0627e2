"""How often the shipped router fails in scenarios it was not trained in, and how often its bundle says so before.

Run ``python -m benchmarks.random_scenarios --count 100 --out FILE`` from the repository root. Each is a generated fleet with some
figures changed at random: engine coefficients, SLO, KV memory, slots, scores, lengths, prompts, predictions, arrivals, load.
The router is compared with the best of four settings of impact-greedy, chosen on other episodes. FILE, JSON lines, keeps what is
done, and the command goes on from there. Some ten seconds a scenario.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from models.envelope import measure
from models.export.bundle import load_bundle
from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.scenario import Arrivals, Catalogue, Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.catalogue import draw_requests
from tuning.evaluation.matrix import EVALUATION_SEEDS, TUNING_SEEDS, start_simulation
from tuning.output.tables import markdown_table
from tuning.specs.routers import SHIPPED_ROUTER, parse_router

HEURISTICS = [f"impact-greedy:price={price},tau=0.05" for price in (0, 1, 4, 12)]
ROUTER = f"bundle:{SHIPPED_ROUTER}"
REQUESTS, TUNING, COMPARED = 400, TUNING_SEEDS[:3], EVALUATION_SEEDS[:4]
COEFFICIENTS = {"c0_ms": (0.3, 1.5), "b_ms": (0.1, 10), "c_ms": (0.2, 100), "a_ms": (0.2, 5)}
CLASSES = ((-np.inf, -0.05), (-0.05, -0.01), (-0.01, np.inf))
PROMPTS = 1500


class Draw:
    """Random numbers, some of which leave a figure as it is."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def log(self, low: float, high: float) -> float:
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def perhaps(self, share: float, value: float, usual: float) -> float:
        return value if self.rng.random() < share else usual


def random_scenario(seed: int, folder: Path) -> Scenario:
    draw = Draw(seed)
    rng = draw.rng
    base = load_scenario(f"edge{rng.choice([2, 3, 4, 6, 6, 8, 10, 16, 24, 32])}")
    factors = {name: draw.perhaps(0.15, draw.log(low, high), 1.0) for name, (low, high) in COEFFICIENTS.items()}
    memory, length = draw.perhaps(0.15, draw.log(0.4, 5), 1.0), draw.perhaps(0.15, draw.log(0.2, 3), 1.0)
    shift = draw.perhaps(0.15, rng.uniform(-0.4, 0.4), 0.0)
    slots = int(draw.perhaps(0.1, rng.choice([8, 16, 64, 1024]), 256))
    experts = []
    for expert in base.experts:
        engine = expert.engine
        room = max(int(engine.kv_tokens * memory), 1024 + 48)
        changed = {name: getattr(engine, name) * factor for name, factor in factors.items()}
        changed |= {"kv_tokens": room, "max_model_len": min(engine.max_model_len, room - 48)}
        changed |= {"max_num_seqs": slots, "max_num_batched_tokens": max(slots, engine.max_num_batched_tokens)}
        score = float(np.clip(expert.mean_score + shift, 0.05, 0.95))
        tokens = max(expert.mean_output_tokens * length, 4)
        experts.append(replace(expert, engine=replace(engine, **changed), mean_score=score, mean_output_tokens=tokens))
    told = {
        "law": "oracle-noise",  # which has all errors from no to any
        "score_sd": draw.perhaps(0.15, rng.uniform(0, 0.7), 0.1),
        "length_log_sd": draw.perhaps(0.1, rng.uniform(0, 1.2), 0.3),
        "length_factor": draw.perhaps(0.1, draw.log(0.25, 4), 1.0),
    }
    slo_s = base.slo_s_per_token * draw.perhaps(0.2, draw.log(0.4, 2.5), 1.0)
    made = replace(base, experts=tuple(experts), slo_s_per_token=slo_s, predictions=replace(base.predictions, **told))
    catalogue = replace(made.workload.catalogue, prompt_tokens_mean=draw.perhaps(0.15, draw.log(30, 2500), 250.0))
    if rng.random() < 0.1:
        catalogue = means_of_tasks(with_workload(made, catalogue=replace(catalogue, scores="binary")), draw, folder)
    kinds = ["poisson", "poisson", "poisson", "mmpp", "gamma", "azure-conversation", "azure-code"]
    arrivals = Arrivals(kind=rng.choice(kinds), cv=rng.uniform(0.5, 4), burst_ratio=rng.uniform(2, 8), cycle_s=draw.log(10, 200))
    made = with_workload(made, catalogue=catalogue, arrivals=arrivals, requests=REQUESTS)
    capacity = capacity_rps(replace(made, capacity_rps=None))
    share = draw.perhaps(0.2, draw.log(1.2, 3), draw.log(0.15, 1.2))
    return with_workload(replace(made, capacity_rps=capacity), load=share * capacity)


def means_of_tasks(scenario: Scenario, draw: Draw, folder: Path) -> Catalogue:
    """A file of prompts of one or three tasks: the experts' means there are all that is told."""
    tasks = int(draw.rng.choice([1, 1, 3]))
    drawn = draw_requests(scenario, PROMPTS, draw.rng)
    models = [expert.model for expert in scenario.experts]
    names = list(dict.fromkeys(models))
    columns = [models.index(name) for name in names]
    rank = np.argsort(np.argsort(drawn.probability.mean(axis=1) + draw.rng.normal(0, 0.15, PROMPTS)))
    rows = [
        {
            "id": str(i),
            "task": str(rank[i] * tasks // PROMPTS),
            "prompt_tokens": int(drawn.prompt_tokens[i]),
            "correct": drawn.score[i, columns].astype(int).tolist(),
            "out_tokens": drawn.output_tokens[i, columns].tolist(),
        }
        for i in range(PROMPTS)
    ]
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"header": True, "models": names}, *rows])) + "\n")
    return Catalogue(kind="file", path=str(path), split="all")


def qos(router: str, scenario: Scenario, seeds: range) -> float:
    simulation = start_simulation(parse_router(router), scenario, seeds)
    return float(np.mean([simulation.records(cluster).qos.mean() for cluster in range(len(seeds))]))


def judged(seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        scenario = random_scenario(seed, Path(folder))
        envelope = load_bundle(SHIPPED_ROUTER).trained_on
        assert envelope is not None
        found = envelope.outside(measure([scenario]))
        tuned = max(HEURISTICS, key=lambda router: qos(router, scenario, TUNING))
        difference = qos(ROUTER, scenario, COMPARED) - qos(tuned, scenario, COMPARED)
    return {"seed": seed, "difference": difference, "outside": [[one.name, one.excess] for one in found]}


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for low, high in CLASSES:
        flagged = [bool(row["outside"]) for row in rows if low < row["difference"] <= high]
        title = "loses more than .05" if high == -0.05 else "loses .01 to .05" if high == -0.01 else "level or better"
        lines.append([title, str(len(flagged)), str(sum(flagged))])
    return markdown_table(["the router against impact-greedy", "scenarios", "said to be outside"], lines)


def main() -> None:
    """Judge what is not judged yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="seed of the first scenario")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    for seed in range(given.first, given.first + given.count):
        if any(row["seed"] == seed for row in rows):
            continue
        try:
            row = judged(seed)
        except (InputError, ValueError) as error:
            print(f"{seed}: no such scenario: {error}")  # figures that no engine can have
            continue
        rows.append(row)
        print(row, flush=True)
        with given.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
