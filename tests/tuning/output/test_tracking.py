"""Tracking with Weights & Biases: what is written, read back from wandb's own file; and that it never gets in the way."""

import json
import os
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tyro
import yaml
from wandb.proto.wandb_internal_pb2 import Record

import edgeroute
from models.rllib.checkpoint import find_checkpoint
from rllib_envs.errors import InputError
from tuning.output import tracking
from tuning.output.tracking import NO_TRACKER, TrackOptions, bundle_name, provenance, tracker
from tuning.run_dir.digests import code_digest
from tuning.training.log import LOG, read_log
from tuning.training.options import TrainOptions, definition, parse_options, resumed, to_mapping
from tuning.training.validation import Difference

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "tuning" / "presets" / "edge6-router"
TINY = ("train", "--smoke", "--fleets", "--no-variation", "--no-calibrate")
KEY = "0123456789abcdef" * 2 + "fedcba98"
UNREACHABLE = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
HEADER, BLOCK = 7, 32_768  # bytes of a .wandb file: it is a LevelDB log with a header


def python(*arguments, home, path=ROOT, **environment):
    """A process that knows nothing of the user's wandb: what it printed, after it has ended well."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB") and key != "NETRC"}
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))  # of compiled code
    own = {"HOME": str(home), "XDG_CACHE_HOME": cache, "PYTHONPATH": f"{path}:{ROOT}", "PYTHONWARNINGS": "ignore"}
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=home, env=kept | own | environment,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def train(folder, *arguments, **more):
    return python(ROOT / "edgeroute.py", *TINY, "--run-dir", folder, "--track", "wandb", *arguments, **more)


def track(code, home, **environment):
    """Run code with an open tracker ``t`` on the folder ``run`` in ``home``."""
    program = f"""
from pathlib import Path
from tuning.output.tracking import *
with tracker(TrackOptions(track="wandb"), folder=Path("run"), name="name", job_type="try", config=dict(a=1)) as t:
    {code}
