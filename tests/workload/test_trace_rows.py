"""Rows of traces: the fast way and the careful one give the same, however a file comes in blocks, and stop behind the window."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_envs.errors import InputError
from rllib_envs.scenario import TraceFile
from rllib_envs.workload.trace_files import Block
from rllib_envs.workload.trace_formats import recognise
from rllib_envs.workload.trace_rows import RowReader
from rllib_envs.workload.traces import read_trace
from tests.draws import examples

NUMBERS = [
    "0",
    "7",
    "10",
    "10.0",
    " 12",
    "1e2",
    "+5",
    "2147483647",
    "2147483648",
    "-1",
    "2.5",
    "1_0",
    "0x10",
    "nan",
    "inf",
    "",
    "x",
]
SECONDS = [
    "1",
    "2",
    "2.5",
    "2.50",
    "1e1",
    " 4 ",
    "+3",
    "-1",
    "1_0",
    "nan",
    "inf",
    "1e400",
    "1e308",
    "-1e308",
    "",
    "soon",
    "2024-01-01",
]
STAMPS = [
    "2024-05-10 00:00:00",
    "2024-05-10T00:00:00.5",
    "2024-05-10 00:00:00.9799600",
    "2024-05-10 00:00:00.009930+00:00",
    "2024-05-10 02:00:01+02:00",
    "2024-05-10 00:00:02Z",
    "20240510T000003",
    "2024-05-10",
    "2024-02-30 00:00:00",
    "1500-01-01 00:00:00",
    "9999-12-31 23:59:59",
    "2024-05-10 00:00:00.1234567891",
    "2024-05-10 00:00:60",
    "5",
    "",
]
FIRST = {"s": "1", "iso": "2024-05-10 00:00:00"}
LIKELY = {"s": ["1", "1.5", "2", "2.25"], "iso": ["2024-05-10 00:00:00", "2024-05-10 00:00:01.25"]}
VALUES = [
    "0",
    "3",
    "7000",
    "7.0",
    "2.5",
    "-1",
    "1e3",
    "1e400",
    "NaN",
    "Infinity",
    "true",
    "null",
    '"5"',
    "[]",
    "{}",
    "2147483648",
]


def rows_of(content: bytes, sizes: list[int], stop_s: float = math.inf, **options: Any) -> list[Any]:
    """What there is to read, or what is wrong with it. The file comes in blocks of as many lines, the last ones together."""
    lines, blocks, line = content.splitlines(keepends=True), [], 1
    for size in [*sizes, len(lines)]:
        if lines[:size]:
            blocks.append(Block(line, b"".join(lines[:size])))
            lines, line = lines[size:], line + size
    try:
        layout, first = recognise(TraceFile(path="trace", **options), blocks[0])
        read = list(RowReader("trace", layout, [first, *blocks[1:]], stop_s))
    except InputError as error:
        return [str(error)]
    return [None if column[0] is None else np.concatenate(column).tolist() for column in zip(*read, strict=True)]


def cells(kind: str) -> st.SearchStrategy[list[tuple[str, str, str]]]:
    """Rows of a CSV, most of them as they should be."""
    time = st.sampled_from(LIKELY[kind] * 3 + (SECONDS if kind == "s" else STAMPS))
    tokens = st.sampled_from(["1", "20", "300"] * 8 + NUMBERS)
    return st.lists(st.tuples(time, tokens, tokens), max_size=6)


@pytest.mark.parametrize("kind", ["s", "iso"])
@given(data=st.data())
@examples(150)
def test_quotes_change_nothing(kind: str, data: st.DataObject) -> None:
    """Arrow reads what is not quoted, the csv module what is."""
    rows = [(FIRST[kind], "5", "5"), *data.draw(cells(kind))]
    header = {"s": "Timestamp,Request tokens,Response tokens\n", "iso": "TIMESTAMP,ContextTokens,GeneratedTokens\n"}[kind]
    plain = header + "".join(f"{','.join(row)}\n" for row in rows)
    quoted = header + "".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows)
    stop_s = data.draw(st.sampled_from([math.inf, 1.0, 1.25, 5.0]))
    assert rows_of(plain.encode(), [], stop_s) == rows_of(quoted.encode(), [], stop_s)


@given(
    rows=st.lists(st.tuples(*[st.sampled_from(["1", "20", "300"] * 6 + VALUES)] * 3), max_size=6),
    stop_s=st.sampled_from([math.inf, 0.25, 0.5]),
)
@examples(200)
def test_a_blank_line_changes_nothing(rows: list[tuple[str, str, str]], stop_s: float) -> None:
    """Arrow reads what has a JSON object on every line, the json module what has not."""
    lines = [
        f'{{"timestamp": {time}, "input_length": {prompt}, "output_length": {output}, "hash_ids": [0, 1]}}'
        for time, prompt, output in [("1", "5", "5"), *rows]
    ]
    plain = "\n".join(lines) + "\n"
    assert rows_of(plain.encode(), [], stop_s) == rows_of((plain + "\n").encode(), [], stop_s)


@given(
    rows=st.lists(st.sampled_from(["{i},4,5,a", "{i},4,5,a", '{i},"4",5,"two\nlines"', "", '{i},4,5,"x,\n\ny"']), max_size=12),
    sizes=st.lists(st.integers(1, 4), max_size=12),
    bad=st.sampled_from(["", "soon,1,1,x\n", "9,1\n"]),
)
def test_blocks_change_nothing(rows: list[str], sizes: list[int], bad: str) -> None:
    content = "when,asked,answered,note\n0,1,2,b\n" + "".join(row.format(i=i) + "\n" for i, row in enumerate(rows)) + bad
    names = {"time_column": "when", "prompt_column": "asked", "output_column": "answered"}
    assert rows_of(content.encode(), sizes, **names) == rows_of(content.encode(), [], **names)
    names |= {"class_column": "note"}
    assert rows_of(content.encode(), sizes, **names) == rows_of(content.encode(), [], **names)


@given(
    classes=st.lists(st.sampled_from(["chat", "batch", "chat ", "", "5", "nan", "Zoë"]), max_size=12),
    sizes=st.lists(st.integers(1, 4), max_size=12),
    stop_s=st.sampled_from([math.inf, 4.5]),
)
def test_classes_are_read_alike_by_block_and_by_row(classes: list[str], sizes: list[int], stop_s: float) -> None:
    rows = [("0", "first"), *((str(i + 1), name) for i, name in enumerate(classes))]
    plain = "timestamp,class\n" + "".join(f"{time},{name}\n" for time, name in rows)
    quoted = "timestamp,class\n" + "".join(f'{time},"{name}"\n' for time, name in rows)
    seen = rows_of(plain.encode(), sizes, stop_s, format="csv", class_column="class")
    assert seen == rows_of(quoted.encode(), [], stop_s, format="csv", class_column="class")
    names = [name.strip() for time, name in rows if float(time) < stop_s]
    if all(names):
        assert seen[3] == [list(dict.fromkeys(names)).index(name) for name in names]
    else:
        line = names.index("") + 2
        assert seen == [f"trace: line {line}, column 'class': '' must be the name of a service class"]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    "rest",
    [b"1.5,soon,1\n", b"1.5,1\n", b"0.5,1,1\n", b"\xff\0\n", b'"' + b"x" * 3_000_000, b"9,9,9" * 1_000_000],
    ids=["no number", "short", "earlier", "binary", "open quote", "long"],
)
def test_what_is_behind_the_window_is_not_looked_at(tmp_path: Path, rest: bytes, zipped: bool) -> None:
    path = tmp_path / "trace.csv"
    content = b"Timestamp,Request tokens,Response tokens\n0,1,1\n" + b"0.75,2,2\n" * 1000 + b"1,3,3\n" + rest
    path.write_bytes(gzip.compress(content) if zipped else content)
    spec = TraceFile(path=str(path), duration_s=1.0)
    assert read_trace(spec).arrival_s.tolist() == [0] + [0.75] * 1000
    with pytest.raises(InputError):
        read_trace(TraceFile(path=str(path)))


def test_gzip_data_is_unpacked_as_far_as_the_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = "".join(f"{i},{prompt},{i % 7 + 1}\n" for i, prompt in enumerate(rng.integers(1, 10**9, 300_000)))
    packed = gzip.compress(b"Timestamp,Request tokens,Response tokens\n" + rows.encode(), 1)
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(packed[: len(packed) // 2])
    assert len(read_trace(TraceFile(path=str(path), duration_s=60)).arrival_s) == 60
    with pytest.raises(InputError, match="ends too early"):
        read_trace(TraceFile(path=str(path)))


def test_rows_keep_their_numbers_over_blocks(tmp_path: Path) -> None:
    """The line that is wrong is named as rightly in the third MiB as in the first."""
    path = tmp_path / "trace.jsonl"
    row = json.dumps({"timestamp": 5, "input_length": 3, "output_length": 4, "hash_ids": list(range(300))})
    path.write_text(f"{row}\n" * 2000 + row.replace("3,", '"x",', 1) + "\n")
    assert path.stat().st_size > 2 * 2**20
    with pytest.raises(InputError, match=r"""line 2001, column 'input_length': '"x"'"""):
        read_trace(TraceFile(path=str(path)))
