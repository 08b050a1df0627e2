"""The digest of the code covers what a result is made with, all of it, wherever the code lies."""

import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from tuning.run_dir.digests import code_digest, content_digest, result_sources

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
RUN = """
import sys
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.matrix import Cell, start_simulation
from tuning.specs.routers import build_router, parse_router

scenario = load_scenario("edge6")
for text in ("impact-greedy", f"bundle:{sys.argv[1]}"):
    build_router(parse_router(text), scenario.observation)
packages = ("rllib_envs", "models", "tuning", "cluster")
ours = [(name, module.__file__) for name, module in sys.modules.items() if name.partition(".")[0] in packages]
print(*(name for name, file in ours if file.startswith(sys.argv[2])))  # others are generated
"""


@pytest.fixture
def copy(tmp_path):
    """Our packages in another place, as they are installed."""
    for package in ("rllib_envs", "models", "tuning"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def digest_in(folder):
    code = "from tuning.run_dir.digests import code_digest; print(code_digest())"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )


def test_it_covers_every_module_of_ours_that_running_a_cell_imports():
    bundle = ROOT / "tuning" / "presets" / "edge6-router"
    done = subprocess.run(
        [sys.executable, "-c", RUN, bundle, ROOT],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "HOME": str(Path.home())},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.decode().split())
    assert {"tuning.metrics.episode", "tuning.specs.routers", "models.export.bundle", "rllib_envs.sim.kernels"} <= imported
    assert imported <= set(result_sources())


def test_it_is_the_same_wherever_the_code_lies_and_in_every_process(copy):
    assert digest_in(copy).stdout.strip() == code_digest()


def test_every_byte_of_a_module_counts(copy):
    def contents():
        return {name: file.read_bytes() for name, file in result_sources(copy).items()}

    before = contents()
    for module in ("rllib_envs/sim/kernels.py", "models/han.py", "tuning/specs/grammar.py", "tuning/metrics/episode.py"):
        with (copy / module).open("a") as file:
            file.write("#")
        after = contents()
        assert before != after, module
        before = after


def test_a_module_that_is_renamed_is_still_covered(copy):
    (copy / "tuning" / "metrics" / "episode.py").rename(copy / "tuning" / "metrics" / "of_merit.py")
    for importer in (copy / "tuning" / "evaluation" / "matrix.py", copy / "tuning" / "metrics" / "groups.py"):
        importer.write_text(importer.read_text().replace("tuning.metrics.episode", "tuning.metrics.of_merit"))
    assert "tuning.metrics.of_merit" in result_sources(copy)
    assert "tuning.metrics.episode" not in result_sources(copy)


def test_a_module_that_is_missing_is_an_error(copy):
    (copy / "tuning" / "metrics" / "episode.py").unlink()
    with pytest.raises(ImportError, match=r"tuning\.metrics\.episode: no source file"):
        result_sources(copy)
    done = digest_in(copy)
    assert done.returncode != 0
    assert "tuning.metrics.episode" in done.stderr


def test_the_digest_of_a_large_file_takes_little_memory(tmp_path):
    with (tmp_path / "trace").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    try:
        content_digest([tmp_path / "trace"])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
