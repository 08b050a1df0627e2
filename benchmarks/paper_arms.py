"""The paper's system, trained and measured: its departures one by one, and its parts left out one by one.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.paper_arms`` (some three hours on one core, ``--steps 15000`` less than one). It can
be stopped and goes on where it was. Two tables for docs/experiments.md are printed:

- departures: the paper's system on its own scenario as published, with each change to it alone, and with
  all (``--preset paper``). The greedy router is compared, and the one that draws its actions as in training.
- ablation: ``--preset paper-mended`` without the graph, without the impact estimator, and with the paper's sum of finished
  QoS in place of the tailored reward; on edge6, with Poisson arrivals and those of a real trace.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import edgeroute
from models.rllib.checkpoint import BUNDLE, find_checkpoint
from tuning.output.tables import markdown_table

PUBLISHED = ["--preset", "paper-published"]
DEPARTURE = {
    "alpha begins at .03": ["--initial-alpha", "0.03"],
    "learning rate 1e-3": ["--lr", "1e-3"],
    "experts told apart": ["--told-apart"],
    "critics warm up": ["--critic-warmup", "200"],
    "rewards centred": ["--centre-rewards", "True"],
    "discount .97": ["--gamma", "0.97"],
    "target entropy a twentieth": ["--target-entropy-share", "0.05"],
}
DEPARTURES = {
    "as published": PUBLISHED,
    **{name: [*PUBLISHED, *options] for name, options in DEPARTURE.items()},
    "all of these": ["--preset", "paper"],
}
MENDED = ["--preset", "paper-mended", "--scenario", "edge6", "--load", "mixed"]
PLAIN_REWARD = ["--reward.realised-qos", "1", "--reward.marginal-qos", "0", "--no-impact-estimator"]
ABLATION = {
    "whole": MENDED,
    "without HAN": [*MENDED, "--encoder", "aggregates"],
    "without impact estimator": [*MENDED, "--no-impact-estimator"],
    "without tailored reward": [*MENDED, *PLAIN_REWARD],
}
BASELINES = ["random", "round-robin", "join-shortest-queue", "quality-greedy"]
OWN, EDGE6 = ["--scenario", "paper3", "--load", "3"], ["--scenario", "edge6", "--load", "moderate"]


class Arms:
    """Training runs and comparisons in a folder."""

    def __init__(self, out: Path, steps: int, seeds: int, requests: int) -> None:
        self.out, self.steps = out, steps
        self.size = ["--seeds", str(seeds), "--requests", str(requests), "--jobs", "1"]

    def bundle(self, table: str, number: int, options: Sequence[str]) -> Path:
        """Train an arm, unless that is done, and return its bundle."""
        folder = self.out / f"{table}-{number}"
        limits = ["--steps", str(self.steps), "--validate-every", "0", "--auto-resume"]
        _run("train", *options, *limits, "--run-dir", str(folder))
        return find_checkpoint(folder) / BUNDLE

    def compare(self, name: str, world: Sequence[str], routers: Sequence[str]) -> list[dict[str, Any]]:
        """The comparisons of ``edgeroute evaluate``, one for each arrival process."""
        folder = self.out / name
        _run("evaluate", *world, "--routers", *routers, *self.size, "--out", str(folder))
        return json.loads((folder / "results.json").read_text(encoding="utf-8"))["comparisons"]

    def departures(self) -> str:
        """Table of the published constants and of each departure."""
        bundles = [self.bundle("departure", i, options) for i, options in enumerate(DEPARTURES.values())]
        trained = [f"{kind}:{path}" for path in bundles for kind in ("bundle", "sampled")]
        (found,) = self.compare("departures", OWN, [*BASELINES, *trained])
        rows = [[name, figure(found, name, "qos"), "", figure(found, name, "violation_rate")] for name in BASELINES]
        for name, path in zip(DEPARTURES, bundles, strict=True):
            greedy, sampled = f"bundle:{path}", f"sampled:{path}"
            rows.append(
                [name, figure(found, greedy, "qos"), figure(found, sampled, "qos"), figure(found, greedy, "violation_rate")]
            )
        return markdown_table(["", "QoS, greedy", "QoS, sampled", "late, greedy"], rows)

    def ablation(self) -> str:
        """Table of the mended system without each of its parts."""
        bundles = [self.bundle("ablation", i, options) for i, options in enumerate(ABLATION.values())]
        routers = dict(zip(ABLATION, (f"bundle:{path}" for path in bundles), strict=True))
        routers |= {name: name for name in ("join-shortest-queue", "quality-greedy", "impact-greedy")}
        rows = [
            [found["workload"], name, *(figure(found, router, metric) for metric in ("qos", "violation_rate", "qos_per_gpu_s"))]
            for found in self.compare("ablation", [*EDGE6, "--arrivals", "poisson", "azure-conversation"], list(routers.values()))
            for name, router in routers.items()
        ]
        return markdown_table(["arrivals", "", "QoS", "late", "QoS per busy GPU-second"], rows, names=2)


def figure(comparison: dict[str, Any], router: str, metric: str) -> str:
    """Mean over the seeds of a router's metric."""
    row = next(row for row in comparison["routers"] if row["router"] == router)
    return f"{np.mean(row['metrics'][metric]['values']):.3f}"


def _run(*arguments: str) -> None:
    if code := edgeroute.main(list(arguments)):
        raise SystemExit(code)


def main() -> None:
    """Train, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/paper-arms"), help="folder of runs and comparisons")
    parser.add_argument("--steps", type=int, default=100_000, help="decisions that each arm trains for")
    parser.add_argument("--seeds", type=int, default=16, help="episodes of a comparison")
    parser.add_argument("--requests", type=int, default=3000, help="requests in an episode")
    parser.add_argument("--only", choices=("departures", "ablation"), help="one of the tables")
    given = parser.parse_args()
    arms = Arms(given.out, given.steps, given.seeds, given.requests)
    for name in ("departures", "ablation"):
        if given.only in (None, name):
            print(f"\n{name}, {given.steps:,} decisions\n\n{getattr(arms, name)()}")


if __name__ == "__main__":
    main()
