"""Ask a cluster for a job's state or output, stop it, or fetch its results.

Stopping asks the job to end and kills it half a minute later; a training run ends with a checkpoint. Results come through the
cluster's dashboard, so its URL is enough. Example:

    edgeroute job list
    edgeroute job fetch raysubmit_8XyZ --out runs/mine
"""

from __future__ import annotations

import base64
import binascii
import io
import shlex
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from cluster.jobs_api import api_errors, connect, follow, jobs_address
from models.export.files import staged_folder
from models.export.names import inner_path
from rllib_envs.errors import InputError
from tuning.output.tables import ABSENT, markdown_table

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_PACK_S = 120.0
_ATTEMPTS = 3
_MOST_MEMBERS, _MOST_BYTES = 100_000, 2**32  # of results that are fetched
_MARK, _END = "results:", "end"  # of a line with a part of them, and what the last one says


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    action: tyro.conf.Positional[Literal["list", "status", "logs", "stop", "fetch"]]
    """list: all jobs; status: one of them; logs: follow its output; stop: end it; fetch: copy its results."""
    job: tyro.conf.Positional[str] = ""
    """Name of the job, for all but list."""
    address: str | None = None
    """URL of the cluster's dashboard. Default: RAY_API_SERVER_ADDRESS, or port 8265 here, which a tunnel may lead to."""
    out: Path | None = None
    """fetch: folder for the results; must be new or empty."""


def run(options: Options) -> int:
    """Run the requested action.

    Returns:
        0; for logs, the exit code of the job; for status 1 if it failed.

    Raises:
        InputError: an option is missing, there is no such job, nothing answers at the address, or it refuses us.
    """
    if (options.action == "list") == bool(options.job):
        raise InputError(f"job = {options.job!r}: {options.action} takes {'none' if options.job else 'the name of a job'}")
    url = jobs_address(options.address)
    client = connect(url)
    if options.action == "logs":
        return follow(client, options.job, url)
    with api_errors(f"job {options.job}" if options.job else "jobs", url):
        if options.action == "fetch":
            return _fetch(client, options)
        if options.action == "stop":
            running = client.stop_job(options.job)
            print(f"job {options.job}: {'asked to end' if running else 'has ended already'}")
            return 0
        details = client.list_jobs() if options.action == "list" else [client.get_job_info(options.job)]
    print(_table([job for job in details if job.submission_id]))
    return int(options.action == "status" and details[0].status.value == "FAILED")


def _table(jobs: Sequence[Any]) -> str:
    rows = [
        [
            str(job.submission_id),
            (job.metadata or {}).get("command", ABSENT),
            job.status.value,
            ABSENT if job.driver_exit_code is None else str(job.driver_exit_code),
            ABSENT if not job.start_time else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.start_time / 1000)),
        ]
        for job in sorted(jobs, key=lambda job: job.start_time or 0)
    ]
    return markdown_table(["job", "command", "state", "exit code", "begun"], rows, names=5)


def _fetch(client: JobSubmissionClient, options: Options) -> int:
    """Run a small job that packs the folder, and unpack its output.

    Raises:
        InputError: the job has no results, or not all of them arrived.
    """
    folder = (client.get_job_info(options.job).metadata or {}).get("results")
    if folder is None:
        raise InputError(f"job {options.job}: was not sent by edgeroute submit, or leaves no results: nothing to fetch")
    out = options.out
    if out is None:
        raise InputError("out: fetch needs --out FOLDER")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"out = {out}: is not empty: name a new folder")
    left_out = 0
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            packed = _packed(client, folder)
            with staged_folder(out) as staged:
                left_out = unpack(packed, staged, f"job {options.job}")
            break
        except (binascii.Error, tarfile.TarError, zlib.error, EOFError, OSError) as error:
            if attempt == _ATTEMPTS:
                raise InputError(f"job {options.job}: {folder} arrived damaged: {error}") from None
    print(f"Written: {out}{f'; {left_out} links are left out' if left_out else ''}", file=sys.stderr)
    return 0


def unpack(packed: bytes, folder: Path, where: str) -> int:
    """Unpack the plain files of a compressed archive to a new folder: no links, devices, owners or rights.

    Returns:
        The number of members that were left out, as neither files nor folders.

    Raises:
        InputError: a name leaves the folder, or there is too much in it.
        tarfile.TarError, zlib.error, EOFError, OSError: it is damaged, or the folder cannot be written to.
    """
    left_out, size = 0, 0
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
        for number, member in enumerate(archive):
            size += max(member.size, 0)
            if number >= _MOST_MEMBERS or size > _MOST_BYTES:
                raise InputError(f"{where}: its results have more than {_MOST_MEMBERS:,} files or {_MOST_BYTES:,} bytes: refused")
            name = member.name.removeprefix("./")
            if name == "." or not (member.isdir() or member.isreg()):
                left_out += name != "."
                continue
            path = inner_path(folder, name, where)
            source = archive.extractfile(member)
            if source is None:
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with source, path.open("xb") as file:
                shutil.copyfileobj(source, file)
    return left_out


def _packed(client: JobSubmissionClient, folder: str) -> bytes:
    """Run a small job that prints the folder as a compressed archive, and return it.

    Ray prints its own lines into the same output, so ours have a mark.

    Args:
        client: of the cluster.
        folder: a word of the shell there.

    Raises:
        InputError: the job cannot read the folder.
        binascii.Error: not all arrived.
    """
    pack = f"tar -czf - -C {folder} . | base64 | sed 's/^/{_MARK}/' && echo {_MARK}{_END}"
    packing = client.submit_job(entrypoint=f"bash -o pipefail -c {shlex.quote(pack)}")
    end_s = time.monotonic() + _PACK_S
    while not client.get_job_status(packing).is_terminal() and time.monotonic() < end_s:
        time.sleep(0.2)
    lines = client.get_job_logs(packing).splitlines()
    ours = [line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)]
    if ours[-1:] != [_END]:
        others = [line for line in lines if line.strip() and not line.startswith(_MARK)]
        raise InputError(f"{folder} cannot be fetched: {others[-1] if others else 'nothing came'}")
    return base64.b64decode("".join(ours[:-1]), validate=True)
