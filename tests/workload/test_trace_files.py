"""Whatever a file holds, reading it takes little memory, and what is no trace is named for what it is."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rllib_envs.errors import InputError
from rllib_envs.scenario import TraceFile
from rllib_envs.workload.trace_files import BLOCK_BYTES, read_blocks
from rllib_envs.workload.traces import read_trace

HEADER = b"Timestamp,Request tokens,Response tokens\n"
TRACE = HEADER + b"1,5,5\n"
MOON = b'{"timestamp": 0, "input_length": 5, "output_length": 5, "x": %s}\n'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 52283111\n"
MIB = 1 << 20


def spreadsheet() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return file.getvalue()


NO_TRACE = {
    "git-lfs": (LFS, ["git-lfs pointer, not the data", "git lfs pull"]),
    "git-annex": (b"/annex/objects/SHA256E-s5--00.csv\n", ["git-annex pointer", "git annex get"]),
    "xz": (lzma.compress(TRACE), ["xz data", "xz -d"]),
    "bzip2": (bz2.compress(TRACE), ["bzip2 data", "bzip2 -d"]),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\x00", ["zstd data", "zstd -d"]),
    "gzip twice": (gzip.compress(gzip.compress(TRACE)), ["gzip data within gzip data"]),
    "xlsx": (spreadsheet(), ["zip archive", ".xlsx", "CSV"]),
    "parquet": (b"PAR1\x15\x04", ["Parquet file", "CSV"]),
    "pickle": (pickle.dumps({"timestamp": [1]}), ["pickle, which is never loaded"]),
    "tar": (b"trace.csv".ljust(257, b"\0") + b"ustar\0", ["tar archive"]),
    "gzipped tar": (gzip.compress(b"trace.csv".ljust(257, b"\0") + b"ustar\0"), ["tar archive"]),
    "page": (b"\n<!DOCTYPE html>\n<html>404</html>", ["HTML page", "error", "download"]),
    "UTF-16": (TRACE.decode().encode("utf-16"), ["UTF-16 text", "UTF-8"]),
    "binary": (b"\x7fELF\x02\x01\x01" + bytes(64), ["binary data, no text"]),
    "hole": (HEADER + bytes(5 * MIB), ["binary data, no text"]),
    "hole further on": (TRACE * 4000 + bytes(5 * MIB), ["line"]),
    "NUL": (HEADER + b"1,5,5\n" * 1000 + b"2,\x005,5\n", ["line 1002, column 3: a NUL byte"]),
    "array": (b'[{"timestamp": 0}]', ["JSON array", "one object a line", "jq -c"]),
    "long line": (HEADER + b"5" * (2 * MIB), ["line 2: longer than 1 MiB"]),
    "long header": (b",".join([b"c"] * MIB), ["line 1: longer than 1 MiB"]),
    "blank": (TRACE + b"\n" * (3 * MIB), ["blank lines"]),
    "open quote": (TRACE + b'2,"' + b"5,5\n" * MIB, ["not CSV", "quotes"]),
    "endless row": (TRACE + b'"\n",' * MIB, ["longer than 1 MiB", "quote"]),
    "deep": (MOON % (b"[" * 100_000 + b"]" * 100_000), ["line 1", "not JSON", "recursion"]),
    "long integer": (MOON.replace(b'": 0', b'": ' + b"9" * 400) % b"1", ["line 1, column 'timestamp'", "finite"]),
}


@pytest.mark.parametrize("name", NO_TRACE)
@pytest.mark.parametrize("zipped", [False, True])
def test_what_is_no_trace_is_named(tmp_path: Path, name: str, zipped: bool) -> None:
    content, said = NO_TRACE[name]
    zipped &= not content.startswith(b"\x1f\x8b")
    path = tmp_path / "trace.csv"
    path.write_bytes(gzip.compress(content, 1) if zipped else content)
    with pytest.raises(InputError) as refusal:
        read_trace(TraceFile(path=str(path)))
    for fragment in [str(path), *said]:
        assert fragment in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "trace.csv"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match="pickle"):
        read_trace(TraceFile(path=str(path)))
    assert not (tmp_path / "ran").exists()


def test_nothing_but_a_regular_file_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))  # a whole path may be too long for a socket
        for path, said in [
            (tmp_path, "is a directory"),
            (tmp_path / "pipe", "is a pipe, which can be read only once"),
            (tmp_path / "loop", "cannot be read"),
            (tmp_path / "socket", "cannot be read"),
            (Path("/dev/zero"), "is a device"),
            (tmp_path / "a\0b", "no path of a file"),
            (tmp_path / ("x" * 5000), "cannot be read"),
        ]:
            with pytest.raises(InputError, match=said) as refusal:
                read_trace(TraceFile(path=str(path)))
            assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("last", [b"", b"20000"])
def test_blocks_are_whole_lines_and_all_of_them(tmp_path: Path, end: bytes, last: bytes) -> None:
    content = end.join([b"%d" % i + b"x" * (i % 500) for i in range(20_000)]) + end + last
    path = tmp_path / "file"
    path.write_bytes(content)
    blocks = list(read_blocks(str(path)))
    assert b"".join(block.data for block in blocks) == content
    assert len(blocks) > 3
    for block in blocks:
        assert len(block.data) <= 2 * BLOCK_BYTES
        assert block.data.startswith(b"%d" % (block.line - 1))  # line numbers count from 1


@pytest.mark.parametrize("length", [MIB - 1, MIB, MIB + 1, MIB + MIB // 2])
@pytest.mark.parametrize("before", [0, MIB // 3, MIB - 5])
def test_a_line_may_have_a_mebibyte_wherever_it_begins(tmp_path: Path, length: int, before: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * max(before - 1, 0) + b"\n" * (before > 0) + b"b" * length + b"\nend\n")
    if length <= MIB:
        assert b"".join(block.data for block in read_blocks(str(path))) == path.read_bytes()
    else:
        with pytest.raises(InputError, match="longer than 1 MiB"):
            list(read_blocks(str(path)))


_MEASURE = """
import re, sys
from pathlib import Path
from rllib_envs.scenario import TraceFile
from rllib_envs.workload.traces import read_trace

def peak_bytes():  # of this process alone; what getrusage says begins with the parent's
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

tiny, big = sys.argv[1:]
read_trace(TraceFile(path=tiny))
grown = [peak_bytes()]
for options in ({"duration_s": 60.0}, {"start_s": 250_000.0, "duration_s": 60.0}, {}):
    requests = len(read_trace(TraceFile(path=big, **options)).arrival_s)
    grown.append(peak_bytes())
    print(requests, grown[-1] - grown[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory of one process is read from /proc")
def test_memory_goes_by_the_window(tmp_path: Path) -> None:
    """A window takes a few blocks, wherever it is; a whole file no more than 50 bytes a row beside them."""
    rows, tiny, big = 500_000, tmp_path / "tiny.csv", tmp_path / "big.csv"
    big.write_bytes(HEADER + b"".join(b"%d.25,%d,%d%s\n" % (i, 1 + i % 3000, 1 + i % 400, b" " * 20) for i in range(rows)))
    tiny.write_bytes(big.read_bytes()[:10_000].rpartition(b"\n")[0])
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _MEASURE, str(tiny), str(big)]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=300).stdout
    (early, early_bytes), (late, late_bytes), (whole, whole_bytes) = [map(int, line.split()) for line in said.splitlines()]
    assert (early, late, whole) == (60, 60, rows)
    blocks = 20 * MIB
    assert early_bytes < blocks
    assert late_bytes < blocks
    assert whole_bytes < blocks + 50 * rows
