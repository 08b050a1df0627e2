"""A terminal that goes asks a run to end, and does not end it before it has saved; under nohup it goes on."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tuning.sweep import _endings_as_sigint
from tuning.training.loop import _deferred_signals

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
LOOP = """
import sys, time
from pathlib import Path
from tuning.training.loop import _deferred_signals

with _deferred_signals() as asked:
    Path(sys.argv[1], "ready").touch()
    until = time.monotonic() + 60
    while asked.to_stop is None and time.monotonic() < until:
        time.sleep(0.01)
    print("a line of progress", flush=True)
    print("a warning", file=sys.stderr, flush=True)
    Path(sys.argv[1], "saved").write_text(asked.to_stop.name)
"""


@pytest.fixture
def handlers():
    """Python's own handlers of signals for the test, whatever was started before it; afterwards those that there were."""
    own = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(
        (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM), signal.SIG_DFL
    )
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_is_asked_to_end(handlers, number):
    with _deferred_signals() as asked:
        os.kill(os.getpid(), number)
        assert asked.to_stop == number
        assert signal.alarm(0) > 0  # it does not wait for the iteration for ever
        assert signal.getsignal(number) == signal.SIG_DFL  # a second one takes effect


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_is_asked_to_end(handlers, number):
    with pytest.raises(KeyboardInterrupt), _endings_as_sigint():
        signal.raise_signal(number)
    assert signal.getsignal(number) == signal.SIG_DFL


def test_one_that_was_ignored_stays_ignored(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with _deferred_signals() as asked, _endings_as_sigint():
        os.kill(os.getpid(), signal.SIGHUP)
        assert asked.to_stop is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_run_whose_terminal_is_gone_saves(tmp_path):
    ours, its = pty.openpty()

    def own_terminal():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored
        os.setsid()
        fcntl.ioctl(its, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=its,
        stdout=its,
        stderr=its,
        preexec_fn=own_terminal,
    )
    os.close(its)
    until = time.monotonic() + 100
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.close(ours)  # the kernel sends SIGHUP, and nothing can be written there any more
    assert process.wait(100) == 0
    assert (tmp_path / "saved").read_text() == "SIGHUP"
