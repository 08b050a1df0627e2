"""Logs of a user's own models as prompts with outcomes: a row for each answer of a model to a prompt.

Such a log has the columns of ``answer_rows.NEEDED``, and those of ``OPTIONAL`` if it likes; any others are not read. A model that
was not run on a prompt has no row there, or one with empty cells.
"""

from __future__ import annotations

import math
from array import array
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.workload.answer_cells import Malformed, number_in, text_in
from rllib_envs.workload.answer_rows import AnswerRow, head_of, read_rows, unit_of
from rllib_envs.workload.lengths import MAX_TOKENS
from rllib_envs.workload.prompt_files import PromptFile, read_prompt_file
from rllib_envs.workload.trace_formats import short

MOST_MODELS = 512
MOST_ROWS, MOST_CELLS = 2**24, 2**25
"""Rows of a log, and its prompts times its models: with them it takes less than 2 GiB, but for its texts."""

MOST_TEXTS = 2**29
"""Characters of all prompts together."""

_SHOWN_ERRORS = 10
_CHARACTERS_OF_TOKEN = 4


def read_prompts(path: str) -> PromptFile:
    """Read prompts with the outcomes of models: the JSON lines of ``read_prompt_file``, or a log.

    A log is CSV, JSON lines (both plain or gzip) or Parquet, which its content says. It is read once until it is modified.
    Prompts and models have the order in which they come first. Without the column ``prompt_tokens`` a prompt has a token for each
    four characters.

    Raises:
        InputError: the file cannot be read, is too large, or has malformed rows. It names the first ten of them, one a line.
    """
    try:
        mtime_ns = Path(path).stat().st_mtime_ns
    except (OSError, ValueError):  # the reader says what is wrong
        mtime_ns = 0
    if _has_header(path):
        return read_prompt_file(path)
    return _read_log(path, mtime_ns)


@lru_cache(maxsize=4)
def _read_log(path: str, mtime_ns: int) -> PromptFile:  # mtime_ns: a modified file is a new entry of the cache
    log = _Log(path)
    try:
        for row in read_rows(path):
            log.add(row)
    except InputError as error:  # nothing behind it can be read
        log.refuse(str(error))
    log.note_twice()
    log.refuse()
    return log.prompt_file()


def _has_header(path: str) -> bool:
    """Whether it is JSON lines, but no log: the first line has no column of one."""
    line = head_of(path).removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    names = (b'"id"', b'"prompt"', b'"model"')
    return line.startswith(b"{") and (b'"models"' in line or b'"header"' in line or not any(name in line for name in names))


