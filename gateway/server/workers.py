"""Several processes that serve one address. A parent starts them, tells them to reload and to end, and replaces those that die.

The kernel deals connections out (SO_REUSEPORT). Ledgers are in one file, so every worker decides with all that is under way.
Only the parent heeds signals: a terminal or a service manager sends them to all processes, and a second one would cut streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvloop

from gateway.config import Listen, LoadedConfig, load_config
from gateway.decider import share_ledgers
from gateway.ledger import BASE_ROWS
from gateway.server.lifecycle import GatewayServer, listen_at, log_to_stderr, raise_file_limit
from gateway.server.pages import page_path, write_page
from gateway.server.state import Gateway, WorkerPlace
from gateway.shared import map_shared
from rllib_envs.errors import InputError
from rllib_envs.sim.seen import clear_seen

_LOG = logging.getLogger("edgeroute")
_IN_MEMORY = Path("/dev/shm")
_TICK_S = 0.05
_PAGE_S = 1.0  # between two pages of metrics
_PAUSE_S = 1.0  # before a worker is started again that did not come up


async def supervise(path: Path, loaded: LoadedConfig) -> None:
    """Serve with as many workers as the configuration says until SIGTERM or SIGINT; SIGHUP reads it again.

    Args:
        path: of the configuration.
        loaded: the first one.

    Raises:
        InputError: the address cannot be listened at, or what the configuration names cannot be loaded.
    """
    log_to_stderr()
    with tempfile.TemporaryDirectory(prefix="edgeroute-", dir=_IN_MEMORY if os.access(_IN_MEMORY, os.W_OK) else None) as folder:
        await _Supervisor(path, loaded, Path(folder) / "ledgers").run()


@dataclass(slots=True)
class _Worker:
    """A process, as its parent knows it."""

    process: BaseProcess
    pipe: Connection
    ready: asyncio.Future[None]  # fails if it ends before
    wrong: str | None = None  # why it could not start


class _Supervisor:
    """The parent."""

    def __init__(self, path: Path, loaded: LoadedConfig, ledgers: Path) -> None:
        self._path, self._ledgers = path, ledgers
        self._loaded = self._asked = loaded  # in charge, and last read: the workers may still refuse that
        self._count = loaded.config.workers
        self._restarts = [0] * self._count
        self._workers: dict[int, _Worker] = {}
        self._draining = False
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._spawn = multiprocessing.get_context("spawn")  # a fork would copy threads of libraries half
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until all workers are drained.

        Raises:
            InputError: the address cannot be listened at, or a worker cannot load what the configuration names.
        """
        listen = self._loaded.config.listen
        if listen.port:
            listen_at(listen).close()  # refused if others have it, even if they would share it
        with listen_at(listen, shared=True) as held:  # nobody else gets the address; who does not listen gets no connection
            self._listen = replace(listen, port=held.getsockname()[1])
            experts, most = self._loaded.scenario, self._loaded.config.limits.concurrent
            share_ledgers(self._ledgers, experts, 2 * self._count, most)
            self._seen = map_shared(self._ledgers, 2 * self._count, 2 * max(most, BASE_ROWS), experts.n_experts)
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._drain)
            self._loop.add_signal_handler(signal.SIGHUP, self._begin, self._reload)
            try:
                await self._start_all()
                await self._ended.wait()
            finally:
                for task in self._tasks:
                    task.cancel()
                for number, worker in tuple(self._workers.items()):
                    worker.process.kill()
                    self._forget(number)

    async def _start_all(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # it is to end before it was up
            await self._start(0)  # the others find its kernels compiled
            await asyncio.gather(*map(self._start, range(1, self._count)))
            _LOG.info("%d workers serve port %d", self._count, self._listen.port)

    async def _start(self, number: int) -> None:
        """Start a worker, and wait until it serves.

        Raises:
            InputError: it cannot load what the configuration names.
            RuntimeError: it died before it served.
        """
        if self._draining:
            return
        here, there = self._spawn.Pipe()
        place = WorkerPlace(self._ledgers, number, self._count, self._restarts[number])
        process = self._spawn.Process(target=_work, args=(there, self._path, self._loaded, place, self._listen))
        process.start()
        there.close()
        worker = self._workers[number] = _Worker(process, here, self._loop.create_future())
        self._loop.add_reader(here.fileno(), self._heard, number)
        if self._asked is not self._loaded:
            self._tell(worker, "reload", self._asked)
        await worker.ready

    def _heard(self, number: int) -> None:
        """A worker says something, or has died."""
        worker = self._workers[number]
        try:
            word, value = worker.pipe.recv()
        except (EOFError, OSError):
            self._died(number)
            return
        if word == "serves":
            worker.ready.set_result(None)
        elif word == "wrong":
            worker.wrong = value
        else:
            self._loaded = self._asked

    def _died(self, number: int) -> None:
        worker = self._workers[number]
        self._forget(number)
        code = worker.process.exitcode
        if self._draining:
            worker.ready.cancel()
            if not self._workers:
                self._ended.set()
        elif worker.ready.done():
            _LOG.error("worker %d died with code %s: it is started again", number, code)
            self._begin(lambda: self._replace(number))
        elif worker.wrong is not None:
            worker.ready.set_exception(InputError(worker.wrong))
        else:
            worker.ready.set_exception(RuntimeError(f"worker {number} died with code {code} before it served"))

    def _forget(self, number: int) -> None:
        """Take a worker that is dead, or is about to be, from all accounts."""
        worker = self._workers.pop(number)
        self._loop.remove_reader(worker.pipe.fileno())
        worker.pipe.close()
        worker.process.join()
        for row in (2 * number, 2 * number + 1):  # what it had under way
            clear_seen(self._seen, row)
        page_path(self._ledgers, number).unlink(missing_ok=True)

    async def _replace(self, number: int) -> None:
        self._restarts[number] += 1
        while not self._draining:
            try:
                await self._start(number)
                return
            except (InputError, RuntimeError) as error:
                _LOG.error("worker %d is not started again yet: %s", number, error)
                await asyncio.sleep(_PAUSE_S)

    def _begin(self, action: Callable[[], Coroutine[None, None, None]]) -> None:
        task = self._loop.create_task(action())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drain(self) -> None:
        self._draining = True
        for worker in self._workers.values():
            if worker.ready.done():
                self._tell(worker, "drain", None)
            else:
                worker.process.kill()  # it has no requests
        if not self._workers:
            self._ended.set()

    async def _reload(self) -> None:
        """Read the configuration again. One that is wrong changes nothing, nor does one that the shared ledgers do not fit."""
        old = self._loaded
        try:
            new = await asyncio.to_thread(load_config, self._path, old.shadow_asked, old.workers_asked)
            if [x.name for x in new.config.experts] != [x.name for x in old.config.experts]:
                raise InputError(f"{self._path}: experts: others, or in another order: several workers need a restart for that")
            if new.config.limits.concurrent != old.config.limits.concurrent:
                raise InputError(f"{self._path}: limits.concurrent has changed: several workers need a restart for that")
        except InputError as error:
            for line in str(error).splitlines():
                _LOG.error("not reloaded: %s", line)
            self._tell_all("refused", None)
            return
        self._asked = new
        self._tell_all("reload", new)

    def _tell_all(self, word: str, value: LoadedConfig | None) -> None:
        for worker in self._workers.values():
            self._tell(worker, word, value)

    @staticmethod
    def _tell(worker: _Worker, word: str, value: LoadedConfig | None) -> None:
        with contextlib.suppress(OSError):  # it has died, which will be heard
            worker.pipe.send((word, value))


def _work(pipe: Connection, path: Path, loaded: LoadedConfig, place: WorkerPlace, listen: Listen) -> None:
    """What a worker's process does."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    log_to_stderr(f"worker {place.number}: ")
    try:
        gateway = Gateway(loaded, place)
        uvloop.run(_serve(pipe, path, gateway, place, listen_at(listen, shared=True)))
    except InputError as error:
        pipe.send(("wrong", str(error)))


async def _serve(pipe: Connection, path: Path, gateway: Gateway, place: WorkerPlace, listener: socket.socket) -> None:
    raise_file_limit()
    service = GatewayServer(path, gateway, listener)
    loop = asyncio.get_running_loop()
    beside: list[asyncio.Task[Any]] = []
    orphaned = False

    async def reload(loaded: LoadedConfig) -> None:
        if await service.change(lambda: loaded):
            pipe.send(("reloaded", None))

    def heard() -> None:
        nonlocal orphaned
        try:
            word, value = pipe.recv()
        except (EOFError, OSError):  # the parent is gone
            loop.remove_reader(pipe.fileno())
            orphaned, word, value = True, "drain", None
            end_beside()
        if word == "drain":
            service.begin(service.drain)
        elif word == "reload":
            assert value is not None
            service.begin(lambda: reload(value))
        else:
            service.traffic.metrics.reloaded("refused")

    def end_beside() -> None:
        for task in beside:
            task.cancel()

    async def write_pages() -> None:
        while True:
            try:
                write_page(place, service.traffic.metrics.text())
            except OSError as error:
                _LOG.warning("metrics cannot be written: %s", error)
            await asyncio.sleep(_PAGE_S)

    async def say_ready() -> None:
        while not service.listening:
            await asyncio.sleep(_TICK_S)
        pipe.send(("serves", None))

    loop.add_reader(pipe.fileno(), heard)
    beside.extend((loop.create_task(write_pages()), loop.create_task(say_ready())))
    try:
        await service.run()
    finally:
        end_beside()
        if orphaned:  # nobody else does it
            shutil.rmtree(place.ledgers.parent, ignore_errors=True)
