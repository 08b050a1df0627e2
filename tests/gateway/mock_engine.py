"""An engine that answers as it is told, at the border of the gateway: a process of its own, with OpenAI's protocol.

``python tests/gateway/mock_engine.py --name a --port 0`` prints its port. The field ``mock`` of a request, or what was posted to
``/mock`` before, says how it answers: ``tokens``, ``first_s`` and ``pace_s`` (times), ``status``, and ``fail``. ``at`` names
the engine that is meant, if not all are.

- drop: it closes the connection without a byte. hang: it never answers.
- mid: it cuts the connection after half of the tokens. eof: it ends the answer there without a word. stall: it says no more.
- stale: it closes the connection without a byte if it is not a fresh one.

GET ``/mock`` tells what it has seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from typing import Any

import httptools
import uvloop

SEEN: dict[str, Any] = {
    "requests": 0,
    "outside": 0,
    "closed_early": 0,
    "open": 0,
    "headers": {},
    "body": None,
    "by_path": Counter(),
}
TOLD: dict[str, Any] = {}


class Engine(asyncio.Protocol):
    """One connection."""

    name = "mock"

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)
        self.answered = 0
        self.task: asyncio.Task[None] | None = None
        self.resumed = asyncio.Event()
        self.resumed.set()
        SEEN["open"] += 1

    def connection_lost(self, exc: Exception | None) -> None:
        SEEN["open"] -= 1
        self.resumed.set()
        if self.task is not None and not self.task.done():
            SEEN["closed_early"] += 1
            self.task.cancel()

    def pause_writing(self) -> None:
        self.resumed.clear()

    def resume_writing(self) -> None:
        self.resumed.set()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_begin(self) -> None:
        self.url, self.body, self.headers = b"", b"", {}

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.answer(self.parser.get_method().decode(), self.url.decode()))

    async def answer(self, method: str, path: str) -> None:
        SEEN["by_path"][path] += 1
        if path == "/mock":
            if method == "POST":
                TOLD.clear()
                TOLD.update(json.loads(self.body))
            self.whole(200, SEEN | {"name": self.name})
        elif path == "/health":
            self.whole(TOLD.get("health", 200), {})
        elif path == "/v1/models":
            self.whole(200, {"object": "list", "data": [{"id": "mock"}]})
        elif path in ("/v1/chat/completions", "/v1/completions") and method == "POST":
            await self.complete(path.endswith("chat/completions"))
        else:
            self.whole(404, {"error": {"message": f"no {path}"}})
        self.answered += 1

    def whole(self, status: int, data: Any, headers: str = "") -> None:
        body = json.dumps(data).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
        self.transport.write(head.encode() + body)

    async def complete(self, chat: bool) -> None:
        asked = json.loads(self.body)
        SEEN["requests"] += 1
        SEEN["outside"] += self.name not in asked.get("tag", [self.name])  # it says who may see it
        SEEN["headers"], SEEN["body"] = self.headers, asked
        own = asked.get("mock") or {}
        told = TOLD | (own if own.get("at", self.name) == self.name else {})
        fail = told.get("fail")
        if fail == "drop" or (fail == "stale" and self.answered):
            self.transport.close()
            return
        if fail == "hang":
            await asyncio.Event().wait()
        await asyncio.sleep(told.get("first_s", 0.0))
        if (status := told.get("status", 200)) != 200:
            self.whole(status, {"error": {"message": f"told to answer {status}", "type": "mock"}}, told.get("headers", ""))
            return
        limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or 1 << 30
        tokens = min(told.get("tokens", 16), limit)
        text = str(asked.get("messages") or asked.get("prompt"))
        usage = {"prompt_tokens": told.get("prompt_tokens", max(1, len(text) // 5)), "completion_tokens": tokens}
        reason = "length" if tokens == limit else "stop"
        await (self.stream if asked.get("stream") else self.json)(asked, told, chat, tokens, usage, reason)

    async def json(self, asked: Any, told: Any, chat: bool, tokens: int, usage: Any, reason: str) -> None:
        await asyncio.sleep(told.get("pace_s", 0.0) * tokens)
        text = " ".join(f"{self.name}{i}" for i in range(tokens))
        choice = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        kind = "chat.completion" if chat else "text_completion"
        data = self.frame(asked, kind, [{"index": 0, **choice, "finish_reason": reason}]) | {"usage": usage}
        if told.get("fail") in ("mid", "eof"):
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n{")
            self.transport.close()
            return
        self.whole(200, data)

    async def stream(self, asked: Any, told: Any, chat: bool, tokens: int, usage: Any, reason: str) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        self.transport.write(head)
        kind = "chat.completion.chunk" if chat else "text_completion"
        pace_s, due_s = told.get("pace_s", 0.0), time.monotonic()
        for i in range(tokens):
            if i == tokens // 2 and (fail := told.get("fail")):
                if fail == "mid":
                    self.transport.abort()
                    return
                if fail == "stall":
                    await asyncio.Event().wait()
                if fail == "eof":
                    break
            word = f"{self.name}{i} " + told.get("padding", 0) * "x"
            last = reason if i == tokens - 1 else None
            choice = {"delta": {"content": word} | ({"role": "assistant"} if i == 0 else {})} if chat else {"text": word}
            self.event(self.frame(asked, kind, [{"index": 0, **choice, "finish_reason": last}]))
            if pace_s:
                due_s += pace_s
                await asyncio.sleep(due_s - time.monotonic())
            await self.resumed.wait()
        else:
            if (asked.get("stream_options") or {}).get("include_usage"):
                self.event(self.frame(asked, kind, []) | {"usage": usage})
            self.chunk(b"data: [DONE]\n\n")
        self.transport.write(b"0\r\n\r\n")

    def frame(self, asked: Any, kind: str, choices: list[Any]) -> dict[str, Any]:
        return {"id": "cmpl-1", "object": kind, "created": 1, "model": asked["model"], "choices": choices}

    def event(self, data: Any) -> None:
        self.chunk(b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))


async def main(name: str, port: int) -> None:
    """Serve until killed."""
    Engine.name = name
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="mock")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    uvloop.run(main(options.name, options.port))