class _Log:
    """What has been read so far; 40 bytes a row beside the prompts."""

    def __init__(self, path: str) -> None:
        self._faults: list[str] = []
        self._more = 0  # of them
        self._path, self._unit = path, unit_of(path)
        self._prompts: dict[str, int] = {}
        self._models: dict[str, int] = {}
        self._texts: list[str] = []
        self._tasks: list[str] = []
        self._tokens: list[float] = []
        self._first: list[int] = []  # row of each prompt
        self._characters = 0
        self._prompt, self._model, self._row = array("q"), array("q"), array("q")
        self._score, self._length = array("d"), array("d")

    def add(self, row: AnswerRow) -> None:
        """Take a row, or note what is wrong with it.

        Raises:
            InputError: the log is too large.
        """
        if row.fault:
            return self._note(row.number, row.fault)
        try:
            prompt, model = self._prompt_of(row), self._model_of(row)
            score, length = number_in(row, "score", 1), number_in(row, "out_tokens", MAX_TOKENS)
        except Malformed as error:
            return self._note(row.number, str(error))
        for values, value in zip((self._prompt, self._model, self._row), (prompt, model, row.number), strict=True):
            values.append(value)
        self._score.append(score)
        self._length.append(length)
        if len(self._row) > MOST_ROWS:
            raise InputError(f"{self._path}: more than {MOST_ROWS:,} rows: give a part of them")
        if len(self._models) * len(self._texts) > MOST_CELLS:
            raise InputError(
                f"{self._path}: {len(self._texts):,} prompts and {len(self._models)} models: their product may be at most "
                f"{MOST_CELLS:,}: give a part of them"
            )
        return None

    def _note(self, row: int, what: str) -> None:
        if len(self._faults) < _SHOWN_ERRORS:
            self._faults.append(f"{self._path}: {self._unit} {row}: {what}")
        else:
            self._more += 1

    def _prompt_of(self, row: AnswerRow) -> int:
        prompt_id, text = text_in(row, "id"), text_in(row, "prompt", empty=True)
        task = text_in(row, "task", empty=True) if row.cells.get("task") is not None else ""
        tokens = number_in(row, "prompt_tokens", MAX_TOKENS) if "prompt_tokens" in row.cells else math.nan
        found = self._prompts.setdefault(prompt_id, len(self._texts))
        if found == len(self._texts):
            self._texts.append(text)
            self._tasks.append(task)
            self._tokens.append(tokens)
            self._first.append(row.number)
            self._characters += len(text)
            if self._characters > MOST_TEXTS:
                raise InputError(f"{self._path}: prompts of more than {MOST_TEXTS:,} characters: give a part of them")
        for column, value, first in (("prompt", text, self._texts[found]), ("task", task, self._tasks[found])):
            if value != first:
                known = f"as in {self._unit} {self._first[found]}, which has the same id: {short(first)!r}"
                raise Malformed(f"column {row.names[column]!r}: {short(value)!r} must be {known}")
        if math.isnan(self._tokens[found]):
            self._tokens[found] = tokens
        return found

    def _model_of(self, row: AnswerRow) -> int:
        found = self._models.setdefault(text_in(row, "model"), len(self._models))
        if len(self._models) > MOST_MODELS:
            raise InputError(
                f"{self._path}: {self._unit} {row.number}: more than {MOST_MODELS} models: column 'model' must name the "
                f"model that answered, as {short(next(iter(self._models)))!r} does"
            )
        return found

    def note_twice(self) -> None:
        """Note rows that answer a prompt with a model that has answered it."""
        keys = np.array(self._prompt) * MOST_MODELS + np.array(self._model)
        order = np.argsort(keys, kind="stable")
        again = np.flatnonzero(np.diff(keys[order]) == 0)
        prompts, models = list(self._prompts), list(self._models)
        for before, now in sorted(zip(order[again], order[again + 1], strict=True), key=lambda pair: int(pair[1])):
            prompt, model = prompts[self._prompt[now]], models[self._model[now]]
            self._note(
                self._row[now],
                f"columns 'id' and 'model': {short(prompt)!r} and {short(model)!r} must come once, but are in {self._unit} "
                f"{self._row[before]} too",
            )

    def refuse(self, fatal: str | None = None) -> None:
        """Refuse the log if a row is malformed.

        Args:
            fatal: why it was read no further.

        Raises:
            InputError: there are faults.
        """
        more = [f"{self._path}: {self._more:,} more rows are malformed"] if self._more else []
        lines = [*self._faults, *more, *([fatal] if fatal else [])]
        if not lines and not self._texts:
            lines = [f"{self._path}: no rows: a log has a row for each answer"]
        if lines:
            raise InputError("\n".join(lines))

    def prompt_file(self) -> PromptFile:
        """What has been read."""
        tokens = [
            len(text) / _CHARACTERS_OF_TOKEN if math.isnan(n) else n for text, n in zip(self._texts, self._tokens, strict=True)
        ]
        return PromptFile(
            path=self._path,
            models=tuple(self._models),
            ids=tuple(self._prompts),
            tasks=tuple(self._tasks),
            texts=tuple(self._texts),
            prompt_tokens=np.maximum(tokens, 1).astype(np.int32),
            score=self._placed(self._score),
            output_tokens=self._placed(self._length),
            predicted=MappingProxyType({}),
        )

    def _placed(self, values: array[float]) -> NDArray[np.float64]:
        table = np.full((len(self._texts), len(self._models)), np.nan)
        table[np.array(self._prompt), np.array(self._model)] = values
        return table
