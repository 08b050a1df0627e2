"""User functions named as ``python:FILE.py:FUNCTION``: routers and arrival processes outside the package.

Loading such a function runs the file. So the name is accepted only on the command line and from Python. Scenario files and other
data that contain one are refused when they are read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from rllib_envs.errors import InputError

PREFIX = "python:"
_FORM = re.compile(r"python:(?P<file>.+?\.py):(?P<function>[^\W\d]\w*)(?::(?P<rest>.*))?")


class OwnName(NamedTuple):
    """A function in a file, and the text after it."""

    file: Path
    function: str
    rest: str | None  # text after a further colon; None: no further colon

    @property
    def text(self) -> str:
        """The name, without ``rest``."""
        return f"{PREFIX}{self.file}:{self.function}"


def parse_own(text: str, what: str) -> OwnName:
    """Parse a name without running any code.

    Args:
        text: the user's input.
        what: what it names, for messages.

    Raises:
        InputError: it is not of the form.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise InputError(f"{what} {text!r}: must be {PREFIX}FILE.py:FUNCTION, as in {PREFIX}mine.py:route")
    return OwnName(Path(found["file"]), found["function"], found["rest"])


def load_own(name: OwnName, what: str) -> Callable[..., Any]:
    """Run the file, once for each version of its content, and return its function.

    The file's folder is not added to the import path: the file can import installed packages, but not its neighbours.

    Args:
        name: of the function.
        what: what it is, for messages.

    Raises:
        InputError: no such file, an error while it runs, or no such function in it.
    """
    where = f"{what} {name.text!r}"
    if not name.file.is_file():
        raise InputError(f"{where}: no such file: {name.file}")
    module = _run(name.file.resolve(), hashlib.sha256(name.file.read_bytes()).hexdigest()[:12], where)
    function = getattr(module, name.function, None)
    if not callable(function) or inspect.isclass(function):
        known = [key for key, value in vars(module).items() if callable(value) and not inspect.isclass(value)]
        near = get_close_matches(name.function, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{where}: {name.file} has no function {name.function!r}{hint}")
    return function


@lru_cache(maxsize=64)
def _run(file: Path, digest: str, where: str) -> ModuleType:
    module_name = f"own_{file.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        at = "" if line is None else f", line {line}"
        raise InputError(f"{where}: {file}{at}: {type(error).__name__}: {error}") from None
    return module
