"""A client of one engine's OpenAI-compatible API that takes the times of the first and the last token."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, Self, cast

import aiohttp
import numpy as np

from gateway.calibration.design import Wave
from gateway.calibration.facts import ServerFacts, server_facts
from rllib_envs.errors import InputError
from rllib_envs.profiles.records import RequestRecord

_LOADING_S = 120.0  # a server that loads its model is waited for
_PAUSE_S = 0.05  # between two waves: the engine is idle
_ANSWER_S = 120.0  # of a single request
_IDS = (1000, 9000)  # token ids: every vocabulary has them, and they hardly ever repeat a prefix
_WORDS = ("time", "river", "stone", "letter", "garden", "window", "market", "winter", "music", "paper", "light", "north")
_CACHED = 0.05  # share of a prompt that may come from the server's prefix cache; a record with more is left out


class EngineClient:
    """Sends requests to one engine. Use it as an asynchronous context manager."""

    def __init__(self, url: str, model: str | None, token: str | None, seed: int = 0) -> None:
        """``token``: bearer token, or None. It is sent to ``url`` alone, and never shown."""
        self.url = url
        self.model = model
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._rng = np.random.default_rng(seed)
        self._extra: dict[str, Any] = {"ignore_eos": True, "temperature": 0}
        self._ids = True
        self._tokens_per_word = 1.0
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_S, sock_connect=5.0)
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def facts(self) -> ServerFacts:
        """What the server says of itself; chooses the model if it has one only.

        Raises:
            InputError: it does not answer, asks for a token, or has not the model that was named.
        """
        models = await self._get("/v1/models")
        if models is None:
            raise InputError(f"{self.url}: /v1/models: no answer: must be the base of an OpenAI-compatible API that runs")
        metrics, props = await self._get("/metrics"), await self._get("/props")
        facts = server_facts(models, metrics or "", props or "", self.model)
        if self.model is None:
            if len(facts.models) != 1:
                names = ", ".join(facts.models[:10]) or "none"
                raise InputError(f"{self.url}: {len(facts.models)} models ({names}): name one with --model")
            self.model = facts.models[0]
        elif facts.models and self.model not in facts.models:
            raise InputError(f"--model {self.model!r}: {self.url} has {', '.join(facts.models[:10])}")
        return facts

    async def prepare(self) -> None:
        """Wait until the server answers a request, and find out how it wants prompts: as token ids, else as text.

        Raises:
            InputError: it does not serve, or refuses both.
        """
        end_s = time.monotonic() + _LOADING_S
        while True:
            try:
                record = await self.send(8, 2)
            except _RefusedError as error:
                if error.status in (429, 503) and time.monotonic() < end_s:
                    await asyncio.sleep(0.25)
                elif error.status in (400, 422) and "ignore_eos" in self._extra:
                    self._extra = {}
                elif error.status in (400, 422) and self._ids:
                    self._ids = False
                else:
                    raise InputError(str(error)) from None
            else:
                if record is not None or not self._ids:
                    return
                self._ids = False

    async def measure(self, wave: Wave) -> list[RequestRecord]:
        """Send a wave and return the records of those that were served, in seconds of the monotonic clock.

        Raises:
            InputError: no request of the wave was served.
        """
        await asyncio.sleep(_PAUSE_S)
        start_s = time.monotonic()
        tasks = [
            self._send_after(start_s + planned.after_s, planned.prompt_tokens, planned.output_tokens) for planned in wave.requests
        ]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        faults = [fault for fault in results if isinstance(fault, BaseException)]
        for fault in faults:
            if not isinstance(fault, _RefusedError):
                raise fault
        served = [record for record in results if isinstance(record, RequestRecord)]
        if not served and faults:
            raise InputError(str(faults[0]))
        return served

    async def send(self, prompt_tokens: int, output_tokens: int) -> RequestRecord | None:
        """Send one request now; None if it cannot be used: the prompt was cached, or the answer shows no times or tokens."""
        body = {
            "model": self.model,
            "prompt": self._prompt(prompt_tokens),
            "max_tokens": output_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._extra,
        }
        for attempt in (1, 2):
            try:
                return await self._stream(body, prompt_tokens)
            except aiohttp.ServerDisconnectedError:  # a kept connection that the server had closed: at once, on a new one
                if attempt == 2:
                    raise _RefusedError(f"{self.url}: closes connections without an answer", 0) from None
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, TypeError, AttributeError) as error:
                raise _RefusedError(f"{self.url}: /v1/completions: {type(error).__name__}: no complete answer", 0) from None
        raise AssertionError

    async def _send_after(self, at_s: float, prompt_tokens: int, output_tokens: int) -> RequestRecord | None:
        await asyncio.sleep(max(at_s - time.monotonic(), 0.0))
        return await self.send(prompt_tokens, output_tokens)

    async def _stream(self, body: dict[str, Any], prompt_tokens: int) -> RequestRecord | None:
        assert self._session is not None
        first_s = last_s = 0.0
        pieces, usage = 0, dict[str, Any]()
        arrival_s = time.monotonic()
        async with self._session.post(f"{self.url}/v1/completions", json=body, allow_redirects=False) as response:
            if response.status != 200:
                raise _RefusedError(f"{self.url}: /v1/completions: {response.status}: {await _reason(response)}", response.status)
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                now_s = time.monotonic()
                event = json.loads(line[6:])
                if event.get("choices"):
                    first_s = first_s or now_s
                    last_s = now_s
                    pieces += 1
                usage = event.get("usage") or usage
        return self._record(RequestRecord(arrival_s, prompt_tokens, pieces, first_s, last_s), usage)

    def _record(self, seen: RequestRecord, usage: dict[str, Any]) -> RequestRecord | None:
        prompt = int(usage.get("prompt_tokens", seen.prompt_tokens if self._ids else 0))
        output = int(usage.get("completion_tokens", seen.output_tokens))
        cached = int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        if not self._ids and prompt:
            self._tokens_per_word = max(prompt / max(round(seen.prompt_tokens / self._tokens_per_word), 1), 0.1)
        if min(prompt, output) < 1 or seen.first_token_s == 0.0 or cached > _CACHED * prompt + 1:
            return None
        return seen._replace(prompt_tokens=prompt, output_tokens=output)

    def _prompt(self, tokens: int) -> list[int] | str:
        """Random, so that the prefix cache of the server never helps."""
        if self._ids:
            return cast(list[int], self._rng.integers(*_IDS, tokens).tolist())
        words = self._rng.choice(_WORDS, max(round(tokens / self._tokens_per_word), 1))
        return " ".join(cast(Sequence[str], words.tolist()))

    async def _get(self, path: str) -> str | None:
        assert self._session is not None
        try:
            async with self._session.get(f"{self.url}{path}", timeout=aiohttp.ClientTimeout(total=10.0)) as response:
                if response.status in (401, 403):
                    raise InputError(f"{self.url}: {path}: {response.status}: give the token with --token-env or --token-file")
                return await response.text() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, OSError, UnicodeDecodeError):
            return None


class _RefusedError(Exception):
    """A request that was not served."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


async def _reason(response: aiohttp.ClientResponse) -> str:
    """The start of what the server says."""
    text = (await response.content.read(300)).decode(errors="replace")
    return " ".join(text.split())[:200] or response.reason or ""
