"""A file system for Ray Tune that returns only Tune state that this process wrote or started with.

Tune's state is pickles. Tune keeps it beside the trials, where others may be able to write.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

import pyarrow
from pyarrow.fs import FileInfo, FileType, FSSpecHandler

State = Mapping[str, bytes]
"""Name in Tune's folder -> contents."""


class OwnState(FSSpecHandler):
    """Wraps an fsspec file system. Files other than Tune's state pass through unchanged.

    A copy in another process is the bare file system, as only this process reads state.

    Args:
        fs: fsspec's file system.
        folder: Tune's folder on it.
        known: the state that Tune may read at first.
        keep: is called with the state before every change. Its errors reach Tune.
    """

    def __init__(self, fs: Any, folder: str, known: State, keep: Callable[[State], None]) -> None:
        super().__init__(fs)
        self._folder, self._known, self._keep = posixpath.normpath(folder), known, keep
        self._lock = Lock()  # Tune writes from several threads

    def __reduce__(self) -> tuple[Any, ...]:
        return FSSpecHandler, (self.fs,)

    def __deepcopy__(self, memo: Any) -> OwnState:
        return self

    def get_file_info(self, paths: list[str]) -> Any:
        """File info; unknown files of the state do not exist."""
        return [self._info(info) for info in super().get_file_info(paths)]

    def get_file_info_selector(self, selector: Any) -> Any:
        """File info of all files in a folder."""
        found = [info for info in super().get_file_info_selector(selector) if self._info(info) is info]
        if posixpath.normpath(selector.base_dir) == self._folder:
            paths = [posixpath.join(self._folder, name) for name in self._known if "/" not in name]
            found += [self._info(FileInfo(path, FileType.File)) for path in paths]
        return found

    def open_input_stream(self, path: str) -> Any:
        """Open a file to read, from memory if it is part of the state."""
        return self._open(path, super().open_input_stream)

    def open_input_file(self, path: str) -> Any:
        """The same."""
        return self._open(path, super().open_input_file)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        """Open a file to write; one of the state is kept in memory too."""
        name = self._state(path)
        if name is None:
            return super().open_output_stream(path, metadata)
        return pyarrow.PythonFile(_Remembered(lambda data: self._remember(name, path, data)), mode="w")

    def _remember(self, name: str, path: str, data: bytes) -> None:
        with self._lock:
            if self._known.get(name) != data:
                known = {**self._known, name: data}
                self._keep(known)  # first: a sweep can resume from any state there
                self._known = known
        self.fs.pipe_file(path, data)

    def _state(self, path: str) -> str | None:
        """The name in Tune's folder of a file of the state; None for others."""
        path = posixpath.normpath(path)
        name = path.removeprefix(f"{self._folder}/")
        return name if name != path and is_state(name) else None

    def _info(self, info: Any) -> Any:
        name = self._state(info.path)
        if name is None or info.type == FileType.Directory:
            return info
        data = self._known.get(name)
        return FileInfo(info.path, FileType.NotFound) if data is None else FileInfo(info.path, FileType.File, size=len(data))

    def _open(self, path: str, otherwise: Callable[[str], Any]) -> Any:
        name = self._state(path)
        if name is None:
            return otherwise(path)
        if name not in self._known:
            raise FileNotFoundError(path)
        return pyarrow.PythonFile(io.BytesIO(self._known[name]), mode="r")


def is_state(name: str) -> bool:
    """Whether a file belongs to Tune's state: all outside trials' folders, and what may be unpickled inside them."""
    return "/" not in name or name.endswith(".pkl")


class _Remembered(io.BytesIO):
    """Hands over what was written when it is closed."""

    def __init__(self, hand_over: Callable[[bytes], None]) -> None:
        super().__init__()
        self._hand_over = hand_over

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            self._hand_over(data)
