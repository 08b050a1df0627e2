"""Experiment tracking with Weights & Biases, on request: ``--track wandb``.

A tracker never stops a command. Without a key or a connection it writes to the disk for a later upload. If wandb fails, it warns
once and the command continues without tracking. wandb is imported only on request.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import secrets
import shlex
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from rllib_envs.errors import InputError
from rllib_envs.json_files import read_json
from tuning.run_dir.atomic import write_text
from tuning.run_dir.digests import code_digest
from tuning.run_dir.secret_urls import without_secrets

_ROOT = Path(__file__).resolve().parents[2]
_PROJECT = "edgeroute"
_RUN_ID = "wandb-id"  # file of the run directory
_TAG_LENGTH = 64  # wandb's own limits
_PROJECT_LENGTH, _NOT_IN_PROJECTS = 128, r"/\#?%:"
_CONNECT_S = 3.0
_INIT_S = 15.0  # of wandb.init, once there is a connection
_FINISH_S = 120.0  # of the upload of what is left when a run ends
_STEP = "step"
_DIGITS = 12  # of a digest that is part of a name


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackOptions:
    """Options of experiment tracking. A key is never an option: wandb login or WANDB_API_KEY give it."""

    track: Literal["none", "wandb"] = "none"
    """wandb: log to Weights & Biases. Without a key or a connection it logs to the run's folder, for wandb sync."""
    wandb_project: str | None = None
    """Project. Default: WANDB_PROJECT, else edgeroute."""
    wandb_group: str | None = None
    """Group of runs. Default: WANDB_RUN_GROUP, if set."""
    wandb_tags: tuple[str, ...] = ()
    """Tags. Default: WANDB_TAGS, if set."""
    wandb_notes: str | None = None
    """Notes. Default: WANDB_NOTES, if set."""

    def __post_init__(self) -> None:
        """Refuse values that wandb would refuse.

        Raises:
            InputError: an impossible project or tag.
        """
        project = self.wandb_project
        if project is not None and not (0 < len(project) <= _PROJECT_LENGTH and not set(project) & set(_NOT_IN_PROJECTS)):
            raise InputError(
                f"wandb-project = {project!r}: must have 1 to {_PROJECT_LENGTH} characters, none of {' '.join(_NOT_IN_PROJECTS)}"
            )
        for tag in self.wandb_tags:
            if not 0 < len(tag) <= _TAG_LENGTH:
                raise InputError(f"wandb-tags: {tag!r}: must have 1 to {_TAG_LENGTH} characters")


class Tracker:
    """The interface that a command logs to. This class logs nothing: it is the tracker without ``--track``."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers, by keys such as ``train/qos``, at a step; non-finite ones are left out."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table; a column holds values of one type or None, and NaN counts as None."""

    def image(self, name: str, path: Path) -> None:
        """Log a picture."""

    def artifact(
        self, folder: Path, name: str, kind: str, *, metadata: Mapping[str, Any] | None = None, aliases: Sequence[str] = ()
    ) -> None:
        """Log a folder as a version of an artifact with the alias ``latest``; equal contents are one version."""

    def use_artifact(self, name: str, kind: str) -> None:
        """Record that the run uses an artifact, ``NAME:ALIAS``: as a link if online, and always in the config."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Log the final results of the run."""

    def finish(self, exit_code: int) -> None:
        """End the run; later calls are ignored. ``tracker`` does it with 0, or 1 after an error, if nobody did before."""


NO_TRACKER = Tracker()
ROUTER = "router"
"""Kind of the artifacts that are bundles."""


@contextmanager
def tracker(
    options: TrackOptions, *, folder: Path, name: str, job_type: str, config: Mapping[str, Any], resume: bool = False
) -> Generator[Tracker]:
    """Track one run while the context lasts. Several may be open at the same time.

    Args:
        options: what the user asked for.
        folder: of the run; wandb's files go to ``folder/wandb`` unless WANDB_DIR says otherwise, the run's id to a file beside.
        name: what the run is called, unless WANDB_NAME says otherwise.
        job_type: what kind of run it is: train, evaluate, ...
        config: what determines the run; values that JSON lacks, such as paths, are logged as text.
        resume: resume the run whose id is in the folder, if there is one.
    """
    found = NO_TRACKER
    if options.track == "wandb":
        try:
            found = _start(options, folder, name, job_type, config, resume)
        except Exception as error:  # wandb's own errors have no common base, and none may cost a training run
            _say(f"wandb does not start, nothing is tracked: {_first_line(error)}")
    try:
        yield found
    except BaseException:
        found.finish(1)
        raise
    found.finish(0)


