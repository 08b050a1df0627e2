"""SIGTERM in the middle of what takes long: the run saves and ends, as a cluster gives it half a minute."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.rllib.checkpoint import find_checkpoint, read_checkpoint
from tuning.training.log import LOG, read_log

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[3]
MARKED = """
import sys
from pathlib import Path
import edgeroute, tuning.training.setup
from models.rllib.avl.algorithm import AVL
from tuning.training.validation import Validator

def mark(kind, name, file):
    act = getattr(kind, name)
    def marked(self, *given):
        file.touch()
        return act(self, *given)
    setattr(kind, name, marked)

folder = Path(sys.argv[1])
mark(AVL, "_search_price", folder / "generation")
mark(Validator, "compare", folder / "validation")
tuning.training.setup._VALIDATION["requests"] = 100_000
sys.exit(edgeroute.main(sys.argv[2:]))
"""
SMALL = ["--fleets", "--no-variation", "--envs-per-runner", "4", "--steps-per-iteration", "64"]
CASES = {
    "generation": ["--warmup", "0", "--search-requests", "20000", "--num-env-runners", "0", "--requests", "20"],
    "generation on a worker": ["--warmup", "0", "--search-requests", "20000", "--num-env-runners", "1", "--requests", "20"],
    "validation": ["--generations", "0", "--validate-every", "1", "--num-env-runners", "0", "--requests", "100000"],
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_ends_in_time_whatever_is_under_way(case, tmp_path):
    run_dir, marker = tmp_path / "run", tmp_path / case.split()[0]
    process = subprocess.Popen(
        [sys.executable, "-c", MARKED, str(tmp_path), "train", *SMALL, *CASES[case], "--run-dir", str(run_dir)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until = time.monotonic() + 600
        while not marker.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        assert marker.exists(), process.communicate(timeout=300) if process.poll() is not None else "it did not begin"
        time.sleep(2)  # well into it
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "SIGTERM" in errors
    saved = read_checkpoint(find_checkpoint(run_dir))["iteration"]
    assert saved == 0  # that of the iteration under way would not have been in time
    assert [record.iteration for record in read_log(run_dir / LOG, 99)] == []