"""
    return python("-c", program, home=home, **environment)


def segments(folder):
    """The .wandb files of a run directory, in order of time."""
    return sorted((folder / "wandb").glob("offline-run-*/*.wandb"))


def records(file):
    """The records of a .wandb file."""
    data, at, whole = file.read_bytes(), HEADER, b""
    assert data.startswith(b":W&B")
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:  # no room for another header: padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, or the last part
            yield Record.FromString(whole)
            whole = b""


def of_type(file, kind):
    return [getattr(record, kind) for record in records(file) if record.WhichOneof("record_type") == kind]


def values(items):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def config(file):
    found = values(item for run in of_type(file, "run") for item in run.config.update)
    return found | values(item for update in of_type(file, "config") for item in update.update)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run without a key: its folder, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    printed = train("run", "--wandb-tags", "one", "two", "--wandb-group", "some", home=home)
    return home / "run", printed


@pytest.fixture(scope="module")
def second(first):
    """The same run gone on with, with a key and no server: what it printed."""
    return train("run", "--resume", "--iterations", "3", home=first[0].parent, **UNREACHABLE)


@pytest.mark.cluster
def test_a_run_without_a_key_is_offline_and_says_so_in_one_line(first):
    folder, printed = first
    (line,) = printed.stderr.splitlines()
    file = segments(folder)[0]
    assert "no API key" in line
    assert f"wandb sync run/wandb/{file.parent.name}" in line
    assert "wandb" not in printed.stdout


@pytest.mark.cluster
def test_a_run_logs_its_configuration_and_where_it_comes_from(first):
    folder, file = first[0], segments(first[0])[0]
    (run, *_) = of_type(file, "run")
    assert (run.project, run.run_group, run.job_type, run.display_name) == ("edgeroute", "some", "train", "run")
    assert set(run.tags) == {"one", "two"}
    found, written = config(file), yaml.safe_load((folder / "config.yaml").read_text())
    assert found["fingerprint"] == written["fingerprint"]
    assert found["scenario"] == written["scenario"]
    assert found["options"]["router"]["hidden"] == written["options"]["hidden"]
    assert found["options"]["iterations"] == 2
    assert found["code_digest"] == code_digest()
    assert {key: found.get(key) for key in provenance()} == provenance()


@pytest.mark.cluster
def test_a_run_logs_what_its_records_say(first):
    logged = [values(history.item) for history in of_type(segments(first[0])[0], "history")]
    rows = [row for row in logged if "train/qos" in row]
    kept = read_log(first[0] / LOG, 2)
    assert len(rows) == len(kept) == 2
    for row, record in zip(rows, kept, strict=True):
        assert row["step"] == record.steps
        assert (row["train/qos"], row["train/late_share"]) == (record.qos, record.late_share)
        assert row["train/steps_per_s"] > 0
        assert {key.removeprefix("learner/"): x for key, x in row.items() if key.startswith("learner/")} == record.learner
    assert {"learner/gradient_norm", "learner/entropy", "learner/search_generation", "learner/price/load"} < set(rows[0])
    assert not any(key.startswith("validation/") for key in rows[0])
    assert rows[1]["validation/heavy/mean"] == kept[1].validation["heavy"]["mean"]
    for load in ("light", "moderate", "heavy"):
        own = {key.removeprefix(f"validation/{load}/"): x for key, x in rows[1].items() if key.startswith(f"validation/{load}/")}
        assert sum(x for key, x in own.items() if key.startswith("share/")) == pytest.approx(1)
        assert 0 < own["latency_per_token_p50_s"] <= own["latency_per_token_p99_s"]
        assert -1 <= own["impact_correlation"] <= 1
        assert own["impact_rmse"] >= abs(own["impact_expected"] - own["impact_true"])


@pytest.mark.cluster
def test_the_figure_and_the_bundle_are_logged_with_the_run(first):
    folder, file = first[0], segments(first[0])[0]
    picture = next(row for history in of_type(file, "history") if "training/path" in (row := values(history.item)))
    assert (file.parent / "files" / picture["training/path"]).read_bytes().startswith(b"\x89PNG")
    (artifact,) = of_type(file, "artifact")
    bundle = bundle_name(folder / "checkpoints" / "000002" / "bundle")
    assert (artifact.type, artifact.name) == ("router", bundle.name)
    assert set(artifact.aliases) == {"latest", bundle.alias}
    assert json.loads(artifact.metadata) == bundle.about
    copies = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert set(copies) == {"router.json", "router.safetensors"}
    assert all(path.is_relative_to(folder / "wandb") for path in copies.values())
    weights = folder / "checkpoints" / "000002" / "bundle" / "router.safetensors"
    assert copies["router.safetensors"].read_bytes() == weights.read_bytes()
    assert of_type(file, "exit")[0].exit_code == 0


@pytest.mark.cluster
def test_a_resumed_run_goes_on_in_the_same_run_of_wandb(first, second):
    folder = first[0]
    old, new = segments(folder)
    assert [of_type(file, "run")[0].run_id for file in (old, new)] == [(folder / "wandb-id").read_text().strip()] * 2
    (row,) = [row for history in of_type(new, "history") if "train/qos" in (row := values(history.item))]
    assert row["train/iteration"] == 3


@pytest.mark.cluster
def test_without_a_connection_a_run_is_offline_before_wandb_waits_for_one(second):
    (line,) = second.stderr.splitlines()
    assert "127.0.0.1: Connection refused" in line


@pytest.mark.cluster
def test_no_key_is_written_anywhere(first, second):
    files = [path for path in first[0].parent.rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in second.stdout + second.stderr


def test_a_wandb_that_does_not_start_stops_nothing(tmp_path):
    (tmp_path / "wandb.py").write_text("raise RuntimeError('no wandb today')\n")
    printed = track("t.log({'a': 1}, 1); print('through')", tmp_path, path=tmp_path)
    (line,) = printed.stderr.splitlines()
    assert "nothing is tracked: no wandb today" in line
    assert printed.stdout == "through\n"


@pytest.mark.cluster
def test_tracking_changes_nothing(tmp_path, first):
    assert edgeroute.main([*TINY, "--run-dir", str(tmp_path / "run")]) == 0
    without, with_wandb = (read_log(folder / LOG, 2) for folder in (tmp_path / "run", first[0]))
    assert [record.learner for record in without] == [record.learner for record in with_wandb]


def test_a_wandb_that_dies_is_said_once_and_the_rest_goes_on(tmp_path):
    printed = track(
        "import psutil, time; mine = psutil.Process().children(); [p.kill() for p in mine]; psutil.wait_procs(mine)\n"
        "    for i in range(5): t.log({'a': i}, i); time.sleep(0.1)\n"
        "    print('through')",
        tmp_path,
    )
    assert printed.stdout == "through\n"
    assert sum("nothing more is tracked" in line for line in printed.stderr.splitlines()) == 1


def test_numbers_that_are_none_and_tables_with_gaps(tmp_path):
    track("t.log({'a': float('nan'), 'b': 2.0}, 7); t.table('t', ['x', 'y'], [[1.0, 'p'], [float('nan'), None]])", tmp_path)
    (file,) = segments(tmp_path / "run")
    row, *_ = [values(history.item) for history in of_type(file, "history")]
    assert {key: row.get(key) for key in ("a", "b", "step")} == {"a": None, "b": 2.0, "step": 7}
    (table,) = (file.parent / "files" / "media" / "table").iterdir()
    assert json.loads(table.read_text())["data"] == [[1.0, "p"], [None, None]]


def test_trackers_may_be_open_side_by_side(tmp_path):
    track(
        "with tracker(TrackOptions(track='wandb'), folder=Path('run/1'), name='1', job_type='train', config={}) as u:\n"
        "        t.log({'a': 1}, 1); u.log({'b': 2}, 1); u.finish(3)\n"
        "    t.log({'a': 2}, 2)",
        tmp_path,
    )
    outer, inner = (segments(tmp_path / name)[0] for name in ("run", "run/1"))
    logged = [[values(history.item) for history in of_type(file, "history")] for file in (outer, inner)]
    assert [[row.get("a") for row in rows] for rows in logged] == [[1, 2], [None]]
    assert [of_type(file, "exit")[0].exit_code for file in (outer, inner)] == [0, 3]


@pytest.mark.parametrize("environment", [{"WANDB_MODE": "disabled"}, {"WANDB_DISABLED": "true"}])
def test_who_has_disabled_wandb_gets_none(environment, tmp_path):
    printed = track("assert t is NO_TRACKER", tmp_path, **environment)
    assert printed.stderr == ""
    assert not list(tmp_path.iterdir())


def test_the_environment_is_heeded(tmp_path):
    names = {"WANDB_PROJECT": "p", "WANDB_NAME": "n", "WANDB_RUN_GROUP": "g", "WANDB_TAGS": "a,b", "WANDB_NOTES": "hm"}
    printed = track("pass", tmp_path, WANDB_DIR=str(tmp_path), WANDB_MODE="offline", **names)
    assert "as WANDB_MODE asks" in printed.stderr
    (run, *_) = of_type(*segments(tmp_path), "run")
    assert (run.project, run.display_name, run.run_group, run.notes) == ("p", "n", "g", "hm")
    assert set(run.tags) == {"a", "b"}


@pytest.mark.cluster
def test_an_evaluation_logs_its_tables_its_figures_and_the_bundles_it_judged(tmp_path):
    options = ["--smoke", "--jobs", 1, "--load", "light", "heavy", "--routers", "least-work", f"bundle:{SHIPPED}"]
    python(ROOT / "edgeroute.py", "evaluate", *options, "--out", "out", "--track", "wandb", home=tmp_path)
    (file,) = segments(tmp_path / "out")
    assert config(file)["artifacts"] == [bundle_name(SHIPPED).reference]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    logged = {}
    for history in of_type(file, "history"):
        logged |= values(history.item)
    for comparison in results["comparisons"]:
        table = json.loads((file.parent / "files" / logged[f"comparison/{comparison['workload']}/path"]).read_text())
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        assert [row["router"] for row in rows] == [row["router"] for row in comparison["routers"]]
        assert [row["qos"] for row in rows] == [row["metrics"]["qos"]["mean"] for row in comparison["routers"]]
    for figure in (tmp_path / "out").glob("*.png"):
        assert (file.parent / "files" / logged[f"figure/{figure.stem}/path"]).read_bytes() == figure.read_bytes()
    assert "summary/all 2 workloads/path" in logged


def test_a_server_whose_name_is_long_in_being_looked_up_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(tracking, "_CONNECT_S", 0.2)
    done = threading.Event()
    monkeypatch.setattr(tracking.socket, "create_connection", lambda *_, **__: done.wait() and _Socket())
    assert "no answer" in tracking._why_unreachable("https://api.wandb.ai")
    done.set()


def test_a_server_behind_a_proxy_is_as_near_as_the_proxy(monkeypatch):
    asked = []
    monkeypatch.setattr(tracking.socket, "create_connection", lambda address, **_: asked.append(address) or _Socket())
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert tracking._why_unreachable("https://api.wandb.ai") is None
    assert tracking._why_unreachable("https://inside.example:8443") is None
    assert asked == [("proxy.example", 3128), ("inside.example", 8443)]


class _Refusing(BaseHTTPRequestHandler):
    """A server that accepts no key."""

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(401)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_key_that_is_not_accepted_is_as_good_as_none(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        printed = track("t.log({'a': 1}, 1)", tmp_path, WANDB_API_KEY=KEY, WANDB_BASE_URL=url)
        server.shutdown()
    (line,) = printed.stderr.splitlines()
    assert "wandb is offline" in line
    assert "401" in line
    (file,) = segments(tmp_path / "run")
    assert [values(history.item)["a"] for history in of_type(file, "history")] == [1]


class _Socket:
    def close(self):
        pass


@pytest.mark.cluster
def test_wandb_is_imported_by_those_alone_who_ask_for_it(tmp_path):
    code = (
        "import sys, tuning.train, tuning.evaluate; from tuning.output.tracking import *; from pathlib import Path\n"
        "with tracker(TrackOptions(), folder=Path('x'), name='n', job_type='j', config={}) as t: t.log({'a': 1}, 1)\n"
        "print('wandb' in sys.modules)"
    )
    assert python("-c", code, home=tmp_path).stdout == "False\n"
    with tracker(TrackOptions(), folder=tmp_path / "run", name="n", job_type="j", config={}) as none:
        assert none is NO_TRACKER
    assert not (tmp_path / "run").exists()


def test_tracking_is_asked_for_by_flags_or_a_file_and_is_no_part_of_the_run():
    flags = ["--track", "wandb", "--wandb-project", "p", "--wandb-tags", "a", "b"]
    asked = TrackOptions(track="wandb", wandb_project="p", wandb_tags=("a", "b"))
    options = tyro.cli(TrainOptions, args=flags)
    assert options.track == asked
    assert parse_options(to_mapping(options), "file") == options
    assert parse_options({"track": "wandb", "wandb-project": "p", "wandb-tags": ["a", "b"]}, "file").track == asked
    assert definition(options) == definition(TrainOptions())
    assert resumed(options, definition(TrainOptions()), "file").track == asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wandb_project": "a/b"}, "wandb-project = 'a/b'"),
        ({"wandb_project": ""}, "wandb-project = ''"),
        ({"wandb_tags": ("x" * 65,)}, "wandb-tags: 'xxx"),
    ],
)
def test_names_that_wandb_would_refuse_are_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        TrackOptions(**options)


def test_a_wrong_tracker_in_a_file_is_named():
    with pytest.raises(InputError, match=r"file: track: .*got 'tensorboard'"):
        parse_options({"track": "tensorboard"}, "file")


@pytest.mark.cluster
def test_a_bundle_is_called_the_same_wherever_it_lies(first, tmp_path):
    bundle = find_checkpoint(first[0]) / "bundle"
    assert edgeroute.main(["export", str(first[0]), "--no-onnx", "--out", str(tmp_path / "bundle")]) == 0
    assert bundle_name(tmp_path / "bundle") == bundle_name(bundle)
    assert bundle_name(bundle).reference != bundle_name(SHIPPED).reference
    with pytest.raises(InputError, match="cannot be read"):
        bundle_name(tmp_path)


def test_what_is_not_known_of_a_router_is_left_out():
    assert Difference(mean=0.1, error=0.2, figures={"qos": 0.5}).to_dict() == {"mean": 0.1, "error": 0.2, "qos": 0.5}
