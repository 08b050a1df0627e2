"""The life of the process: start, look after the experts, reload, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path

import uvicorn

from gateway.config import Listen, LoadedConfig, load_config
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
    """Serve until SIGTERM or SIGINT; SIGHUP reads the configuration again.

    Args:
        path: of the configuration.
        gateway: the first one.

    Raises:
        InputError: the address cannot be listened at.
    """
    raise_file_limit()
    service = GatewayServer(path, gateway)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.begin, service.drain)
    loop.add_signal_handler(signal.SIGHUP, service.begin, service.reload)
    await service.run()


class GatewayServer:
    """The server with what happens beside requests. It belongs to the running event loop."""

    def __init__(self, path: Path, gateway: Gateway, listener: socket.socket | None = None) -> None:
        """Listen, but accept nothing yet.

        Args:
            path: of the configuration.
            gateway: the first one.
            listener: socket to listen with; None: one at the configuration's address.

        Raises:
            InputError: the address cannot be listened at.
        """
        self._path = path
        self._listener = listen_at(gateway.config.listen) if listener is None else listener
        self._reloading = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self.traffic = Traffic(gateway, Sessions(gateway.config.timeouts.connect_s))
        self._server = _Server(
            uvicorn.Config(
                Door(self.traffic),
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

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._listener.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def listening(self) -> bool:
        """Whether it accepts connections."""
        return self._server.started

    async def run(self) -> None:
        """Serve until it is drained."""
        await self.look()  # before anybody asks: an expert of which nothing is known is not ready
        looking = self._loop.create_task(self.keep_looking())
        self._say_who_decides()
        _LOG.info("listening at %s", self.url)
        try:
            await self._server.serve(sockets=[self._listener])
        finally:
            looking.cancel()
            await self.traffic.close()

    def _say_who_decides(self) -> None:
        decider = self.traffic.gateway.decider
        _LOG.info("policy %s %s", decider.policy.name, decider.policy.version)
        if decider.outside is not None:
            _LOG.warning("the policy will not decide, its fallback will: %s", decider.outside)

    def begin(self, action: Callable[[], Coroutine[None, None, None]]) -> None:
        """Do something beside requests."""
        task = self._loop.create_task(action())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def look(self) -> None:
        """Ask all experts once whether they are ready."""
        gateway = self.traffic.gateway
        before = gateway.ready()
        timeout_s = gateway.config.breaker.probe_s
        await asyncio.gather(*(upstream.look(self.traffic.sessions, timeout_s) for upstream in gateway.upstreams))
        for upstream, was, now in zip(gateway.upstreams, before, gateway.ready(), strict=True):
            if was != now:
                _LOG.info("expert %s is %s", upstream.entry.name, "ready" if now else "not ready")

    async def keep_looking(self) -> None:
        """Ask them again and again."""
        while True:
            await asyncio.sleep(self.traffic.gateway.config.breaker.probe_s)
            try:
                await self.look()
            except Exception:
                _LOG.exception("looking after the experts failed")

    async def drain(self) -> None:
        """Take no more connections, let requests end, cut those that last too long. A second signal cuts them at once."""
        patience_s = 0.0 if self.traffic.draining else self.traffic.gateway.config.timeouts.drain_s
        self.traffic.draining = self._server.should_exit = True
        _LOG.info("draining: %d requests under way", len(self.traffic.watches))
        end_s = self._loop.time() + patience_s
        while self.traffic.watches and self._loop.time() < end_s:
            await asyncio.sleep(_TICK_S)
        for watch in tuple(self.traffic.watches):
            watch.end("shutdown")
        end_s = self._loop.time() + _LAST_S
        while self._server.server_state.connections and self._loop.time() < end_s:
            await asyncio.sleep(_TICK_S)
        self._server.force_exit = True

    async def reload(self) -> None:
        """Read the configuration again. One that is wrong changes nothing."""
        loaded = self.traffic.gateway.loaded
        await self.change(lambda: load_config(self._path, loaded.shadow_asked, loaded.workers_asked))

    async def change(self, read: Callable[[], LoadedConfig]) -> bool:
        """Put another configuration in charge, unless ``read`` or what it names is wrong. Returns whether it is."""
        async with self._reloading:  # one after the other
            return await self._change(read)

    async def _change(self, read: Callable[[], LoadedConfig]) -> bool:
        old = self.traffic.gateway
        try:
            new = await asyncio.to_thread(lambda: Gateway(read(), old.next_place()))
        except InputError as error:
            for line in str(error).splitlines():
                _LOG.error("not reloaded: %s", line)
            self.traffic.metrics.reloaded("refused")
            return False
        new.take_over(old)
        self.traffic.gateway = new
        await self.look()
        self.traffic.metrics.reloaded("done")
        _LOG.info("reloaded: %s", new.config.fingerprint)
        self._say_who_decides()
        for name in ("listen", "workers"):
            if getattr(new.config, name) != getattr(old.config, name):
                _LOG.warning("%s has changed: a restart is needed for that", name)
        return True


def listen_at(listen: Listen, *, shared: bool = False) -> socket.socket:
    """A socket at an address, which other processes may have too if it is shared.

    Raises:
        InputError: the address cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((listen.host, listen.port))
    except OSError as error:
        listener.close()
        raise InputError(f"listen: {listen.host}:{listen.port}: {error.strerror or error}") from None
    listener.setblocking(False)
    return listener


def log_to_stderr(who: str = "") -> None:
    """Write the log of this process, which is called so, to stderr."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s %(levelname)s {who}%(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a request that is none is no news


def raise_file_limit() -> None:
    """A stream takes two files: as many as the system lets this process have."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
