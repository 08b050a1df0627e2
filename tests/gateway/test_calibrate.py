"""The command calibrate, in front of a server with a known engine, and of a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import edgeroute
from benchmarks.calibration import load, served
from gateway.calibration.design import NEEDED, designed_load
from gateway.calibration.facts import server_facts
from gateway.config import load_config
from gateway.engines.process import EngineSpec, engines_installed, running
from rllib_envs.errors import InputError
from rllib_envs.profiles.estimate import LEAST_REQUESTS
from rllib_envs.profiles.records import RequestRecord, read_requests
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.yaml_files import dump_yaml, parse_yaml
from tests.gateway.simulated_server import ENGINE, TOKEN, simulated_server
from tests.test_estimate import CPU

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FEW = ["--max-tokens", 4000, "--max-seconds", 600, "--max-num-seqs", 8]  # the first waves, however busy the machine is
LIMITS = {"max_num_seqs": 16, "max_num_batched_tokens": 512}


def calibrate(*options):
    return edgeroute.main(["calibrate", *map(str, options)])


def write_records(path, run):
    columns = (run.arrival_s, run.prompt_tokens, run.output_tokens, run.first_token_s, run.last_token_s)
    rows = [",".join(RequestRecord._fields), *(",".join(map(str, row)) for row in zip(*columns, strict=True))]
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What a short calibration over HTTP leaves: its folder, its records and what the server saw."""
    folder = tmp_path_factory.mktemp("measured")
    with simulated_server() as (url, server):
        options = ["--url", url + "/v1/", "--out", folder / "mine.yaml", *FEW, "--mean-score", 0.7, "--gpu", "A 1"]
        assert calibrate(*options) == 0
        first = (folder / "mine.records.jsonl").read_text()
        before = server.seen["completions"]
        assert calibrate(*options, "--max-tokens", 5500) == 0
        second = (folder / "mine.records.jsonl").read_text()
        return folder, url, first, second, server.seen["completions"] - before, server.seen


