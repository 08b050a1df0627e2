"""YAML and JSON that users give: whatever a file holds, plain data or one line that says where and what, at once."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cluster.preflight import runtime_env
from rllib_envs.errors import InputError
from rllib_envs.json_files import parse_json, read_json
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.text_files import read_text
from rllib_envs.yaml_files import MOST_BYTES, dump_yaml, parse_yaml, read_mapping
from tests.draws import examples
from tuning.reports.run_folders import read_run
from tuning.sweeps.space import load_space
from tuning.training.options import options_from

pytestmark = pytest.mark.slow

LETTERS = "abcdefghijkl"


def bomb(start: str, repeat: Callable[[str], str]) -> str:
    """Each line stands for ten times what the line above stands for."""
    return f"a: &a {start}\n" + "".join(f"{b}: &{b} {repeat(','.join([f'*{a}'] * 10))}\n" for a, b in pairwise(LETTERS))


REFUSED = {
    "integer-tag": "lr: !!int x",
    "valid-tag": "lr: !!float 1",
    "bool-tag": "lr: !!bool x",
    "timestamp-tag": "lr: !!timestamp 2025-99-99",
    "binary-tag": "lr: !!binary x",
    "python-tag": "lr: !!python/object/apply:os.system ['true']",
    "own-tag": "lr: !mine 1",
    "digits": f"lr: {'9' * 5000}",
    "beyond-64-bits": f"lr: {'9' * 19}",
    "too-large": "lr: 1e999",
    "brackets": "lr: " + "[" * 20_000,
    "braces": "{lr: " * 20_000,
    "dashes": "- " * 20_000,
    "questions": "? " * 20_000,
    "alias-bomb": bomb("[x, x]", "[{}]".format),
    "merge-bomb": bomb("{x: 1}", "{{<<: [{}]}}".format),
    "within-itself": "lr: &a [*a]",
    "unknown-alias": "lr: *a",
    "many-values": f"lr: [{'1,' * 50_000}]",
    "twice": "lr: 1\nseed: 2\nlr: 3",
    "number-as-key": "1: 2",
    "null-as-key": "~: 2",
    "list-as-key": "? [a]\n: 2",
    "merge-of-a-number": "<<: 1",
    "control-character": "lr: \a",
    "tabs": "lr:\n\t- 1",
    "two-documents": "lr: 1\n---\nlr: 2",
    "unclosed": "lr: 'x",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_what_is_not_read_is_refused_at_once_with_line_and_column(text: str) -> None:
    began_s = time.process_time()
    with pytest.raises(InputError) as refused:
        parse_yaml(text, "here.yaml")
    assert time.process_time() - began_s < 10
    (line,) = str(refused.value).splitlines()
    assert len(line) < 200
    place = line.removeprefix("here.yaml:").split(": not YAML: ")[0].split(":")
    assert [int(number) >= 1 for number in place] in ([True, True], [True])


READERS: dict[str, Callable[[Path], object]] = {
    "scenario": load_scenario,
    "config": options_from,
    "space": lambda path: load_space(str(path)),
    "run-folder": lambda path: read_run(path.parent),
    "runtime-env": lambda path: runtime_env(path, None),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_every_reader_refuses_it_in_one_line_that_names_the_file(reader: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text in (*REFUSED.values(), "", "# nothing", "[]", "5", "2025-01-01"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(InputError) as refused:
            reader(path)
        (line,) = str(refused.value).splitlines()
        assert str(path) in line
    for content in (b"\xff\xfel\0r\0", b"lr: \xff", b"lr: 1\0"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=f"^{path}.*(UTF-16|UTF-8|zero byte)"):
            reader(path)


def test_a_thing_that_is_no_file_is_named_and_not_waited_for(tmp_path: Path) -> None:
    pipe, large, secret = tmp_path / "pipe", tmp_path / "large", tmp_path / "secret"
    os.mkfifo(pipe)
    with large.open("wb") as file:
        file.truncate(10 * 2**30)  # sparse: takes no room
    secret.touch(mode=0)
    for path, why in (
        (tmp_path, "is a folder, not a file"),
        (pipe, "is a pipe, not a file"),
        (Path("/dev/zero"), "is a device, not a file"),
        (large, f"has {10 * 2**30:,} bytes: at most {MOST_BYTES:,} are read"),
        (tmp_path / "nowhere", "cannot be read: No such file or directory"),
        (Path("a\0b"), "cannot be read: embedded null byte"),
    ):
        with pytest.raises(InputError, match=f"^.*{why}$"):
            read_mapping(path, "anything")
    if os.geteuid():  # root may read everything
        with pytest.raises(InputError, match=r"cannot be read: Permission denied$"):
            read_text(secret, 10)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-4", 1e-4), ("1E4", 1e4), ("+.5e+1", 5.0), ("1.", 1.0), ("-2.50", -2.5), ("-.inf", -float("inf"))],
        *[("0", 0), ("-7", -7), ("+12", 12), ("true", True), ("False", False), ("~", None), ("", None), ("null", None)],
        *[
            (text, text)
            for text in ("yes", "no", "on", "off", "Y", "010", "0x1F", "0o17", "1:30", "1_000", "2025-13-45", "1e", ".")
        ],
        *[('"1"', "1"), ("'true'", "true"), ('""', ""), ("|-\n  5", "5")],
    ],
)
def test_there_is_one_rule_for_what_a_scalar_is(text: str, value: Any) -> None:
    read = parse_yaml(f"key: {text}", "here")["key"]
    assert read == value
    assert type(read) is type(value)


def test_a_byte_order_mark_is_left_out_and_any_language_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("\ufeffname: größe | 模型 <b>".encode())
    assert read_mapping(tmp_path / "a.yaml", "names") == {"name": "größe | 模型 <b>"}


def test_aliases_and_merges_repeat_what_stands_above() -> None:
    text = "base: &base {a: 1, b: [2, 3]}\nother: {<<: *base, a: 4}\nagain: *base\nboth: {<<: [{a: 5}, *base]}"
    base = {"a": 1, "b": [2, 3]}
    assert parse_yaml(text, "here") == {"base": base, "other": base | {"a": 4}, "again": base, "both": base | {"a": 5}}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**18) + 1, 10**18 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.from_regex(r"[-+]?[0-9._:]{1,4}(e[-+]?[0-9])?", fullmatch=True)
    | st.sampled_from(["yes", "no", "null", "~", "<<", "=", "true", "2025-01-01", "0x1F", ".inf", "1e3", "- a", "a: b", "#"])
)
DATA = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


@example({"\x85": "a\u2028b"})  # line breaks to YAML 1.1
@examples(40)
@given(DATA)
def test_what_is_written_is_read_back(data: Any) -> None:
    again = parse_yaml(dump_yaml(data), "here")
    assert again == data
    assert repr(again) == repr(data)  # 1, 1.0 and True are equal


def assert_read_or_refused(text: str) -> None:
    refused = ""
    try:
        parse_yaml(text, "here")
    except InputError as error:
        refused = str(error)
    assert len(refused.splitlines()) <= 1


@examples(100)
@given(DATA)
def test_what_others_write_is_read_or_refused_in_one_line(data: Any) -> None:
    for text in (yaml.safe_dump(data), json.dumps(data, allow_nan=False) if "inf" not in repr(data) else "1"):
        assert_read_or_refused(text)


@examples(300)
@given(st.text(st.sampled_from("ab:-?[]{}&*!<|>'\"#%@, \n\t1.e~")))
def test_no_text_ends_in_anything_else(text: str) -> None:
    assert_read_or_refused(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[1" + "0" * 5000 + "]", r"an integer of 5,001 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice in one object"),
        ("[NaN]", "NaN is no number in JSON"),
        ("[-Infinity]", "-Infinity is no number in JSON"),
        ("[1e999]", "the number 1e999 is too large"),
        ('["a', ":1:2: not JSON: Unterminated string"),
        ("", "not JSON: Expecting value"),
    ],
)
def test_json_that_is_none_is_refused_in_one_line(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"^{tmp_path / 'a.json'}.*{why}"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError) as refused:
        parse_json(text, "here.json")
    assert len(str(refused.value).splitlines()) == 1
