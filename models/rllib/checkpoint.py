"""Checkpoints of a training run: written atomically, verified when read, loadable as a router without Ray.

A run directory holds ``checkpoints/000012/`` and so on, the number being that of the iteration. Each has ``rllib/`` (the
training state), ``bundle/`` (the router to export) and ``checkpoint.json`` (origin and digests). ``rllib/`` holds pickles:
callers must verify its author before they restore it. The others hold none. RLlib loads any file that it finds, so a checkpoint
with an extra file or a link is refused, and the state is restored from a private copy.
"""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.envelope import Envelope
from models.export.bundle import Network, bundle_router, save_bundle
from models.export.description import TRAINED_ON
from models.export.files import staged_folder
from models.export.manifest import check_folder, manifest_in, manifest_of, private_copy, read_description
from models.rllib.errors import LearnerFailed
from rllib_envs.baselines import RoutingPolicy
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

FORMAT = "edgeroute-checkpoint-2"
_KEPT = 3
_DEFAULT_MODULE = "default_policy"  # RLlib's DEFAULT_MODULE_ID; importing it here would bring all of Ray
BUNDLE = "bundle"
"""Folder of a checkpoint that holds the router."""
CHECKPOINTS, ABOUT = "checkpoints", "checkpoint.json"
"""Folder of a run directory that holds the checkpoints, and file of each that says what it is."""

_RLLIB, _LEARNER = "rllib", "learner_group/learner"
_SELF = "self_sha256"  # of what else ``checkpoint.json`` says


