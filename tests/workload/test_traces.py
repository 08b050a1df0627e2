"""Trace readers: what they read, what they refuse and how they say it."""

import gzip
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_envs.errors import InputError
from rllib_envs.scenario import TraceFile
from rllib_envs.workload.traces import EMPTY, FAILED, Trace, cached_trace, read_trace
from tests.draws import examples

AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
AZURE_ROWS = [
    b"2023-11-16 18:17:03.9799600,4808,10\r\n",
    b"2023-11-16 18:17:04.0319600,3180,8\r\n",
    b"2023-11-16 18:17:05,110,27\r\n",
]
MOONCAKE = (
    b'{"timestamp": 3000, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n'
    b'{"timestamp": 3000, "input_length": 7322, "output_length": 490, "hash_ids": []}\n'
    b'{"timestamp": 4500, "input_length": 12, "output_length": 1}\n'
)
BURST = b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
BURSTGPT = BURST + (
    b"5,ChatGPT,472,18,490,Conversation log\n"
    b"45,ChatGPT,1087,230,1317,Conversation log\n"
    b"118,GPT-4,0,0,0,API log\n"
    b"118.5,GPT-4,417,276,693,API log\n"
)
GENERIC = b"when,user,asked,answered\n100.5,a,7,1\n\n101.5,b,8,3\n"

GOOD: list[tuple[dict[str, Any], bytes, list[float], list[int], list[int], int]] = [
    ({"format": "azure"}, AZURE + b"".join(AZURE_ROWS), [0, 0.052, 1.02004], [4808, 3180, 110], [10, 8, 27], 0),
    ({"format": "mooncake"}, MOONCAKE, [0, 0, 1.5], [6758, 7322, 12], [500, 490, 1], 0),
    ({"format": "burstgpt"}, BURSTGPT, [0, 40, 113.5], [472, 1087, 417], [18, 230, 276], 1),
    (
        {"format": "csv", "time_column": "when", "prompt_column": "asked", "output_column": "answered"},
        GENERIC,
        [0, 1],
        [7, 8],
        [1, 3],
        0,
    ),
]


def write(folder: Path, content: bytes, name: str = "trace.csv") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def assert_same(one: Trace, other: Trace) -> None:
    np.testing.assert_array_equal(one.arrival_s, other.arrival_s)
    np.testing.assert_array_equal(one.prompt_tokens, other.prompt_tokens)
    np.testing.assert_array_equal(one.output_tokens, other.output_tokens)
    assert one.skipped == other.skipped


@pytest.mark.parametrize(
    ("options", "content", "arrival_s", "prompt", "output", "skipped"), GOOD, ids=lambda value: str(value)[:20]
)
def test_reads_each_format(
    tmp_path: Path,
    options: dict[str, Any],
    content: bytes,
    arrival_s: list[float],
    prompt: list[int],
    output: list[int],
    skipped: int,
) -> None:
    spec = TraceFile(path=write(tmp_path, content), **options)
    trace = read_trace(spec)
    np.testing.assert_allclose(trace.arrival_s, arrival_s, atol=1e-6)
    assert trace.prompt_tokens is not None
    assert trace.prompt_tokens.tolist() == prompt
    assert trace.prompt_tokens.dtype == np.int32
    assert trace.output_tokens is not None
    assert trace.output_tokens.tolist() == output
    assert trace.output_tokens.dtype == np.int32
    assert trace.skipped == {FAILED: skipped, EMPTY: 0}
    assert trace.source == spec.path
    assert not trace.arrival_s.flags.writeable
    assert not trace.prompt_tokens.flags.writeable
    assert trace.rate_rps == pytest.approx((len(arrival_s) - 1) / arrival_s[-1], rel=1e-6)
    assert trace.gap_cv == pytest.approx(np.std(np.diff(arrival_s)) / np.mean(np.diff(arrival_s)), rel=1e-5)
    packed = write(tmp_path, gzip.compress(content), "trace.gz")
    assert_same(trace, read_trace(replace(spec, path=packed)))
    marked = write(tmp_path, b"\xef\xbb\xbf" + content, "marked")  # byte-order mark, as some editors write
    assert_same(trace, read_trace(replace(spec, path=marked)))


def test_a_csv_may_lack_tokens_and_count_in_seconds_or_iso_times(tmp_path: Path) -> None:
    seconds = read_trace(TraceFile(path=write(tmp_path, b"timestamp\n1700000000.25\n1700000002.5\n"), format="csv"))
    iso = read_trace(
        TraceFile(path=write(tmp_path, b"timestamp\n2023-11-14T22:13:20.25Z\n2023-11-14 23:13:22.5+01:00\n"), format="csv")
    )
    assert seconds.prompt_tokens is None
    assert seconds.output_tokens is None
    np.testing.assert_array_equal(seconds.arrival_s, [0, 2.25])
    np.testing.assert_array_equal(iso.arrival_s, seconds.arrival_s)


def test_a_trace_at_one_time_has_no_rate(tmp_path: Path) -> None:
    trace = read_trace(TraceFile(path=write(tmp_path, b"timestamp\n5\n5\n"), format="csv"))
    assert np.isnan(trace.rate_rps)
    assert np.isnan(trace.gap_cv)
    alone = read_trace(TraceFile(path=write(tmp_path, b"timestamp\n5\n"), format="csv"))
    assert np.isnan(alone.rate_rps)
    assert np.isnan(alone.gap_cv)


row1, row2, row3 = AZURE_ROWS
MALFORMED: list[tuple[str, str, bytes, list[str]]] = [
    ("unsorted", "azure", AZURE + row2 + row1 + row3, ["line 3", "'TIMESTAMP'", "18:17:03.9799600", "sort"]),
    ("bad time", "azure", AZURE + row1 + b"yesterday,1,1\n", ["line 3", "'TIMESTAMP'", "'yesterday'", "ISO 8601"]),
    ("no time", "azure", AZURE + row1 + b",1,1\n", ["line 3", "'TIMESTAMP'", "''", "ISO 8601"]),
    (
        "negative tokens",
        "azure",
        AZURE + row1 + row2 + b"2023-11-16 18:17:05,-4,27\n",
        ["line 4", "'ContextTokens'", "'-4'", "from 0"],
    ),
    (
        "fractional tokens",
        "azure",
        AZURE + b"2023-11-16 18:17:05,4,2.5\n",
        ["line 2", "'GeneratedTokens'", "'2.5'", "whole number"],
    ),
    ("NaN tokens", "azure", AZURE + b"2023-11-16 18:17:05,nan,2\n", ["line 2", "'ContextTokens'", "'nan'", "whole number"]),
    (
        "huge tokens",
        "azure",
        AZURE + b"2023-11-16 18:17:05,9999999999,2\n",
        ["line 2", "'ContextTokens'", "'9999999999'", "2147483647"],
    ),
    ("text tokens", "azure", AZURE + b"\n" + row1 + b"2023-11-16 18:17:05,4,many\n", ["line 4", "'GeneratedTokens'", "'many'"]),
    (
        "short row",
        "azure",
        AZURE + row1 + b"2023-11-16 18:17:05,4\n",
        ["line 3", "2 cells", "3 columns", "'2023-11-16 18:17:05,4'"],
    ),
    ("long row", "azure", AZURE + b"2023-11-16 18:17:05,4,5,6\n", ["line 2", "4 cells", "3 columns", "4,5,6"]),
    ("open quote", "azure", AZURE + row1 + b'"2023-11-16 18:17:05,4,5\n', ["line 3", "not CSV"]),
    (
        "missing column",
        "azure",
        b"timestamp,ContextToken,GeneratedTokens\n",
        ["line 1", "'TIMESTAMP'", "'ContextToken'", "nearest: 'timestamp'"],
    ),
    ("column twice", "azure", b"TIMESTAMP,TIMESTAMP,ContextTokens,GeneratedTokens\n", ["line 1", "'TIMESTAMP' comes 2 times"]),
    ("no rows", "azure", AZURE, ["line 1", "no rows"]),
    ("empty", "azure", b"", ["the file is empty"]),
    ("blank", "burstgpt", b" \n\n", ["the file is empty"]),
    ("not UTF-8", "azure", AZURE + row1 + b"2023-11-16 18:17:05,\xff,5\n", ["line 3, column 21", "0xff", "UTF-8"]),
    ("truncated gzip", "azure", gzip.compress(AZURE + row1, mtime=0)[:-9], ["ends too early", "again"]),
    ("damaged gzip", "azure", gzip.compress(AZURE + row1, mtime=0)[:10] + b"\xff" * 30, ["damaged gzip", "again"]),
    ("altered gzip", "azure", gzip.compress(AZURE + row1, mtime=0)[:-8] + bytes(8), ["damaged gzip", "again"]),
    ("negative seconds", "burstgpt", BURST + b"-5,ChatGPT,1,1,2,x\n", ["line 2", "'Timestamp'", "'-5'", "at least 0"]),
    ("infinite seconds", "burstgpt", BURST + b"5,m,1,1,2,x\ninf,m,1,1,2,x\n", ["line 3", "'Timestamp'", "'inf'", "finite"]),
    ("all failed", "burstgpt", BURST + b"5,m,1,0,1,x\n", ["no request in the window", "1 failed"]),
    ("seconds, then text", "csv", b"timestamp\n5\nsoon\n", ["line 3", "'timestamp'", "'soon'", "seconds"]),
    ("text first", "csv", b"timestamp\nsoon\n5\n", ["line 2", "'timestamp'", "'soon'", "ISO 8601", "seconds"]),
    ("unsorted seconds", "csv", b"timestamp\n5\n6\n5.5\n", ["line 4", "'timestamp'", "'5.5'", "sort"]),
    ("not JSON", "mooncake", MOONCAKE + b'{"timestamp": 5000,\n', ["line 4", "column", "not JSON", "5000"]),
    ("endless number", "mooncake", b'{"timestamp": ' + b"9" * 5000 + b"}\n", ["line 1", "not JSON", "9999"]),
    ("JSON array", "mooncake", MOONCAKE + b"\n[1, 2]\n", ["line 5", "JSON object", "'[1, 2]'"]),
    (
        "missing key",
        "mooncake",
        b'{"timestamp": 0, "input_len": 3, "output_length": 4}\n',
        ["line 1", "'input_length'", "nearest: 'input_len'"],
    ),
    (
        "JSON null",
        "mooncake",
        b'{"timestamp": 0, "input_length": null, "output_length": 4}',
        ["line 1", "'input_length'", "'null'"],
    ),
    (
        "JSON truth",
        "mooncake",
        b'{"timestamp": 0, "input_length": 4, "output_length": true}',
        ["line 1", "'output_length'", "'true'"],
    ),
    (
        "JSON NaN",
        "mooncake",
        b'{"timestamp": NaN, "input_length": 4, "output_length": 3}',
        ["line 1", "'timestamp'", "'NaN'", "milliseconds"],
    ),
]


