"""What a sweep costs beside the training of its trials, and how busy it keeps the machine.

Run ``python -m benchmarks.sweep`` from the repository root, on a machine that does nothing else: eight trials of 3 iterations.
Overhead of a trial: the time from the beginning of the first iteration to the end of the last, on all the cores that run trials,
less what the trials say they trained and validated, by trial. Busy: share of the cores' time, from the first result to the last,
in which they did anything at all (``/proc/stat``). The start of Ray and of the processes, once for a sweep, is stated apart. Some
three minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRIALS, ITERATIONS = 8, 3


def cpu_s() -> tuple[float, float]:
    """Busy and all CPU time of the machine so far, s."""
    fields = [int(x) for x in Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:9]]
    ticks = os.sysconf("SC_CLK_TCK")
    return (sum(fields) - fields[3] - fields[4]) / ticks, sum(fields) / ticks


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        seen: list[tuple[float, tuple[float, float], int]] = []
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                files = list((run_dir / "tune").glob("trial-*/result.json"))
                seen.append(
                    (time.monotonic(), cpu_s(), sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files))
                )

        begun = time.monotonic()
        watcher = threading.Thread(target=watch)
        watcher.start()
        command = [
            sys.executable, "edgeroute.py", "sweep", "--space", "learner", "--scheduler", "none", "--num-samples", str(TRIALS),
            "--iterations", str(ITERATIONS), "--final-seeds", "2", "--finalists", "1", "--run-dir", str(run_dir),
        ]  # fmt: skip
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        over.set()
        watcher.join()
        trials = json.loads((run_dir / "sweep.json").read_text(encoding="utf-8"))["trials"]
    first = next(i for i, (_, _, count) in enumerate(seen) if count)
    last = next(i for i, (_, _, count) in enumerate(seen) if count == TRIALS * ITERATIONS)
    (at_first, cpu_first, _), (at_last, cpu_last, _) = seen[first], seen[last]
    cores = min(os.cpu_count() or 1, TRIALS)
    trained = [trial["seconds"] for trial in trials]
    within = cores * (at_last - at_first) - sum(trained) + cores * trained[0] / ITERATIONS  # from the first iteration's beginning
    busy = (cpu_last[0] - cpu_first[0]) / (cpu_last[1] - cpu_first[1])
    print(f"{TRIALS} trials of {ITERATIONS} iterations, {sum(trained) / TRIALS:.1f} s each, {cores} at a time")
    print(f"start: {at_first - begun - trained[0] / ITERATIONS:.1f} s")
    print(f"overhead of a trial: {within / TRIALS:.1f} s")
    print(f"cores busy: {100 * busy:.0f} %")


if __name__ == "__main__":
    main()
