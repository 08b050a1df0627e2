"""Fixtures every test may use."""

import gc
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from tests.draws import register_profiles

register_profiles()

_SLOW = re.compile(r"^pytestmark = .*pytest\.mark\.(slow|cluster)", re.MULTILINE)
_KEY_FILE = "EDGEROUTE_CHECKPOINT_KEY_FILE"
_AUTH_MODE = "RAY_AUTH_MODE"
_AUTH_MODE_AT_START = os.environ.get(_AUTH_MODE)

_OF_RAY = pytest.StashKey[set[Path]]()  # modules that share one

_FIRST = (  # the first compiles the kernels of the simulator, the others need none of them
    "contract/test_envs.py",
    "sim/test_cache.py",
    "contract/test_cli.py",
    "tuning/run_dir/test_digests.py",
    "contract/test_draws.py",
    "contract/test_imports.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Nothing depends on the tests before: neither what PyTorch's own generator draws, nor how a Ray that is started starts."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if _AUTH_MODE_AT_START is None:  # a command that attached to a cluster may have set it, and Ray reads it but once
        os.environ.pop(_AUTH_MODE, None)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported stays to the end: garbage is not looked for in it, neither while it comes nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path):
    """``make quick`` does not even import modules that are slow as a whole: Ray and torch take longer than many tests."""
    if not os.environ.get("EDGEROUTE_QUICK") or collection_path.suffix != ".py":
        return None  # others decide
    return True if _SLOW.search(collection_path.read_text(encoding="utf-8")) else None


def pytest_collection_modifyitems(config, items):
    """With an empty cache one worker of pytest compiles the kernels: the other has something else to do meanwhile."""
    rank = {Path(__file__).parent / name: i for i, name in enumerate(_FIRST)}
    assert all(path.is_file() for path in rank), "a file of _FIRST has another name now"
    config.stash[_OF_RAY] = {item.path for item in items if "one_ray" in item.fixturenames}  # these follow one another
    items.sort(key=lambda item: rank.get(item.path, len(rank) + (item.path not in config.stash[_OF_RAY])))


@pytest.fixture(scope="module")
def one_ray():
    """A Ray for what RLlib builds, and for commands, which use the one that their process has.

    Modules that follow one another share it: to start one takes as long as many of their tests.
    """
    import ray

    if not ray.is_initialized():
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    """The shared Ray ends where the next module is none that shares it."""
    outcome = yield
    sharing = item.config.stash[_OF_RAY]
    ends = item.path in sharing and (nextitem is None or nextitem.path not in sharing)
    if ends and "ray" in sys.modules:  # none was wanted where those that share it are not among the tests
        sys.modules["ray"].shutdown()
    return outcome


def pytest_configure(config):
    """Tests sign with a key of their own: commands that they start have it in the environment, workers of pytest too."""
    if _KEY_FILE not in os.environ:
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        os.environ[_KEY_FILE] = str(Path(folder.name) / "checkpoint.key")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the public data files (see docs/data.md); tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("EDGEROUTE_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"public data files not found in {folder}; set EDGEROUTE_DATA to the folder that holds them")
    return folder
