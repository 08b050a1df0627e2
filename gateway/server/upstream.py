"""One engine behind the gateway: sends requests there, and knows whether it may."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp

from gateway.config import Breaker, ExpertEntry
from gateway.server.breaker import CircuitBreaker
from gateway.server.tokens import TokenCounter

_KEEP_ALIVE_S = 3.0  # less than the 5 s of uvicorn, which most engines use: their side must not close first
_READ_BYTES = 2**16
_LONGEST_WAIT_S = 60.0  # that an engine may ask for by Retry-After
_BUSY_S = 1.0  # that an engine which is busy or loading is left alone, if it does not say how long
_FAILED, _BUSY = 500, (429, 503)


class Sessions:
    """The client's connections: kept ones, and fresh ones for whoever met a kept one that was dead."""

    def __init__(self, connect_s: float) -> None:
        """Of the running event loop."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s)
        kept = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, ttl_dns_cache=30)
        fresh = aiohttp.TCPConnector(limit=0, force_close=True, ttl_dns_cache=30)
        self.kept, self.fresh = (
            aiohttp.ClientSession(
                connector=connector,
                timeout=timeout,
                auto_decompress=False,
                read_bufsize=_READ_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            )
            for connector in (kept, fresh)
        )

    async def close(self) -> None:
        """Close all connections."""
        await self.kept.close()
        await self.fresh.close()


class UpstreamFailure(Exception):
    """An attempt that brought no byte of an answer that could be passed on."""

    def __init__(self, code: str, message: str) -> None:
        """``code``: refused, broken, busy, failed, too_large, first_byte or answer."""
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An engine's answer: the beginning of a stream of events, else all of it."""

    response: aiohttp.ClientResponse
    body: bytes  # its first bytes, or all
    streams: bool  # whether more comes

    @property
    def status(self) -> int:
        """Of HTTP."""
        return self.response.status


class Upstream:
    """An engine: its address, its breaker, its own word on whether it is ready, and the requests that it has from here."""

    def __init__(self, entry: ExpertEntry, model: str, token: str | None, counter: TokenCounter, settings: Breaker) -> None:
        self.entry, self.model, self.counter = entry, model, counter
        self.breaker = CircuitBreaker(settings)
        self._busy_s = min(_BUSY_S, settings.period_s)
        self.in_flight = 0
        self.healthy = False  # by its own word; unknown counts as not
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"

    def with_token_of(self, other: Upstream) -> Upstream:
        """This engine, which is now asked as ``other`` would: a token can change while its entry stays."""
        self._headers = other._headers
        return self

    def ready(self, now_s: float) -> bool:
        """Whether a request may be sent there now."""
        most = self.entry.max_concurrent
        return self.healthy and (most is None or self.in_flight < most) and self.breaker.admits(now_s)

    @contextmanager
    def taken(self) -> Generator[None]:
        """A request that somebody else sends there counts among those of the gateway."""
        self.breaker.sent(time.monotonic())
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def ask(self, sessions: Sessions, path: str, body: bytes, headers: Mapping[str, str], most_bytes: int) -> Answer:
        """Send a request and wait for the first bytes of a stream, or for the whole of another answer.

        Args:
            sessions: to send by.
            path: of the engine's API.
            body: JSON.
            headers: beside the engine's own.
            most_bytes: of an answer that is no stream.

        Raises:
            UpstreamFailure: no connection, no byte, or an engine that is busy, loading or broken: another may do better.
        """
        self.breaker.sent(time.monotonic())
        try:
            answer = await self._ask_once(sessions.kept, path, body, headers, most_bytes)
        except aiohttp.ClientConnectorError as error:
            raise self._refused(error) from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            answer = await self._ask_anew(sessions, path, body, headers, most_bytes)  # it had closed a kept connection
        except aiohttp.ClientError as error:
            raise self._broken(error) from None
        return self._judged(answer)

    async def _ask_anew(self, sessions: Sessions, path: str, body: bytes, headers: Mapping[str, str], most_bytes: int) -> Answer:
        try:
            return await self._ask_once(sessions.fresh, path, body, headers, most_bytes)
        except aiohttp.ClientConnectorError as error:
            raise self._refused(error) from None
        except aiohttp.ClientError as error:
            raise self._broken(error) from None

    async def _ask_once(
        self, session: aiohttp.ClientSession, path: str, body: bytes, headers: Mapping[str, str], most_bytes: int
    ) -> Answer:
        url = self.entry.url + path
        response = await session.post(url, data=body, headers={**headers, **self._headers}, allow_redirects=False)
        try:
            streams = response.status < 300 and response.content_type == "text/event-stream"
            data = await response.content.readany()
            if not streams:
                data = await self._rest(response, data, most_bytes)
        except BaseException:
            response.close()
            raise
        return Answer(response=response, body=data, streams=streams)

    async def _rest(self, response: aiohttp.ClientResponse, first: bytes, most_bytes: int) -> bytes:
        data = bytearray(first)
        while more := await response.content.readany():
            data += more
            if len(data) > most_bytes:
                raise UpstreamFailure("too_large", f"its answer has more than {most_bytes:,} bytes")
        return bytes(data)

    def _refused(self, error: Exception) -> UpstreamFailure:
        self.breaker.failed(time.monotonic(), at_once=True)
        return UpstreamFailure("refused", f"no connection: {type(error).__name__}")

    def _broken(self, error: Exception) -> UpstreamFailure:
        self.breaker.failed(time.monotonic())
        return UpstreamFailure("broken", f"the connection broke: {type(error).__name__}")

    def _judged(self, answer: Answer) -> Answer:
        """The answer, unless another expert may do better."""
        status = answer.status
        if status < _FAILED and status not in _BUSY and not 300 <= status < 400:
            self.breaker.succeeded()
            return answer
        if status in _BUSY:
            wait_s = _retry_after_s(answer.response.headers.get("retry-after"))
            self.breaker.failed(time.monotonic(), at_once=True, period_s=self._busy_s if wait_s is None else wait_s)
            raise UpstreamFailure("busy", f"it answered {status}")
        self.breaker.failed(time.monotonic())
        raise UpstreamFailure("failed", f"it answered {status}")

    async def look(self, sessions: Sessions, timeout_s: float) -> None:
        """Ask the engine whether it is ready. One that is slow to say so is as ready as it was; a busy one can be slow."""
        try:
            async with asyncio.timeout(timeout_s):
                status = await self._health(sessions.fresh, "/health")
                if status == 404:  # not every engine has it
                    status = await self._health(sessions.fresh, "/v1/models")
        except TimeoutError:
            return
        except aiohttp.ClientError:
            self.healthy = False
            return
        self.healthy = status < 400

    async def _health(self, session: aiohttp.ClientSession, path: str) -> int:
        async with session.get(self.entry.url + path, headers=self._headers, allow_redirects=False) as response:
            return response.status


def _retry_after_s(text: str | None) -> float | None:
    """Seconds of a header Retry-After; None: it has none that can be read."""
    if text is None:
        return None
    try:
        wait_s = float(text)
    except ValueError:
        try:
            wait_s = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(wait_s, 0.0), _LONGEST_WAIT_S) if wait_s == wait_s else None
