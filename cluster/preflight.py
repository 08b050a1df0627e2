"""Check a cluster before you spend anything on it: one table, one verdict.

On a machine of the cluster it checks every node. Through the URL of the dashboard it checks what is visible from outside, and the
job checks the nodes at its start. Commands that use a cluster make the same checks. Example:

    edgeroute preflight --address auto --cpus 8 --shared /mnt/runs
    edgeroute preflight --address http://127.0.0.1:8265
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.jobs_api import api_errors, connect
from rllib_envs.errors import InputError
from rllib_envs.yaml_files import read_mapping
from tuning.output.tables import markdown_table
from tuning.ray_cluster.check import Check, Needs, inspect_cluster
from tuning.ray_cluster.session import attach, has_token, prepare_environment
from tuning.run_dir.secret_urls import without_secrets
from tuning.specs.grammar import check_limits

_EXIT_FAILED = 2
_LARGEST_UPLOAD_MIB = 50.0  # ours is below one; Ray itself refuses hundreds
ROOT = Path(__file__).resolve().parents[1]
RUNTIME_ENV = Path(__file__).with_name("runtime_env.yaml")
"""What jobs are sent with, unless another file is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    address: str = "auto"
    """Cluster: auto or HOST:PORT to attach to it, or the URL of its dashboard."""
    cpus: int = 0
    """Cores that are needed."""
    gpus: float = 0.0
    """GPUs that are needed."""
    shared: Path | None = None
    """Folder that must be the same on all nodes, and writable."""
    storage: str | None = None
    """fsspec URL that every node must be able to write to."""


def run(options: Options) -> int:
    """Print the table and the verdict.

    Returns:
        0 if all is well, else 2.

    Raises:
        InputError: a number that is not possible; nothing answers at the address, or not to us.
    """
    check_limits("cpus", options.cpus, 0, 10**6)
    check_limits("gpus", options.gpus, 0, 10**6)
    needs = Needs(
        cpus=options.cpus, gpus=options.gpus, shared=options.shared and options.shared.absolute(), storage=options.storage
    )
    if "://" in options.address:
        checks = inspect_from_outside(options.address, needs, runtime_env(RUNTIME_ENV, None))
    else:
        prepare_environment(options.address)
        attach(options.address)
        checks = [_reached(options.address), *inspect_cluster(needs)]
        import ray

        ray.shutdown()
    print(table(checks))
    failed = [check for check in checks if not check.passed]
    for check in failed:
        print(f"{check.name}: {check.fault}")
    print(f"Verdict: {f'{len(failed)} of {len(checks)} checks failed' if failed else 'ready'}")
    return _EXIT_FAILED if failed else 0


def inspect_from_outside(address: str, needs: Needs, environment: dict[str, Any]) -> list[Check]:
    """Check what is visible through the dashboard, and the files that would be sent there.

    Args:
        address: URL of the dashboard.
        needs: of the command; it checks the folders that it writes to at its start.
        environment: a runtime environment, from ``runtime_env``.

    Raises:
        InputError: a number that is not possible; nothing answers at the address, or not to us.
    """
    client = connect(address)
    import ray  # only now: it reads the environment, which connecting has set

    with api_errors(f"address = {without_secrets(address)}", address):
        # No public function asks for these.
        version = client._do_request("GET", "/api/version").json()["ray_version"]  # pyright: ignore[reportPrivateUsage]
        nodes = client._do_request("GET", "/nodes?view=summary").json()["data"]["summary"]  # pyright: ignore[reportPrivateUsage]
    alive = [node["raylet"] for node in nodes if node["raylet"].get("state") == "ALIVE"]
    checks = [_reached(address)]
    checks.append(
        Check(
            name="Ray",
            found=version,
            fault="" if version == ray.__version__ else f"here it is {ray.__version__}: both must be the same",
        )
    )
    checks.append(Check(name="nodes", found=f"{len(alive)} alive", fault="" if alive else "start some"))
    for name, asked in (("CPU", needs.cpus), ("GPU", needs.gpus)):
        has = sum(node.get("resourcesTotal", {}).get(name, 0) for node in alive)
        short = f"ask for {has:g} at most, or add nodes" if asked > has else ""
        checks.append(Check(name=f"{name}s", found=f"{has:g} in all, {asked:g} asked for", fault=short))
    checks.append(_check_upload(environment))
    return checks


def runtime_env(file: Path, working_dir: Path | None) -> dict[str, Any]:
    """The runtime environment that a job is sent with.

    Args:
        file: YAML of Ray's runtime environment.
        working_dir: folder with edgeroute.py in it; None for the checkout that this is.

    Raises:
        InputError: the file cannot be read; there is no edgeroute.py to send.
    """
    folder = ROOT if working_dir is None else working_dir
    if not (folder / "edgeroute.py").is_file():
        raise InputError(f"working-dir = {folder}: has no edgeroute.py: name a checkout of the project")
    contents = read_mapping(file, "Ray's runtime environment")
    return {**contents, "working_dir": str(folder)}


def table(checks: Sequence[Check]) -> str:
    """The checks as a table."""
    rows = [[check.name, check.found, "ok" if check.passed else "FAILED"] for check in checks]
    return markdown_table(["check", "found", "verdict"], rows, names=3)


def _reached(address: str) -> Check:
    answers = f"{without_secrets(address)} answers{', to our token' if has_token() else ''}"
    return Check(name="cluster", found=f"{answers}, Python {platform.python_version()}")


def _check_upload(environment: dict[str, Any]) -> Check:
    from ray._private.runtime_env.packaging import create_package  # what a submission calls; there is no public one

    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package.zip"
        try:
            create_package(environment["working_dir"], package, excludes=environment.get("excludes", []), include_gitignore=True)
        except (RuntimeError, ValueError) as error:
            return Check(name="upload", found=environment["working_dir"], fault=str(error).splitlines()[0])
        mib = package.stat().st_size / 2**20
    large = f"at most {_LARGEST_UPLOAD_MIB:g} MiB: exclude what a job does not need" if mib > _LARGEST_UPLOAD_MIB else ""
    return Check(name="upload", found=f"{mib:.1f} MiB", fault=large)
