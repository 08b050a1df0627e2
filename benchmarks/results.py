"""Everything that docs/results.md shows, run anew: training, export, tuning of the heuristics, comparisons, tables.

``make results`` runs ``python -m benchmarks.results``: some two hours on two cores. It can be stopped at any time and goes on
where it was: finished training runs, and cells of the comparisons, are kept in ``--out``. The tables in docs/results.md stand
between marks, and only they are replaced; what the text says about them is for a human to check. ``--smoke`` runs all steps in a
tiny form and leaves the document alone. Pictures and all else are in ``--out``; ``edgeroute report`` makes a page of it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

import edgeroute
from benchmarks.results_table import qos_of, table
from tuning.metrics.statistics import paired_difference
from tuning.output.tables import markdown_table
from tuning.run_dir.atomic import write_text

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "results.md"
TRAINED = {
    "seed-0": ["--seed", "0"],
    "seed-1": ["--seed", "1"],
    "seed-2": ["--seed", "2"],
    "agg-0": ["--seed", "0", "--encoder", "aggregates"],
}
ARMS: dict[str, tuple[int, list[str]]] = {  # other learners and other parts: minutes of training, options
    "no-impact": (10, ["--no-impact"]),
    "pooled": (10, ["--encoder", "pooled", "--generations", "0"]),
    "ppo": (10, ["--algo", "ppo"]),
    "sac": (10, ["--algo", "sac"]),
    "paper": (40, ["--preset", "paper-published", "--scenario", "edge6", "--load", "mixed"]),
}
COLUMNS = {"seed 0 (shipped)": "seed-0", "seed 1": "seed-1", "seed 2": "seed-2", "aggregates, seed 0": "agg-0"}
CLEAN = ("loads", "arrivals", "bursts")  # evaluations of edge6 as it is told
FLEETS = {"edge3": 16, "edge10": 16, "edge32": 8}  # other clusters, and episodes there
ABLATIONS = {
    "no price": "without-price",
    "price before training": "with-the-price-before-training",
    "no correction": "without-correction",
    "no calibration": "without-calibration",
    "no drop": "without-drop",
    "no graph": "without-graph",
    "no learned change of the price": "without-future-network",
}


class Results:
    """The steps, each of which leaves its files in ``out``."""

    def __init__(self, out: Path, smoke: bool, jobs: int | None) -> None:
        self.out, self.smoke, self.jobs = out.absolute(), smoke, jobs
        self.fleets = {"edge3": FLEETS["edge3"]} if smoke else FLEETS
        self.evaluate_options = ["--smoke"] if smoke else []
        self.evaluate_options += [] if jobs is None else ["--jobs", str(jobs)]
        self.routers, self.arms = ([f"bundle:{self.bundle(name)}" for name in names] for names in (TRAINED, ARMS))

    def bundle(self, name: str) -> Path:
        return self.out / "bundles" / name

    def edgeroute(self, *arguments: str | Path, log: Path | None = None) -> None:
        """Run a command; SystemExit with its code where it fails, so that the next start goes on from there.

        Args:
            arguments: of the command.
            log: file that what it prints goes to.
        """
        shown = " ".join(map(str, ["+ edgeroute", *arguments, *([] if log is None else [">", log])]))
        print(f"{shown}\n", end="", flush=True)  # in one piece: others may write too
        with nullcontext() if log is None else log.open("a", encoding="utf-8") as file:
            code = self._run(list(map(str, arguments)), file)
        if code:
            raise SystemExit(code)

    def _run(self, command: list[str], file: TextIO | None) -> int:
        """With one job in this process, which imports everything once; else in a process of its own."""
        if self.jobs != 1:
            process = [sys.executable, str(ROOT / "edgeroute.py"), *command]
            return subprocess.run(process, cwd=ROOT, check=False, stdout=file, stderr=file).returncode
        if file is None:
            return edgeroute.main(command)
        with redirect_stdout(file), redirect_stderr(file):
            return edgeroute.main(command)

    def train(self) -> None:
        """All that is not trained yet, a process a core (or ``--jobs``; with one job in this process)."""
        arms = {name: [*options, "--minutes", str(minutes)] for name, (minutes, options) in ARMS.items()}
        (self.out / "runs").mkdir(parents=True, exist_ok=True)
        todo = {**TRAINED, **arms}
        if self.jobs == 1:
            for name, options in todo.items():
                self.train_one(name, options)
            return
        with ThreadPoolExecutor(self.jobs or os.cpu_count()) as pool:
            for done in [pool.submit(self.train_one, name, options) for name, options in todo.items()]:
                done.result()

    def train_one(self, name: str, options: Sequence[str]) -> None:
        run_dir, log = self.out / "runs" / name, self.out / "runs" / f"{name}.log"
        if self.bundle(name).exists():
            return
        small = ["--smoke"] if self.smoke else []
        self.edgeroute("train", "--auto-resume", *options, "--run-dir", run_dir, *small, log=log)
        self.edgeroute("export", run_dir, "--no-onnx", "--out", self.bundle(name), log=log)

    def ablate(self) -> None:
        command = [
            sys.executable,
            "-m",
            "benchmarks.ablation",
            str(self.bundle("seed-0")),
            str(self.out / "bundles" / "ablations"),
        ]
        if not (self.out / "bundles" / "ablations").exists():
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def evaluate(self, name: str, *arguments: str | Path, routers: Sequence[str]) -> None:
        self.edgeroute("evaluate", *arguments, "--routers", *routers, *self.evaluate_options, "--out", self.out / name)

    def compare(self) -> None:
        heuristics = ["least-work", "quality-greedy", "impact-greedy", "myopic-impact-greedy"]
        others = ["mmpp", "azure-conversation", "azure-code"]
        ablations = [f"bundle:{self.out / 'bundles' / 'ablations' / name}" for name in ABLATIONS.values()]
        shipped, short = self.routers[0], ["--requests", "1000"]
        self.evaluate("loads", "--load", "light", "moderate", "heavy", routers=[*heuristics, *self.routers])
        self.evaluate("arrivals", "--load", "moderate", "--arrivals", *others, routers=[*heuristics[1:], *self.routers])
        self.evaluate("bursts", "--load", "heavy", "--arrivals", "mmpp", routers=[*heuristics[1:], *self.routers])
        faults = ["--load", "moderate", "heavy", "--faults", "all", *short]
        self.evaluate("faults", *faults, routers=["calibrated-impact-greedy", *self.routers])
        for fleet, seeds in self.fleets.items():
            tuned = self.out / f"tuned-{fleet}"
            small = ["--seeds", "2", "--requests", "20"] if self.smoke else ["--seeds", "5", "--requests", "1000"]
            world = ["--scenario", fleet, "--load", "moderate", "heavy"]
            if not (tuned / "tuned.json").exists():
                self.edgeroute("tune-heuristics", *world, *small, "--out", tuned / "tuned.json")
            options = [*world, *short, "--seeds", str(seeds), "--tuned", tuned / "tuned.json"]
            self.evaluate(fleet, *options, routers=["impact-greedy", *self.routers[:3]])
        self.evaluate("parts", "--load", "moderate", "heavy", *short, routers=[shipped, *ablations])
        faulty = ["--load", "heavy", "--faults", "all", *short, "--seeds", "10"]
        self.evaluate("parts-faults", *faulty, routers=[shipped, *ablations])
        self.evaluate("arms", "--load", "moderate", "heavy", *short, routers=["impact-greedy", shipped, *self.arms])
        self.evaluate("arms-faults", *faulty, routers=["calibrated-impact-greedy", shipped, *self.arms])
        truth = ["impact-greedy", "impact-greedy-true", "myopic-impact-greedy"]
        self.evaluate("truth", "--load", "light", "moderate", "heavy", routers=[*truth, shipped])

    def comparisons(self, *names: str) -> list[dict[str, Any]]:
        return [
            c for name in names for c in json.loads((self.out / name / "results.json").read_text(encoding="utf-8"))["comparisons"]
        ]

    def tables(self) -> dict[str, str]:
        """Name of a table in the document -> the table."""
        columns = {title: f"bundle:{self.bundle(name)}" for title, name in COLUMNS.items()}
        seeds = {title: router for title, router in columns.items() if title.startswith("seed")}
        loads, clean, faults = self.comparisons("loads"), self.comparisons(*CLEAN), self.comparisons("faults")
        for comparison in faults:
            comparison["workload"] = comparison["workload"].replace("poisson at ", "")
        fleets = [{**c, "workload": f"{fleet}, {c['workload']}"} for fleet in self.fleets for c in self.comparisons(fleet)]
        aggregates, graph = columns["aggregates, seed 0"], {f"graph, {title}": router for title, router in seeds.items()}
        truth = {"seed 0": self.routers[0], "impact-greedy-true": "impact-greedy-true", "myopic": "myopic-impact-greedy"}
        return {
            "priced": table(clean, "impact-greedy", columns, False),
            "myopic": table(clean, "myopic-impact-greedy", columns, False),
            "plain": table(loads, "plain", seeds, True),
            "gpu": self.gpu_table(loads, seeds),
            "faults": table(faults, "calibrated-impact-greedy", columns, False),
            "graph": table(called(clean, aggregates, "aggregates"), "aggregates", graph, False),
            "graph-faults": table(called(faults, aggregates, "aggregates"), "aggregates", graph, False),
            "parts": self.parts_table(),
            "arms": self.arms_table(),
            "fleets": table(fleets, "impact-greedy", seeds, False),
            "truth": table(self.comparisons("truth"), "impact-greedy", truth, False),
        }

    def gpu_table(self, comparisons: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
        def mean(comparison: dict[str, Any], router: str) -> str:
            found = next(row for row in comparison["routers"] if row["router"] == router)
            return f"{np.mean(found['metrics']['qos_per_gpu_s']['values']):.3f}"

        rows = [
            [c["workload"], c["plain"], mean(c, c["plain"]), mean(c, "impact-greedy"), *(mean(c, r) for r in columns.values())]
            for c in comparisons
        ]
        return markdown_table(["QoS per busy GPU-second", "heuristic", "its", "impact-greedy", *columns], rows, names=2)

    def parts_table(self) -> str:
        whole = self.routers[0]
        rows: list[list[str]] = []
        faults = [c["fault"] for c in self.comparisons("parts-faults")]
        for title, name in ABLATIONS.items():
            shown, by_fault = self.differences("parts", f"bundle:{self.out / 'bundles' / 'ablations' / name}", whole, whole)
            worst = int(by_fault.argmin())
            rows.append([title, *shown, f"{by_fault[worst]:+.4f} ({faults[worst]})"])
        return markdown_table(["switched off", "moderate", "heavy", "heavy with each fault, mean", "worst fault"], rows)

    def arms_table(self) -> str:
        titles = ["the default", *(f"{name}, {minutes} minutes" for name, (minutes, _) in ARMS.items())]
        rows: list[list[str]] = []
        for title, router in zip(titles, [self.routers[0], *self.arms], strict=True):
            shown, _ = self.differences("arms", router, "impact-greedy", "calibrated-impact-greedy")
            rows.append([title, *shown])
        return markdown_table(["trained", "moderate", "heavy", "heavy with each fault, mean"], rows)

    def differences(self, name: str, router: str, clean: str, faulty: str) -> tuple[list[str], NDArray[np.float64]]:
        """QoS of a router less that of others: in each clean world and over the faults, with intervals; and for each fault."""
        found = [paired_difference(qos_of(c, router) or [], qos_of(c, clean) or []) for c in self.comparisons(name)]
        ours, theirs = (np.array([qos_of(c, r) for c in self.comparisons(f"{name}-faults")]) for r in (router, faulty))
        found.append(paired_difference(ours.mean(axis=0).tolist(), theirs.mean(axis=0).tolist()))
        return [f"{one.mean:+.4f} ± {one.half_width:.4f}" for one in found], (ours - theirs).mean(axis=1)


def called(comparisons: Sequence[dict[str, Any]], router: str, name: str) -> list[dict[str, Any]]:
    """The comparisons with a router under another name."""
    return [
        {**c, "routers": [{**row, "router": name} if row["router"] == router else row for row in c["routers"]]}
        for c in comparisons
    ]


def put_tables(document: str, tables: dict[str, str]) -> str:
    """The document with what stands between ``<!-- table NAME -->`` and ``<!-- end -->`` replaced.

    Raises:
        SystemExit: the document has no place for a table.
    """
    for name, text in tables.items():
        pattern = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        if not pattern.search(document):
            raise SystemExit(f"docs/results.md has no place for table {name}: <!-- table {name} --> ... <!-- end -->")
        document = pattern.sub(lambda match, text=text: f"{match[1]}{text}{match[2]}", document, count=1)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for all that is run; default: runs/results, or runs/results-smoke")
    parser.add_argument("--jobs", type=int, help="processes; 1: all in this one, step by step; default: one a core")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny form of everything but the larger fleets, in minutes; docs/results.md stays"
    )
    given = parser.parse_args()
    out = given.out or Path("runs/results-smoke" if given.smoke else "runs/results")
    results = Results(out, given.smoke, given.jobs)
    results.train()
    results.ablate()
    results.compare()
    document = put_tables(DOCUMENT.read_text(encoding="utf-8"), results.tables())
    target = out / "results.md" if given.smoke else DOCUMENT
    write_text(target, document)
    print(f"Written: {target}")


if __name__ == "__main__":
    main()
