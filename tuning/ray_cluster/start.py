"""Start Ray on this machine: choose its folder, and explain why it does not start."""

from __future__ import annotations

import logging
import os
import resource
import secrets
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from rllib_envs.errors import InputError

_LONGEST_FOLDER = 43  # characters: 107 for the path of a socket, less /session_<date>_<time>_<process>/sockets/plasma_store
_LEAST_FREE = 64 * 2**20  # bytes: logs and sockets take less; with none left Ray waits for itself until its time is up
_LEAST_FILES = 256  # open files of a process
_SHORT = Path("/tmp")
_VARIABLE = "RAY_TMPDIR"


@contextmanager
def local_ray(num_cpus: int) -> Generator[None]:
    """Run a local Ray for as long as the context lasts.

    Raises:
        InputError: it does not start. The message says why, and where its files were to go.
    """
    import ray

    with _folder() as folder:
        try:
            _refuse_full(folder)
            ray.init(
                "local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
        except Exception as error:  # Ray raises bare exceptions, too
            with suppress(Exception):
                ray.shutdown()  # what has started
            raise InputError(f"Ray does not start in {folder}: {_reason(error)}: {_VARIABLE} names another folder") from None
        try:
            yield
        finally:
            ray.shutdown()


def provide_token() -> None:
    """Give this process and its Ray a token; otherwise Ray would write one to the home folder."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def _folder() -> Generator[Path]:
    """Choose the folder of Ray's files: its default, unless that path is too long for its sockets.

    Raises:
        InputError: it is too long, and no other can be made.
    """
    named, short = os.environ.get(_VARIABLE), None
    try:
        folder = Path(named or tempfile.gettempdir(), "ray").absolute()
        if len(os.fsencode(folder)) > _LONGEST_FOLDER:
            if named:
                most = _LONGEST_FOLDER - len("/ray")
                raise InputError(
                    f"{_VARIABLE} = {named}: {len(os.fsencode(named))} characters: Ray's sockets allow {most} at most"
                )
            folder = short = Path(tempfile.mkdtemp(prefix="ray-", dir=_SHORT))
    except OSError as error:
        raise InputError(f"Ray has no folder for its files: {error.strerror}: {_VARIABLE} names a short one") from None
    try:
        yield folder
    finally:
        if short is not None:
            shutil.rmtree(short, ignore_errors=True)


def _refuse_full(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < _LEAST_FREE:
        raise OSError(f"{free / 2**20:.1f} MiB are free there, at least {_LEAST_FREE / 2**20:.0f} are needed")


def _reason(error: Exception) -> str:
    """The likely cause of a failed start; Ray often reports a timeout only."""
    text = str(error).strip() or type(error).__name__
    reason = text.splitlines()[0].rstrip(". ")
    memory, files = resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if memory != resource.RLIM_INFINITY:
        reason += f" (this shell limits a process to {memory / 2**30:.1f} GiB of memory: ulimit -v unlimited lifts that)"
    if files != resource.RLIM_INFINITY and files < _LEAST_FILES:
        reason += f" (this shell limits a process to {files} open files: ulimit -n {_LEAST_FILES} raises that)"
    return reason
