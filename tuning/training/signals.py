"""Signals that ask a run to end: SIGTERM, and SIGHUP, which comes when the terminal or the connection goes."""

from __future__ import annotations

import os
import select
import signal

_STREAMS = (1, 2)


def endings() -> list[signal.Signals]:
    """Those that are not ignored. Under ``nohup`` SIGHUP is, and stays so."""
    return [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]


def leave_lost_streams() -> None:
    """Give up stdout and stderr where nobody reads them any more: what is printed must not end a run before it has saved."""
    for stream in _STREAMS:
        poll = select.poll()
        poll.register(stream, 0)  # errors and hang-ups are reported unasked
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
