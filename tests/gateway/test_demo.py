"""The demo of serving, as a user starts it, in its small form; and what becomes of the processes that it started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import edgeroute
from gateway.demo import Options, who_decided
from gateway.engines.process import engines_installed
from gateway.traffic_sample import DemoAnswer, traffic_table
from rllib_envs.scenarios.load import load_scenario

ROOT = Path(__file__).resolve().parents[2]
real_engines = pytest.mark.skipif(not engines_installed(), reason="no real engine: make engines installs one")


@real_engines
@pytest.mark.cluster
def test_the_demo_serves_and_leaves_no_process(tmp_path, capsys):
    assert edgeroute.main(["serve-demo", "--smoke", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    pids = [int(pid) for pid in re.findall(r"process (\d+)", shown)]
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)
    (row,) = re.findall(r"^\| all +\| +(\d+) \| +(\d+) \|", shown, re.MULTILINE)
    assert int(row[0]) >= 1
    assert int(row[1]) == 0
    assert (tmp_path / "replay" / "latency.png").exists()
    assert "draining" in (tmp_path / "serve.log").read_text()
    assert {"small.yaml", "large.yaml", "small.png", "large.png", "gateway.yaml"} <= {path.name for path in tmp_path.iterdir()}


@real_engines
@pytest.mark.cluster
def test_an_interrupted_demo_leaves_no_process(tmp_path):
    command = [sys.executable, "edgeroute.py", "serve-demo", "--smoke", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    records, end_s = tmp_path / "small.records.jsonl", time.monotonic() + 300
    while not records.exists() and time.monotonic() < end_s:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in shown
    assert children
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_it_sayswho_decided():
    options = Options(policy="impact-greedy")
    none = {'edgeroute_fallback_total{reason="error"}': "0", "edgeroute_inflight": "3"}
    assert "All were decided by impact-greedy" in who_decided(none, options)
    told = who_decided(none | {'edgeroute_fallback_total{reason="outside"}': "7.0"}, options)
    assert "impact-greedy did not decide" in told
    assert "outside: 7 decisions" in told
    assert "error" not in told


def test_the_table_counts_what_the_requests_got():
    experts = load_scenario("edge2").experts
    names = [expert.name for expert in experts]

    def answer(expert, **other):
        given = {"status": 200, "expert": expert, "ttft_s": 0.1, "e2e_s": 1.0, "tokens": 10, "decision_ms": 1.0}
        return DemoAnswer(**given | other)

    answers = [
        answer(names[0]),
        answer(names[0], e2e_s=9.0),
        answer(names[1], status=503, tokens=0),
        answer("", status=429, tokens=0),
    ]
    rows = re.findall(
        r"^\| (\S+) +\| +(\d+) \| +(\d+) \| +\S+ \| +(\S+) \| +(\S+) \|$", traffic_table(answers, experts, 0.2), re.MULTILINE
    )
    assert rows == [(names[0], "2", "0", "500", "50"), (names[1], "1", "1", "–", "0"), ("all", "4", "2", "500", "25")]


def test_impossible_options_are_named(tmp_path, capsys):
    assert edgeroute.main(["serve-demo", "--seconds", "0", "--out", str(tmp_path)]) == 2
    assert "options: seconds must be from 1 to 3,600" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
