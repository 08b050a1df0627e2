"""Check a cluster from every node before a command uses it. Light to import, as every node imports it."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rllib_envs.errors import InputError
from tuning.run_dir.secret_urls import told, without_secrets

_ANSWER_S = 60.0  # a node that is silent for so long is not fit to work either


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """Resources that a command needs on a cluster, beside the driver process."""

    cpus: int = 0
    gpus: float = 0.0
    shared: Path | None = None  # a folder that processes on every node write to
    storage: str | None = None  # an fsspec URL, likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check."""

    name: str
    found: str
    fault: str = ""  # why it failed, and what to do about it; empty if it passed

    @property
    def passed(self) -> bool:
        """Whether the check passed."""
        return not self.fault


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeView:
    """What a node reports about itself."""

    name: str
    python: str
    ray: str
    project: str  # digest of the source code that determines results
    sees: bool = True  # the file that the asking process has put into the shared folder
    trouble: str = ""  # result of writing to the folder and the storage


def inspect_cluster(needs: Needs) -> list[Check]:
    """Check the cluster that this process is attached to, with one short task on every node.

    Returns:
        The checks, failed ones among them.
    """
    import ray

    own = look("here", None, None, None)
    nodes: list[dict[str, Any]] = [node for node in ray.nodes() if node["Alive"]]
    probe = None if needs.shared is None else _put_probe(needs.shared)
    try:
        views = _ask(nodes, needs, probe if isinstance(probe, Path) else None)
    finally:
        if isinstance(probe, Path):
            probe.unlink(missing_ok=True)
    checks = [_check_resources(name, asked) for name, asked in (("CPU", needs.cpus), ("GPU", needs.gpus))]
    answered = {name: view for name, view in views.items() if isinstance(view, NodeView)}
    silent = "; ".join(f"{name}: {view}" for name, view in views.items() if isinstance(view, str))
    checks.append(
        Check(
            name="nodes",
            found=f"{len(answered)} of {len(views)} answer",
            fault=f"{silent}: install edgeroute there, or give the node up" if silent else "",
        )
    )
    for name, attribute in (("Python", "python"), ("Ray", "ray"), ("edgeroute", "project")):
        checks.append(_check_equal(name, getattr(own, attribute), {k: getattr(v, attribute) for k, v in answered.items()}))
    if needs.shared is not None and probe is not None:
        checks.append(_check_shared(needs.shared, probe, answered))
    if needs.storage is not None:
        bad = "; ".join(f"{name}: {view.trouble}" for name, view in answered.items() if view.trouble)
        fault = f"not writable from every node: {bad}" if bad else ""
        checks.append(Check(name="storage", found=without_secrets(needs.storage), fault=fault))
    return checks


def refuse_failed(checks: Sequence[Check], what: str) -> None:
    """Raise an error if a check failed.

    Raises:
        InputError: a check failed; a line for each that did.
    """
    failed = [f"{what}: {check.name}: {check.found}: {check.fault}" for check in checks if not check.passed]
    if failed:
        raise InputError("\n".join(failed))


def look(name: str, shared: Path | None, probe: Path | None, storage: str | None) -> NodeView:
    """Inspect this node; runs as a task on each."""
    import ray

    from tuning.run_dir.digests import code_digest

    trouble: list[str] = []
    if shared is not None:
        left = _put_probe(shared)
        if isinstance(left, Path):
            left.unlink(missing_ok=True)
        else:
            trouble.append(left)
    if storage is not None:
        trouble += _try_storage(storage)
    return NodeView(
        name=name,
        python=".".join(platform.python_version_tuple()[:2]),
        ray=ray.__version__,
        project=code_digest()[:12],
        sees=probe is None or probe.is_file(),
        trouble="; ".join(trouble),
    )


def _ask(nodes: Sequence[dict[str, Any]], needs: Needs, probe: Path | None) -> dict[str, NodeView | str]:
    """The report of every node, or why there is none, by node name."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            name, needs.shared, probe, needs.storage
        ): name
        for node in nodes
        for name in [f"{node['NodeManagerAddress']}/{node['NodeID'][:6]}"]
    }
    ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
    views: dict[str, NodeView | str] = {asked[reference]: f"no answer within {_ANSWER_S:g} s" for reference in late}
    for reference in ready:
        try:
            views[asked[reference]] = ray.get(reference)
        except Exception as error:  # whatever keeps a node from answering is the finding
            views[asked[reference]] = str(error).strip().splitlines()[-1]
    return dict(sorted(views.items()))


def _check_resources(name: str, asked: float) -> Check:
    import ray

    has, free = ray.cluster_resources().get(name, 0), ray.available_resources().get(name, 0)
    found = f"{has:g} in all, {free:g} free, {asked:g} asked for"
    short = f"ask for {has:g} at most, or add nodes" if asked > has else ""
    return Check(name=f"{name}s", found=found, fault=short)


def _check_equal(name: str, own: str, theirs: dict[str, str]) -> Check:
    others = {node: value for node, value in theirs.items() if value != own}
    told = "; ".join(f"{node} has {value}" for node, value in others.items())
    return Check(name=name, found=own, fault=f"{told}: all must be the same as here" if others else "")


def _check_shared(folder: Path, probe: Path | str, views: dict[str, NodeView]) -> Check:
    bad = [probe] if isinstance(probe, str) else []
    bad += [f"{name}: {view.trouble}" for name, view in views.items() if view.trouble]
    blind = [name for name, view in views.items() if not view.sees]
    if blind:
        bad.append(
            f"{', '.join(blind)} has a folder of its own under that name: name a folder that all nodes share (NFS), "
            "or a URL with --storage"
        )
    return Check(name="run directory", found=str(folder), fault="; ".join(bad))


def _put_probe(folder: Path) -> Path | str:
    """Create an empty file in the folder, or say why that fails."""
    probe = folder / f".probe-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return probe


def _try_storage(url: str) -> list[str]:
    """Write a file to the storage and remove it; the error, if there is one."""
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        system.makedirs(path, exist_ok=True)
        probe = f"{path.rstrip('/')}/.probe-{uuid.uuid4().hex}"
        system.pipe_file(probe, b"")
        system.rm_file(probe)
    except Exception as error:  # every driver has errors of its own
        return [f"{type(error).__name__}: {told(error, url)}"]
    return []