def save_checkpoint(
    run_dir: Path,
    algorithm: Algorithm,
    about: Mapping[str, Any],
    sign: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> Path:
    """Write a checkpoint atomically; keep the last three.

    Args:
        run_dir: run directory.
        algorithm: whose module has a ``router_to_serve``.
        about: what to write to ``checkpoint.json``; ``iteration`` names the folder, ``observation`` is what the router needs,
            ``trained_on`` what it was trained on, and all but these goes into the bundle's ``about`` too.
        sign: adds a signature to that content, which includes digests of all files. By default there is no signature.

    Returns:
        Its folder. One of this iteration that is there already and whole is left as it is.

    Raises:
        InputError: it cannot be written: no space, no rights. The others are as they were.
        LearnerFailed: the learner's process has died.
    """
    folder = run_dir / CHECKPOINTS
    target = folder / f"{about['iteration']:06d}"
    if target.exists() and _is_whole(target):
        return target
    try:
        for left in folder.glob(".*-*"):  # by a process that was killed as it wrote; one at a time writes to a run directory
            shutil.rmtree(left)
        with staged_folder(target) as staged:
            _write_state(staged / _RLLIB, algorithm)
            origin = {key: value for key, value in about.items() if key not in ("observation", TRAINED_ON)}
            trained_on = Envelope.from_json(about[TRAINED_ON]) if TRAINED_ON in about else None
            observation = Observation(**about["observation"])
            save_bundle(staged / BUNDLE, router_of(algorithm), observation, origin, trained_on=trained_on)
            contents = sign({"format": FORMAT, **about, **manifest_of(staged).to_dict()})
            contents[_SELF] = _digest(contents)
            (staged / ABOUT).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
        for old in numbered_checkpoints(run_dir)[:-_KEPT]:
            shutil.rmtree(old.rename(folder / f".old-{old.name}"))  # it must not look damaged when this is cut short
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error
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
    if (path / ABOUT).is_file():
        return path
    newest = numbered_checkpoints(path)[-1:]
    if not newest:
        raise InputError(f"{path}: no checkpoint of a training run: neither {ABOUT} nor a folder in {CHECKPOINTS}/")
    return newest[0]


def numbered_checkpoints(run_dir: Path) -> list[Path]:
    """The folders of a run's checkpoints, the newest last, whole or not."""
    return sorted(path for path in (run_dir / CHECKPOINTS).glob("*") if is_number(path.name) and path.is_dir())


def is_number(name: str) -> bool:
    """Whether a name is that of a checkpoint: ASCII digits only."""
    return name.isascii() and name.isdigit()


def whole_checkpoint(run_dir: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """Find the newest checkpoint of a run that is undamaged.

    Returns:
        Its folder, its description, and the damage of each newer one, the newest first.

    Raises:
        InputError: there is none; of those that are damaged the message has a line each.
    """
    find_checkpoint(run_dir)
    faults: list[str] = []
    for folder in reversed(numbered_checkpoints(run_dir)):
        try:
            return folder, read_checkpoint(folder), faults
        except InputError as error:
            faults.append(str(error))
    raise InputError("\n".join([*faults, f"{run_dir}: no checkpoint is whole: there is nothing to go on from"]))


def quarantine_damaged(run_dir: Path, whole: Path) -> None:
    """Quarantine checkpoints newer than the one that a run resumes from, so that none counts as the newest.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        for folder in numbered_checkpoints(run_dir):
            if folder.name > whole.name:
                quarantined = folder.with_name(f"damaged-{folder.name}")
                shutil.rmtree(quarantined, ignore_errors=True)
                folder.rename(quarantined)
    except OSError as error:
        raise InputError(f"{run_dir / CHECKPOINTS}: cannot be written: {error.strerror or error}") from None


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Verify the files of a checkpoint, and return the content of ``checkpoint.json``.

    Raises:
        InputError: a file is damaged, missing, too many or of another version of the project.
    """
    where = folder / ABOUT
    about = read_description(where, "checkpoint")
    if about.get("format") != FORMAT:
        raise InputError(f"{where}: format is not {FORMAT!r}: not a checkpoint, or one of another version, or damaged")
    told = about.pop(_SELF, None)
    if told is not None and told != _digest(about):  # checkpoints of earlier versions have none
        raise InputError(f"{where}: damaged: its contents are not those that were written")
    check_folder(folder, manifest_in(about, where), where, "checkpoint")
    return about


def restore_checkpoint(folder: Path, about: Mapping[str, Any], algorithm: Algorithm) -> None:
    """Restore an algorithm with the same setup. Loads pickles: the caller must have verified their author.

    Args:
        folder: of the checkpoint.
        about: verified result of ``read_checkpoint``: files that changed since are refused.
        algorithm: what to restore.

    Raises:
        InputError: the files are not those that ``about`` names; there is no room for a private copy of them; another version
            of the project wrote them, with modules that are not there any more or with other networks.
    """
    where = folder / ABOUT
    manifest = manifest_in(about, where).below(_RLLIB)
    advice = "its router can be evaluated and exported, training must begin anew"
    with private_copy(folder / _RLLIB, manifest, where, "checkpoint") as copy, of_this_version(where, advice):
        algorithm.restore_from_path(copy)


_OF_ANOTHER_VERSION = ("Can't get attribute", "in loading state_dict")  # what pickle and torch say


@contextmanager
def of_this_version(where: object, advice: str) -> Generator[None]:
    """Refuse, in one line, pickles that name what this version has elsewhere, and weights of other networks.

    Raises:
        InputError: with ``where`` they were read, and ``advice``.
    """
    try:
        yield
    except (ModuleNotFoundError, AttributeError, RuntimeError) as error:
        if not isinstance(error, ModuleNotFoundError) and not any(told in str(error) for told in _OF_ANOTHER_VERSION):
            raise
        first = "; ".join(line.strip() for line in str(error).splitlines()[:2])  # torch names every tensor
        raise InputError(
            f"{where}: written by another version of edgeroute, whose state this one cannot read ({first}); {advice}"
        ) from None


def load_router(path: Path) -> tuple[RoutingPolicy, Observation]:
    """Load the router of a run or checkpoint, with the observation that it needs. Starts no Ray.

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
    """A copy of the router to export, from the learner's module.

    Raises:
        LearnerFailed: the learner's process has died.
    """

    def serve(learner: Any, *_: Any) -> Any:
        return copy.deepcopy(learner.module[_DEFAULT_MODULE].unwrapped().router_to_serve()).cpu().eval()

    assert algorithm.learner_group is not None
    with _deaths_told():
        router: Any = next(iter(algorithm.learner_group.foreach_learner(serve))).get()
    return router


def learner_state(algorithm: Algorithm) -> Any:
    """Copy the learner's state.

    Raises:
        LearnerFailed: the learner's process has died.
    """
    assert algorithm.learner_group is not None
    with _deaths_told():
        return copy.deepcopy(algorithm.learner_group.get_state())


def restore_learner(algorithm: Algorithm, state: Any) -> None:
    """Restore a state from ``learner_state``."""
    assert algorithm.learner_group is not None
    algorithm.learner_group.set_state(state)


def _write_state(folder: Path, algorithm: Algorithm) -> None:
    """Write RLlib's state, and check it: RLlib does not report a failure in another process."""
    with _deaths_told():
        algorithm.save_to_path(folder.absolute())
    for part in (*(name for name, _ in algorithm.get_checkpointable_components()), _LEARNER):
        if not any((folder / part).glob("state.*")):
            raise OSError(f"{folder.name}/{part}: the state is missing")
    for path in folder.rglob("*.pkl"):
        if path.read_bytes()[-1:] != pickle.STOP:
            raise OSError(f"{folder.name}/{path.relative_to(folder)}: cut short")


@contextmanager
def _deaths_told() -> Generator[None]:
    """Translate the death of a process into an error of ``faults``."""
    from ray.exceptions import RayActorError  # here: routers are loaded without Ray

    try:
        yield
    except RayActorError as error:
        raise LearnerFailed(f"a learner is lost: {str(error).splitlines()[0]}") from None


def _is_whole(folder: Path) -> bool:
    try:
        read_checkpoint(folder)
    except InputError:
        return False
    return True


def _digest(contents: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
