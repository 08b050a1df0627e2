"""Files of prompts with the results of models: the format of the ZeroEval extract, and the split by prompt."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.json_files import parse_json
from rllib_envs.workload.lengths import MAX_TOKENS

PREDICTED_KEYS: Mapping[str, int] = {"predicted_score": 1, "predicted_tokens": MAX_TOKENS, "predicted_log_sd": 10}
"""Keys of a file's prompts for the values of a predictor, with the most that each may be."""

TRAIN_SHARE = 0.7
"""Share of a file's prompts in the train split."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptFile:
    """P prompts with the results of A models: a file in the format of the ZeroEval extract."""

    path: str
    models: tuple[str, ...]  # A names
    ids: tuple[str, ...]  # P
    tasks: tuple[str, ...]  # P
    texts: tuple[str | None, ...]  # P: of the prompts, where the file has them
    prompt_tokens: NDArray[np.int32]  # (P,)
    score: NDArray[np.float64]  # (P, A) in [0, 1], NaN where not run
    output_tokens: NDArray[np.float64]  # (P, A), NaN where not run
    predicted: Mapping[str, NDArray[np.float64]]  # PREDICTED_KEYS that it has -> (P, A), NaN where nothing is predicted
    classes: tuple[str, ...] = ()  # P: names of service classes whose requests they are; (): of any


def in_train_split(prompt_id: str) -> bool:
    """Whether a prompt belongs to the train split: fixed by its id, the same for every file, machine and run."""
    digest = hashlib.blake2b(prompt_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) < TRAIN_SHARE * 2**64


def read_prompt_file(path: str) -> PromptFile:
    """Read a JSONL file, plain or gzip; parsed once until it is modified.

        First line ``{"header": true, "models": [A names]}``; then for each prompt ``id``, ``task``, ``prompt_tokens`` and, in the
    models' order, ``correct`` (0 to 1) and ``out_tokens``, null where a model was not run. Each of ``PREDICTED_KEYS`` may stand
    in every line, in the same form. ``prompt`` is the text, for those who predict from it. ``class`` names the service class
    that a prompt belongs to; it stands in every line or in none. Other keys are ignored.

    Raises:
        InputError: the file cannot be read, or a line has another form: names file, line, column of bad JSON, and field.
    """
    try:
        mtime_ns = Path(path).stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return _parse(path, mtime_ns)


@lru_cache(maxsize=4)
def _parse(path: str, mtime_ns: int) -> PromptFile:  # mtime_ns: a modified file is a new entry of the cache
    records = _records(path)
    where, header = next(records, (path, {}))
    models = header.get("models")
    if header.get("header") is not True or not isinstance(models, list) or not models or len(set(map(str, models))) < len(models):
        raise InputError(f'{where}: not a header: the first line must be {{"header": true, "models": [different names]}}')
    width = len(cast(list[object], models))
    rows = [(where, _text(record, "id", where), _text(record, "task", where), record) for where, record in records]
    if not rows:
        raise InputError(f"{path}: no prompts after the header")
    prompts = [_cell(record.get("prompt_tokens"), MAX_TOKENS, f"{where}: prompt_tokens") for where, _, _, record in rows]
    classed = any("class" in record for _, _, _, record in rows)
    return PromptFile(
        path=path,
        models=tuple(map(str, cast(list[object], models))),
        ids=tuple(prompt_id for _, prompt_id, _, _ in rows),
        tasks=tuple(task for _, _, task, _ in rows),
        texts=tuple(text if isinstance(text := record.get("prompt"), str) else None for _, _, _, record in rows),
        prompt_tokens=np.maximum(prompts, 1).astype(np.int32),
        score=np.array([_cells(record, "correct", width, 1, where) for where, _, _, record in rows]),
        output_tokens=np.array([_cells(record, "out_tokens", width, MAX_TOKENS, where) for where, _, _, record in rows]),
        predicted=MappingProxyType(
            {
                key: np.array([_cells(record, key, width, high, where) for where, _, _, record in rows])
                for key, high in PREDICTED_KEYS.items()
                if any(key in record for _, _, _, record in rows)
            }
        ),
        classes=tuple(_text(record, "class", where) for where, _, _, record in rows) if classed else (),
    )


def _records(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) for each line that is not blank."""
    try:
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable JSONL file, plain or gzip: {error}") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        record = parse_json(line, path, number)
        if not isinstance(record, dict):
            raise InputError(f"{path}:{number}: {line.strip()[:60]!r} is not a JSON object")
        yield f"{path}:{number}", cast(dict[str, Any], record)


def _text(record: dict[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str):
        raise InputError(f"{where}: {field} = {value!r}: must be a string")
    return value


def _cells(record: dict[str, Any], field: str, width: int, high: int, where: str) -> list[float]:
    values = record.get(field)
    if not isinstance(values, list) or len(cast(list[object], values)) != width:
        raise InputError(f"{where}: {field} must be a list of {width} numbers or nulls, one for each model of the header")
    cells = enumerate(cast(list[object], values))
    return [np.nan if value is None else _cell(value, high, f"{where}: {field}[{i}]") for i, value in cells]


def _cell(value: object, high: int, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise InputError(f"{what} = {value!r}: must be a number from 0 to {high}")
    return float(value)