def test_the_profile_is_an_expert_of_a_scenario_and_of_a_gateway(measured):
    folder = measured[0]
    (expert,) = parse_yaml((folder / "mine.yaml").read_text(), "mine.yaml")
    data = load_scenario("edge6").to_dict()
    ours = parse_scenario(data | {"experts": [*data["experts"], expert]}, "with mine").experts[-1]
    assert (ours.name, ours.model, ours.gpu, ours.mean_score) == ("engine", "simulated/engine", "A 1", 0.7)
    assert (ours.engine.kv_tokens, ours.engine.max_num_seqs) == (ENGINE.kv_tokens, 8)
    assert ours.engine.max_model_len == ENGINE.max_model_len
    entries = [{"name": name, "url": "http://127.0.0.1:1", "profile": "mine.yaml"} for name in ("a", "b")]
    (folder / "gateway.yaml").write_text(dump_yaml({"experts": entries, "policy": "least-work"}))
    loaded = load_config(folder / "gateway.yaml")
    assert {expert.engine for expert in loaded.scenario.experts} == {ours.engine}
    assert loaded.models == ("simulated/engine", "simulated/engine")
    assert (folder / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_goes_on_with_the_records_of_the_first(measured):
    _, url, first, second, sent, _ = measured
    rows = [json.loads(line) for line in second.splitlines()]
    assert second.startswith(first)
    assert {row["url"] for row in rows} == {url}
    waves = [row["wave"] for row in rows]
    assert len(set(waves)) == len(
        [wave for wave, before in zip(waves, [None, *waves], strict=False) if wave != before]
    )  # once each
    added = len(rows) - len(first.splitlines())
    assert 0 < added <= sent < len(rows)


def test_records_of_another_engine_are_refused(measured, capsys):
    folder = measured[0]
    with simulated_server(models=["other"]) as (url, _):
        assert calibrate("--url", url, "--records", folder / "mine.records.jsonl", "--out", folder / "x.yaml") == 2
    error = capsys.readouterr().err
    assert "mine.records.jsonl:1: not of other at" in error
    assert error.count("\n") == 1


def test_no_request_is_longer_than_the_server_takes(measured):
    assert 1 <= measured[5]["largest"] <= ENGINE.max_model_len


def test_a_server_that_speaks_something_else_is_named(tmp_path, capsys):
    with simulated_server(garbage=True) as (url, _):
        assert calibrate("--url", url, "--out", tmp_path / "x.yaml") == 2
    error = capsys.readouterr().err
    assert f"{url}: /v1/completions: JSONDecodeError: no complete answer" in error
    assert error.count("\n") == 1


def test_a_server_that_wants_text_gets_text(tmp_path):
    with simulated_server(text_only=True) as (url, server):
        assert calibrate("--url", url, "--out", tmp_path / "x.yaml", *FEW) == 0
        rows = [json.loads(line) for line in (tmp_path / "x.records.jsonl").read_text().splitlines()]
        asked = {row["wave"]: row["prompt_tokens"] for row in rows}
        assert 28 <= asked["solo-32"] <= 36  # 16 words, as the usage of the first requests said
        assert server.seen["completions"] > len(rows)


def test_the_token_is_sent_and_never_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENGINE_TOKEN", TOKEN)
    with simulated_server(token=True) as (url, server):
        options = ["--url", url, "--out", tmp_path / "x.yaml", *FEW]
        assert calibrate(*options) == 2
        assert "/v1/models: 401: give the token with --token-env or --token-file" in capsys.readouterr().err
        assert calibrate(*options, "--token-env", "ENGINE_TOKEN") == 0
        assert server.seen["authorization"] == {f"Bearer {TOKEN}"}
    shown = "".join(capsys.readouterr())
    written = "".join(path.read_text() for path in tmp_path.iterdir() if path.suffix != ".png")
    assert TOKEN not in shown + written


def test_an_interrupted_run_keeps_what_it_measured(tmp_path):
    records = tmp_path / "x.records.jsonl"
    with simulated_server() as (url, _):
        command = [sys.executable, "edgeroute.py", "calibrate", "--url", url, "--out", tmp_path / "x.yaml"]
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        end_s = time.monotonic() + 120
        while not records.exists() and time.monotonic() < end_s:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"{records} keeps what was measured" in errors
    assert "Traceback" not in errors
    assert read_requests(records, **LIMITS).arrival_s.size >= 1
    assert not (tmp_path / "x.yaml").exists()


def test_records_alone_give_a_profile(tmp_path, capsys):
    write_records(tmp_path / "log.csv", served(CPU, load(CPU)[:12], 0.03, 1))
    limits = ["--max-num-seqs", 16, "--max-num-batched-tokens", 512, "--max-model-len", 2048, "--kv-tokens", 16_384]
    assert calibrate("--requests", tmp_path / "log.csv", "--out", tmp_path / "cpu.yaml", "--name", "cpu", *limits) == 0
    printed = capsys.readouterr().out
    assert "| end to end |" in printed
    (expert,) = parse_yaml((tmp_path / "cpu.yaml").read_text(), "cpu.yaml")
    engine = EngineProfile(**expert["engine"])
    assert (engine.kv_tokens, engine.max_num_seqs, engine.max_num_batched_tokens) == (16_384, 16, 512)
    assert abs(engine.iteration_s(8, 2000) / CPU.iteration_s(8, 2000) - 1) < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "options: no source: must be one of --url, --vllm-log, --requests"),
        (["--url", "http://x", "--requests", "x.csv"], "options: --url, --requests: must be one of"),
        (["--url", "ftp://x"], "--url 'ftp://x': must be http://HOST:PORT"),
        (["--url", "http://me:secret@x"], "--url http://x: must be http://HOST:PORT"),
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1: /v1/models: no answer"),
        (["--url", "http://x", "--token-env", "A", "--token-file", "b"], "--token-env and --token-file: one of them"),
        (["--url", "http://x", "--token-env", "NOT_SET"], "options: token: environment variable NOT_SET is not set"),
        (["--url", "http://x", "--max-seconds", "0"], "options: max-seconds = 0.0: must be from 1 to 86,400"),
        (["--requests", "x.csv", "--max-num-seqs", "0"], "options: max-num-seqs = 0: must be from 1 to 16,384"),
        (["--requests", "nowhere.csv"], "nowhere.csv: cannot be read: No such file"),
        (["--vllm-log", "nowhere.log"], "nowhere.log: cannot be read: No such file"),
    ],
)
def test_impossible_options_are_named(tmp_path, capsys, options, message):
    assert calibrate(*options, "--out", tmp_path / "x.yaml") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "secret" not in error
    assert not list(tmp_path.iterdir())


ROW = {"arrival_s": 1.0, "prompt_tokens": 5, "output_tokens": 3, "first_token_s": 1.5, "last_token_s": 2.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_tokens": 0}, "log:1: prompt_tokens = 0: must be from 1"),
        ({"first_token_s": 0.5}, "log:1: arrival_s = 1.0, first_token_s = 0.5, last_token_s = 2.0: must be in this order"),
        ({"last_token_s": "soon"}, "log:1: last_token_s = 'soon': must be a number"),
        ({"output_tokens": True}, "log:1: output_tokens = True: must be a number"),
        ({"last_token_s": None}, "log: no record of a request that was served"),
    ],
)
def test_an_impossible_record_is_named(tmp_path, change, message):
    (tmp_path / "log").write_text(json.dumps(ROW | change) + "\n")
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        read_requests(tmp_path / "log", **LIMITS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,prompt_tokens\n1,2\n", "log:1: columns arrival_s, prompt_tokens: 'output_tokens' is missing"),
        ('{"arrival_s": 1}\n', "log:1: prompt_tokens is missing"),
        ('{"arrival_s": 1\n', "log:1:16: not JSON"),
        ("", "log:1: columns"),
    ],
)
def test_a_file_of_other_records_is_named(tmp_path, text, message):
    (tmp_path / "log").write_text(text)
    with pytest.raises(InputError, match=message):
        read_requests(tmp_path / "log", **LIMITS)


