"""Checkpoints of a training run: whole or not there, checked when read, and loadable as a router without Ray.

A run directory holds ``checkpoints/000012/`` and so on, the number being that of the iteration. Each has ``rllib/``, the state
that training goes on from, ``bundle/``, the router to serve, and ``checkpoint.json``, where they come from and their digests.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.bundle import Network, bundle_router, save_bundle
from models.files import check_digests, digests, written_aside
from rllib_envs.baselines import Router
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

FORMAT = "edgeroute-checkpoint-2"
_KEPT = 3
_DEFAULT_MODULE = "default_policy"  # RLlib's DEFAULT_MODULE_ID; importing it here would bring all of Ray
BUNDLE = "bundle"
"""Folder of a checkpoint that holds the router."""

_RLLIB, _ABOUT = "rllib", "checkpoint.json"


def save_checkpoint(run_dir: Path, algorithm: Algorithm, about: dict[str, Any]) -> Path:
    """Write a checkpoint aside, flush it to the disk and rename it; older ones than the last three go.

    Args:
        run_dir: run directory.
        algorithm: whose module has a ``served`` router.
        about: what to write to ``checkpoint.json``; ``iteration`` names the folder, ``observation`` is what the router needs, and
            all but that goes into the bundle too.
    """
    folder = run_dir / "checkpoints"
    target = folder / f"{about['iteration']:06d}"
    if target.exists():
        return target
    for left in folder.glob(".aside-*"):  # by a process that was killed as it wrote; one at a time writes to a run directory
        shutil.rmtree(left)
    with written_aside(target) as aside:
        algorithm.save_to_path((aside / _RLLIB).absolute())
        origin = {key: value for key, value in about.items() if key != "observation"}
        save_bundle(aside / BUNDLE, router_of(algorithm), Observation(**about["observation"]), origin)
        contents = {"format": FORMAT, **about, "sha256": digests(aside)}
        (aside / _ABOUT).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    for old in _numbered(folder)[:-_KEPT]:
        shutil.rmtree(old)
    return target


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder itself, or the newest one of a run directory.

    Raises:
        InputError: there is none.
    """
    if not path.is_dir():
        raise InputError(
            f"{path}: {'not a folder' if path.exists() else 'no such folder'}: a run directory or checkpoint is needed"
        )
    if (path / _ABOUT).is_file():
        return path
    newest = _numbered(path / "checkpoints")[-1:]
    if not newest:
        raise InputError(f"{path}: no checkpoint of a training run: neither {_ABOUT} nor a folder in checkpoints/")
    return newest[0]


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What ``checkpoint.json`` says, once every file is found to be as it was written.

    Raises:
        InputError: a file is damaged, missing or of another version of the project.
    """
    where = folder / _ABOUT
    try:
        about = json.loads(where.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: damaged: {error}") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{where}: format is not {FORMAT!r}: not a checkpoint, or one of another version")
    check_digests(folder, about["sha256"], where, "checkpoint")
    return about


def restore_checkpoint(folder: Path, algorithm: Algorithm) -> None:
    """Put the algorithm, set up as the saved one was, into the saved state.

    Raises:
        InputError: as ``read_checkpoint``.
    """
    read_checkpoint(folder)
    algorithm.restore_from_path((folder / _RLLIB).absolute())


def load_router(path: Path) -> tuple[Router, Observation]:
    """The router that a run or one of its checkpoints has come to, and the observation that it needs. Starts no Ray.

    Args:
        path: run directory (its newest checkpoint counts) or checkpoint folder.

    Returns:
        Router that takes the action with the best score, and the observation part for the scenario it is to run in.

    Raises:
        InputError: no checkpoint there, or a damaged one.
    """
    folder = find_checkpoint(path)
    read_checkpoint(folder)
    return bundle_router(folder / BUNDLE)


def router_of(algorithm: Algorithm) -> Network:
    """The router that training has come to: a copy of what the learner's module has to serve."""

    def serve(learner: Any, *_: Any) -> Any:
        return copy.deepcopy(learner.module[_DEFAULT_MODULE].unwrapped().served).cpu().eval()

    assert algorithm.learner_group is not None
    router: Any = next(iter(algorithm.learner_group.foreach_learner(serve))).get()
    return router


def learner_state(algorithm: Algorithm) -> Any:
    """Copy of all that a step of learning changes."""
    assert algorithm.learner_group is not None
    return copy.deepcopy(algorithm.learner_group.get_state())


def restore_learner(algorithm: Algorithm, state: Any) -> None:
    """Put the learner into a state that ``learner_state`` gave."""
    assert algorithm.learner_group is not None
    algorithm.learner_group.set_state(state)


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.name.isdigit() and path.is_dir())
