"""Server-sent events as they pass: cut at their ends and counted, never parsed but for the one that tells the usage."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

_MOST_HELD = 2**18  # bytes of an event without an end; more are passed on as they are
_END = re.compile(rb"\r?\n\r?\n")
_DONE = b"[DONE]"
_BEFORE_DONE = (b"\ndata: ", b"\ndata:")
_CUT = re.compile(rb'"finish_reason" ?: ?"length"')
_NO_CHOICES = re.compile(rb'"choices" ?: ?\[ ?\]')
_USAGE_KEY = b'"usage"'
_USAGE = re.compile(rb'(?<!\\)"(prompt|completion)_tokens" ?: ?(\d{1,12})')


class Usage(NamedTuple):
    """Tokens as the engine counts them; None: it does not say."""

    prompt_tokens: int | None = None
    output_tokens: int | None = None


UNTOLD = Usage()


class Events:
    """Cuts the bytes of one stream into whole events and counts those with data.

    A client never gets half an event, so that a message about a broken stream can follow. What one read brought stays one
    piece.
    """

    __slots__ = ("_held", "_hide_usage", "cut", "done", "usage")

    def __init__(self, hide_usage: bool) -> None:
        """``hide_usage``: the client did not ask for the event with the usage, which the gateway asks for; keep it back."""
        self._held = b""
        self._hide_usage = hide_usage
        self.cut = False  # whether the answer ended at a limit of tokens
        self.done = False  # whether the last event of the protocol came
        self.usage = UNTOLD

    def feed(self, data: bytes) -> tuple[bytes, int]:
        """The whole events that are complete with ``data``, and how many of them have data (about one a token)."""
        if self._held:
            data, self._held = self._held + data, b""
        if not data.endswith((b"\n\n", b"\n\r\n")):
            data = self._cut(data)
        count = data.count(b"\ndata:") + data.startswith(b"data:")
        if _DONE in data and (b"\n" + data[: data.rfind(_DONE)]).endswith(_BEFORE_DONE):
            self.done = True
            count -= 1
        if b'"length"' in data:
            self.cut = was_cut(data)
        if _USAGE_KEY in data:
            data, hidden = self._take_usage(data)
            count -= hidden
        return data, max(count, 0)

    def _cut(self, data: bytes) -> bytes:
        """Hold back what follows the last end of an event."""
        end = _after_last_end(data)
        if len(data) - end > _MOST_HELD:
            return data
        self._held = data[end:]
        return data[:end]

    def _take_usage(self, data: bytes) -> tuple[bytes, int]:
        """Read the last usage. The data, without its event if that says no more and is to be hidden; 1 for such an event."""
        at = data.rfind(_USAGE_KEY)
        self.usage = find_usage(data[at:], self.usage)
        start = _after_last_end(data[:at])
        found = _END.search(data, at)
        end = len(data) if found is None else found.end()
        if not _NO_CHOICES.search(data, start, end):
            return data, 0
        return (data[:start] + data[end:] if self._hide_usage else data), 1


def _after_last_end(data: bytes) -> int:
    """Where the last event that is not complete begins."""
    ends = (at + len(mark) for mark in (b"\n\n", b"\n\r\n") if (at := data.rfind(mark)) >= 0)
    return max(ends, default=0)


def was_cut(data: bytes) -> bool:
    """Whether JSON text says that the answer ended at a limit of tokens."""
    return _CUT.search(data) is not None


def find_usage(data: bytes, known: Usage = UNTOLD) -> Usage:
    """The last usage in JSON text; ``known`` where it tells none. Quotes within its texts are escaped, so those do not match."""
    data = data[max(data.rfind(_USAGE_KEY), 0) :]
    found = {name: int(number) for name, number in _USAGE.findall(data)}
    return Usage(found.get(b"prompt", known.prompt_tokens), found.get(b"completion", known.output_tokens))


def error_event(message: str, code: str) -> bytes:
    """An event that ends a broken stream: clients of OpenAI's protocol raise it as an error."""
    return b"data: " + json.dumps({"error": error_body(message, "upstream_error", code)}).encode() + b"\n\n"


def error_body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, str | None]:
    """What OpenAI's protocol tells of an error."""
    return {"message": message, "type": kind, "param": param, "code": code}
