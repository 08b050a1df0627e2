"""Digests of files and of our own source code: equal digests mean comparable results."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]  # of a checkout, or of what is installed
_PACKAGES = ("rllib_envs", "models")  # the world and the routers: all of them counts
_PART_BYTES = 1 << 20
_RUNS = "tuning.evaluation.matrix"  # everything else that a cell needs is imported by this module


def content_digest(paths: Sequence[Path]) -> str:
    """Hash files and all files in folders. It changes with every byte and every name in a folder."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
                with file.open("rb") as stream:
                    while part := stream.read(_PART_BYTES):  # a trace may be larger than memory
                        digest.update(part)
    return digest.hexdigest()


@cache
def code_digest() -> str:
    """Hash the source code that determines results. Equal in every process, from a checkout or installed.

    Raises:
        ImportError: a module that is imported has no source file.
    """
    digest = hashlib.sha256()
    for name, file in sorted(result_sources().items()):
        digest.update(f"{name}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def result_sources(root: Path = _ROOT) -> dict[str, Path]:
    """Find the source file of every module that results depend on, by following imports, also those within functions.

    Args:
        root: folder that our packages are in.

    Raises:
        ImportError: a module that is imported has no source file.
    """
    todo = [_RUNS]
    for package in _PACKAGES:
        files = sorted((root / package).rglob("*.py"))
        todo += [".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for file in files]
    found: dict[str, Path] = {}
    while todo:
        name = todo.pop()
        if name not in found:
            file = _source(root, name)
            if file is None:
                raise ImportError(f"{name}: no source file in {root}: results cannot be told from those of other code")
            found[name] = file
            todo += _imported(root, name, file)
    return found


def _imported(root: Path, name: str, file: Path) -> list[str]:
    """Our modules that a module imports, with their packages, without imports for type checkers."""
    tree = _WithoutTypes().visit(ast.parse(file.read_bytes()))
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    modules = [name]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            inner = [f"{base}.{alias.name}" for alias in node.names]
            modules += [base, *(module for module in inner if _is_ours(module) and _source(root, module))]
    parts = [module.split(".") for module in modules if _is_ours(module)]
    return [".".join(path[:length]) for path in parts for length in range(1, len(path) + 1)]


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in (*_PACKAGES, _RUNS.partition(".")[0])


def _source(root: Path, name: str) -> Path | None:
    path = root.joinpath(*name.split("."))
    candidates = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in candidates if file.is_file()), None)


class _WithoutTypes(ast.NodeTransformer):
    """Leaves out ``if TYPE_CHECKING:``."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return node.orelse
        return self.generic_visit(node)