def test_json_lines_and_csv_are_the_same_records(tmp_path):
    run = served(CPU, load(CPU)[:2], 0.0, 0)
    write_records(tmp_path / "csv", run)
    names = RequestRecord._fields
    rows = zip(*(getattr(run, name).tolist() for name in names), strict=True)
    lines = [json.dumps(dict(zip(names, row, strict=True)) | {"more": "x"}) for row in rows]
    (tmp_path / "json").write_text("\n".join(lines[::-1]) + "\n")
    one, other = (read_requests(tmp_path / kind, **LIMITS) for kind in ("csv", "json"))
    for name in names:
        assert getattr(one, name).tolist() == getattr(other, name).tolist()


def test_the_load_keeps_within_its_bounds():
    for seconds, tokens in ((1e6, 10**9), (20.0, 10**9), (1e6, 5_000), (0.001, 10)):
        waves = designed_load(CPU, seconds=seconds, tokens=tokens)
        assert sum(wave.expected_s for wave in waves if wave.name not in NEEDED) <= seconds
        assert sum(wave.tokens for wave in waves) <= tokens
        assert all(planned.prompt_tokens + planned.output_tokens <= CPU.max_model_len for w in waves for planned in w.requests)
    least = designed_load(CPU, seconds=0.001, tokens=10**9)
    assert {wave.name for wave in least} == set(NEEDED)
    assert sum(len(wave.requests) for wave in least) >= LEAST_REQUESTS
    kinds = [{wave.name.split("-")[0] for wave in designed_load(CPU, seconds=s, tokens=10**9)} for s in (30.0, 1e6)]
    assert kinds == [{"solo", "batch", "random"}] * 2
    short = replace(CPU, max_model_len=100)
    assert {wave.name for wave in designed_load(short, seconds=1e6, tokens=10**9)} >= {"solo-32", "batch-4x64", "random-0"}


def test_what_servers_say_of_themselves_is_read():
    models = json.dumps({"data": [{"id": "a/b", "max_model_len": 2048}, {"id": "lora", "max_model_len": 2048}]})
    metrics = 'vllm:cache_config_info{block_size="128",cache_dtype="auto",num_gpu_blocks="91",x="{y}"} 1.0\n'
    facts = server_facts(models, metrics, "")
    assert (facts.kind, facts.kv_tokens, facts.max_model_len, facts.models) == ("vllm", 128 * 91, 2048, ("a/b", "lora"))
    llama = json.dumps({"data": [{"id": "m", "owned_by": "llamacpp", "meta": {"n_params": 134_515_008}}]})
    props = json.dumps({"total_slots": 8, "default_generation_settings": {"n_ctx": 2048}})
    facts = server_facts(llama, "", props)
    assert (facts.kind, facts.max_num_seqs, facts.max_model_len, facts.async_scheduling) == ("llama.cpp", 8, 2048, False)
    assert facts.kv_tokens is not None
    profile = replace(CPU, kv_tokens=facts.kv_tokens, max_model_len=2048, max_num_seqs=8)
    assert profile.usable_blocks * 16 >= 8 * 2048
    for nonsense in ("", "[]", "{", '{"data": 3}', '{"data": [3]}', "[" * 10_000):
        assert server_facts(nonsense, nonsense, nonsense).models == ()


@pytest.mark.skipif(not engines_installed(), reason="no real engine: make engines installs one")
def test_a_real_engine_is_calibrated_and_ended(tmp_path, capsys):
    with running(EngineSpec(name="smol", layers=2, slots=4, context_tokens=1024), tmp_path / "engines") as engine:
        assert calibrate("--url", engine.url, "--out", tmp_path / "smol.yaml", *FEW[:4]) == 0
        (expert,) = parse_yaml((tmp_path / "smol.yaml").read_text(), "smol.yaml")
    assert engine.process.returncode is not None
    assert "| end to end |" in capsys.readouterr().out
    made = EngineProfile(**expert["engine"])
    assert (expert["name"], made.max_num_seqs, made.max_model_len, made.async_scheduling) == ("smol", 4, 1024, False)
    assert 0.01 < expert["params_b"] < 0.13  # 28 of its 30 layers are gone, the vocabulary is not


def test_an_engine_that_cannot_start_says_where_its_log_is(tmp_path, monkeypatch):
    if not engines_installed():
        pytest.skip("no real engine: make engines installs one")
    monkeypatch.setattr("gateway.engines.process._model", lambda spec, folder: tmp_path / "nothing.gguf")
    with pytest.raises(InputError, match=r"engine broken ended .*broken\.log"), running(EngineSpec(name="broken"), tmp_path):
        pass
