"""Whatever is sent: no 500, nothing left in the accounts, and no request outside the set that it is confined to."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.draws import examples
from tests.gateway.running import Reply, RunningGateway, ask_on, chat, connect, engines, settings

pytestmark = pytest.mark.slow

CONFINED = int(os.environ.get("EDGEROUTE_CONFINED", "1000"))
"""Requests of the test of confinement."""

SETS = {"set-a": {"a"}, "set-b": {"b"}, "set-ac": {"a", "c"}}
FAILURES = [{}, {}, {}, {"fail": "drop"}, {"status": 500}, {"status": 503}, {"fail": "mid"}, {"status": 404}]

NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, 0, -1, 1, True])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = {
    "model": st.sampled_from(["auto", "a", "b", "nobody"]) | JSON,
    "messages": st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text(max_size=30) | JSON}), max_size=3)
    | JSON,
    "prompt": st.text(max_size=30) | st.lists(st.integers(0, 9), max_size=4) | JSON,
    "stream": st.booleans() | JSON,
    "stream_options": st.just({"include_usage": True}) | JSON,
    "max_tokens": st.integers(1, 20) | JSON,
    "max_completion_tokens": st.none() | JSON,
    "n": JSON,
    "mock": st.sampled_from([*FAILURES, {"fail": "eof"}]),
}
USUAL = ("model", "messages", "stream")
TEXT = st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=20)
HEADERS = st.dictionaries(
    st.sampled_from(
        ["x-slo-ttft-ms", "x-slo-tpot-ms", "x-slo-e2e-ms", "x-edgeroute-class", "x-edgeroute-privacy", "x-request-id",
         "authorization", "traceparent", "content-type"]
    ),
    st.sampled_from(["1", "1e3", "5000", "first", "set-a", "set-b,set-ac", "é"]) | TEXT,
    max_size=4,
)  # fmt: skip
BODIES = (
    st.fixed_dictionaries({}, optional=FIELDS)
    | st.fixed_dictionaries(
        {name: FIELDS[name] for name in sorted(USUAL)}, optional={x: FIELDS[x] for x in sorted(FIELDS.keys() - USUAL)}
    )
    | st.binary(max_size=60)
    | JSON
)


@pytest.fixture(scope="module")
def mocks():
    with engines("a", "b", "c") as found:
        yield found


@pytest.fixture(scope="module")
def gateway(mocks, tmp_path_factory):
    data = settings(
        mocks,
        classes=[{"name": "first"}, {"name": "only-a", "confined_to": ["label-a"]}, {"name": "quick", "ttft_s": 0.001}],
        privacy_sets=[{"name": name, "confined_to": sorted(members)} for name, members in SETS.items()],
        breaker={"period_s": 0.02, "probe_s": 0.02},
    )
    with RunningGateway(tmp_path_factory.mktemp("fuzz"), data) as running:
        yield running


@examples(300)
@given(
    path=st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/chat/completions", "/v1/models", "/", "/v1/é?x=1"]),
    method=st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "HEAD"]),
    body=BODIES,
    headers=HEADERS,
)
def test_nothing_that_is_sent_ends_in_a_500_or_is_left_behind(gateway, path, method, body, headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = connect(gateway.url)
    with contextlib.closing(connection):
        connection.putrequest(method, path.encode("latin-1").decode("latin-1") if path.isascii() else "/v1/%C3%A9")
        for name, value in (headers | {"content-length": str(len(data))}).items():
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders(data)
        reply = Reply(connection.getresponse())
    assert 200 <= reply.status < 600
    assert reply.status != 500
    if reply.status >= 400 and method != "HEAD":
        assert reply.json["error"]["message"]
    gateway.settle()


@examples(60)
@given(
    st.binary(max_size=200)
    | st.sampled_from([b"GET / HTTP/1.1\r\n\r\n" * 3, b"POST /v1/completions HTTP/1.1\r\ncontent-length: 9\r\n\r\n{"])
)
def test_bytes_that_are_no_request_do_no_harm(gateway, data):
    connection = connect(gateway.url)
    with contextlib.closing(connection):
        connection.connect()
        connection.sock.sendall(data)
    gateway.settle()


def test_a_confined_request_never_leaves_its_set(gateway, mocks):
    """By class, privacy set and name, with experts that fail, stream or not: ``EDGEROUTE_CONFINED=100000`` for as many."""
    draw = random.Random(7)
    answered = confined = 0
    with contextlib.closing(connect(gateway.url)) as connection:
        for _ in range(CONFINED):
            headers, allowed = {}, {"a", "b", "c"}
            if draw.random() < 0.7:
                names = draw.sample(sorted(SETS), draw.randint(1, 2))
                headers["x-edgeroute-privacy"] = ",".join(names)
                allowed = set.intersection(allowed, *(SETS[name] for name in names))
            if draw.random() < 0.3:
                headers["x-edgeroute-class"] = "only-a"
                allowed &= {"a"}
            model = draw.choice(["auto", "auto", "auto", "a", "b", "c"])
            if model != "auto":
                allowed &= {model}
            data = chat("x" * draw.randint(0, 400), model=model, stream=draw.random() < 0.5, max_tokens=2)
            data |= {"mock": draw.choice(FAILURES) | {"at": draw.choice("abc")}, "tag": sorted(allowed)}
            try:
                reply = ask_on(connection, "POST", "/v1/chat/completions", data, headers)
            except http.client.RemoteDisconnected:
                pytest.fail("the gateway closed a connection")
            name = reply.headers.get("x-edgeroute-expert")
            assert name is None or name in allowed
            answered += reply.status == 200
            confined += reply.status == 403
            assert (reply.status == 403) == (not allowed)
    gateway.settle()
    assert answered > CONFINED / 4
    assert confined > CONFINED / 20
    for engine in mocks:  # whatever was tried there, by retries too, was allowed there
        told = engine.seen()
        assert told["outside"] == 0
        assert told["requests"] > CONFINED / 20
