"""The gateway over HTTP, in front of mock engines: what passes, what is refused, and what happens when experts fail."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import time

import pytest

from tests.gateway.running import RunningGateway, ask, ask_on, chat, connect, engines, open_stream, settings, wait_for

pytestmark = pytest.mark.slow

KEY, OTHER_KEY = "the key of t", "the key of u"
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def hashed(key):
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def mocks():
    with engines("a", "b") as found:
        yield found


@pytest.fixture(autouse=True)
def _engines_as_usual(mocks):
    for engine in mocks:
        engine.told()


@pytest.fixture(scope="module")
def gateway(mocks, tmp_path_factory):
    data = settings(
        mocks,
        classes=[
            {"name": "plain"},
            {"name": "tight", "ttft_s": 1e-6, "per_token_s": 1e-6},
            {"name": "only-a", "confined_to": ["label-a"]},
        ],
        privacy_sets=[{"name": "set-a", "confined_to": ["label-a"]}, {"name": "set-b", "confined_to": ["b"]}],
        limits={"body_bytes": 65536, "answer_bytes": 65536},
        timeouts={"first_byte_min_s": 0.3, "first_byte_max_s": 0.3, "idle_s": 0.4, "client_s": 1.0, "answer_s": 1.0},
        breaker={"period_s": 0.1, "probe_s": 0.05},
    )
    with RunningGateway(tmp_path_factory.mktemp("gateway"), data) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left(gateway):
    wait_for(lambda: all(gateway.traffic.gateway.ready()))
    yield
    gateway.settle()


def complete(gateway, data, path=CHAT, **headers):
    return ask(gateway.url, "POST", path, data, {name.replace("_", "-"): value for name, value in headers.items()})


def test_a_stream_passes_event_by_event_without_the_usage_nobody_asked_for(gateway):
    reply = complete(gateway, chat(stream=True, max_tokens=5))
    name = reply.headers["x-edgeroute-expert"]
    assert reply.status == 200
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.words == [f"{name}{i}" for i in range(5)]
    assert reply.events[-1] == "[DONE]"
    assert all(event == "[DONE]" or event["choices"] for event in reply.events)
    asked_for = complete(gateway, chat(stream=True, stream_options={"include_usage": True}))
    assert asked_for.events[-2]["usage"]["completion_tokens"] == 16


def test_whole_answers_and_plain_prompts_pass_too(gateway):
    reply = complete(gateway, chat())
    assert reply.json["usage"]["completion_tokens"] == 16
    assert int(reply.headers["content-length"]) == len(reply.text)
    for prompt in ("hello", ["hello", "you"], [1, 2, 3], [[1, 2], [3]]):
        assert len(complete(gateway, {"model": "auto", "prompt": prompt}, PLAIN).json["choices"]) == 1
        assert complete(gateway, {"model": "auto", "prompt": prompt, "stream": True}, PLAIN).events[-1] == "[DONE]"


def test_the_body_reaches_the_engine_as_it_was_but_for_model_and_usage(gateway, mocks):
    data = chat("é\ud800", stream=True, model="b", seed=3, tools=[{"x": None}], stream_options={"more": 1})
    complete(gateway, data)
    options = {"more": 1, "include_usage": True}
    assert mocks[1].seen()["body"] == data | {"model": "Meta-Llama-3.1-8B-Instruct", "stream_options": options}


def test_tracing_headers_pass_and_keys_do_not(gateway, mocks):
    sent = {
        "traceparent": "00-1-2-01",
        "tracestate": "a=b",
        "x-request-id": "mine-1",
        "authorization": "Bearer s",
        "cookie": "c=1",
    }
    reply = ask(gateway.url, "POST", CHAT, chat(model="a"), sent)
    seen = mocks[0].seen()["headers"]
    assert {name: seen.get(name) for name in ("traceparent", "tracestate", "x-request-id")} == {
        name: sent[name] for name in ("traceparent", "tracestate", "x-request-id")
    }
    assert "authorization" not in seen
    assert "cookie" not in seen
    assert reply.headers["x-request-id"] == "mine-1"
    assert complete(gateway, chat(), x_request_id="not one\tid").headers["x-request-id"] != "not one\tid"


def test_a_name_pins_and_auto_does_not(gateway, mocks):
    for engine in mocks:
        reply = complete(gateway, chat(model=engine.name))
        assert reply.headers["x-edgeroute-expert"] == engine.name
        assert reply.headers["x-edgeroute-policy"] == "pinned"
    assert complete(gateway, chat(model="nobody")).code == "model_not_found"


def test_models_health_and_metrics_are_shown(gateway):
    models = ask(gateway.url, "GET", "/v1/models").json
    assert [model["id"] for model in models["data"]] == ["auto", "a", "b"]
    assert ask(gateway.url, "GET", "/v1/models/a").json["id"] == "a"
    assert ask(gateway.url, "GET", "/v1/models/c").status == 404
    assert ask(gateway.url, "GET", "/health").status == ask(gateway.url, "GET", "/ready").status == 200
    assert ask(gateway.url, "GET", "/nothing").status == ask(gateway.url, "POST", "/health").status == 404
    assert ask(gateway.url, "GET", CHAT).status == 405
    before = gateway.metric("edgeroute_requests_total", expert="a", outcome="finished")
    complete(gateway, chat(model="a", stream=True))
    gateway.settle()
    assert gateway.metric("edgeroute_requests_total", expert="a", outcome="finished") == before + 1
    assert gateway.metric("edgeroute_request_ttft_seconds_count", expert="a") >= 1
    assert gateway.metric("edgeroute_inflight", expert="a") == 0
    assert gateway.metric("edgeroute_expert_ready", expert="a") == 1


def test_bounds_of_a_class_and_of_headers_are_counted_when_broken(gateway):
    def broken(name):
        return gateway.metric("edgeroute_slo_violations_total", **{"class": name})

    before = broken("plain"), broken("tight")
    complete(gateway, chat(), x_edgeroute_class="tight")
    complete(gateway, chat(stream=True), x_slo_ttft_ms="0.001")
    complete(gateway, chat(stream=True), x_slo_ttft_ms="60000", x_slo_tpot_ms="60000", x_edgeroute_class="tight")
    gateway.settle()
    assert (broken("plain"), broken("tight")) == (before[0] + 1, before[1] + 2)  # the class's own bound per token holds still


@pytest.mark.parametrize(
    ("data", "headers", "status", "code"),
    [
        (b"", {}, 400, "invalid_json"),
        (b"\xff\xfe", {}, 400, "invalid_json"),
        (b"[" * 100_000, {}, 413, "body_too_large"),
        (b"[" * 60_000, {}, 400, "invalid_json"),
        (b'{"model": NaN}', {}, 400, "invalid_json"),
        (b"[]", {}, 400, "invalid_json"),
        ({"messages": []}, {}, 400, "invalid_value"),
        (chat(model=3), {}, 400, "invalid_value"),
        (chat(messages=[]), {}, 400, "invalid_value"),
        (chat(messages="x"), {}, 400, "invalid_value"),
        (chat(messages=[1]), {}, 400, "invalid_value"),
        (chat(messages=[{"content": 1}]), {}, 400, "invalid_value"),
        (chat(stream="yes"), {}, 400, "invalid_value"),
        (chat(stream=True, stream_options=[1]), {}, 400, "invalid_value"),
        (chat(max_tokens=0), {}, 400, "invalid_value"),
        (chat(max_tokens=True), {}, 400, "invalid_value"),
        (chat(max_completion_tokens=10**12), {}, 400, "invalid_value"),
        (chat(), {"x-slo-ttft-ms": "soon"}, 400, "invalid_header"),
        (chat(), {"x-slo-ttft-ms": "nan"}, 400, "invalid_header"),
        (chat(), {"x-slo-tpot-ms": "-1"}, 400, "invalid_header"),
        (chat(), {"x-slo-e2e-ms": "inf"}, 400, "invalid_header"),
        (chat(), {"x-edgeroute-class": "x"}, 400, "invalid_header"),
        (chat(), {"x-edgeroute-privacy": ""}, 400, "invalid_header"),
        (chat(), {"x-edgeroute-privacy": "set-a, nothing"}, 400, "invalid_header"),
        (chat("x" * 60_000), {}, 400, "context_length_exceeded"),
    ],
)
def test_what_is_wrong_is_refused_in_the_words_of_the_protocol(gateway, data, headers, status, code):
    reply = ask(gateway.url, "POST", CHAT, data, headers)
    assert (reply.status, reply.code) == (status, code)
    assert reply.json["error"]["message"]


def test_privacy_sets_and_classes_confine_and_nothing_widens(gateway):
    for headers, name in (
        ({"x_edgeroute_privacy": "set-a"}, "a"),
        ({"x_edgeroute_privacy": "set-b"}, "b"),
        ({"x_edgeroute_class": "only-a"}, "a"),
        ({"x_edgeroute_class": "only-a", "x_edgeroute_privacy": "set-a"}, "a"),
    ):
        assert complete(gateway, chat(), **headers).headers["x-edgeroute-expert"] == name
    for headers, model in (
        ({"x_edgeroute_class": "only-a", "x_edgeroute_privacy": "set-b"}, "auto"),
        ({"x_edgeroute_privacy": "set-a, set-b"}, "auto"),
        ({"x_edgeroute_privacy": "set-a"}, "b"),
    ):
        reply = complete(gateway, chat(model=model), **headers)
        assert (reply.status, reply.code) == (403, "confined")


def test_a_confined_request_does_not_leave_its_set_when_that_fails(gateway, mocks):
    before = mocks[1].seen()["requests"]
    for how in ({"fail": "drop"}, {"status": 503}, {"status": 500}, {"fail": "hang"}):
        reply = complete(gateway, chat(stream=True, mock=how), x_edgeroute_privacy="set-a")
        assert reply.status in (502, 503, 504)
        wait_for(lambda: all(gateway.traffic.gateway.ready()))
    assert mocks[1].seen()["requests"] == before


@pytest.mark.parametrize(
    ("how", "stream"),
    [
        ({"fail": "drop"}, True),
        ({"fail": "drop"}, False),
        ({"fail": "mid"}, False),
        ({"status": 500}, True),
        ({"status": 503}, False),
        ({"status": 429}, True),
        ({"fail": "hang"}, True),
    ],
)
def test_what_fails_before_the_first_byte_is_tried_elsewhere(gateway, mocks, how, stream):
    for bad, good in (mocks, mocks[::-1]):
        bad.told(**how)
        good.told()
        wait_for(lambda: all(gateway.traffic.gateway.ready()))
        for _ in range(100):  # the policy draws
            reply = complete(gateway, chat(stream=stream))
            assert reply.status == 200
            assert reply.headers["x-edgeroute-expert"] == good.name
            if reply.headers["x-edgeroute-attempts"] == "2":
                break
            wait_for(lambda: all(gateway.traffic.gateway.ready()))
        else:
            pytest.fail("the failing expert was never asked")
        bad.told()
        wait_for(lambda: all(gateway.traffic.gateway.ready()))


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ({"fail": "drop"}, 502, "expert_failed"),
        ({"status": 500}, 502, "expert_failed"),
        ({"status": 302}, 502, "expert_failed"),
        ({"status": 503}, 503, "unavailable"),
        ({"fail": "hang"}, 504, "expert_timeout"),
    ],
)
def test_when_nobody_answers_the_client_is_told_why(gateway, how, status, code):
    reply = complete(gateway, chat(stream=True, mock=how))
    assert (reply.status, reply.code) == (status, code)


def test_a_refusal_by_the_engine_is_the_clients_to_see(gateway):
    reply = complete(gateway, chat(stream=True, mock={"status": 422}))
    assert (reply.status, reply.json["error"]["type"]) == (422, "mock")
    assert reply.headers["x-edgeroute-attempts"] == "1"


@pytest.mark.parametrize(("fail", "code"), [("mid", "expert_failed"), ("eof", "expert_failed"), ("stall", "expert_idle")])
def test_a_stream_that_breaks_ends_in_an_error_event(gateway, fail, code):
    reply = complete(gateway, chat(stream=True, mock={"fail": fail, "pace_s": 0.005}))
    assert reply.status == 200
    assert reply.events[-1]["error"]["code"] == code
    assert reply.words == [f"{reply.headers['x-edgeroute-expert']}{i}" for i in range(8)]


def test_a_kept_connection_that_the_engine_closed_costs_nobody_anything(gateway, mocks):
    for engine in mocks:
        engine.told(fail="stale")
    before = sum(engine.seen()["requests"] for engine in mocks)
    with contextlib.closing(connect(gateway.url)) as connection:
        for _ in range(10):
            reply = ask_on(connection, "POST", CHAT, chat(stream=True))
            assert (reply.status, reply.headers["x-edgeroute-attempts"]) == (200, "1")
    assert sum(engine.seen()["requests"] for engine in mocks) > before + 10


def test_an_answer_that_is_too_large_is_not_held(gateway):
    reply = complete(gateway, chat(mock={"tokens": 40_000}))
    assert (reply.status, reply.code) == (502, "expert_failed")
    assert len(complete(gateway, chat(stream=True, mock={"tokens": 2_000})).words) == 2_000


def test_an_engine_that_is_loading_is_not_ready(gateway, mocks):
    mocks[0].told(health=503)
    wait_for(lambda: gateway.traffic.gateway.ready() == [False, True])
    assert complete(gateway, chat(model="a")).code == "unavailable"
    assert complete(gateway, chat()).headers["x-edgeroute-expert"] == "b"
    mocks[1].told(health=503)
    wait_for(lambda: not any(gateway.traffic.gateway.ready()))
    reply = complete(gateway, chat())
    assert (reply.status, reply.code) == (503, "unavailable")
    assert int(reply.headers["retry-after"]) >= 1
    assert ask(gateway.url, "GET", "/ready").status == 503
    assert ask(gateway.url, "GET", "/health").status == 200


def test_a_client_that_leaves_is_left_by_the_engine_too(gateway, mocks):
    before = mocks[0].seen()
    for number, first_s in enumerate((0.0, 60.0), 1):
        data = chat(model="a", stream=True, mock={"pace_s": 0.01, "tokens": 10_000, "first_s": first_s})
        with open_stream(gateway.url, data) as client:
            wait_for(lambda number=number: mocks[0].seen()["requests"] == before["requests"] + number)
            if first_s == 0:
                assert b"data: " in client.recv(4096)
    wait_for(lambda: mocks[0].seen()["closed_early"] == before["closed_early"] + 2)
    gateway.settle()
    assert gateway.metric("edgeroute_requests_total", expert="a", outcome="client_gone") >= 2


def test_events_are_not_held_back(gateway):
    client = open_stream(gateway.url, chat(stream=True, mock={"pace_s": 0.1, "tokens": 3}))
    with client:
        times, data = [], b""
        while b"[DONE]" not in data:
            data += client.recv(65536)
            times.append(time.monotonic())
    assert times[-1] - times[0] > 0.15
    assert len(times) >= 3


def test_a_client_that_reads_nothing_holds_no_memory_and_is_cut_off(gateway, mocks):
    data = chat(model="a", stream=True, mock={"tokens": 20_000, "padding": 2_000})
    sent = gateway.metric("edgeroute_requests_total", expert="a", outcome="client_slow")
    with open_stream(gateway.url, data, buffer=4096) as client:
        wait_for(lambda: gateway.metric("edgeroute_requests_total", expert="a", outcome="client_slow") == sent + 1)
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(2**20):
                got += len(part)
    assert got < 16 * 2**20  # of 40 MB


def test_a_head_that_does_not_end_is_refused(gateway):
    with socket.create_connection(gateway.url.removeprefix("http://").split(":"), timeout=10) as client:
        client.sendall(b"GET /health HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            for _ in range(64):
                client.sendall(b"x-filler: " + b"y" * 4096 + b"\r\n")
                time.sleep(0.001)
        with contextlib.suppress(ConnectionResetError):
            assert b" 431 " in client.recv(4096)


def test_tenants_have_keys_places_and_bounds_of_their_own(mocks, tmp_path):
    tenants = [
        {"name": "t", "keys": [hashed(KEY)], "max_concurrent": 1, "service_class": "second"},
        {"name": "u", "keys": [hashed(OTHER_KEY)], "confined_to": ["label-b"]},
    ]
    classes = [{"name": "first"}, {"name": "second", "confined_to": ["label-a"]}]
    with RunningGateway(tmp_path, settings(mocks, tenants=tenants, classes=classes)) as gateway:
        for headers in ({}, bearer("wrong"), {"authorization": KEY}, bearer(hashed(KEY)), {"authorization": "Bearer "}):
            for method, path in (("POST", CHAT), ("GET", "/v1/models")):
                reply = ask(gateway.url, method, path, chat() if method == "POST" else None, headers)
                assert (reply.status, reply.code) == (401, "invalid_api_key")
                assert reply.headers["www-authenticate"] == "Bearer"
        assert ask(gateway.url, "GET", "/ready").status == 200
        assert ask(gateway.url, "POST", CHAT, chat(), bearer(KEY)).headers["x-edgeroute-expert"] == "a"
        assert ask(gateway.url, "POST", CHAT, chat(), bearer(OTHER_KEY)).headers["x-edgeroute-expert"] == "b"
        with open_stream(gateway.url, chat(stream=True, mock={"pace_s": 0.01, "tokens": 10_000}), bearer(KEY)) as client:
            client.recv(1)
            assert ask(gateway.url, "POST", CHAT, chat(), bearer(KEY)).code == "rate_limited"
            assert ask(gateway.url, "POST", CHAT, chat(), bearer(OTHER_KEY)).status == 200
        gateway.settle()
        assert ask(gateway.url, "POST", CHAT, chat(), bearer(KEY)).status == 200


def test_one_request_more_than_the_gateway_takes_is_told_to_wait(mocks, tmp_path):
    with RunningGateway(tmp_path, settings(mocks, limits={"concurrent": 2})) as gateway:
        slow = chat(stream=True, mock={"pace_s": 0.01, "tokens": 10_000})
        with open_stream(gateway.url, slow) as one, open_stream(gateway.url, slow) as two:
            one.recv(1), two.recv(1)
            reply = ask(gateway.url, "POST", CHAT, chat())
            assert (reply.status, reply.code, reply.headers["retry-after"]) == (429, "overloaded", "1")
        gateway.settle()
        assert ask(gateway.url, "POST", CHAT, chat()).status == 200


def test_an_expert_takes_no_more_than_it_is_given(mocks, tmp_path):
    data = settings(mocks)
    data["experts"][0]["max_concurrent"] = 1
    with RunningGateway(tmp_path, data) as gateway:
        with open_stream(gateway.url, chat(model="a", stream=True, mock={"pace_s": 0.01, "tokens": 10_000})) as client:
            client.recv(1)
            assert ask(gateway.url, "POST", CHAT, chat(model="a")).code == "unavailable"
            assert ask(gateway.url, "POST", CHAT, chat()).headers["x-edgeroute-expert"] == "b"
        gateway.settle()
        assert ask(gateway.url, "POST", CHAT, chat(model="a")).status == 200


def test_draining_lets_streams_end_and_cuts_those_that_last(mocks, tmp_path):
    data = settings(mocks, timeouts={"drain_s": 0.8})
    with RunningGateway(tmp_path, data) as gateway:
        short = open_stream(gateway.url, chat(stream=True, mock={"pace_s": 0.02, "tokens": 20}))
        long = open_stream(gateway.url, chat(stream=True, mock={"pace_s": 0.02, "tokens": 10_000}))
        with short, long:
            heads = short.recv(1), long.recv(1)
            gateway.drain()
            wait_for(lambda: gateway.traffic.draining)
            wait_for(lambda: refuses_connections(gateway))
            whole, cut = (head + read_all(client) for head, client in zip(heads, (short, long), strict=True))
    assert whole.count(b'"content"') == 20
    assert b"[DONE]" in whole
    assert b'"code": "shutting_down"' in cut
    assert b"[DONE]" not in cut
    assert gateway.idle()


def refuses_connections(gateway):
    try:
        socket.create_connection(gateway.url.removeprefix("http://").split(":"), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def read_all(client):
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def test_a_reload_takes_new_settings_and_loses_no_stream(mocks, tmp_path):
    data = settings(mocks)
    with RunningGateway(tmp_path, data) as gateway:
        old = gateway.traffic.gateway
        with open_stream(gateway.url, chat(stream=True, mock={"pace_s": 0.1, "tokens": 40})) as client:
            head = client.recv(1)
            gateway.write(data | {"polcy": "x"})
            gateway.reload()
            assert gateway.traffic.gateway is old
            assert gateway.metric("edgeroute_reloads_total", result="refused") == 1
            gateway.write(data | {"tenants": [{"name": "t", "keys": [hashed(KEY)]}]})
            gateway.reload()
            assert gateway.traffic.gateway is not old
            assert ask(gateway.url, "POST", CHAT, chat()).status == 401
            assert ask(gateway.url, "POST", CHAT, chat(), bearer(KEY)).status == 200
            gateway.write(data)
            gateway.reload()
            assert len(gateway.traffic.gateway.decider.ledger) == 1  # the stream counts on
            assert ask(gateway.url, "POST", CHAT, chat()).status == 200
            body = b""
            while b"[DONE]" not in body:
                body += client.recv(65536)
        assert (head + body).count(b'"content"') == 40
        gateway.settle()
        assert old.decider is gateway.traffic.gateway.decider


def test_a_reload_with_other_experts_lets_old_streams_end_where_they_are(mocks, tmp_path):
    data = settings(mocks)
    with RunningGateway(tmp_path, data) as gateway:
        old = gateway.traffic.gateway
        with open_stream(gateway.url, chat(model="a", stream=True, mock={"pace_s": 0.05, "tokens": 40})) as client:
            body = client.recv(1)
            gateway.write(data | {"experts": data["experts"][::-1]})
            gateway.reload()
            assert gateway.traffic.gateway.upstreams == old.upstreams[::-1]  # with what is known of them
            assert len(gateway.traffic.gateway.decider.ledger) == 0
            while b"[DONE]" not in body:
                body += client.recv(65536)
        assert body.count(b'"content"') == 40
        gateway.settle()
        assert len(old.decider.ledger) == 0


def test_json_of_errors_is_json(gateway):
    reply = complete(gateway, chat(model='"\u00e9\n<x>'))
    assert json.loads(reply.text)["error"]["param"] == "model"
