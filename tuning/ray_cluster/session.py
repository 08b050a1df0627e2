"""Start Ray or attach to it for the duration of a command."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rllib_envs.errors import InputError
from tuning.ray_cluster.check import Needs, inspect_cluster, refuse_failed
from tuning.ray_cluster.start import local_ray, provide_token
from tuning.run_dir.home import in_home
from tuning.run_dir.secret_urls import told, without_secrets

_TIMEOUT_S = 5.0
_ATTEMPTS = 3  # to attach, a second apart; Ray's own 20 are for clusters that are just starting
TOKEN_FILE = Path("~/.ray/auth_token")
"""Where Ray looks for its token when nothing in the environment says so."""


@contextmanager
def ray_session(address: str, needs: Needs) -> Generator[None]:
    """Use this process's Ray, attach to a cluster, or start a local Ray, quietly.

    Our small networks run on one thread in each process; several threads compete for the cores and are many times slower. A
    command that the cluster has no room for is refused before it begins.

    Args:
        address: ``local`` to start one, ``auto`` or HOST:PORT to attach to one.
        needs: resources that it must have beside this process.

    Raises:
        InputError: Ray does not start here, nothing answers at the address, it refuses us, or a check of the cluster fails.
    """
    prepare_environment(address)
    import torch

    torch.set_num_threads(1)
    import ray  # reads the environment as it is imported

    if ray.is_initialized():
        yield
        return
    if address == "local":
        with local_ray(max(os.cpu_count() or 1, needs.cpus + 1)):
            yield
        return
    attach(address)
    try:
        refuse_failed(inspect_cluster(needs), f"the cluster at {without_secrets(address)!r}")
        yield
    finally:
        ray.shutdown()


def prepare_environment(address: str) -> None:
    """Set the environment variables that Ray reads at import, unless the user has set them."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    if address != "local":
        settings["RAY_NUM_REDIS_GET_RETRIES"] = str(_ATTEMPTS)
        if has_token():
            settings["RAY_AUTH_MODE"] = "token"
    elif not has_token():
        provide_token()
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def has_token() -> bool:
    """Whether there is a token to show to a cluster, in the environment or a file."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    with suppress(InputError, OSError):
        return (in_home(TOKEN_FILE) if named is None else Path(named)).is_file()
    return False


def token_advice() -> str:
    """Advice for a user whom a cluster has refused."""
    have = "the token here is not the cluster's" if has_token() else "the cluster wants a token, and there is none here"
    return f"{have}: set RAY_AUTH_TOKEN_PATH to a file that holds it, or put it into {TOKEN_FILE}"


def attach(address: str) -> None:
    """Connect this process to a cluster, after ``prepare_environment``.

    Raises:
        InputError: nothing answers there, it is another version, or the token is not the cluster's.
    """
    import ray

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    try:
        if address != "auto":
            _knock(address)
        ray.init(address, **settings)
    except Exception as error:  # Ray raises bare exceptions, too
        raise InputError(f"address {without_secrets(address)!r}: {_why(error, address)}") from None


def _why(error: Exception, address: str) -> str:
    causes = [str(error)]
    cause = error.__cause__
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    whole = "\n".join(causes)
    if "AuthToken" in whole or "AuthenticationError" in whole:
        return token_advice()
    if "Version mismatch" in whole:
        return " ".join(whole.split())
    return f"no Ray answers there: {told(error, address)}"


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would try for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("must be local, auto or HOST:PORT")
    socket.create_connection((host, int(port)), timeout=_TIMEOUT_S).close()
