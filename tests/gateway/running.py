"""Mock engines and gateways for tests: engines are processes, a gateway runs in a thread, where its accounts can be read."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from gateway.config import load_config
from gateway.server.lifecycle import GatewayServer
from gateway.server.state import Gateway

ENGINE = Path(__file__).with_name("mock_engine.py")
PATIENCE_S = 30.0
"""For what takes milliseconds on an idle machine."""


class MockEngine:
    """A process that answers as an engine does, or as it is told."""

    def __init__(self, name: str, port: int = 0) -> None:
        command = [sys.executable, str(ENGINE), "--name", name, "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.name, self.url = name, f"http://127.0.0.1:{self.port}"

    def told(self, **how: Any) -> None:
        """From now on it answers so."""
        ask(self.url, "POST", "/mock", how)

    def seen(self) -> dict[str, Any]:
        """What it has seen so far."""
        return ask(self.url, "GET", "/mock").json

    def kill(self) -> None:
        """As kill -9 does."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def engines(*names: str) -> Generator[list[MockEngine]]:
    """Mock engines of these names."""
    made: list[MockEngine] = []
    try:
        for name in names:
            made.append(MockEngine(name))
        yield made
    finally:
        for engine in made:
            engine.kill()


def settings(found: list[MockEngine], **more: Any) -> dict[str, Any]:
    """A configuration in front of these engines."""
    presets = ["edge6/gemma-2-2b", "edge6/llama-3.1-8b", "edge6/qwen2-7b", "edge6/yi-1.5-9b"]
    experts = [
        {"name": engine.name, "url": engine.url, "preset": preset, "labels": [f"label-{engine.name}"]}
        for engine, preset in zip(found, presets, strict=False)
    ]
    plain = {
        "policy": "random",
        "experts": experts,
        "listen": {"port": 0},
        "breaker": {"period_s": 0.3, "probe_s": 0.1},
        "timeouts": {"drain_s": 5.0},
    }
    return plain | more


class RunningGateway:
    """A gateway in a thread."""

    def __init__(self, folder: Path, data: dict[str, Any]) -> None:
        self.path = folder / "gateway.yaml"
        self.write(data)
        self._gateway = Gateway(load_config(self.path))
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()), daemon=True)

    def write(self, data: dict[str, Any]) -> None:
        """Write the configuration: JSON is YAML too."""
        self.path.write_text(json.dumps(data))

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.service = GatewayServer(self.path, self._gateway)
        self.url = self.service.url
        self._up.set()
        await self.service.run()

    def __enter__(self) -> RunningGateway:
        self._thread.start()
        assert self._up.wait(PATIENCE_S)
        wait_for(self._ready)
        return self

    def _ready(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError):  # it does not listen yet
            return ask(self.url, "GET", "/ready").status == 200
        return False

    def __exit__(self, *_: object) -> None:
        self.drain()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def drain(self) -> None:
        """As SIGTERM does."""
        self.loop.call_soon_threadsafe(self.service.begin, self.service.drain)

    def reload(self) -> None:
        """As SIGHUP does, and wait for it."""
        asyncio.run_coroutine_threadsafe(self.service.reload(), self.loop).result(PATIENCE_S)

    @property
    def traffic(self) -> Any:
        """What its requests share."""
        return self.service.traffic

    def idle(self) -> bool:
        """Whether nothing is left in its accounts."""
        gateway = self.traffic.gateway
        return not (len(gateway.decider.ledger) or self.traffic.watches or any(x.in_flight for x in gateway.upstreams))

    def settle(self) -> None:
        """Wait until nothing is left in its accounts."""
        wait_for(self.idle)

    def metric(self, name: str, **labels: str) -> float:
        """A sample of its metrics; 0 if there is none."""
        for line in ask(self.url, "GET", "/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{key}="{text}"' in series for key, text in labels.items()):
                return float(value)
        return 0.0


class Reply:
    """A whole answer."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.text = response.read().decode()

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.text)

    @property
    def code(self) -> str:
        """Of an error."""
        return self.json["error"]["code"]

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events; [DONE] as it stands."""
        found = [event.removeprefix("data: ") for event in self.text.split("\n\n") if event]
        return [event if event == "[DONE]" else json.loads(event) for event in found]

    @property
    def words(self) -> list[str]:
        """The words of a stream, or of a whole answer."""
        choices = [choice for event in self.events if event != "[DONE]" for choice in event.get("choices", [])]
        texts = [x.get("text") or (x.get("delta") or x.get("message") or {}).get("content") or "" for x in choices]
        return "".join(texts).split()


def ask(url: str, method: str, path: str, data: Any = None, headers: dict[str, str] | None = None) -> Reply:
    """Send one request on a connection of its own; ``data`` is bytes, or becomes JSON."""
    with contextlib.closing(connect(url)) as connection:
        return ask_on(connection, method, path, data, headers)


def connect(url: str) -> http.client.HTTPConnection:
    """A connection for ``ask_on``."""
    return http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE_S)


def ask_on(
    connection: http.client.HTTPConnection, method: str, path: str, data: Any = None, headers: dict[str, str] | None = None
) -> Reply:
    """Send one request on a connection that is kept."""
    body = data if data is None or isinstance(data, bytes) else json.dumps(data).encode()
    connection.request(method, path, body, headers or {})
    return Reply(connection.getresponse())


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    """The body of a chat."""
    return {"model": "auto", "messages": [{"role": "user", "content": text}]} | more


def open_stream(url: str, data: Any, headers: dict[str, str] | None = None, buffer: int | None = None) -> socket.socket:
    """Send a chat on a bare socket and leave the answer in it."""
    parts = urlsplit(url)
    found = socket.socket()
    if buffer is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    found.settimeout(PATIENCE_S)
    found.connect((parts.hostname, parts.port))
    body = json.dumps(data).encode()
    lines = [f"{name}: {value}" for name, value in (headers or {}).items()]
    head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", "host: x", f"content-length: {len(body)}", *lines, "", ""])
    found.sendall(head.encode() + body)
    return found


def wait_for(holds: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Wait until something holds."""
    end_s = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.01)
