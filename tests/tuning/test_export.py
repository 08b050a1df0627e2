"""``edgeroute export``: from a run to a bundle that evaluation takes."""

import json
import shutil

import pytest

import edgeroute
from models.export.bundle import load_bundle
from tuning.specs.routers import SHIPPED_ROUTER

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(one_ray, tmp_path_factory):
    """A tiny training run, from the command."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    assert edgeroute.main(["train", "--smoke", "--no-variation", "--run-dir", str(folder)]) == 0
    return folder


def test_a_run_becomes_a_bundle_that_can_be_evaluated(run_dir, tmp_path, capsys):
    out = tmp_path / "bundle"
    assert edgeroute.main(["export", str(run_dir), "--out", str(out)]) == 0
    assert "parameters" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["router.json", "router.onnx", "router.safetensors"]
    assert load_bundle(out).about["algo"] == "avl"
    results = tmp_path / "results"
    routers = ["join-shortest-queue", f"bundle:{out}", f"checkpoint:{run_dir}"]
    arguments = ["evaluate", "--smoke", "--load", "moderate", "--routers", *routers, "--jobs", "1", "--out", str(results)]
    assert edgeroute.main(arguments) == 0
    (comparison,) = json.loads((results / "results.json").read_text())["comparisons"]
    found = {row["router"]: row["metrics"]["qos"]["values"] for row in comparison["routers"]}
    assert found[routers[1]] == found[routers[2]]  # one router, two ways to it


def test_a_bundle_is_replaced_and_nothing_else_is(run_dir, tmp_path, capsys):
    out = tmp_path / "bundle"
    for _ in range(2):
        assert edgeroute.main(["export", str(run_dir), "--out", str(out), "--no-onnx"]) == 0
    capsys.readouterr()
    assert edgeroute.main(["export", str(run_dir), "--out", str(tmp_path), "--no-onnx"]) == 2
    assert "something else than a bundle" in capsys.readouterr().err
    assert out.is_dir()


def test_a_damaged_run_is_refused(run_dir, tmp_path, capsys):
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    (weights,) = (copy / "checkpoints").rglob("*/bundle/router.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert edgeroute.main(["export", str(copy), "--out", str(tmp_path / "out")]) == 2
    assert str(weights) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_shipped_router_loads_and_is_small():
    bundle = load_bundle(SHIPPED_ROUTER)
    assert bundle.about["scenario"] == "edge6"
    assert sum(path.stat().st_size for path in SHIPPED_ROUTER.iterdir()) < 2 * 2**20
