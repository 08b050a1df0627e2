"""Streams as they pass: whole events, in their order, whatever the network cuts them into."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.server.events import Events, Usage, error_event, find_usage, was_cut
from tests.draws import examples

TRICKY = [
    "data: x",
    "\n\ndata: [DONE]\n\n",
    '"usage"',
    '"choices":[]',
    '"prompt_tokens": 9',
    '"finish_reason":"length"',
    "é\r\n\r\n",
]
TEXTS = st.text(max_size=8) | st.sampled_from(TRICKY)
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": None}


def frame(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": reason}]}


def encoded(events: list[Any], end: str, space: bool) -> bytes:
    separators = (", ", ": ") if space else (",", ":")
    texts = [event if isinstance(event, str) else "data: " + json.dumps(event, separators=separators) for event in events]
    return "".join(f"{text}{end}" for text in texts).encode()


@examples(300)
@given(
    texts=st.lists(TEXTS, max_size=6),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
    end=st.sampled_from(["\n\n", "\r\n\r\n"]),
    space=st.booleans(),
    hide=st.booleans(),
    comments=st.booleans(),
    reason=st.sampled_from(["stop", "length"]),
)
def test_whole_events_pass_in_order_however_they_are_cut(texts, cuts, end, space, hide, comments, reason):
    events: list[Any] = [frame(text) for text in texts] + [frame("last", reason)]
    if comments:
        events.insert(1, ": ping")
    told = {"choices": [], "usage": USAGE}
    stream = encoded([*events, told, "data: [DONE]"], end, space)
    expected = encoded([*events, *([] if hide else [told]), "data: [DONE]"], end, space)
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    reader = Events(hide_usage=hide)
    passed, count = [], 0
    for start, stop in pairwise(places):
        whole, new = reader.feed(stream[start:stop])
        assert not whole or whole.endswith(end.encode())
        passed.append(whole)
        count += new
    assert b"".join(passed) == expected
    assert count == len(texts) + 1
    assert reader.done
    assert reader.usage == Usage(7, 3)
    assert reader.cut == (reason == "length")


def test_what_never_ends_is_passed_on_as_it_is():
    reader = Events(hide_usage=True)
    assert reader.feed(b"data: " + b"x" * 1000) == (b"", 0)
    passed, _ = reader.feed(b"x" * 2**20)
    assert len(passed) == 6 + 1000 + 2**20
    assert not reader.done


def test_a_broken_stream_is_not_done():
    reader = Events(hide_usage=True)
    passed, count = reader.feed(encoded([frame("a"), "data: {half"], "\n\n", False)[:-2])
    assert passed == encoded([frame("a")], "\n\n", False)
    assert (count, reader.done) == (1, False)


def test_usage_is_read_from_whole_answers():
    text = json.dumps(
        {"choices": [{"message": {"content": 'say "prompt_tokens": 5'}, "finish_reason": "length"}], "usage": USAGE}
    )
    assert find_usage(text.encode()) == Usage(7, 3)
    assert was_cut(text.encode())
    assert find_usage(b'{"choices": []}') == Usage(None, None)
    assert not was_cut(json.dumps({"content": '"finish_reason": "length"'}).encode())


def test_an_error_is_an_event_of_its_own():
    event = error_event('it said "no"\n\ndata: x', "expert_failed")
    assert event.count(b"\n\n") == 1
    assert json.loads(event.removeprefix(b"data: "))["error"]["code"] == "expert_failed"