def provenance() -> dict[str, str]:
    """Version of this software: version, digest of the code that determines results, revision of a checkout."""
    about = {"code_digest": code_digest()}
    with suppress(PackageNotFoundError):  # a checkout that is not installed
        about["version"] = version("edgeroute")
    if (_ROOT / ".git").exists():
        command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with suppress(OSError, subprocess.SubprocessError):  # no git, or a checkout that it does not trust
            about["git_revision"] = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
            ).stdout.strip()
    return about


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleName:
    """The artifact name of a bundle. It follows from the contents, so an evaluation links to the training run."""

    name: str
    alias: str  # by the weights
    about: dict[str, Any]  # where the router comes from

    @property
    def reference(self) -> str:
        """NAME:ALIAS."""
        return f"{self.name}:{self.alias}"


def bundle_name(bundle: Path) -> BundleName:
    """The name of a bundle.

    Raises:
        InputError: the folder holds none.
    """
    where = bundle / "router.json"
    contents = read_json(where)
    try:
        about, digest = dict(contents["about"]), str(contents["sha256"]["router.safetensors"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{where}: not the description of a bundle") from None
    scenario = re.sub(r"[^\w.-]+", "-", str(about.get("scenario", "unknown")))
    return BundleName(name=f"router-{scenario}", alias=f"weights-{digest[:_DIGITS]}", about=about)


class _WandbTracker(Tracker):
    """Reports to a run of wandb until it first fails."""

    def __init__(self, wandb: Any, run: Any, data_dir: Path) -> None:
        self._wandb, self._run, self._data_dir = wandb, run, data_dir
        self._offline: bool = run.settings.mode == "offline"
        self._used: list[str] = []
        self._on = True
        self._try(lambda: run.define_metric("*", step_metric=_STEP))  # a resumed run may report a step again

    def log(self, values: Mapping[str, float], step: int) -> None:
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        self._try(lambda: self._run.log({**finite, _STEP: step}))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        data = [[None if isinstance(x, float) and math.isnan(x) else x for x in row] for row in rows]
        self._try(lambda: self._run.log({name: self._wandb.Table(columns=list(columns), data=data)}))

    def image(self, name: str, path: Path) -> None:
        self._try(lambda: self._run.log({name: self._wandb.Image(str(path))}))

    def artifact(
        self, folder: Path, name: str, kind: str, *, metadata: Mapping[str, Any] | None = None, aliases: Sequence[str] = ()
    ) -> None:
        def upload() -> None:
            made = self._wandb.Artifact(name, kind, metadata=dict(metadata or {}))
            made.add_dir(str(folder))
            self._run.log_artifact(made, aliases=["latest", *aliases])

        self._try(upload)

    def use_artifact(self, name: str, kind: str) -> None:
        self._used.append(name)
        self._try(lambda: self._run.config.update({"artifacts": self._used}, allow_val_change=True))
        if self._on and not self._offline:
            try:
                self._run.use_artifact(name, type=kind)
            except Exception as error:  # not in this project, or not any more: no reason to report nothing else
                _say(f"wandb does not know the artifact {name}: {_first_line(error)}")

    def summary(self, values: Mapping[str, Any]) -> None:
        self._try(lambda: self._run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        self._try(lambda: self._run.finish(exit_code=exit_code))
        self._on = False

    def _try(self, act: Callable[[], object]) -> None:
        """Call wandb; after its first error no more calls are made."""
        if not self._on:
            return
        try:
            with _environment(WANDB_DATA_DIR=str(self._data_dir)):  # of copies of files that wait to be uploaded
                act()
        except Exception as error:  # as in ``tracker``
            self._on = False
            _say(f"wandb fails, nothing more is tracked: {_first_line(error)}; {_sync(self._run)} uploads what there is")


def _start(options: TrackOptions, folder: Path, name: str, job_type: str, config: Mapping[str, Any], resume: bool) -> Tracker:
    """Begin a run of wandb, online if possible.

    Raises:
        Exception: whatever wandb raises, or the operating system.
    """
    # wandb reads these once, when it is first used: no messages of its own, and none about its failures to its makers, which
    # would be one more connection to wait for.
    for key, value in {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}.items():
        os.environ.setdefault(key, value)
    import wandb
    from wandb.sdk import wandb_setup

    usual = wandb_setup.singleton().settings  # the user's, from the environment and from wandb's files
    if usual.mode == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return NO_TRACKER
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / _RUN_ID
    run_id = id_file.read_text(encoding="utf-8").strip() if resume and id_file.exists() else usual.run_id or secrets.token_hex(4)
    write_text(id_file, run_id + "\n")

    def begin(mode: Literal["online", "offline"]) -> Any:
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_git=True,  # the revision is in the config; the address of a repository may hold a password
            disable_code=True,
            init_timeout=_INIT_S,
            finish_timeout=_FINISH_S,
            finish_timeout_raises=True,
            mode=mode,
        )
        with _shown_arguments():
            return wandb.init(
                id=run_id,
                resume="allow",
                reinit="create_new",
                project=options.wandb_project or usual.project or _PROJECT,
                group=options.wandb_group,
                tags=options.wandb_tags or None,
                notes=options.wandb_notes,
                name=usual.run_name or name,
                job_type=usual.run_job_type or job_type,
                dir=None if "WANDB_DIR" in os.environ else str(folder),
                config=_hidden(json.loads(json.dumps(dict(config), default=str))),
                settings=settings,
            )

    reason = _why_offline(usual)
    if reason is None:
        try:
            run = begin("online")
        except Exception as error:  # a key that is not accepted, a server that does not answer
            reason = _first_line(error)
            if wandb_setup.singleton().most_recent_active_run is None:
                wandb.teardown()  # or the id counts as in use
            run = begin("offline")
    else:
        run = begin("offline")
    if reason is None:
        _say(f"tracked at {run.url}")
    else:
        _say(f"wandb is offline ({reason}): {_sync(run)} uploads the run later")
    data_dir = Path(os.environ.get("WANDB_DATA_DIR", Path(run.settings.wandb_dir) / "data")).absolute()
    return _WandbTracker(wandb, run, data_dir)


def _sync(run: Any) -> str:
    """The command that uploads a run that was offline, to be pasted."""
    return shlex.join(["wandb", "sync", str(run.settings.sync_dir)])


def _why_offline(settings: Any) -> str | None:
    """Why a run cannot be online; None if it can, as far as a quick check tells."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    if settings.mode in ("offline", "dryrun"):
        return "as WANDB_MODE asks"
    try:
        key = wbauth.authenticate_session(host=settings.base_url, source="edgeroute", prompt=False, update_session=False)
    except AuthenticationError as error:
        return _first_line(error)
    if key is None:
        return "no API key: neither wandb login nor WANDB_API_KEY"
    return _why_unreachable(settings.base_url)


def _why_unreachable(url: str) -> str | None:
    """Why there is no connection to a server, or to the proxy before it, within some seconds; None if there is one."""
    address = urlsplit(url)
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    host, port = address.hostname or "", address.port or {"http": 80}.get(address.scheme, 443)
    answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_S).close()
            answer.put(None)
        except OSError as error:
            answer.put(f"{host}: {error.strerror or error}")

    threading.Thread(target=connect, daemon=True).start()  # looking up a name has no timeout of its own
    try:
        return answer.get(timeout=_CONNECT_S)
    except queue.Empty:
        return f"{host}: no answer in {_CONNECT_S:g} s"


@contextmanager
def _environment(**values: str) -> Generator[None]:
    """Set environment variables within a context, for settings that wandb takes in no other way."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


@contextmanager
def _shown_arguments() -> Generator[None]:
    """Hide secrets in the command line within a context, as wandb stores it with the run."""
    before = sys.argv
    sys.argv = [without_secrets(argument) for argument in before]
    try:
        yield
    finally:
        sys.argv = before


def _hidden(value: Any) -> Any:
    """JSON data with the secrets in its URLs hidden."""
    if isinstance(value, dict):
        return {key: _hidden(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_hidden(inner) for inner in value]
    return without_secrets(value) if isinstance(value, str) and "://" in value else value


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _say(text: str) -> None:
    print(f"edgeroute: {text}", file=sys.stderr, flush=True)
