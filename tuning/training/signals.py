"""Signals that end a run: SIGTERM, and SIGHUP from a lost terminal or connection."""

from __future__ import annotations

import os
import select
import signal

_STREAMS = (1, 2)


def endings() -> list[signal.Signals]:
    """The ending signals that are not ignored. Under ``nohup`` SIGHUP stays ignored."""
    return [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]


def leave_lost_streams() -> None:
    """Close stdout and stderr if nobody reads them any more: a failed print must not end a run before it has saved."""
    for stream in _STREAMS:
        poll = select.poll()
        poll.register(stream, 0)  # errors and hang-ups are reported unasked
        if any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
