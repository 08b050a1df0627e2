"""Logs of answers: the same data in every format are the same prompts, and what is wrong with a file is said row by row."""

import csv
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from rllib_envs.errors import InputError
from rllib_envs.workload import answer_logs
from rllib_envs.workload.answer_logs import read_prompts
from rllib_envs.workload.prompt_files import read_prompt_file
from tests.draws import examples

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
CELLS = st.none() | st.tuples(st.none() | st.sampled_from([0, 1, 0.25]), st.none() | st.integers(0, 5000))


@st.composite
def tables(draw):
    """Records of prompts, with the answers of two or three models; None where a model was not run."""
    models = draw(st.lists(TEXTS.filter(bool), min_size=2, max_size=3, unique=True))
    ids = draw(st.lists(TEXTS.filter(bool), min_size=1, max_size=5, unique=True))
    records = [
        {
            "id": prompt_id,
            "task": draw(TEXTS),
            "prompt": draw(TEXTS),
            "prompt_tokens": draw(st.integers(0, 4000)),
            "answers": draw(st.lists(CELLS, min_size=len(models), max_size=len(models))),
        }
        for prompt_id in ids
    ]
    for record in records[:1]:  # else a prompt or a model that nothing is known of
        record["answers"] = [answer or (None, 7) for answer in record["answers"]]
    for record in records:
        if not any(record["answers"]):
            record["answers"][0] = (1, None)
    return models, records


def wide(models, records):
    """The lines of ``read_prompt_file``."""
    lines = [{"header": True, "models": models}]
    for record in records:
        answers = [answer or (None, None) for answer in record["answers"]]
        lines.append(
            {
                **record,
                "answers": None,
                "correct": [score for score, _ in answers],
                "out_tokens": [tokens for _, tokens in answers],
            }
        )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def long(models, records):
    """The rows of a log."""
    return [
        {
            **{key: record[key] for key in ("id", "task", "prompt", "prompt_tokens")},
            "model": model,
            "score": answer[0],
            "out_tokens": answer[1],
        }
        for record in records
        for model, answer in zip(models, record["answers"], strict=True)
        if answer is not None
    ]


