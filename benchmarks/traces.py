"""Reading a trace: block by block, beside the csv module and a whole file in memory, as CPU time and as peak memory.

Run ``python -m benchmarks.traces``. A file of half a million rows in the form of the Azure traces of 2024 is written to a
temporary folder. Each way reads it in a process of its own; what loading the modules and reading ten rows takes is left out.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from rllib_envs.scenario import TraceFile
from rllib_envs.workload.traces import read_trace

ROWS, TINY_ROWS = 500_000, 10
_ROOT = Path(__file__).resolve().parents[1]


def whole_file(path: str) -> int:
    """All cells as Python strings, then as arrays."""
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    stamps = [datetime.fromisoformat(cell) for cell in columns["TIMESTAMP"]]
    times = np.array([(stamp - stamps[0]).total_seconds() for stamp in stamps])
    prompts, outputs = (np.array(list(map(float, columns[name])), np.int32) for name in header[1:])
    return len(times) + 0 * len(prompts) * len(outputs)


WAYS: dict[str, Callable[[str], int]] = {
    "csv module, whole": whole_file,
    "whole": lambda path: len(read_trace(TraceFile(path=path)).arrival_s),
    "first minute": lambda path: len(read_trace(TraceFile(path=path, duration_s=60.0)).arrival_s),
    "last minute": lambda path: len(read_trace(TraceFile(path=path, start_s=ROWS * 0.022 - 60)).arrival_s),
}


def write_trace(path: Path, rows: int) -> None:
    """A request every 22 ms."""
    start, gap = datetime(2024, 5, 12, tzinfo=UTC), timedelta(microseconds=22_000)
    with path.open("w", encoding="utf-8") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        file.writelines(f"{start + gap * i + timedelta(microseconds=1)},{100 + i % 3000},{5 + i % 400}\n" for i in range(rows))


def measure(way: str, tiny: str, big: str) -> None:
    """Print the rows, CPU seconds and peak bytes that one way takes, in this process."""
    whole_file(tiny) if WAYS[way] is whole_file else read_trace(TraceFile(path=tiny))
    before, start = _peak_bytes(), time.process_time()
    rows = WAYS[way](big)
    print(rows, time.process_time() - start, _peak_bytes() - before)


def _peak_bytes() -> int:
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[0])


def main() -> None:
    """Print the table."""
    print(f"{'':20}{'rows':>10}{'CPU s':>8}{'MB':>8}{'ratio of CPU':>14}{'of memory':>11}")
    with tempfile.TemporaryDirectory() as folder:
        tiny, big = Path(folder) / "tiny.csv", Path(folder) / "big.csv"
        write_trace(tiny, TINY_ROWS)
        write_trace(big, ROWS)
        usual = None
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.traces", way, str(tiny), str(big)]
            said = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout.split()
            rows, cpu_s, taken = int(said[0]), float(said[1]), int(said[2])
            usual = usual or (cpu_s, taken)
            ratios = f"{usual[0] / cpu_s:>14.1f}{usual[1] / taken:>11.1f}"
            print(f"{way:20}{rows:10,}{cpu_s:8.2f}{taken / 1e6:8.1f}{ratios}")


if __name__ == "__main__":
    measure(*sys.argv[1:]) if sys.argv[1:] else main()
