"""Results of a job come from elsewhere: unpacking them writes files into the new folder, and does nothing else."""

import io
import os
import tarfile

import pytest

from cluster.job import unpack
from rllib_envs.errors import InputError


def packed(*members):
    """An archive of (name, contents), (name, type, link) or members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, *rest = member
            info = tarfile.TarInfo(name)
            if len(rest) == 1:
                info.size, info.mode = len(rest[0]), 0o4777
                archive.addfile(info, io.BytesIO(rest[0]))
            else:
                info.type, info.linkname = rest
                archive.addfile(info)
    return out.getvalue()


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    return folder


def test_files_and_folders_are_written_and_rights_are_ones_own(out):
    data = packed((".", tarfile.DIRTYPE, ""), ("./a", tarfile.DIRTYPE, ""), ("./a/b", b"text"), ("./c", b""))
    assert unpack(data, out, "job x") == 0
    assert (out / "a" / "b").read_bytes() == b"text"
    assert (out / "c").read_bytes() == b""
    assert all(path.stat().st_mode & 0o7022 == 0 for path in out.rglob("*"))


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "./../evil", "a//b", "a/./b", "a\nb"])
def test_a_name_that_leads_out_is_refused(name, out):
    with pytest.raises(InputError, match="refused"):
        unpack(packed(("fine", b"x"), (name, b"evil")), out, "job x")
    assert {path.name for path in out.parent.iterdir()} == {"out"}
    assert {path.name for path in out.iterdir()} == {"fine"}


def test_links_and_devices_are_left_out_and_lead_nowhere(out):
    (out.parent / "target").mkdir()
    links = [("d", tarfile.SYMTYPE, "../target"), ("h", tarfile.LNKTYPE, "fine"), ("z", tarfile.CHRTYPE, ""),
             ("p", tarfile.FIFOTYPE, ""), ("d/evil", b"evil")]  # fmt: skip
    assert unpack(packed(("fine", b"x"), *links), out, "job x") == 4
    assert not list((out.parent / "target").iterdir())
    assert (out / "d" / "evil").read_bytes() == b"evil"  # a folder of our own
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_a_link_that_is_there_is_not_followed(out):
    (out.parent / "target").mkdir()
    (out / "d").symlink_to(out.parent / "target")
    with pytest.raises(InputError, match="is a link"):
        unpack(packed(("d/evil", b"evil")), out, "job x")
    assert not list((out.parent / "target").iterdir())


def test_the_same_name_twice_is_damage(out):
    with pytest.raises(OSError, match="exists"):
        unpack(packed(("a", b"1"), ("a", b"2")), out, "job x")


def test_a_bomb_is_refused_before_it_takes_the_disk(out):
    info = tarfile.TarInfo("bomb")
    info.size = 2**40
    with pytest.raises(InputError, match="more than"):
        unpack(packed(info), out, "job x")
    assert not list(out.iterdir())


def test_a_cut_archive_is_damage_and_nothing_else(out):
    data = packed(("a", os.urandom(10_000)))
    with pytest.raises((tarfile.TarError, EOFError, OSError)):
        unpack(data[: len(data) // 2], out, "job x")
