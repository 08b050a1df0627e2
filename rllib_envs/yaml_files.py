"""YAML from users and for users: plain data, parsed in the same way everywhere.

The parser accepts mappings, lists, text, numbers, true, false and null, in the core schema of YAML 1.2 without its octal and
hexadecimal integers. So ``1e-4`` is a number. ``yes``, ``010``, ``1:30``, ``1_000`` and ``2025-01-01`` are text; fields of other
types refuse them. Keys are text, unique within their mapping. Tags (``!!int``) are refused. Aliases and merge keys (``<<``) may
repeat earlier values, within the limit on the values of a file.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, cast

import yaml

from rllib_envs.errors import InputError
from rllib_envs.text_files import read_text

MOST_BYTES = 2**19
"""Largest file that is read. A scenario of 256 experts has 130,000 bytes."""

MOST_VALUES = 40_000
"""Most values and keys in a file; each use of an alias counts its values again. A scenario of 256 experts has 25,000."""

MOST_LEVELS = 50
"""Deepest nesting."""

_MOST_DIGITS = 18  # integers fit in 64 bits
_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?((\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)")
_BREAKS = re.compile("[\x85\u2028\u2029]")
_MERGE = "<<"


def read_mapping(path: Path, of: str) -> dict[str, Any]:
    """Read a YAML file that must be a mapping.

    Args:
        path: file.
        of: contents of the mapping, for messages.

    Raises:
        InputError: it cannot be read, is not accepted YAML, or is not a mapping; names file, and line and column.
    """
    data = parse_yaml(read_text(path, MOST_BYTES), str(path))
    if not isinstance(data, dict):
        raise InputError(f"{path}: {'is empty' if data is None else 'is no mapping'}: must be a mapping of {of}")
    return cast(dict[str, Any], data)


def parse_yaml(text: str, where: str) -> Any:
    """Parse one YAML document to plain data; ``where`` says where it was read, for messages.

    Raises:
        InputError: it is not accepted YAML.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _value(node)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"{where}:{line}: not YAML: character {error.character:#06x} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = "" if mark is None else f":{mark.line + 1}:{mark.column + 1}"
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        raise InputError(f"{where}{at}: not YAML: {' '.join(problem.split())}") from None


def dump_yaml(data: Any) -> str:
    """Write plain data as YAML, in the order of its keys; ``parse_yaml`` reads it back to the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Refused(yaml.MarkedYAMLError):
    """YAML that the parser does not accept."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """Composes nodes within the limits. ``_value`` turns them into values, not PyYAML's constructors."""

    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 (PyYAML's own declaration)

    def __init__(self, text: str) -> None:
        self._level = 0
        self._count = 0
        self._counts: dict[int, int] = {}  # number of values in each complete node, by its identity
        super().__init__(text)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """The next node; an alias may stand for it."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node = super().compose_node(parent, index)
            if id(node) not in self._counts:
                raise _Refused(f"the alias *{event.anchor} stands within what it stands for", event.start_mark)
            self._add(self._counts[id(node)], event)
            return node
        if event.tag is not None:
            raise _Refused(f"the tag {event.tag.replace('tag:yaml.org,2002:', '!!')}: tags are not read here", event.start_mark)
        if self._level == MOST_LEVELS:
            raise _Refused(f"more than {MOST_LEVELS} levels of nesting", event.start_mark)
        before = self._count
        self._add(1, event)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        self._counts[id(node)] = self._count - before
        return node

    def _add(self, values: int, event: Any) -> None:
        self._count += values
        if self._count > MOST_VALUES:
            raise _Refused(f"more than {MOST_VALUES:,} values", event.start_mark)


class _Dumper(yaml.SafeDumper):
    """Quotes text that is a number here or by the rules of YAML 1.1, and writes no aliases.

    PyYAML writes line breaks beyond ASCII unescaped and reads them as spaces. So text with them is escaped, in double quotes.
    """

    def choose_scalar_style(self) -> str:
        """The quotes of a scalar."""
        text: str = cast(Any, self.event).value
        return '"' if _BREAKS.search(text) else super().choose_scalar_style()

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"^(?:{_FLOAT.pattern})$"), list("-+.0123456789"))


def _value(node: Any) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else _scalar(node)  # quoted scalars are text
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    return {key: _value(value) for key, value in _pairs(node).items()}


def _scalar(node: yaml.ScalarNode) -> Any:
    """The value of a scalar without quotes."""
    text = node.value
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INTEGER.fullmatch(text):
        if len(text.lstrip("+-")) > _MOST_DIGITS:
            raise _Refused(f"an integer of {len(text.lstrip('+-')):,} digits: at most {_MOST_DIGITS} are read", node.start_mark)
        return int(text)
    if _FLOAT.fullmatch(text):
        value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if math.isinf(value) and "i" not in text.lower():
            raise _Refused(f"the number {text[:20]} is too large", node.start_mark)
        return value
    return text


def _pairs(node: Any) -> dict[str, Any]:
    """Key -> node of a mapping; its own keys override merged ones, and an earlier merge overrides a later one."""
    own: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and key.style is None and key.value == _MERGE:
            for other in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(other, yaml.MappingNode):
                    raise _Refused("the merge key << must be given a mapping, or a list of mappings", value.start_mark)
                merged = _pairs(other) | merged
            continue
        name = _value(key) if isinstance(key, yaml.ScalarNode) else None
        if not isinstance(name, str):
            raise _Refused("a key must be text: put it in quotes", key.start_mark)
        if name in own:
            raise _Refused(f"the key {name!r} stands there twice", key.start_mark)
        own[name] = value
    return merged | own
