"""Formats of traces are known by what a file begins with, and a wrong one is answered with the right one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from rllib_envs.errors import InputError
from rllib_envs.scenario import TraceFile
from rllib_envs.workload.traces import EMPTY, FAILED, read_trace

AZURE_2024 = b"""TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00+00:00,9,9
"""
BURSTGPT_6 = b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n"
BURSTGPT_8 = b"""Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5.0,a1,1.25,ChatGPT,472,18,490,Conversation log
6.5,,0.5,GPT-4,1,2,3,API log
"""
IMAGES = b"TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930,2,2162,5\n"
MOONCAKE = b'\n{"timestamp": 27000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n'


def write(folder: Path, content: bytes) -> str:
    path = folder / "trace"
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("content", "trace_format", "prompts"),
    [
        (AZURE_2024.replace(b"00:00+00:00,9", b"01.5+00:00,9"), "azure", [2162, 9]),
        (BURSTGPT_6, "burstgpt", [472]),
        (BURSTGPT_8, "burstgpt", [472, 1]),
        (IMAGES, "azure", [2162]),
        (MOONCAKE, "mooncake", [6758]),
    ],
    ids=["azure 2024", "6 columns", "8 columns", "another column", "mooncake"],
)
def test_a_format_is_known_by_its_columns(tmp_path: Path, content: bytes, trace_format: Any, prompts: list[int]) -> None:
    path = write(tmp_path, content)
    known, told = read_trace(TraceFile(path=path)), read_trace(TraceFile(path=path, format=trace_format))
    assert known.format == told.format == trace_format
    assert known.prompt_tokens is not None
    assert known.prompt_tokens.tolist() == prompts
    np.testing.assert_array_equal(known.arrival_s, told.arrival_s)


def test_azure_times_of_2024_are_read_to_the_microsecond(tmp_path: Path) -> None:
    """With an offset, and a fraction of six digits or none at all, as pandas writes them."""
    rows = b"2024-05-10 00:00:00.009930+00:00,1,1\n2024-05-10 00:00:01+00:00,1,1\n2024-05-10 00:00:01.000001+00:00,1,1\n"
    path = write(tmp_path, AZURE_2024.splitlines(keepends=True)[0] + rows)
    assert read_trace(TraceFile(path=path)).arrival_s.tolist() == [0, 0.99007, 0.990071]
    for column in ({"time_column": "TIMESTAMP"}, {"format": "csv", "time_column": "TIMESTAMP"}):
        assert read_trace(TraceFile(path=path, **column)).arrival_s.tolist() == [0, 0.99007, 0.990071]


def test_named_columns_make_it_csv(tmp_path: Path) -> None:
    path = write(tmp_path, BURSTGPT_8)
    trace = read_trace(TraceFile(path=path, time_column="Timestamp", prompt_column="Total tokens"))
    assert (trace.format, trace.output_tokens) == ("csv", None)
    assert trace.prompt_tokens is not None
    assert trace.prompt_tokens.tolist() == [490, 3]
    with pytest.raises(ValidationError, match="columns are named for format csv"):
        TraceFile(path=path, format="burstgpt", prompt_column="Total tokens")


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        (MOONCAKE, {"format": "azure"}, ["line 1: JSON lines, not CSV", "--trace-format mooncake", "format: mooncake"]),
        (MOONCAKE, {"format": "csv"}, ["JSON lines, not CSV", "--trace-format mooncake"]),
        (MOONCAKE, {"time_column": "t"}, ["JSON lines, not CSV", "only the columns of a CSV file can be named"]),
        (BURSTGPT_6, {"format": "azure"}, ["line 1: no column 'TIMESTAMP'", "--trace-format burstgpt"]),
        (BURSTGPT_6, {"format": "mooncake"}, ["line 1: CSV, not JSON lines", "--trace-format burstgpt"]),
        (AZURE_2024, {"format": "burstgpt"}, ["line 1: no column 'Timestamp'", "--trace-format azure"]),
        (AZURE_2024, {"format": "csv"}, ["no column 'timestamp'", "--trace-format azure"]),
        (
            b"\nwhen,n\n1,1\n",
            {},
            ["line 2: not the columns of a known trace", "'when', 'n'", "--trace-time-column", "time_column"],
        ),
        (b"when,n\n1,1\n", {"format": "mooncake"}, ["CSV, not JSON lines"]),
        (b"1.5,20,3\n", {}, ["line 1: values, not the names of columns: '1.5', '20', '3'"]),
        (b"Timestamp;Request tokens\n", {}, ["line 1: cells separated by semicolons", "write commas"]),
        (b"Timestamp\tRequest tokens\n", {}, ["line 1: cells separated by tabs", "write commas"]),
        (b",".join(b"c%d" % i for i in range(2000)) + b"\n", {}, ["line 1: 2000 columns", "at most 1000"]),
        (b'"when,n\n', {}, ["line 1: not CSV", "quotes"]),
        (b'{"ts": 0}\n', {}, ["line 1: no column 'timestamp'; the file has 'ts'"]),
    ],
)
def test_a_wrong_format_is_answered_with_the_right_one(
    tmp_path: Path, content: bytes, options: dict[str, Any], said: list[str]
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as refusal:
        read_trace(TraceFile(path=path, **options))
    for fragment in [path, *said]:
        assert fragment in str(refusal.value)
    assert "nearest" not in str(refusal.value) or "timestamp" in str(refusal.value).lower()
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("TIMESTAMP,ContextTokens,GeneratedTokens", "2024-05-10 00:00:0{i},{prompt},{output}"),
        ("Timestamp,Request tokens,Response tokens", "{i},{prompt},{output}"),
        ("timestamp,asked,answered", "{i},{prompt},{output}"),
        (None, '{{"timestamp": {i}e3, "input_length": {prompt}, "output_length": {output}}}'),
    ],
    ids=["azure", "burstgpt", "csv", "mooncake"],
)
def test_rows_without_a_prompt_or_an_answer_are_left_out_and_counted(tmp_path: Path, header: str | None, row: str) -> None:
    served = [(10, 5), (0, 5), (11, 0), (0, 0), (12, 6), (0, 7)]
    rows = [row.format(i=i, prompt=prompt, output=output) for i, (prompt, output) in enumerate(served)]
    path = write(tmp_path, "\n".join([*([header] if header else []), *rows]).encode())
    named = {"prompt_column": "asked", "output_column": "answered"} if header and "asked" in header else {}
    trace = read_trace(TraceFile(path=path, **named))
    assert trace.arrival_s.tolist() == [0, 4]
    assert trace.skipped == {FAILED: 2, EMPTY: 2}
    assert trace.prompt_tokens is not None
    assert trace.output_tokens is not None
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([10, 12], [5, 6])
