"""Files are whole or not there."""

import json
import math

import pytest

from rllib_envs.errors import InputError
from rllib_envs.json_files import read_json
from tuning.run_dir.atomic import write_atomically, write_json, write_text


class Stop(Exception):
    """Any failure halfway."""


def half_written(path):
    path.write_text("half of")
    raise Stop


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(Stop):
        write_atomically(tmp_path / "results.json", half_written)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")
    with pytest.raises(Stop):
        write_atomically(path, half_written)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert path.read_text() == "old"


def test_the_name_appears_only_once_the_file_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"

    def write(staged):
        assert not path.exists()
        assert (staged.parent, staged.suffix) == (path.parent, path.suffix)
        staged.write_text("all of it")

    write_atomically(path, write)
    assert path.read_text() == "all of it"
    assert [file.name for file in path.parent.iterdir()] == ["table.csv"]


def test_json_has_null_where_a_figure_is_unknown(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1.5, math.nan], "b": (math.inf, {"c": 2})})
    assert (
        json.loads(path.read_text(), parse_constant=pytest.fail) == read_json(path) == {"a": [1.5, None], "b": [None, {"c": 2}]}
    )


@pytest.mark.parametrize(
    ("content", "message"), [(b'{"a": 1,\n "b" 2}', r"a\.json:2:6: not JSON"), (b"\xff\xfe", "UTF-8"), (None, "cannot be read")]
)
def test_unreadable_json_says_where(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(path)


def test_a_file_in_the_way_is_bad_input(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "runs" / "a.txt", "text")
