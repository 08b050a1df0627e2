"""LiteLLM's plug-in: its protocol without LiteLLM, and the real proxy where EDGEROUTE_LITELLM names its environment."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.plugins import litellm
from tests.gateway.running import PATIENCE_S, RunningGateway, ask, chat, engines, settings, wait_for

LITELLM = os.environ.get("EDGEROUTE_LITELLM")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway in front of two engines."""
    with engines("a", "b") as found, RunningGateway(tmp_path_factory.mktemp("gateway"), settings(found)) as running:
        yield running


def _context(*models: str) -> Any:
    messages = [{"role": "user", "content": "hello"}]
    return SimpleNamespace(raw_messages=messages, structured_messages=[], candidate_models=list(models), signals={})


def test_candidates_are_narrowed_and_the_end_is_told(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """To one model; the request is under way until the callback says it finished, and then its tokens are known."""
    monkeypatch.setenv("EDGEROUTE_URL", gateway.url)
    context = asyncio.run(litellm.plugin.run(_context("openai/a", "openai/b", "azure/other")))
    assert context.candidate_models in (["openai/a"], ["openai/b"])
    assert not gateway.idle()
    kwargs = {"litellm_params": {"metadata": {"routing_plugin_signals": context.signals}}}
    response = SimpleNamespace(usage=SimpleNamespace(prompt_tokens=5, completion_tokens=7))
    before = sum(gateway.metric("edgeroute_tokens_total", expert=x, kind="output") for x in "ab")
    asyncio.run(litellm.plugin.async_log_success_event(kwargs, response, None, None))
    assert gateway.idle()
    assert sum(gateway.metric("edgeroute_tokens_total", expert=x, kind="output") for x in "ab") == before + 7


def test_a_failure_is_told(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what edgeroute did not route is not."""
    monkeypatch.setenv("EDGEROUTE_URL", gateway.url)
    context = asyncio.run(litellm.plugin.run(_context("openai/a")))
    kwargs = {"litellm_params": {"metadata": {"routing_plugin_signals": context.signals}}}
    asyncio.run(litellm.plugin.async_log_failure_event({"litellm_params": {}}, None, None, None))
    assert not gateway.idle()
    asyncio.run(litellm.plugin.async_log_failure_event(kwargs, None, None, None))
    assert gateway.idle()


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9"])
def test_without_an_answer_litellm_goes_on(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, url: str | None) -> None:
    """No model that edgeroute knows, or no edgeroute."""
    monkeypatch.setenv("EDGEROUTE_URL", url or gateway.url)
    context = asyncio.run(litellm.plugin.run(_context("azure/x", "azure/y")))
    assert (context.candidate_models, context.signals) == (["azure/x", "azure/y"], {})


@pytest.mark.skipif(LITELLM is None, reason="EDGEROUTE_LITELLM names no environment with litellm[proxy]")
def test_the_real_proxy_routes_by_it(gateway: RunningGateway, tmp_path: Path) -> None:
    """LiteLLM's own proxy loads the file, sends each request to one of the two, and tells the end."""
    assert LITELLM is not None
    shutil.copy(litellm.__file__, tmp_path / "edgeroute_litellm.py")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    models = [
        {
            "model_name": "group",
            "litellm_params": {"model": f"openai/{x.entry.name}", "api_base": f"{x.entry.url}/v1", "api_key": "none"},
        }
        for x in gateway.traffic.gateway.upstreams
    ]
    config = {
        "model_list": models,
        "router_settings": {"plugins": ["edgeroute_litellm.plugin"]},
        "litellm_settings": {"callbacks": ["edgeroute_litellm.plugin"]},
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    command = [f"{LITELLM}/bin/litellm", "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"EDGEROUTE_URL": gateway.url, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    environment.pop("PYTHONPATH", None)
    with open(tmp_path / "out", "wb") as out:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _alive(url), 8 * PATIENCE_S)
        routed = gateway.metric("edgeroute_decision_seconds_count")
        for _ in range(4):
            assert ask(url, "POST", "/v1/chat/completions", chat() | {"model": "group"}, _JSON).status == 200
        assert gateway.metric("edgeroute_decision_seconds_count") == routed + 4
        gateway.settle()
        ended = sum(gateway.metric("edgeroute_requests_total", expert=x, outcome="finished") for x in "ab")
        assert ended >= 4
    finally:
        process.kill()
        process.wait()


_JSON = {"content-type": "application/json", "authorization": "Bearer sk-none"}


def _alive(url: str) -> bool:
    try:
        return ask(url, "GET", "/health/liveliness").status == 200
    except OSError:
        return False
