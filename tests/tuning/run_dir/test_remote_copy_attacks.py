"""Whatever keys a storage holds, nothing is written outside of the run directory, nor over what is never sent."""

import uuid
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rllib_envs.errors import InputError
from tests.tuning.run_dir.test_remote_copy import contents, write_run
from tuning.run_dir.remote_copy import RemoteCopy


class Hostile(MemoryFileSystem):
    """Holds keys of any form, as object stores do."""

    protocol = "hostile"
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    cachable = False
    keys: ClassVar = []  # below the run, beside what is there

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("hostile://", "memory://"))

    def find(self, path, **options):
        run = "/".join(path.split("/")[:3])  # /place/run
        return [*super().find(path, **options), *(f"{run}/{key}" for key in Hostile.keys if f"{run}/{key}".startswith(path))]

    def get_file(self, rpath, lpath, **options):
        if any(rpath.endswith(f"/run/{key}") for key in Hostile.keys):
            with open(lpath, "wb") as file:
                file.write(b"evil")
            return
        super().get_file(rpath, lpath, **options)


@pytest.fixture
def place(tmp_path):
    """A storage that holds a run with one checkpoint, and the folder of that."""
    fsspec.register_implementation("hostile", Hostile, clobber=True)
    url = f"hostile://{uuid.uuid4()}"
    Hostile.keys = []
    (tmp_path / "first").mkdir()
    run_dir = write_run(tmp_path / "first" / "run", [1])
    RemoteCopy(url, run_dir, config="config.yaml").put()
    yield url
    Hostile.keys = []


def everything(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("within", ["", "checkpoints/000001/", "tensorboard/"])
@pytest.mark.parametrize(
    "key", ["../../evil", "../evil", "x/../../../evil", "..", "a//../evil", "/etc/evil", "a\0b", "./evil", "a\\b"]
)
def test_a_key_that_leads_out_is_refused_and_writes_nothing(key, within, place, tmp_path):
    (tmp_path / "there" / "deep").mkdir(parents=True)
    Hostile.keys = [within + key]
    remote_copy = RemoteCopy(place, tmp_path / "there" / "deep" / "run", config="config.yaml")
    with pytest.raises(InputError, match="refused") as caught:
        remote_copy.fetch()
    assert len(str(caught.value).splitlines()) == 1
    assert "evil" not in " ".join(everything(tmp_path / "there"))
    assert not {path.name for path in (tmp_path / "there" / "deep").iterdir()} - {"run"}


def test_a_folder_that_others_write_to_is_fetched_with_the_same_care(place, tmp_path):
    Hostile.keys = ["tune/../../evil"]
    with pytest.raises(InputError, match="refused"):
        RemoteCopy(place, tmp_path / "run", config="config.yaml").fetch_folder("tune")
    assert everything(tmp_path) == everything(tmp_path) - {"evil"}


@pytest.mark.parametrize("linked", ["tensorboard", "checkpoints", "metrics.jsonl", "checkpoints/000001"])
def test_a_link_in_the_run_directory_leads_nowhere(linked, place, tmp_path):
    outside, run_dir = tmp_path / "outside", tmp_path / "there" / "run"
    outside.mkdir()
    (run_dir / linked).parent.mkdir(parents=True)
    (run_dir / linked).symlink_to(outside / ("file" if "." in linked else ""))
    with pytest.raises(InputError, match="is a link"):
        RemoteCopy(place, run_dir, config="config.yaml").fetch()
    assert not list(outside.iterdir())


@pytest.mark.parametrize("key", ["run.lock", ".bashrc", ".ssh/authorized_keys", "a/.hidden", "x.part", "checkpoints/x"])
def test_what_is_never_sent_is_never_fetched(key, place, tmp_path):
    Hostile.keys = [key]
    run_dir = tmp_path / "there" / "run"
    run_dir.mkdir(parents=True)
    (run_dir / "run.lock").write_text("held")
    RemoteCopy(place, run_dir, config="config.yaml").fetch()
    assert (run_dir / "run.lock").read_text() == "held"
    assert contents(run_dir) == contents(tmp_path / "first" / "run")
    assert key == "run.lock" or not (run_dir / key).exists()


@pytest.mark.parametrize("name", ["٠٠٠٠٠٩", "²", "-1", "1x"])
def test_only_ascii_digits_name_a_checkpoint_there(name, place, tmp_path):
    remote_copy = RemoteCopy(place, tmp_path / "run", config="config.yaml")
    remote_copy.filesystem.pipe_file(f"{remote_copy.root}/checkpoints/{name}/checkpoint.json", b"{}")
    remote_copy.fetch()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000001"]


def test_a_configuration_that_is_huge_is_not_read_to_its_end(place, tmp_path):
    remote_copy = RemoteCopy(place, tmp_path / "first" / "run", config="config.yaml")
    remote_copy.filesystem.pipe_file(f"{remote_copy.root}/config.yaml", b"0" * 2**25)
    assert len(remote_copy._read(tmp_path / "first" / "run" / "config.yaml")) < 2**25
    with pytest.raises(InputError, match="holds another run"):
        remote_copy.fetch()
