"""Writes lines to files of bounded size and number, in a thread: nobody who has a line waits for the disk.

Files are ``decisions-START-PROCESS-NUMBER.jsonl``: the time when the writer began, its process, and a number.
Several processes can write to one folder, each to files of its own. When there are too many, those go that were
written to longest ago. A process whose file has gone so begins another.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rllib_envs.decision_log.records import PATTERN, start_line
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario

_LOG = logging.getLogger("edgeroute")
_REST_S = 5.0  # after a disk refused a line, before it is tried again
_CLOSING_S = 5.0  # without a line written, after which the end does not wait any more

Line = Callable[[], bytes]


class LogWriter:
    """Writes what ``write`` is given. Lines are made in the thread, from what no longer changes.

    Attributes:
        written: lines in files.
        lost: lines that are not, by reason: full (the thread did not keep up), disk, failed (no line could be made), closed (they
            came after the end, or the disk took nothing more at the end).
    """

    def __init__(self, folder: Path, file_bytes: int, files: int, waiting: int, scenario: Scenario) -> None:
        """Begin to write.

        Args:
            folder: for the files; it is made if it is not there, for nobody else to read.
            file_bytes: a file that has as many is followed by another.
            files: most of them.
            waiting: most lines that wait for the disk.
            scenario: the cluster; each file begins with the one that its lines are about.

        Raises:
            InputError: the folder cannot be written to.
        """
        self.written, self.lost = 0, Counter[str]()
        self._folder, self._file_bytes, self._files, self._scenario = folder, file_bytes, files, scenario
        self._queue: queue.Queue[tuple[Scenario, Line] | None] = queue.Queue(waiting)
        self._name = f"decisions-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"
        self._number = 0
        self._file: int | None = None
        self._size = 0
        self._rests_until_s = 0.0
        self._closed = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise InputError(f"log.folder: {folder}: cannot be written to: {error.strerror or error}") from None
        self._thread = threading.Thread(target=self._run, name="decision log", daemon=True)
        self._thread.start()

    def write(self, scenario: Scenario, line: Line) -> None:
        """Write a line about a cluster, soon; it is lost and counted if too many wait, or if the log is closed."""
        if self._closed:
            self.lost["closed"] += 1
            _LOG.warning("decision log: %s: a line came after the end", self._folder)
            return
        try:
            self._queue.put_nowait((scenario, line))
        except queue.Full:
            self.lost["full"] += 1

    def close(self) -> None:
        """Write what waits, and end. A disk that takes nothing for some seconds is not waited for."""
        self._closed = True
        told, done = False, -1
        while self._thread.is_alive() and done != self.written + self.lost.total():
            done = self.written + self.lost.total()
            if not told:
                with contextlib.suppress(queue.Full):
                    self._queue.put(None, timeout=_CLOSING_S)
                    told = True
            if told:
                self._thread.join(_CLOSING_S)
        if self._thread.is_alive():
            self.lost["closed"] += self._queue.qsize() - told + 1  # and the one that the disk does not take
        if self.lost:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.lost.items()))
            _LOG.warning("decision log: %s: lines were lost: %s", self._folder, reasons)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            scenario, line = item
            try:
                data = line()
                if scenario is not self._scenario:  # the configuration was read again
                    self._scenario = scenario
                    data = start_line(scenario, time.time()) + data
            except Exception:
                _LOG.exception("a line of the decision log could not be made")
                self.lost["failed"] += 1
                continue
            self._put(data)
        self._close_file()

    def _put(self, data: bytes) -> None:
        if time.monotonic() < self._rests_until_s:
            self.lost["disk"] += 1
            return
        try:
            if self._file is None or self._size >= self._file_bytes or os.fstat(self._file).st_nlink == 0:
                self._open()
            self._append(data)
            self.written += 1
        except OSError as error:
            self._close_file()  # the next line begins a file, with its head
            self.lost["disk"] += 1
            self._rests_until_s = time.monotonic() + _REST_S
            _LOG.warning("decision log: %s: %s: lines are lost", self._folder, error.strerror or error)

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        """Begin the next file with its head, and only then remove the oldest."""
        self._close_file()
        path = self._folder / f"{self._name}-{self._number:06}.jsonl"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC
        self._file, self._size = os.open(path, flags, 0o600), 0
        self._append(start_line(self._scenario, time.time()))
        self._number += 1  # only now: a file without a head is written anew
        for old in sorted(self._folder.glob(PATTERN), key=_last_written)[: -self._files]:
            old.unlink(missing_ok=True)

    def _append(self, data: bytes) -> None:
        """Write lines whole, or nothing of them."""
        assert self._file is not None
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)


def _last_written(path: Path) -> tuple[int, str]:
    """What files are sorted by: when they were last written to, then by name; first those that another process has removed."""
    try:
        return path.stat().st_mtime_ns, path.name
    except FileNotFoundError:
        return 0, path.name
