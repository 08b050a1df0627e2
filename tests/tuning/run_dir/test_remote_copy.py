"""A run directory and its copy elsewhere: the copy follows, and is never mistaken for more than it is."""

import json
import uuid
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from models.export.manifest import manifest_of
from models.rllib.checkpoint import FORMAT, read_checkpoint
from rllib_envs.errors import InputError
from tuning.run_dir.remote_copy import RemoteCopy


def write_checkpoint(run_dir, number, text="state"):
    folder = run_dir / "checkpoints" / f"{number:06d}"
    (folder / "rllib" / "learner").mkdir(parents=True)
    (folder / "rllib" / "learner" / "state.pkl").write_text(f"{text} {number}")
    (folder / "router").write_text("weights")
    (folder / "checkpoint.json").write_text(json.dumps({"format": FORMAT, "iteration": number, **manifest_of(folder).to_dict()}))


def remove_checkpoint(run_dir, number):
    folder = run_dir / "checkpoints" / f"{number:06d}"
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()


def write_run(run_dir, numbers, config="seed: 1"):
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(config)
    (run_dir / "metrics.jsonl").write_text("line\n" * max(numbers))
    (run_dir / "run.lock").write_text("held")
    (run_dir / ".hidden").write_text("no")
    (run_dir / "tensorboard").mkdir()
    (run_dir / "tensorboard" / "events").write_text("events")
    for number in numbers:
        write_checkpoint(run_dir, number)
    return run_dir


def contents(folder):
    """Path -> bytes, of what is copied."""
    left = ("run.lock", ".hidden")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in left}


def remote_copy(url, run_dir):
    return RemoteCopy(url, run_dir, config="config.yaml")


@pytest.fixture(params=["folder", "file", "memory"])
def url(request, tmp_path):
    """A place that is empty, of several kinds."""
    place = {"folder": f"{tmp_path}/store", "file": f"file://{tmp_path}/store", "memory": f"memory://{uuid.uuid4()}"}
    return place[request.param]


def test_what_goes_there_comes_back(url, tmp_path):
    run_dir = write_run(tmp_path / "run", [1, 2, 3])
    remote_copy(url, run_dir).put()
    (tmp_path / "elsewhere").mkdir()
    again = tmp_path / "elsewhere" / "run"
    remote_copy(url, again).fetch()
    assert contents(again) == contents(run_dir)
    assert read_checkpoint(again / "checkpoints" / "000003")["iteration"] == 3


def test_the_copy_follows(url, tmp_path):
    run_dir = write_run(tmp_path / "run", [1, 2])
    copy = remote_copy(url, run_dir)
    copy.put()
    for number in (3, 4):
        write_checkpoint(run_dir, number)
        remove_checkpoint(run_dir, number - 2)
        (run_dir / "metrics.jsonl").write_text("line\n" * number)
        copy.put()
    remove_checkpoint(run_dir, 4)
    write_checkpoint(run_dir, 4, "another state")  # one of the same number that replaces a damaged one
    copy.put()
    filesystem, root = fsspec.url_to_fs(url)
    found = {path.partition("/run/")[2]: filesystem.cat_file(path) for path in filesystem.find(f"{root}/run")}
    assert found == contents(run_dir)


def test_only_what_is_missing_here_is_fetched(url, tmp_path):
    run_dir = write_run(tmp_path / "run", [1, 2, 3])
    copy = remote_copy(url, run_dir)
    copy.put()
    before = contents(run_dir)
    copy.fetch()
    assert contents(run_dir) == before
    (run_dir / "checkpoints" / "000003" / "router").write_text("wei")  # damaged: the one there is better
    (run_dir / "metrics.jsonl").write_text("")
    copy.fetch()
    assert contents(run_dir) == before
    write_checkpoint(run_dir, 4)  # newer than there
    (run_dir / "metrics.jsonl").write_text("line\n" * 4)
    newer = contents(run_dir)
    copy.fetch()
    assert contents(run_dir) == newer


def test_a_place_without_a_run_gives_none(url, tmp_path):
    copy = remote_copy(url, tmp_path / "run")
    assert not copy.holds_run()
    copy.fetch()
    assert not (tmp_path / "run").exists()


def test_another_run_of_the_same_name_is_not_mixed_up_with_this_one(url, tmp_path):
    remote_copy(url, write_run(tmp_path / "run", [5])).put()
    (tmp_path / "other").mkdir()
    other = write_run(tmp_path / "other" / "run", [1], "seed: 2")
    before = contents(other)
    with pytest.raises(InputError, match="holds another run"):
        remote_copy(url, other).fetch()
    assert contents(other) == before


class Failing(MemoryFileSystem):
    """Refuses to work after so many writes, and at last again."""

    protocol = "failing"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    cachable = False
    left = 0

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("failing://", "memory://"))

    def _act(self):
        if Failing.left == 0:
            raise ConnectionError("the line is dead")
        Failing.left -= 1

    def put_file(self, *args, **kwargs):
        self._act()
        if Failing.left == 0:  # half of it arrives
            self.pipe_file(args[1], b"")
            raise ConnectionError("the line is dead")
        super().put_file(*args, **kwargs)

    def rm_file(self, path):
        self._act()
        super().rm_file(path)

    def mv(self, *args, **kwargs):
        self._act()
        super().mv(*args, **kwargs)


def whole(filesystem, root):
    """Numbers of the checkpoints there that look whole, each of which is."""
    found = []
    for about in filesystem.glob(f"{root}/checkpoints/*/checkpoint.json"):
        folder = about.rpartition("/")[0]
        for name in json.loads(filesystem.cat_file(about))["sha256"]:
            assert filesystem.cat_file(f"{folder}/{name}")
        found.append(int(folder.rpartition("/")[2]))
    return found


def test_wherever_it_breaks_off_what_looks_whole_is_and_the_next_try_ends_well(tmp_path):
    fsspec.register_implementation("failing", Failing, clobber=True)
    Failing.left = 1000
    run_dir = write_run(tmp_path / "run", [1, 2])
    copy = remote_copy("failing://store", run_dir)
    copy.put()
    write_checkpoint(run_dir, 3)
    remove_checkpoint(run_dir, 1)
    (run_dir / "metrics.jsonl").write_text("line\n" * 3)
    for writes in range(1, 100):
        Failing.left = writes
        try:
            copy.put()
        except InputError as error:
            assert "the line is dead" in str(error)  # noqa: PT017
        else:
            break
        assert 2 in whole(copy.filesystem, copy.root)
        assert copy.filesystem.cat_file(f"{copy.root}/metrics.jsonl").decode() in ("line\n" * 2, "line\n" * 3)
    assert whole(copy.filesystem, copy.root) == [2, 3]
    assert writes > 3
    Failing.left = 0
    with pytest.raises(InputError, match=r"failing://store/run: cannot be written to: the line is dead"):
        remote_copy("failing://store", run_dir)


@pytest.mark.parametrize(
    ("url", "said"),
    [("nope://bucket/runs", "Protocol not known: nope"), ("s3://bucket/runs", "s3fs"), ("{file}/runs", "cannot be written to")],
)
def test_a_place_that_cannot_be_is_one_clear_error(url, said, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=said) as caught:
        remote_copy(url.format(file=tmp_path / "file"), tmp_path / "run")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_password_is_not_shown(tmp_path):
    with pytest.raises(InputError) as caught:
        remote_copy("nope://me:secret@host/runs", tmp_path / "run")
    assert "secret" not in str(caught.value)
