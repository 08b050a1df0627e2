"""The remote copy of a run directory: in a shared folder, an object store, or wherever fsspec has a driver.

A reader never finds a partial checkpoint that looks whole: ``checkpoint.json`` is written last and deleted first.
"""

from __future__ import annotations

import os
import posixpath
import secrets
from collections.abc import Collection, Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, cast

from models.export.files import staged_folder
from models.export.names import inner_name, inner_path
from models.rllib.checkpoint import ABOUT, CHECKPOINTS, is_number, numbered_checkpoints, whole_checkpoint
from rllib_envs.errors import InputError
from tuning.run_dir.atomic import write_atomically
from tuning.run_dir.lock import LOCK
from tuning.run_dir.secret_urls import has_secret, told, without_secrets

_PART = ".part"  # suffix of staged files
_SMALL_BYTES = 2**24
_Stamp = tuple[int, int]


class RemoteCopy:
    """The remote copy of a run directory at a URL, in a folder of the same name.

    Args:
        url: folder that the copy is in; a path or a URL of fsspec's.
        run_dir: run directory.
        config: file of it that says what the run is.
        leave_out: its files and folders that are not copied, beside hidden ones and the lock.

    Attributes:
        place: where the copy is, without user name and password.

    Raises:
        InputError: there is no such protocol, its driver is not installed, or the place cannot be written to.
    """

    def __init__(self, url: str, run_dir: Path, *, config: str, leave_out: Collection[str] = ()) -> None:
        name = run_dir.absolute().name
        self.place = f"{without_secrets(url).rstrip('/')}/{name}"
        self._url = url
        self.filesystem, root = _filesystem(url)
        self.root = posixpath.join(root, name)
        self._run_dir, self._config, self._leave_out = run_dir, config, {LOCK, *leave_out}
        self._sent: dict[str, _Stamp] = {}
        with self._reported("cannot be written to"):
            probe = posixpath.join(self.root, f".probe-{secrets.token_hex(4)}")
            self.filesystem.makedirs(self.root, exist_ok=True)
            self.filesystem.pipe_file(probe, b"")
            self.filesystem.rm_file(probe)

    def put(self) -> None:
        """Update the copy: upload new and changed files, and delete checkpoints that are gone here.

        Raises:
            InputError: it fails; what was there before is still whole, and the next call tries again.
        """
        with self._reported("cannot be brought up to date"):
            for path in self._files():
                self._send(path)
            for folder in numbered_checkpoints(self._run_dir):
                if self._read(folder / ABOUT) != (folder / ABOUT).read_bytes():
                    self._send_checkpoint(folder)
            here = {folder.name for folder in numbered_checkpoints(self._run_dir)}
            for name in self._names(CHECKPOINTS):
                if name not in here:
                    self._remove_checkpoint(name)

    def holds_run(self) -> bool:
        """Whether the copy holds a run.

        Raises:
            InputError: it cannot be told.
        """
        with self._reported("cannot be read"):
            return self.filesystem.exists(self._remote(self._run_dir / self._config))

    def fetch(self) -> None:
        """Update the run directory from the copy, if that has a newer checkpoint than the newest whole one here.

        Checkpoints are fetched unchecked; whoever reads them checks them.

        Raises:
            InputError: the copy cannot be read, or is of another run.
        """
        with self._reported("cannot be fetched"):
            config = self._read(self._run_dir / self._config)
            own = self._run_dir / self._config
            if config is None:
                return
            if own.exists() and own.read_bytes() != config:
                raise InputError(
                    f"{self.place}: holds another run than {self._run_dir}: their {self._config} differ: name another folder or "
                    "storage"
                )
            newer = [name for name in self._complete() if name > self._newest()]
            if newer or not own.exists():
                for name in newer:
                    self._fetch_checkpoint(name)
                self._fetch_files()

    def fetch_folder(self, name: str) -> None:
        """Fetch a folder of the copy that other processes write.

        Raises:
            InputError: it cannot be read.
        """
        with self._reported("cannot be fetched"):
            for path in self._found(self._run_dir / name):
                self._fetch_file(self._inner(path))

    def read(self, name: str, most: int) -> bytes | None:
        """Read a file of the copy that is written there directly, or its first bytes; None if there is none.

        Raises:
            InputError: it cannot be read.
        """
        with self._reported("cannot be read"):
            return self._read(self._run_dir / name, most)

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the copy directly and atomically.

        Raises:
            InputError: it cannot be written.
        """
        with self._reported("cannot be written to"):
            path = self._remote(self._run_dir / name)
            self.filesystem.pipe_file(path + _PART, data)
            self.filesystem.mv(path + _PART, path)

    def shared(self, name: str) -> tuple[str, Any]:
        """Path of a folder of the copy and its fsspec file system, for other processes.

        Raises:
            InputError: other processes would not see it, or its URL holds a secret, which Ray would write to its files.
        """
        if "memory" in self.filesystem.protocol:
            raise InputError(f"storage {self.place}: other processes do not see it")
        if has_secret(self._url):
            raise InputError(
                f"storage {self.place}: Ray would write the secret in this URL to files: give it to the driver in its own way"
            )
        return posixpath.join(self.root, name), self.filesystem

    def _files(self) -> list[Path]:
        """Files to copy beside checkpoints, without links and hidden files."""
        found: list[Path] = []
        for folder, folders, names in os.walk(self._run_dir):
            within = Path(folder) == self._run_dir
            skipped = {CHECKPOINTS, *self._leave_out} if within else set[str]()
            folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skipped)
            found += [Path(folder) / name for name in sorted(names) if not name.startswith(".") and name not in skipped]
        return [path for path in found if path.is_file() and not path.is_symlink()]

    def _send(self, path: Path) -> None:
        """Upload a file atomically if it has changed since the last upload."""
        name, status = self._remote(path), path.stat()
        stamp = (status.st_size, status.st_mtime_ns)
        if self._sent.get(name) == stamp:
            return
        self.filesystem.makedirs(posixpath.dirname(name), exist_ok=True)
        self.filesystem.put_file(str(path), name + _PART)
        self.filesystem.mv(name + _PART, name)
        self._sent[name] = stamp

    def _send_checkpoint(self, folder: Path) -> None:
        self._remove_checkpoint(folder.name)
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / ABOUT):
            name = self._remote(path)
            self.filesystem.makedirs(posixpath.dirname(name), exist_ok=True)
            self.filesystem.put_file(str(path), name)
        self._send(folder / ABOUT)

    def _remove_checkpoint(self, name: str) -> None:
        folder = self._remote(self._run_dir / CHECKPOINTS / name)
        about = posixpath.join(folder, ABOUT)
        if self.filesystem.exists(about):
            self.filesystem.rm_file(about)
        if self.filesystem.exists(folder):
            self.filesystem.rm(folder, recursive=True)
        self._sent = {sent: stamp for sent, stamp in self._sent.items() if not sent.startswith(f"{folder}/")}

    def _fetch_checkpoint(self, name: str) -> None:
        target = inner_path(self._run_dir, f"{CHECKPOINTS}/{name}", self.place)
        with staged_folder(target) as staged:
            for path in self._found(target):
                local = inner_path(staged, self._inner(path).relative_to(CHECKPOINTS, name).as_posix(), self.place)
                local.parent.mkdir(parents=True, exist_ok=True)
                self.filesystem.get_file(path, str(local))

    def _fetch_files(self) -> None:
        """Fetch all files but checkpoints and those never uploaded: hidden files, the lock, staged files."""
        for name in [self._inner(path) for path in self._found(self._run_dir)]:
            hidden = any(part.startswith(".") for part in name.parts)
            if not hidden and name.parts[0] not in (CHECKPOINTS, *self._leave_out) and name.suffix != _PART:
                self._fetch_file(name)

    def _fetch_file(self, name: PurePosixPath) -> None:
        local = inner_path(self._run_dir, name.as_posix(), self.place)
        write_atomically(local, lambda staged: self.filesystem.get_file(posixpath.join(self.root, name), str(staged)))

    def _inner(self, path: str) -> PurePosixPath:
        """The name of a file below the copy. Storages may hold any key, also one that leads out of a folder.

        Raises:
            InputError: it does not stay within the folder.
        """
        return inner_name(path.removeprefix(f"{self.root}/"), f"storage {self.place}")

    def _newest(self) -> str:
        """Name of the newest checkpoint here that is whole; "" if there is none."""
        try:
            return whole_checkpoint(self._run_dir)[0].name
        except InputError:
            return ""

    def _complete(self) -> list[str]:
        """Names of the checkpoints there that have all their files, the oldest first."""
        folder = posixpath.join(self.root, CHECKPOINTS)
        return [name for name in self._names(CHECKPOINTS) if self.filesystem.exists(posixpath.join(folder, name, ABOUT))]

    def _names(self, folder: str) -> list[str]:
        """Numbered names in a folder there."""
        try:
            found = self.filesystem.ls(posixpath.join(self.root, folder), detail=False)
        except FileNotFoundError:
            return []
        names = [posixpath.basename(cast(str, path).rstrip("/")) for path in found]
        return sorted(name for name in names if is_number(name))

    def _found(self, folder: Path) -> list[str]:
        """All files below the copy of a folder."""
        return cast(list[str], self.filesystem.find(self._remote(folder)))

    def _read(self, path: Path, most: int = _SMALL_BYTES) -> bytes | None:
        """Read the copy of a small file, or the beginning of a larger one; None if there is none."""
        try:
            return cast(bytes, self.filesystem.cat_file(self._remote(path), end=most))
        except FileNotFoundError:
            return None

    def _remote(self, path: Path) -> str:
        return posixpath.join(self.root, *path.relative_to(self._run_dir).parts)

    @contextmanager
    def _reported(self, what: str) -> Generator[None]:
        try:
            self.filesystem.invalidate_cache()  # others write there too
            yield
        except InputError:
            raise
        except Exception as error:  # drivers raise errors of their own, which have no common base
            raise InputError(f"storage {self.place}: {what}: {told(error, self._url)}") from None


def _filesystem(url: str) -> tuple[Any, str]:
    """The file system of fsspec's for a URL, and the path in it.

    Raises:
        InputError: there is none.
    """
    import fsspec  # here: most runs need none

    try:
        filesystem, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise InputError(f"storage {without_secrets(url)!r}: a driver is missing: {told(error, url)}") from None
    except Exception as error:  # a driver that connects at once raises errors of its own
        raise InputError(f"storage {without_secrets(url)!r}: cannot be used: {told(error, url)}") from None
    return filesystem, path.rstrip("/")
