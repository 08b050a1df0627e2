"""Run independent pieces of work in processes, one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from rllib_envs.errors import InputError
from tuning.output.progress import Progress

_Work = TypeVar("_Work")


def run_all(run: Callable[[_Work], object], work: Sequence[_Work], jobs: int | None, progress: Progress) -> None:
    """Run each piece of work; what it leaves are the files that ``run`` writes.

    Args:
        run: a function of a module, which another process can import.
        work: what it is called with.
        jobs: processes; None for one a core. With one, or for one piece of work, it runs in this process.
        progress: advanced after each.

    Raises:
        InputError: a process was killed.
        Exception: whatever ``run`` raises, and KeyboardInterrupt, at once; the processes end.
    """
    jobs = min(jobs or _cores(), len(work))
    if jobs <= 1:
        for item in work:
            run(item)
            progress.advance()
        return
    before = set(multiprocessing.active_children())
    with _single_threaded():
        pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker)
        try:
            for future in as_completed([pool.submit(run, item) for item in work]):
                future.result()
                progress.advance()
        except BrokenProcessPool:
            raise InputError(
                f"a worker process was killed, perhaps for want of memory: try fewer than {jobs} jobs, or fewer seeds"
            ) from None
        except BaseException:
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _single_threaded() -> Generator[None]:
    """Processes started within use one thread each: with a process for each core, more threads only compete."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
