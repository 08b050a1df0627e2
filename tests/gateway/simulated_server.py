"""A small OpenAI-compatible server that answers at the times of the simulated engine, for tests of a calibration.

Times are those of the engine in real time. Requests are served one iteration at a time by the reference engine.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import contextmanager

from aiohttp import web

from rllib_envs.sim.profile import EngineProfile
from rllib_envs.sim.reference import Arrival, Engine

ENGINE = EngineProfile(
    c0_ms=4.0, b_ms=0.3, c_ms=1e-4, a_ms=0.05, n0_tokens=0, q_ms=1e-5, kv_tokens=16_384, kv_bytes_per_token=1,
    max_num_seqs=8, max_model_len=1024, async_scheduling=False,
)  # fmt: skip
TOKEN = "sesame-of-the-test"


class SimulatedServer:
    """One engine behind ``/v1/completions``; ``told`` says how it misbehaves."""

    def __init__(self, told):
        self.told, self.seen = told, {"completions": 0, "authorization": set(), "largest": 0}
        self.engine, self.news = Engine(ENGINE), asyncio.Event()
        self.tokens = {}

    async def run(self):
        while True:
            if self.engine.idle:
                self.news.clear()
                await self.news.wait()
            start_s = time.monotonic()
            end_s = self.engine.step(max(start_s, self.engine.ready_s(start_s)))
            await asyncio.sleep(end_s - time.monotonic())
            for request, queue in list(self.tokens.items()):
                while queue[1] < request.generated:
                    queue[0].put_nowait(queue[1])
                    queue[1] += 1

    async def completions(self, request):
        body = await request.json()
        self.seen["completions"] += 1
        self.seen["authorization"].add(request.headers.get("authorization"))
        if self.told.get("garbage"):
            return web.Response(text="data: {what\n\n")
        if isinstance(body["prompt"], list) and self.told.get("text_only"):
            return web.json_response({"error": {"message": "prompt must be text"}}, status=400)
        prompt = len(body["prompt"]) if isinstance(body["prompt"], list) else 2 * len(body["prompt"].split())
        self.seen["largest"] = max(self.seen["largest"], prompt)
        arrival = Arrival(arrival_s=time.monotonic(), prompt_tokens=prompt, output_tokens=body["max_tokens"])
        served = self.engine.arrive(arrival)
        queue = self.tokens[served] = [asyncio.Queue(), 0]
        self.news.set()
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for i in range(served.output):
            await queue[0].get()
            await self.event(response, {"choices": [{"index": 0, "text": f" {i}"}]})
        del self.tokens[served]
        await self.event(response, {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": served.output}})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def event(self, response, data):
        await response.write(b"data: " + json.dumps(data).encode() + b"\n\n")

    async def models(self, request):
        if self.told.get("token") and request.headers.get("authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": {"message": "who are you"}}, status=401)
        names = self.told.get("models", ["simulated/engine"])
        return web.json_response({"data": [{"id": name, "max_model_len": ENGINE.max_model_len} for name in names]})

    async def metrics(self, _):
        blocks = ENGINE.kv_tokens // 16
        return web.Response(
            text=f'# HELP x\nvllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="{blocks}"}} 1.0\n'
        )


@contextmanager
def simulated_server(**told):
    """The server in a thread of its own: (its URL, itself)."""
    loop, started, box = asyncio.new_event_loop(), threading.Event(), {}

    async def main():
        server = SimulatedServer(told)
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/v1/completions", server.completions)
        app.router.add_get("/v1/models", server.models)
        app.router.add_get("/metrics", server.metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        engine = asyncio.create_task(server.run())
        box.update(server=server, url=f"http://127.0.0.1:{runner.addresses[0][1]}", end=asyncio.Event())
        started.set()
        await box["end"].wait()
        engine.cancel()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    started.wait(30)
    try:
        yield box["url"], box["server"]
    finally:
        loop.call_soon_threadsafe(box["end"].set)
        thread.join()
        loop.close()
