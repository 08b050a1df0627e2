"""The configuration of the gateway: what is read, and one line for what is wrong."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import pytest

from gateway.config import load_config
from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.yaml_files import dump_yaml

KEY = "a-secret-key"
HASH = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()


def plain(**more: Any) -> dict[str, Any]:
    experts = [
        {"name": "small", "url": "http://127.0.0.1:8001/v1/", "preset": "edge6/gemma-2-2b", "labels": ["here"]},
        {"name": "large", "url": "https://10.0.0.2:8002", "preset": "edge6/llama-3.1-8b", "model": "llama"},
    ]
    return {"policy": "impact-greedy", "experts": experts} | more


def load(folder, data):
    (folder / "gateway.yaml").write_text(dump_yaml(data), encoding="utf-8")
    return load_config(folder / "gateway.yaml")


def refusal(folder, data):
    with pytest.raises(InputError) as caught:
        load(folder, data)
    return str(caught.value)


def test_experts_are_those_of_the_simulator_under_names_of_their_own(tmp_path):
    loaded = load(tmp_path, plain())
    known = {expert.name: expert for expert in load_scenario("edge6").experts}
    small, large = loaded.scenario.experts
    assert (small.name, small.labels) == ("small", ("here",))
    assert small.engine == known["gemma-2-2b"].engine
    assert large.engine == known["llama-3.1-8b"].engine
    assert loaded.models == (known["gemma-2-2b"].model, "llama")
    assert [entry.url for entry in loaded.config.experts] == ["http://127.0.0.1:8001", "https://10.0.0.2:8002"]


def test_a_profile_is_a_file_beside_the_configuration(tmp_path):
    expert = load_scenario("edge6").experts[2]
    (tmp_path / "qwen.yaml").write_text(dump_yaml([json.loads(json.dumps(asdict(expert)))]), encoding="utf-8")
    data = plain()
    data["experts"][0] = {"name": "q", "url": "http://a:1", "profile": "qwen.yaml", "mean_score": 0.5}
    loaded = load(tmp_path, data)
    assert loaded.scenario.experts[0].engine == expert.engine
    assert loaded.scenario.experts[0].mean_score == 0.5
    (tmp_path / "qwen.yaml").write_text("name: x", encoding="utf-8")
    assert f"{tmp_path / 'qwen.yaml'}: engine: Field required" in refusal(tmp_path, data)


def test_a_token_comes_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("ENGINE_TOKEN", "from-the-environment")
    (tmp_path / "token").write_text("from-the-file\n", encoding="utf-8")
    data = plain()
    data["experts"][0]["token"] = {"env": "ENGINE_TOKEN"}
    data["experts"][1]["token"] = {"file": "token"}
    loaded = load(tmp_path, data)
    assert loaded.tokens == ("from-the-environment", "from-the-file")
    assert "from-the" not in repr(loaded)
    monkeypatch.delenv("ENGINE_TOKEN")
    assert refusal(tmp_path, data).endswith("experts.0.token: environment variable ENGINE_TOKEN is not set")


def set_at(data, path, value):
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["polcy"], "x", "polcy: Unexpected keyword argument"),
        (["policy"], "python:mine.py:route", "policy: 'python:mine.py:route': code is run only where the command line names it"),
        (["policy"], 3, "policy: Input should be a valid string"),
        (["experts"], [], "experts: Tuple should have at least 2 items"),
        (["experts", 0, "url"], "ftp://x", "experts.0.url: 'ftp://x': must be http://HOST:PORT"),
        (["experts", 0, "url"], "http://u:p@x", "must be http://HOST:PORT"),
        (["experts", 0, "url"], "http://x:99999", "the port must be from 0 to 65535"),
        (["experts", 0, "name"], "auto", "this name stands for the gateway's choice"),
        (["experts", 0, "name"], "a\nb", "must be on one line"),
        (["experts", 0, "name"], "large", "name 'large' is used more than once"),
        (["experts", 0, "preset"], "edge6/nobody", "must be SCENARIO/EXPERT; experts of edge6 are gemma-2-2b"),
        (["experts", 0, "preset"], None, "exactly one of profile and preset must be given"),
        (["experts", 0, "profile"], "both.yaml", "exactly one of profile and preset must be given"),
        (["experts", 0, "token"], {}, "exactly one of env and file must be given"),
        (["experts", 0, "max_concurrent"], 0, "should be greater than or equal to 1"),
        (["timeouts"], {"connect_s": -1}, "timeouts.connect_s: Input should be greater than or equal to 0.001"),
        (["limits"], {"body_bytes": True}, "limits.body_bytes: Input should be a valid integer"),
        (["listen"], {"host": "0.0.0.0"}, "listen.host = '0.0.0.0' without tenants"),
        (["classes"], [{"name": "a", "confined_to": ["mars"]}], "'a' is confined_to 'mars': no expert has this name or label"),
        (["privacy_sets"], [{"name": "a", "confined_to": ["mars"]}], "'a' is confined_to 'mars': no expert has this"),
        (["privacy_sets"], [{"name": "a", "confined_to": []}], "should have at least 1 item"),
        (["tenants"], [{"name": "t", "keys": [HASH], "service_class": "c"}], "service_class = 'c' of 't': there is none"),
        (["tenants"], [{"name": "t", "keys": [HASH, HASH]}], "a key stands there twice"),
        (["tenants"], [{"name": "t", "keys": []}], "should have at least 1 item"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(tmp_path, path, value, message):
    data = plain()
    set_at(data, path, value)
    told = refusal(tmp_path, data)
    assert message in told
    assert all(line.startswith(str(tmp_path)) for line in told.splitlines())


def test_a_key_in_place_of_its_hash_is_not_repeated(tmp_path):
    for keys in ([KEY], [HASH, KEY], KEY, [[KEY]], {KEY: KEY}):
        told = refusal(tmp_path, plain(tenants=[{"name": "t", "keys": keys}]))
        assert KEY not in told
        assert "tenants.0.keys" in told


def test_beyond_loopback_somebody_guards_the_door(tmp_path):
    open_to_all = {"host": "0.0.0.0"}
    load(tmp_path, plain(listen=open_to_all, tenants=[{"name": "t", "keys": [HASH]}]))
    load(tmp_path, plain(listen=open_to_all | {"without_keys": True}))
    for host in ("127.0.0.1", "::1", "localhost", "127.3.2.1"):
        load(tmp_path, plain(listen={"host": host}))


def test_paths_of_policies_are_beside_the_configuration_too(tmp_path):
    loaded = load(tmp_path, plain())
    assert loaded.policy("bundle:mine") == f"bundle:{tmp_path / 'mine'}"
    assert loaded.policy("impact-greedy:tau=0.2") == "impact-greedy:tau=0.2"
    assert loaded.policy("any-cluster-router").endswith("presets/any-cluster-router")


def test_the_fingerprint_is_of_the_content(tmp_path):
    assert load(tmp_path, plain()).config.fingerprint == load(tmp_path, plain()).config.fingerprint
    assert load(tmp_path, plain()).config.fingerprint != load(tmp_path, plain(slo_s_per_token=0.1)).config.fingerprint
