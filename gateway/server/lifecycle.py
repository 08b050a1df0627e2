"""The life of the process: start, look after the experts, reload, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path

import uvicorn

from gateway.config import Listen, load_config
from gateway.server.door import Door
from gateway.server.http_protocol import BoundedProtocol
from gateway.server.state import Gateway
from gateway.server.traffic import Traffic
from gateway.server.upstream import Sessions
from rllib_envs.errors import InputError

_LOG = logging.getLogger("edgeroute")
_TICK_S = 0.05
_LAST_S = 2.0  # for clients to take the events that end their streams
_KEEP_ALIVE_S = 75  # of clients' connections between requests


class _Server(uvicorn.Server):
    """uvicorn, but for signals, which are ours."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave signals alone."""
        yield


async def serve(path: Path, gateway: Gateway) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        path: of the configuration, which SIGHUP reads again.
        gateway: the first one.

    Raises:
        InputError: the address cannot be listened at.
    """
    _raise_file_limit()
    listener = _listener(gateway.config.listen)
    sessions = Sessions(gateway.config.timeouts.connect_s)
    traffic = Traffic(gateway, sessions)
    server = _Server(
        uvicorn.Config(
            Door(traffic),
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
        )
    )
    life = _Life(path, traffic, server)
    await life.look()  # before anybody asks: an expert of which nothing is known is not ready
    looking = asyncio.create_task(life.keep_looking())
    _LOG.info("listening at http://%s:%d", *listener.getsockname()[:2])
    try:
        await server.serve(sockets=[listener])
    finally:
        looking.cancel()
        await traffic.close()


class _Life:
    """What happens to the process beside requests."""

    def __init__(self, path: Path, traffic: Traffic, server: _Server) -> None:
        self._path, self._traffic, self._server = path, traffic, server
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._begin, self.drain)
        self._loop.add_signal_handler(signal.SIGHUP, self._begin, self.reload)

    def _begin(self, action: Callable[[], Coroutine[None, None, None]]) -> None:
        task = self._loop.create_task(action())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def look(self) -> None:
        """Ask all experts once whether they are ready."""
        gateway = self._traffic.gateway
        before = gateway.ready()
        timeout_s = gateway.config.breaker.probe_s
        await asyncio.gather(*(upstream.look(self._traffic.sessions, timeout_s) for upstream in gateway.upstreams))
        for upstream, was, now in zip(gateway.upstreams, before, gateway.ready(), strict=True):
            if was != now:
                _LOG.info("expert %s is %s", upstream.entry.name, "ready" if now else "not ready")

    async def keep_looking(self) -> None:
        """Ask them again and again."""
        while True:
            await asyncio.sleep(self._traffic.gateway.config.breaker.probe_s)
            try:
                await self.look()
            except Exception:
                _LOG.exception("looking after the experts failed")

    async def drain(self) -> None:
        """Take no more connections, let requests end, cut those that last too long. A second signal cuts them at once."""
        patience_s = 0.0 if self._traffic.draining else self._traffic.gateway.config.timeouts.drain_s
        self._traffic.draining = self._server.should_exit = True
        _LOG.info("draining: %d requests under way", len(self._traffic.watches))
        end_s = self._loop.time() + patience_s
        while self._traffic.watches and self._loop.time() < end_s:
            await asyncio.sleep(_TICK_S)
        for watch in tuple(self._traffic.watches):
            watch.end("shutdown")
        end_s = self._loop.time() + _LAST_S
        while self._server.server_state.connections and self._loop.time() < end_s:
            await asyncio.sleep(_TICK_S)
        self._server.force_exit = True

    async def reload(self) -> None:
        """Read the configuration again. One that is wrong changes nothing."""
        old = self._traffic.gateway
        try:
            new = await asyncio.to_thread(lambda: Gateway(load_config(self._path)))
        except InputError as error:
            for line in str(error).splitlines():
                _LOG.error("not reloaded: %s", line)
            self._traffic.metrics.reloaded("refused")
            return
        new.take_over(old)
        self._traffic.gateway = new
        await self.look()
        self._traffic.metrics.reloaded("done")
        _LOG.info("reloaded: %s", new.config.fingerprint)
        if new.config.listen != old.config.listen:
            _LOG.warning("listen has changed: a restart is needed for that")


def _listener(listen: Listen) -> socket.socket:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((listen.host, listen.port))
    except OSError as error:
        listener.close()
        raise InputError(f"listen: {listen.host}:{listen.port}: {error.strerror or error}") from None
    listener.setblocking(False)
    return listener


def _raise_file_limit() -> None:
    """A stream takes two files: as many as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