@pytest.mark.parametrize(
    ("trace_format", "content", "said"), [case[1:] for case in MALFORMED], ids=[case[0] for case in MALFORMED]
)
def test_refuses_a_malformed_file_and_says_where(tmp_path: Path, trace_format: Any, content: bytes, said: list[str]) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InputError) as refusal:
        read_trace(TraceFile(path=path, format=trace_format))
    for fragment in [path, *said]:
        assert fragment in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    for path, said in [(tmp_path, "is a directory"), (tmp_path / "absent.csv", "no such file")]:
        for read in (read_trace, cached_trace):
            with pytest.raises(InputError, match=said) as refusal:
                read(TraceFile(path=str(path)))
            assert str(path) in str(refusal.value)


def test_refuses_an_empty_window_and_says_how_long_the_trace_is(tmp_path: Path) -> None:
    path = write(tmp_path, AZURE + b"".join(AZURE_ROWS))
    for start_s, duration_s in ((2.0, None), (0.1, 0.5)):
        with pytest.raises(InputError, match=rf"start_s = {start_s}, duration_s = {duration_s}.*1\.02\d* s") as refusal:
            read_trace(TraceFile(path=path, start_s=start_s, duration_s=duration_s))
        assert path in str(refusal.value)


def test_skipped_requests_are_counted_within_the_window(tmp_path: Path) -> None:
    path = write(tmp_path, BURSTGPT)
    assert read_trace(TraceFile(path=path, duration_s=100)).skipped == {FAILED: 0, EMPTY: 0}
    assert read_trace(TraceFile(path=path, start_s=100)).skipped == {FAILED: 1, EMPTY: 0}


