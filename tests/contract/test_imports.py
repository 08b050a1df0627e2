"""The house: which way imports go, and what is shipped."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import grimp
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rllib_envs", "models", "tuning", "cluster", "gateway")
BREACHES = {  # file with the breach: (its import, how the checker puts it)
    "rllib_envs/sim/up.py": ("import rllib_envs.errors", "rllib_envs.sim is not allowed to import rllib_envs.errors"),
    "rllib_envs/sim/lib.py": ("import scipy.stats", "rllib_envs.sim is not allowed to import scipy"),
    "rllib_envs/learner.py": ("import torch", "rllib_envs is not allowed to import torch"),
    "rllib_envs/up.py": ("import models.router_", "rllib_envs is not allowed to import models"),
    "models/router_.py": ("import ray", "models is not allowed to import ray"),
    "models/up.py": ("import tuning", "models is not allowed to import tuning"),
    "models/glue.py": ("import models.rllib", "models.glue"),
    "models/rllib/avl/up.py": ("import models.rllib.ppo.learner", "avl is not allowed to import models.rllib.ppo"),
    "tuning/run_dir/ray_.py": ("import ray", "tuning.run_dir is not allowed to import ray"),
    "tuning/metrics/up.py": ("import tuning.output.tables", "tuning.metrics is not allowed to import tuning.output"),
    "rllib_envs/errors_.py": ("import rllib_envs.circle", ".circle"),
    "rllib_envs/circle.py": ("import rllib_envs.errors_", ".errors_"),
    "tuning/up_.py": ("import cluster.node", "tuning is not allowed to import cluster"),
    "tuning/up.py": ("import edgeroute", "tuning is not allowed to import edgeroute"),
}


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the checker on the packages in ``folder``, by the contracts of the repository."""
    checker = Path(sys.executable).with_name("lint-imports")
    command = [checker, "--config", ROOT / "setup.cfg", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_imports_go_one_way():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.fixture(scope="module")
def report_on_breaches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("breaches")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, (statement, _) in BREACHES.items():
        (folder / file).write_text(statement + "\n")
    result = lint_imports(folder)
    assert result.returncode == 1, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("file", BREACHES)
def test_the_checker_sees_a_breach(file, report_on_breaches):
    assert BREACHES[file][1] in report_on_breaches


def test_every_package_is_under_contract():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    shipped = {name.removesuffix(".*") for name in config["options.packages.find"]["include"].split()}
    assert set(config["importlinter"]["root_packages"].split()) == shipped == set(PACKAGES)


def test_the_engine_needs_numpy_and_numba_alone():
    graph = grimp.build_graph("rllib_envs", include_external_packages=True, cache_dir=None)
    engine = {"rllib_envs.sim"} | graph.find_descendants("rllib_envs.sim")
    imported = {other for module in engine for other in graph.find_modules_directly_imported_by(module)} - engine
    assert imported - set(sys.stdlib_module_names) == {"numpy", "numba"}


def test_the_wheel_holds_the_packages_and_nothing_else(tmp_path):
    source = tmp_path / "source"  # a copy: the build leaves folders behind
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "runs", "wandb", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("edgeroute-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    data = {
        str(path.relative_to(ROOT))
        for glob in (
            "rllib_envs/scenarios/*.yaml",
            "tuning/presets/*.json",
            "tuning/presets/*/router.*",
            "tuning/presets/spaces/*",
            "tuning/templates/*",
            "cluster/runtime_env.yaml",
            "gateway/server/page.[chj]*",
            "*/py.typed",
        )
        for path in ROOT.glob(glob)
    }
    assert {name for name in names if ".dist-info/" not in name} == {"edgeroute.py"} | modules | data
    assert {Path(name).suffix for name in data} == {".yaml", ".json", ".safetensors", ".j2", ".html", ".css", ".js", ".typed"}
    assert "edgeroute = edgeroute:main" in entry_points


def test_an_intruder_in_place_of_our_packages_is_named(tmp_path):
    """A script beside a ``models`` of its own: Python finds that first."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    (tmp_path / "script.py").write_text("import sys, edgeroute; sys.exit(edgeroute.main(['simulate', '--help']))")
    (tmp_path / "tuning").mkdir()  # no package: it is in nobody's way
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"models: Python finds {tmp_path / 'models'}" in line
    assert str(ROOT / "models") in line


def test_the_command_may_lie_apart_from_the_packages(tmp_path):
    """As ``ray submit`` copies it."""
    shutil.copy(ROOT / "edgeroute.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "edgeroute.py", "simulate", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
