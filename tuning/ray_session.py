"""Ray, for as long as a command needs it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from rllib_envs.errors import InputError

_TIMEOUT_S = 10.0


@contextmanager
def ray_session(address: str, workers: int) -> Generator[None]:
    """Use the Ray that this process has, or attach to a cluster, or start one of our own on this machine, quietly.

    Networks as small as ours run on one thread in each process; several, fighting for the cores, are many times slower.

    Args:
        address: ``local`` to start one, ``auto`` or a URL to attach to one.
        workers: processes that it must have room for beside this one; a cluster has the room it has.

    Raises:
        InputError: nothing answers at the address.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # reads the environment as it is imported

    torch.set_num_threads(1)
    if ray.is_initialized():
        yield
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        settings |= {"num_cpus": max(os.cpu_count() or 1, workers + 1), "include_dashboard": False}
    try:
        if address not in ("local", "auto"):
            _knock(address)
        ray.init(address, **settings)
    except (OSError, ValueError) as error:
        raise InputError(f"address {address!r}: no Ray answers there: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would try for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("must be local, auto, HOST:PORT or ray://HOST:PORT")
    socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