requests = st.lists(
    st.tuples(st.integers(0, 5_000_000), st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1)), min_size=1, max_size=30
)


@examples(50)
@given(rows=requests, zipped=st.booleans(), newline=st.sampled_from(["\n", "\r\n"]))
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, int]], zipped: bool, newline: str
) -> None:
    micros = np.cumsum([gap for gap, _, _ in rows])
    stamps = np.datetime64("2023-11-16T18:15:00", "us") + micros.astype("timedelta64[us]")
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"{stamp},{prompt},{output}" for stamp, (_, prompt, output) in zip(stamps, rows, strict=True)]
    content = newline.join(lines).encode()
    path = write(tmp_path_factory.mktemp("trace"), gzip.compress(content) if zipped else content)
    trace = read_trace(TraceFile(path=path))
    np.testing.assert_array_equal(trace.arrival_s, (micros - micros[0]) / 1e6)
    np.testing.assert_array_equal(trace.prompt_tokens, [prompt for _, prompt, _ in rows])
    np.testing.assert_array_equal(trace.output_tokens, [output for _, _, output in rows])


@examples(50)
@given(gaps=st.lists(st.integers(0, 1000), min_size=1, max_size=30), cut=st.integers(1, 20_000))
def test_adjoining_windows_part_the_trace(tmp_path_factory: pytest.TempPathFactory, gaps: list[int], cut: int) -> None:
    ticks = np.cumsum([0, *gaps])  # multiples of 1/64 s, so that the arithmetic of windows is exact
    content = "timestamp\n" + "\n".join(str(tick / 64) for tick in ticks)
    spec = TraceFile(path=write(tmp_path_factory.mktemp("trace"), content.encode()), format="csv")
    parts = [read_trace(replace(spec, duration_s=cut / 64)).arrival_s]
    if cut <= ticks[-1]:
        parts.append(read_trace(replace(spec, start_s=cut / 64)).arrival_s + cut / 64)
    np.testing.assert_array_equal(np.concatenate(parts), ticks / 64)


def test_a_cached_trace_is_read_again_when_its_file_changes(tmp_path: Path) -> None:
    spec = TraceFile(path=write(tmp_path, AZURE + row1 + row2))
    first = cached_trace(spec)
    assert cached_trace(TraceFile(path=spec.path)) is first
    write(tmp_path, AZURE + row1 + row2 + row3)
    assert len(cached_trace(spec).arrival_s) == 3


@pytest.mark.parametrize("kind", ["conv", "code"])
def test_reads_the_azure_traces_whole_and_fast(data_dir: Path, kind: str) -> None:
    path = data_dir / "azure_llm_2023" / f"AzureLLMInferenceTrace_{kind}.csv.gz"
    spec = TraceFile(path=str(path))
    rows = [
        line.split(",") for line in gzip.decompress(path.read_bytes()).decode().split()[1:]
    ]  # splits date, time,prompt,output
    stamps = np.array(
        [f"{date[0]}T{clock[0]}" for date, clock in zip(rows[::2], rows[1::2], strict=True)], dtype="datetime64[ns]"
    )
    trace = read_trace(spec)
    np.testing.assert_allclose(trace.arrival_s, (stamps - stamps[0]) / np.timedelta64(1, "s"), atol=2e-6)
    np.testing.assert_array_equal(trace.prompt_tokens, [int(clock[1]) for clock in rows[1::2]])
    np.testing.assert_array_equal(trace.output_tokens, [int(clock[2]) for clock in rows[1::2]])
    seconds = []
    for _ in range(3):
        started = time.process_time()
        read_trace(spec)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.5
