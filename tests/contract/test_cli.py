"""The command, run as users run it: in a process of its own."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgeroute
from rllib_envs.scenarios.load import load_scenario

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "ray", "numba", "pandas", "numpy", "scipy", "matplotlib", "wandb"}

WITH_EXTRA_COMMAND = (
    "import sys, edgeroute; edgeroute.COMMANDS['extra'] = ('extra', ''); sys.exit(edgeroute.main(['extra', *sys.argv[1:]]))"
)
EXTRA = """
'''An extra command.'''
import dataclasses

@dataclasses.dataclass(frozen=True)
class Options:
    count: int = 1
    '''How many.'''

def run(options):
    {body}
"""


def python(*arguments, path=ROOT):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def run_extra(tmp_path):
    """Run a command whose body is given, through the real main."""

    def run(body, *arguments):
        (tmp_path / "extra.py").write_text(EXTRA.format(body=body))
        return python("-c", WITH_EXTRA_COMMAND, *arguments, path=tmp_path)

    return run


def test_help_lists_every_command():
    result = python("edgeroute.py", "--help")
    assert result.returncode == 0
    for name, (_, text) in edgeroute.COMMANDS.items():
        assert f"  {name} " in result.stdout
        assert text in result.stdout


def test_help_loads_nothing_heavy():
    result = python("-c", "import sys, edgeroute; edgeroute.main(['--help']); print(*sys.modules, sep='\\n')")
    assert "edgeroute" in result.stdout.splitlines()
    assert not HEAVY & set(result.stdout.splitlines())


def test_version_is_that_of_the_project():
    result = python("edgeroute.py", "--version")
    assert (result.returncode, result.stdout) == (0, f"edgeroute {edgeroute.__version__}\n")


def test_no_command_prints_the_usage_and_fails():
    result = python("edgeroute.py")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: edgeroute COMMAND")


@pytest.mark.parametrize(("typed", "meant"), [("trian", "train"), ("simulat", "simulate"), ("tune-heuristic", "tune-heuristics")])
def test_unknown_command_suggests_the_nearest(typed, meant):
    result = python("edgeroute.py", typed, "--whatever")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"edgeroute: error: unknown command {typed!r}: did you mean {meant!r}?; see edgeroute --help\n"


def test_unknown_command_far_from_all_suggests_none():
    result = python("edgeroute.py", "qqqq")
    assert result.returncode == 2
    assert "did you mean" not in result.stderr


@pytest.mark.parametrize(("body", "code"), [("pass", 0), ("return 0", 0), ("return 3", 3)])
def test_exit_code_is_what_the_command_returns(run_extra, body, code):
    assert run_extra(body).returncode == code


def test_options_reach_the_command(run_extra):
    assert run_extra("print(options.count * 2)", "--count", "21").stdout == "42\n"


def test_command_help_is_its_docstrings(run_extra):
    result = run_extra("pass", "--help")
    assert result.returncode == 0
    assert "edgeroute extra" in result.stdout
    assert "An extra command." in result.stdout
    assert "How many." in result.stdout


def test_wrong_option_exits_with_2(run_extra):
    result = run_extra("pass", "--count", "many")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr


def test_bad_input_is_a_line_for_each_fault_and_no_traceback(run_extra):
    result = run_extra("from rllib_envs.errors import InputError; raise InputError('a.yaml: x: bad\\na.yaml: y: bad')")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "edgeroute: error: a.yaml: x: bad\nedgeroute: error: a.yaml: y: bad\n"


def test_a_fault_of_ours_keeps_its_traceback(run_extra):
    result = run_extra("raise ValueError('a bug')")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_an_interrupt_is_one_line_and_130(run_extra):
    result = run_extra(f"import os, time; os.kill(os.getpid(), {int(signal.SIGINT)}); time.sleep(60)")
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "edgeroute: interrupted\n")


def test_a_reader_that_leaves_is_no_error():
    with subprocess.Popen(
        [sys.executable, "edgeroute.py", "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_a_broken_pipe_of_the_command_itself_is_not_hidden(run_extra):
    result = run_extra("raise BrokenPipeError('a worker is gone')")
    assert result.returncode == 1
    assert "a worker is gone" in result.stderr


@pytest.mark.parametrize("name", edgeroute.COMMANDS)
def test_every_command_keeps_the_convention(name):
    module = importlib.import_module(edgeroute.COMMANDS[name][0])
    assert module.__doc__
    assert dataclasses.is_dataclass(module.Options)
    assert module.Options.__dataclass_params__.frozen
    assert callable(module.run)


NAME = "größe | 模型 <b>"


def test_names_in_any_language_are_read_and_written_whatever_the_locale(tmp_path, run_extra, monkeypatch):
    for name, value in (("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):
        monkeypatch.setenv(name, value)
    world, copy = tmp_path / "world.yaml", tmp_path / "copy.json"
    text = dataclasses.replace(load_scenario("edge2"), name=NAME).to_yaml()
    assert NAME in text  # not escaped
    world.write_text(text, encoding="utf-8")
    result = run_extra(
        "from pathlib import Path; from rllib_envs.scenarios.load import load_scenario; "
        "from tuning.run_dir.atomic import write_json; "
        f"world = load_scenario({str(world)!r}); write_json(Path({str(copy)!r}), world.to_dict()); print(world.name)"
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.encode().decode("unicode_escape") == NAME + "\n"
    assert json.loads(copy.read_text(encoding="utf-8"))["name"] == NAME


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_locale_cannot_write_is_escaped(stream, run_extra, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "ascii:strict")
    result = run_extra(f"import sys; print('\\u6a21', file=sys.{stream})")
    assert (result.returncode, getattr(result, stream)) == (0, "\\u6a21\n")


def test_every_text_file_is_opened_in_an_encoding_that_is_said():
    folders = ["rllib_envs", "models", "tuning", "cluster", "gateway", "benchmarks", "edgeroute.py"]
    ruff = [
        Path(sys.executable).with_name("ruff"),
        "check",
        "--isolated",
        "--no-cache",
        "--preview",
        "--select",
        "PLW1514",
        *folders,
    ]
    result = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout
