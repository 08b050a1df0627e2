"""No secret of a URL is in anything that is shown, written or tracked."""

import os
import sys
import uuid
from urllib.parse import quote, unquote

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import edgeroute
from rllib_envs.errors import InputError
from tuning.output.tracking import TrackOptions, tracker
from tuning.ray_cluster.check import _try_storage
from tuning.run_dir.remote_copy import RemoteCopy
from tuning.run_dir.secret_urls import HIDDEN, has_secret, told, without_secrets

pytestmark = pytest.mark.slow

SECRETS = ("hunter2", "AKIAKEYID", "sl/ash", "ha#sh", "que?ry", "at@sign", "co::lons", "sp ace", "wörd", "50%25", "tail9")
URLS = {
    "plain": "s3://AKIAKEYID:hunter2@bucket/runs",
    "user alone": "sftp://AKIAKEYID@host:22/runs",
    "chained": "simplecache::s3://AKIAKEYID:hunter2@bucket/runs",
    "chained twice": "filecache::zip://runs.zip::s3://AKIAKEYID:hunter2@bucket/runs.zip",
    "in both parts": "zip://AKIAKEYID:hunter2@a::s3://AKIAKEYID:sl/ash@bucket/runs.zip",
    "slash": "s3://AKIAKEYID:hunter2sl/ash@bucket/runs",
    "hash": "s3://AKIAKEYID:hunter2ha#shtail9@bucket/runs",
    "question mark": "s3://AKIAKEYID:hunter2que?rytail9@bucket/runs",
    "at": "s3://AKIAKEYID:hunter2at@signtail9@bucket/runs",
    "colons": "s3://AKIAKEYID:hunter2co::lons::tail9@bucket/runs",
    "colons without a user": "s3://hunter2co::tail9@bucket/runs",
    "encoded": "s3://AKIAKEYID:hunter2%40tail9@bucket/runs",
    "signature": "https://host/runs?sv=2020&sig=hunter2",
    "token": "https://host/runs?token=hunter2",
    "X-Amz": "https://host/runs?X-Amz-Credential=AKIAKEYID&X-Amz-Signature=hunter2",
    "at in a query": "https://host/runs?token=hunter2@tail9",
    "chain in a query": "https://host/runs?token=hunter2::tail9",
    "fragment": "https://host/runs#access_token=hunter2",
    "query and password": "https://AKIAKEYID:hunter2@host/runs?sig=tail9",
    "no scheme": "AKIAKEYID:hunter2@host/runs",
    "scheme cut short": "s3:/AKIAKEYID:hunter2@bucket/runs",
    "scheme in capitals": "S3://AKIAKEYID:hunter2@bucket/runs",
    "unknown protocol": "nope://AKIAKEYID:hunter2@host/runs",
    "spaces": "sftp://AKIAKEYID:hunter2 sp ace@host/runs",
    "letters": "sftp://AKIAKEYID:hunter2wörd@host/runs",
    "address": "sftp://AKIAKEYID:hunter2@[::1]:22/runs",
    "lines": "sftp://AKIAKEYID:hunter2\ntail9@host/runs",
}
LEAKS = ("hunter2", "AKIAKEYID", "tail9", "sl/ash", "ash@", "shtail", "rytail", "signtail", "lons", "wörd", "ace@")


def clean(text):
    """Whether no part of a secret is in a text, however it was put there."""
    forms = [text, unquote(text), text.lower()]
    return not [leak for leak in LEAKS for form in forms for kind in (leak, quote(leak), leak.lower()) if kind in form]


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_no_part_of_a_secret_is_shown(url):
    shown = without_secrets(url)
    assert clean(shown), shown
    assert HIDDEN in shown
    assert has_secret(url)
    assert without_secrets(shown) == without_secrets(without_secrets(shown))
    assert clean(told(ValueError(f"no {url} there"), url))
    assert clean(told(OSError(2, f"no {url} there", url), url))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://K:S@bucket/runs", "s3://***@bucket/runs"),
        ("simplecache::s3://K:S@bucket/runs", "simplecache::s3://***@bucket/runs"),
        ("https://host/runs?sig=S", "https://host/runs?***"),
        ("sftp://me:S@host:22/runs", "sftp://***@host:22/runs"),
    ],
)
def test_the_rest_is_shown(url, shown):
    assert without_secrets(url) == shown


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/runs", "/mnt/a@b/runs", "./a?b", "../a#b", "runs", "file:///mnt/a@b", "memory://x", "simplecache::s3://b/runs",
     "10.0.0.1:6379", "auto", "sftp://[::1]/runs", "http://127.0.0.1:8265"],
)  # fmt: skip
def test_what_holds_no_secret_is_shown_whole(url):
    assert without_secrets(url) == url
    assert told(ValueError("the line is dead"), url) == "the line is dead"


STORAGES = {name: url for name, url in URLS.items() if "://" in url}  # the others are paths, and good ones


class Telling(MemoryFileSystem):
    """Says in its errors what it was given, as drivers do."""

    protocol = "telling"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol("memory://" + path.partition("://")[2])

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.given = ""

    def makedirs(self, path, exist_ok=False):
        raise ConnectionError(f"403 for {path}: {unquote(path)}")


@pytest.mark.parametrize("url", STORAGES.values(), ids=STORAGES)
@pytest.mark.parametrize("scheme", [None, "telling"])
def test_errors_of_a_storage_hold_none(url, scheme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fsspec.register_implementation("telling", Telling, clobber=True)
    url = url if scheme is None else url.replace(url.partition("://")[0].rpartition("::")[2] + "://", "telling://")
    (trouble,) = _try_storage(url) or ["none"]
    assert clean(trouble), trouble
    with pytest.raises(InputError) as caught:
        RemoteCopy(url, tmp_path / "run", config="config.yaml")
    error = caught.value
    assert clean(str(error)), error
    assert len(str(error).splitlines()) == 1
    assert error.__cause__ is None
    assert error.__suppress_context__


@pytest.mark.parametrize("url", [URLS[name] for name in ("chained", "slash", "question mark", "signature", "lines")])
def test_commands_say_none(url, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["train", "--smoke", "--run-dir", "run", "--storage", url],
        ["sweep", "--smoke", "--run-dir", "run", "--storage", url],
        ["train", "--smoke", "--run-dir", "run", "--address", url],
        ["submit", "--address", url, "train", "--smoke"],
        ["submit", "--address", "http://127.0.0.1:1", "train", "--smoke", "--storage", url],
        ["job", "list", "--address", url],
        ["job", "list", "--address", url.replace(url.partition("://")[0], "http")],
    ):
        assert edgeroute.main(arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert clean(out + err), err
    assert all(clean(path.read_text(errors="ignore")) for path in tmp_path.rglob("*") if path.is_file())


def test_what_is_tracked_holds_none(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    url = f"{URLS['chained']}/{uuid.uuid4().hex}"
    monkeypatch.setattr(sys, "argv", ["edgeroute", "train", "--storage", url, f"--address={URLS['signature']}"])
    config = {"options": {"storage": url, "addresses": [URLS["signature"]]}}
    with tracker(TrackOptions(track="wandb"), folder=tmp_path / "run", name="run", job_type="train", config=config) as track:
        track.log({"qos": 1.0}, 1)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert sys.argv[3] == url
    for path in files:
        data = path.read_bytes()
        assert b"hunter2" not in data, path
        assert b"AKIAKEYID" not in data, path
    assert os.environ["WANDB_MODE"] == "offline"
