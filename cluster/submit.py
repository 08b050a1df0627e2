"""Send a command to a cluster as a job, and follow it.

It uploads this project, runs the job on the head, and shows its output; the job's exit code becomes that of this command. Ctrl-C
leaves the job alone. Files that its options name must be in the project, with paths from its root. A relative run directory is
below ~/edgeroute on the head; --storage keeps a remote copy too. edgeroute job shows a job's state and output later, stops it,
and fetches its results. Example:

    edgeroute submit --address http://127.0.0.1:8265 train --minutes 30 --run-dir runs/mine
    edgeroute job fetch --address http://127.0.0.1:8265 ID --out runs/mine
"""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from cluster.jobs_api import api_errors, connect, follow, jobs_address
from cluster.preflight import RUNTIME_ENV, inspect_from_outside, runtime_env
from rllib_envs.errors import InputError
from tuning.ray_cluster.check import Needs, refuse_failed
from tuning.run_dir.secret_urls import has_secret, without_secrets
from tuning.specs.command_line import parse_arguments

_MODULES = {
    "train": "tuning.train",
    "sweep": "tuning.sweep",
    "evaluate": "tuning.evaluate",
    "preflight": "cluster.preflight",
}
"""Commands that use a cluster."""

_RESULTS = {"train": "run_dir", "sweep": "run_dir", "evaluate": "out"}
"""The option that says where a command leaves what it comes to."""

HOME = "edgeroute"
"""Folder in the home directory on the head that relative folders are taken from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    address: str | None = None
    """URL of the cluster's dashboard. Default: RAY_API_SERVER_ADDRESS, or port 8265 here, which a tunnel may lead to."""
    runtime_env: Path = RUNTIME_ENV
    """YAML file of Ray's runtime environment: what to leave out of the upload, variables."""
    working_dir: Path | None = None
    """Checkout to send. Default: the one that this is."""
    job_id: str | None = None
    """Name of the job. Default: one that Ray makes up."""
    wait: bool = True
    """Follow the job to its end; --no-wait prints its name and leaves."""
    command: tyro.conf.Suppress[tuple[str, ...]] = ()
    """Command to run there, with its options: the rest of the line."""


def own_arguments(arguments: Sequence[str]) -> list[str]:
    """The options before the command that runs on the cluster."""
    return _split(arguments)[0]


def defaults(arguments: Sequence[str]) -> Options:
    """Options with the command to run."""
    return Options(command=tuple(_split(arguments)[1]))


def run(options: Options) -> int:
    """Check everything, send the job, follow it.

    Returns:
        The exit code of the job, 1 if it has none because it was stopped or lost; 0 where it is not waited for.

    Raises:
        InputError: an invalid command or option, a cluster that does not answer or fails a check.
    """
    name, given = _parse_command(options.command)
    environment = runtime_env(options.runtime_env, options.working_dir)
    address = jobs_address(options.address)
    shown = without_secrets(address)
    if has_secret(getattr(given, "storage", None) or ""):
        raise InputError(
            f"storage = {without_secrets(given.storage)}: the cluster shows the commands of its jobs to all who use it: give the "
            "secret in this URL to the driver in its own way"
        )
    refuse_failed(inspect_from_outside(address, _needs(name, given), environment), f"the cluster at {shown}")
    folder = _results(name, given)
    client = connect(address)
    with api_errors(f"address = {shown}", address):
        job = client.submit_job(
            entrypoint=entrypoint(options.command, given, folder),
            submission_id=options.job_id,
            runtime_env=environment,
            metadata={key: value for key, value in (("command", name), ("results", folder)) if value},
        )
    ask = shlex.join(["edgeroute", "job", "logs", job, "--address", shown])
    print(f"job {job} at {shown}; {ask} follows it; stop, status and fetch take the same", file=sys.stderr)
    if not options.wait:
        print(job)
        return 0
    return follow(client, job, address)


def entrypoint(command: Sequence[str], given: Any, folder: str | None) -> str:
    """The shell command for the head.

    Args:
        command: the command and its options, as they were typed.
        given: the same, parsed.
        folder: folder of its results there, from ``_results``.
    """
    words = [shlex.quote(word) for word in command]
    if getattr(given, "address", None) in ("local", None) and hasattr(given, "address"):
        words.append("--address auto")
    if folder is not None:
        words.append(f"--{_RESULTS[command[0]].replace('_', '-')} {folder}")  # the last one given counts
    return " ".join(["exec python edgeroute.py", *words])


def _parse_command(command: Sequence[str]) -> tuple[str, Any]:
    """The command's name and its options, parsed as they will be there.

    Raises:
        InputError: none is given, or one that does not use a cluster.
        SystemExit: from the parser, after ``--help`` (0) or a wrong option (2).
    """
    if not command or command[0] not in _MODULES:
        what = f"command = {command[0]!r}" if command else "no command"
        raise InputError(f"{what}: say what to run after the options: {', '.join(_MODULES)}")
    name, *arguments = command
    return name, parse_arguments(importlib.import_module(_MODULES[name]), f"edgeroute submit {name}", arguments)


def _needs(name: str, given: Any) -> Needs:
    """The resources that the command needs, as far as its options say."""
    if name == "train":
        from tuning.training.setup import needs_of

        return needs_of(given)
    if name == "sweep":
        return Needs(cpus=given.cpus_per_trial, gpus=given.gpus_per_trial)
    return Needs(cpus=1)


def _results(name: str, given: Any) -> str | None:
    """The folder of its results on the head, quoted for the shell."""
    if name not in _RESULTS:
        return None
    folder: Path = getattr(given, _RESULTS[name])
    return shlex.quote(str(folder)) if folder.is_absolute() else f'"$HOME"/{HOME}/{shlex.quote(str(folder))}'


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and the command: it begins with the first that is neither an option nor the value of one."""
    flags = {"help", "help-all", *(n for f in fields(Options) if f.type == "bool" for n in (f.name, f"no-{f.name}"))}
    at = 0
    while at < len(arguments) and arguments[at].startswith("-"):
        if arguments[at] == "--":
            return list(arguments[:at]), list(arguments[at + 1 :])
        name = arguments[at].lstrip("-")
        at += 1 if "=" in name or name in flags or name == "h" else 2
    return list(arguments[:at]), list(arguments[at:])