def as_csv(rows):
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_json(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows):
    file = io.BytesIO()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    columns["score"] = pa.array([None if score is None else float(score) for score in columns["score"]], pa.float64())
    columns["out_tokens"] = pa.array(columns["out_tokens"], pa.int64())
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def same(found, expected):
    for name in ("models", "ids", "tasks", "texts"):
        assert getattr(found, name) == getattr(expected, name)
    for name in ("prompt_tokens", "score", "output_tokens"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert dict(found.predicted) == dict(expected.predicted) == {}


@examples(40)
@given(data=tables())
def test_the_same_data_are_the_same_prompts_in_every_format(data, tmp_path_factory):
    place = tmp_path_factory.mktemp("logs")
    (place / "wide").write_bytes(wide(*data))
    expected = read_prompt_file(str(place / "wide"))
    rows = long(*data)
    for name, content in {
        "wide": wide(*data),
        "csv": as_csv(rows),
        "csv with a byte order mark": b"\xef\xbb\xbf" + as_csv(rows),
        "csv.gz": gzip.compress(as_csv(rows)),
        "json": as_json(rows),
        "parquet": as_parquet(rows),
    }.items():
        (place / name).write_bytes(content)
        same(read_prompts(str(place / name)), expected)


ROWS = [
    {"id": f"p{i}", "prompt": f"What is {i}?", "model": model, "score": i % 2, "out_tokens": 10 * i}
    for i in range(3)
    for model in ("a", "b")
]


def written(tmp_path, rows=ROWS, name="log.csv", write=as_csv):
    path = tmp_path / name
    path.write_bytes(write(rows))
    return str(path)


def changed(**values):
    rows = [dict(row) for row in ROWS]
    rows[3].update(values)
    return rows


def test_what_a_log_does_not_say_is_taken_to_be_nothing(tmp_path):
    found = read_prompts(written(tmp_path, ROWS[:3]))
    assert found.tasks == ("", "")
    assert found.prompt_tokens.tolist() == [2, 2]  # of ten characters
    assert np.isnan(found.score).tolist() == [[False, False], [False, True]]


def test_other_names_order_of_columns_and_truth_values_are_the_same(tmp_path):
    other = [{"output_tokens": row["out_tokens"], "x": 1, "correct": bool(row["score"]), **row} for row in ROWS]
    for row in other:
        del row["score"], row["out_tokens"]
    expected = read_prompts(written(tmp_path))
    same(read_prompts(written(tmp_path, other, "other.csv")), expected)
    same(read_prompts(written(tmp_path, other, "other.json", as_json)), expected)


FAULTS = {
    "no id": ({"id": ""}, "column 'id': '' must be text, not empty"),
    "no model": ({"model": ""}, "column 'model': '' must be text, not empty"),
    "a score of percent": ({"score": 85}, "column 'score': .* must be a number from 0 to 1, or empty"),
    "a score in words": ({"score": "good"}, "column 'score': 'good' must be a number from 0 to 1"),
    "a score that is none": ({"score": "nan"}, "column 'score': 'nan' must be"),
    "a score beyond numbers": ({"score": "inf"}, "column 'score': 'inf' must be"),
    "digits with underscores": ({"out_tokens": "1_000"}, "column 'out_tokens': '1_000' must be a number from 0 to"),
    "a negative length": ({"out_tokens": -1}, "column 'out_tokens': .*-1.* must be a number from 0 to"),
    "another text": ({"prompt": "Why?"}, "column 'prompt': 'Why\\?' must be as in {unit} {first}, .*: 'What is 1\\?'"),
    "one answer twice": ({"model": "a"}, "columns 'id' and 'model': 'p1' and 'a' must come once, but are in {unit} {first} too"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("write", [as_csv, as_json])
def test_a_malformed_row_is_one_line_with_its_place_and_value(change, message, write, tmp_path):
    path = written(tmp_path, changed(**change), "log", write)
    at = 5 if write is as_csv else 4
    with pytest.raises(InputError, match=rf"log: line {at}: {message.format(unit='line', first=at - 1)}") as error:
        read_prompts(path)
    assert len(str(error.value).splitlines()) == 1


def test_a_malformed_row_of_parquet_has_its_number(tmp_path):
    for change, message in (
        ({"score": 2}, r"row 4: column 'score': 2.0 must"),
        ({"id": None}, r"row 4: column 'id': nothing must be"),
    ):
        with pytest.raises(InputError, match=message):
            read_prompts(written(tmp_path, changed(**change), "log.parquet", as_parquet))


def test_rows_with_other_cells_are_named_and_the_rest_is_checked_too(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(as_csv(ROWS) + b"p9,what,a,1\np9,what,b,7,3\n")
    with pytest.raises(InputError) as error:
        read_prompts(str(path))
    first, second = str(error.value).splitlines()
    assert "line 8: 4 cells for the header's 5 columns" in first
    assert "line 9: column 'score': '7'" in second


def test_ten_rows_are_named_and_the_others_counted(tmp_path):
    rows = [{**ROWS[0], "id": f"p{i}", "score": 2} for i in range(25)]
    for name, write in (("log.csv", as_csv), ("log.json", as_json), ("log.parquet", as_parquet)):
        with pytest.raises(InputError) as error:
            read_prompts(written(tmp_path, rows, name, write))
        lines = str(error.value).splitlines()
        assert len(lines) == 11
        assert lines[-1].endswith("15 more rows are malformed")


def test_a_line_is_the_one_that_its_row_begins_in(tmp_path):
    rows = changed(score=3)
    rows[0]["prompt"] = rows[1]["prompt"] = "one\ntwo\r\nthree"
    with pytest.raises(InputError, match="line 9: column 'score'"):
        read_prompts(written(tmp_path, rows))


FILES = {
    "empty": (b"", "the file is empty"),
    "a header alone": (b"id,prompt,model,score,out_tokens\n", "no rows"),
    "semicolons": (b"id;prompt;model;score;out_tokens\n", "cells separated by semicolons, not commas: .*: write commas"),
    "no model": (b"id,prompt,Modell,score,out_tokens\n1,2,3,1,5\n", "no column 'model'; the file has .*; nearest: 'Modell'"),
    "two scores": (b"id,prompt,model,score,correct,out_tokens\n", "columns 'score' and 'correct' say the same: give one"),
    "a quote": (b'id,prompt,model,score,out_tokens\n1,"2,3,1,5\n', "line 2: not CSV .*: correct the quotes"),
    "Latin-1": (b"id,prompt,model,score,out_tokens\n1,caf\xe9,m,1,5\n", "line 2, column 6: byte 0xe9 is not UTF-8: save"),
    "half a gzip": (gzip.compress(b"id,prompt,model,score,out_tokens\n" * 99)[:40], "gzip data ends too early"),
    "a workbook": (b"PK\x03\x04" + bytes(50), "a zip archive, as .xlsx files are too: unzip it, or export it as CSV"),
    "half a Parquet": (as_parquet([{**row, "score": 1} for row in ROWS])[:200], "damaged Parquet"),
    "a Parquet without scores": (as_parquet([{"score": 1, "out_tokens": 1, "id": "1", "model": "a"}]), "no column 'prompt'"),
    "an array": (b'[{"id": 1}]', "is a JSON array: write one object a line"),
    "no JSON": (as_json(ROWS) + b'{"id": \n', "line 7: column 8: not JSON"),
    "a huge number": (as_json(ROWS) + b'{"id": 1e999}\n', "line 7: not JSON that is read here: the number 1e999"),
    "no object": (as_json(ROWS) + b"7\n", "line 7: '7' must be a JSON object"),
    "a header without models": (b'{"header": true}\n', "not a header"),
    "half a character": (as_json(changed(id="\ud800")), "line 4: column 'id': .* holds half a character"),
    "a long prompt": (as_csv([{**ROWS[0], "prompt": "x" * (1 << 20)}]), "longer than 1 MiB"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_log_is_one_clear_line(content, message, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read_prompts(str(path))
    assert len(str(error.value).splitlines()) == 1


def test_places_that_are_no_file_are_refused_at_once(tmp_path):
    for path in (tmp_path, tmp_path / "absent", "a\0b"):
        with pytest.raises(InputError):
            read_prompts(str(path))


def test_a_column_of_lists_is_refused_by_its_type(tmp_path):
    path = tmp_path / "log.parquet"
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    parquet.write_table(pa.table(columns | {"score": [[1.0]] * len(ROWS)}), path)
    with pytest.raises(InputError, match=r"column 'score' has values of type list<.*>: must be numbers"):
        read_prompts(str(path))


LIMITS = {"MOST_ROWS": 5, "MOST_MODELS": 1, "MOST_CELLS": 3, "MOST_TEXTS": 25}


@pytest.mark.parametrize(("name", "most"), LIMITS.items())
def test_a_log_beyond_the_limits_is_refused_before_it_takes_memory(name, most, tmp_path, monkeypatch):
    monkeypatch.setattr(answer_logs, name, most)
    with pytest.raises(InputError, match=rf"{most}\b"):
        read_prompts(written(tmp_path))


def test_a_limit_of_the_csv_module_is_as_it_was(tmp_path):
    before = csv.field_size_limit()
    read_prompts(written(tmp_path, [{**ROWS[0], "prompt": "x" * 200_000}]))
    with pytest.raises(InputError):
        read_prompts(written(tmp_path, changed(score=3)))
    assert csv.field_size_limit() == before


@examples(100)
@given(content=st.binary(max_size=200), begin=st.sampled_from([b"", as_csv(ROWS), as_json(ROWS), as_parquet(ROWS), b"\x1f\x8b"]))
def test_whatever_a_file_holds_is_prompts_or_one_clear_error(content, begin, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any"
    for data in (begin + content, begin[: len(begin) // 2] + content + begin[len(begin) // 2 :]):
        path.write_bytes(data)
        try:
            read_prompts(str(path))
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017 - most of these files are refused, and some are not
