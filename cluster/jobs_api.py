"""Ray's Jobs API at a URL."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rllib_envs.errors import InputError
from tuning.ray_cluster.session import prepare_environment, token_advice
from tuning.run_dir.secret_urls import told, without_secrets

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_TIMEOUT_S = 5.0
_EXIT_LOST = 1
_TALKATIVE = ("ray", "ray.dashboard.modules.job.sdk")  # they tell of every file that is packed


def jobs_address(address: str | None) -> str:
    """The given URL, or the one in RAY_API_SERVER_ADDRESS, or that of a head on this machine or behind a tunnel.

    Raises:
        InputError: it is not a URL.
    """
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # whose text has parts of the URL
        usable = False
    if not usable:
        raise InputError(f"address = {without_secrets(url)}: must be the URL of a cluster's dashboard, such as {DEFAULT_ADDRESS}")
    return url


def connect(address: str | None) -> JobSubmissionClient:
    """Connect to the cluster at a URL (``jobs_address``).

    Raises:
        InputError: nothing answers there, or it refuses us.
    """
    url = jobs_address(address)
    _knock(url)
    prepare_environment(url)
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):  # else Ray takes these instead of what it is given
        os.environ.pop(name, None)
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with api_errors(without_secrets(url), url):
        return JobSubmissionClient(url)


@contextmanager
def api_errors(what: str, url: str) -> Generator[None]:
    """Turn errors of requests to a cluster into an InputError.

    Raises:
        InputError: the request failed.
    """
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError:
        raise InputError(f"{what}: {token_advice()}") from None
    except (RuntimeError, ConnectionError) as error:
        raise InputError(f"{what}: {told(error, url)}") from None


def _knock(url: str) -> None:
    """Check quickly whether anything listens.

    Raises:
        InputError: nobody does.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((str(parts.hostname), port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        raise InputError(f"address = {without_secrets(url)}: nothing answers there: {told(error, url)}") from None


def follow(client: JobSubmissionClient, job: str, url: str) -> int:
    """Show what a job prints until it ends.

    Returns:
        Its exit code; 1 if it has none, because it was stopped or lost.

    Raises:
        InputError: there is no such job, or the cluster is gone.
    """
    with api_errors(f"job {job}", url):
        try:
            asyncio.run(_show(client, job))
        except KeyboardInterrupt:
            print(f"edgeroute: job {job} goes on; {shlex.join(['edgeroute', 'job', 'stop', job])} ends it", file=sys.stderr)
            raise
        details = client.get_job_info(job)
        end_s = time.monotonic() + _TIMEOUT_S
        while not details.status.is_terminal() and time.monotonic() < end_s:  # its output ends a little before it
            time.sleep(0.2)
            details = client.get_job_info(job)
    if details.driver_exit_code is None:
        print(f"edgeroute: job {job}: {details.status.value}: {details.message or ''}", file=sys.stderr)
        return _EXIT_LOST
    return details.driver_exit_code


async def _show(client: JobSubmissionClient, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)
