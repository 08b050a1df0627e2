"""A folder is loaded from only if it holds what was written and nothing else, whatever somebody puts there and whenever."""

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import models.export.manifest
from models.export.manifest import (
    Manifest,
    check_folder,
    manifest_in,
    manifest_of,
    private_copy,
    read_description,
    read_file,
)
from models.export.names import inner_name, inner_path
from rllib_envs.errors import InputError

FILES = {"state.pkl": b"state", "a/b/module.pkl": b"module" * 1000, "a/class.pkl": b"", "ſtate.pkl": b"look-alike"}


@pytest.fixture
def folder(tmp_path):
    """A folder of some files, with its description."""
    folder = tmp_path / "made"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "about.json").write_text(json.dumps(manifest_of(folder).to_dict()))
    return folder


def manifest(folder):
    where = folder / "about.json"
    return manifest_in(read_description(where, "thing"), where)


def check(folder):
    check_folder(folder, manifest(folder), folder / "about.json", "thing")


def copied(folder):
    """The folder without its description, copied; what the copy held."""
    (folder.parent / "inner").mkdir(exist_ok=True)
    description = read_description(folder / "about.json", "thing")
    found = manifest_in(description, folder / "about.json")
    (folder / "about.json").rename(folder.parent / "about.json")
    with private_copy(folder, found, folder.parent / "about.json", "thing") as copy:
        assert stat.S_IMODE(copy.parent.stat().st_mode) == 0o700
        held = {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    assert not copy.parent.exists()
    return held


def test_what_was_written_passes_and_its_copy_is_the_same(folder):
    check(folder)
    assert copied(folder) == FILES


def unlink_and(act):
    def attack(path):
        path.unlink()
        act(path)

    return attack


def elsewhere(path):
    """The same contents, outside of the folder."""
    there = path.parents[1] / "elsewhere"
    there.write_bytes(FILES["state.pkl"])
    return there


ATTACKS = {
    "one more file": lambda f: (f / "a" / "b" / "module.msgpack").write_bytes(b"x"),
    "one more file at the top": lambda f: (f / "more").touch(),
    "a hidden file": lambda f: (f / ".more").touch(),
    "case": lambda f: (f / "STATE.pkl").write_bytes(FILES["state.pkl"]),
    "look-alike": lambda f: (f / "stаte.pkl").write_bytes(FILES["state.pkl"]),
    "composed otherwise": lambda f: (f / "ſtate.pkl").rename(f / "ſtaté.pkl"),
    "an empty folder": lambda f: (f / "a" / "c").mkdir(),
    "a folder for a file": lambda f: ((f / "state.pkl").unlink(), (f / "state.pkl").mkdir()),
    "a file for a folder": lambda f: ((f / "a").rename(f.parent / "a"), (f / "a").touch()),
    "a link to the same": lambda f: ((f / "state.pkl").unlink(), (f / "state.pkl").symlink_to(elsewhere(f / "state.pkl"))),
    "a link within": lambda f: (f / "link.pkl").symlink_to("state.pkl"),
    "a link that leads nowhere": lambda f: (f / "link.pkl").symlink_to("nowhere"),
    "a linked folder": lambda f: ((f / "a").rename(f.parent / "a"), (f / "a").symlink_to(f.parent / "a")),
    "a pipe for a file": lambda f: ((f / "state.pkl").unlink(), os.mkfifo(f / "state.pkl")),
    "one more pipe": lambda f: os.mkfifo(f / "pipe"),
    "missing": lambda f: (f / "state.pkl").unlink(),
    "longer": lambda f: (f / "state.pkl").write_bytes(b"state!"),
    "other contents": lambda f: (f / "state.pkl").write_bytes(b"STATE"),
    "huge and sparse": lambda f: os.truncate(f / "state.pkl", 2**40),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("load", [check, copied])
def test_whatever_else_is_there_is_refused_and_named(load, attack, folder):
    attack(folder)
    with pytest.raises(InputError) as caught:
        load(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_of_very_many_files_no_more_than_one_is_looked_at(folder, monkeypatch):
    """The folder with them is not listed to its end: the first that nobody wrote is the last."""
    (folder / "a" / "b" / "module.pkl").unlink()
    for number in range(3000):
        (folder / "a" / "b" / f"{number}").touch()
    looked, scan = [], os.scandir

    class Counting:
        def __init__(self, descriptor):
            self.inner = scan(descriptor)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.inner.close()

        def __iter__(self):
            for entry in self.inner:
                looked.append(entry.name)
                yield entry

    monkeypatch.setattr(models.export.manifest.os, "scandir", Counting)
    with pytest.raises(InputError, match="tampered"):
        check(folder)
    assert len(looked) < 10


@pytest.mark.parametrize("step", range(12))
def test_a_swap_at_any_moment_of_the_copy_does_not_count(step, folder, monkeypatch):
    """Whatever is swapped between two openings: the copy holds what was signed, or there is none."""
    opened, real = [], os.open

    def swapping(path, flags, *args, **options):
        opened.append(path)
        if len(opened) == step:
            for name in FILES:
                if (folder / name).exists():
                    (folder / name).unlink()
                    (folder / name).write_bytes(b"other")
            (folder / "more.pkl").write_bytes(b"other")
        return real(path, flags, *args, **options)

    found = manifest(folder)
    (folder / "about.json").rename(folder.parent / "about.json")
    monkeypatch.setattr(models.export.manifest.os, "open", swapping)
    try:
        with private_copy(folder, found, folder.parent / "about.json", "thing") as copy:
            held = {p.relative_to(copy).as_posix(): p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    except InputError:
        held = FILES
    assert held == FILES


@pytest.mark.slow
def test_a_swap_under_way_never_gets_through(folder):
    """Another thread swaps a file as fast as it can."""
    found, path, over = manifest(folder), folder / "a" / "b" / "module.pkl", threading.Event()
    (folder / "about.json").rename(folder.parent / "about.json")

    def swap():
        while not over.is_set():
            for data in (b"evil" * 1500, FILES["a/b/module.pkl"]):
                staged = folder.parent / "aside"
                staged.write_bytes(data)
                staged.replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    ends = []
    try:
        for _ in range(100):
            try:
                with private_copy(folder, found, folder.parent / "about.json", "thing") as copy:
                    ends.append((copy / "a" / "b" / "module.pkl").read_bytes())
            except InputError:
                ends.append(None)
    finally:
        over.set()
        thread.join()
    assert set(ends) <= {None, FILES["a/b/module.pkl"]}


def test_a_file_that_grows_while_it_is_read_ends(folder, monkeypatch):
    """No more is read than there was."""
    found, path = manifest(folder), folder / "state.pkl"
    read = models.export.manifest._read

    def growing(file, size, copy):
        if size == len(FILES["state.pkl"]):
            os.truncate(path, 2**40)
        return read(file, size, copy)

    monkeypatch.setattr(models.export.manifest, "_read", growing)
    check_folder(folder, found, folder / "about.json", "thing")


DESCRIPTIONS = {
    "itself": {"sha256": {"about.json": "0" * 64}},
    "outside": {"sha256": {"../x": "0" * 64}},
    "absolute": {"sha256": {"/etc/passwd": "0" * 64}},
    "no digest": {"sha256": {"x": "0" * 63}},
    "digest of another type": {"sha256": {"x": 7}},
    "no digests": {"sha256": []},
    "nothing": {},
    "very many": {"sha256": {str(n): "0" * 64 for n in range(1001)}},
    "size below 0": {"sha256": {"x": "0" * 64}, "bytes": {"x": -1}},
    "size of truth": {"sha256": {"x": "0" * 64}, "bytes": {"x": True}},
    "size of another": {"sha256": {"x": "0" * 64}, "bytes": {"y": 1}},
    "sizes of another type": {"sha256": {"x": "0" * 64}, "bytes": [1]},
}


@pytest.mark.parametrize("contents", DESCRIPTIONS.values(), ids=DESCRIPTIONS)
def test_a_description_that_cannot_have_been_written_is_refused(contents):
    with pytest.raises(InputError, match=r"f/about\.json: "):
        manifest_in(contents, Path("f/about.json"))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"a": NaN}', '{"a": 1e999}', "[]", "\ud800", "{" + " " * 2**21 + "}", ""],
    ids=["levels", "mappings", "digits", "nan", "inf", "list", "surrogate", "large", "empty"],
)
def test_json_that_is_no_description_is_one_line(text, tmp_path):
    path = tmp_path / "about.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError) as caught:
        read_description(path, "thing")
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nothing", "device", "large"])
def test_only_a_file_is_read_and_nothing_hangs(kind, tmp_path):
    path = tmp_path / "x"
    (tmp_path / "y").write_text("y")
    {
        "link": lambda: path.symlink_to("y"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "nothing": lambda: None,
        "device": lambda: path.symlink_to("/dev/zero"),
        "large": lambda: path.write_bytes(b"0" * 101),
    }[kind]()
    with pytest.raises(InputError, match=str(path)):
        read_file(path, 100, "thing")


@given(st.text())
def test_a_name_is_refused_or_stays_in_its_folder(name):
    root = Path("/some/folder")
    try:
        inner = inner_name(name, "there")
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return
    path = Path(os.path.normpath(root / inner))
    assert path != root
    assert path.is_relative_to(root)
    assert str(inner) == name


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../x", "a/../x", "a/..", "/etc/x", "//x", "a//b", "a/", "./a", "a/./b", "a\0b", "a\nb", "a\\b",
        "\ud800", "\u202ea", "\u2028", "a" * 256, "/".join("a" * 33), None, 7,
    ],
)  # fmt: skip
def test_names_that_leave_or_deceive_are_refused(name):
    with pytest.raises(InputError, match="refused"):
        inner_name(name, "there")


@pytest.mark.parametrize("name", ["a", "a/b.pkl", "...", "..a", "a b", "größe", "a:b", "-rf"])
def test_other_names_are_taken(name):
    assert str(inner_name(name, "there")) == name


def test_a_link_on_the_way_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "out").symlink_to(tmp_path)
    (tmp_path / "run" / "file").symlink_to(tmp_path / "else")
    for name in ("out/x", "out", "file"):
        with pytest.raises(InputError, match="is a link"):
            inner_path(tmp_path / "run", name, "there")
    assert inner_path(tmp_path / "run", "a/b", "there") == tmp_path / "run" / "a" / "b"


def test_the_manifest_of_a_part_is_that_of_its_folder(folder):
    assert manifest(folder).below("a") == manifest_of(folder / "a")
    assert manifest(folder).below("b") == Manifest(sha256={}, bytes={})
