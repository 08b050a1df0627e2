"""Log, feedback and decisions for others, through HTTP, in front of mock engines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rllib_envs.decision_log.reader import read_log
from tests.gateway.running import MockEngine, RunningGateway, ask, chat, engines, settings, wait_for

KEYS = {"alice": "key-of-alice", "bob": "key-of-bob"}
SECRET = "token-of-the-engine"


def _bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name]}"}


def _settings(found: list[MockEngine], **more: Any) -> dict[str, Any]:
    tenants = [{"name": name, "keys": [f"sha256:{sha256(key.encode()).hexdigest()}"]} for name, key in KEYS.items()]
    data = settings(found, policy="random", shadow="least-work", tenants=tenants, log={"folder": "log"}, **more)
    data["experts"][0]["token"] = {"env": "EDGEROUTE_TEST_TOKEN"}
    return data


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with a log, two tenants and a shadow, in front of two engines."""
    with pytest.MonkeyPatch.context() as patch, engines("a", "b") as found:
        patch.setenv("EDGEROUTE_TEST_TOKEN", SECRET)
        data = _settings(found)
        data["timeouts"]["routed_s"] = 0.5
        with RunningGateway(tmp_path_factory.mktemp("gateway"), data) as running:
            yield running


def _post(gateway: RunningGateway, path: str, data: Any, name: str = "alice") -> Any:
    return ask(gateway.url, "POST", path, data, _bearer(name))


def _in_flight(gateway: RunningGateway) -> int:
    return len(gateway.traffic.gateway.decider.ledger)


def _logged(gateway: RunningGateway, identity: str) -> Any:
    """The line of a request, once it is there."""
    wait_for(lambda: any(identity in path.read_text() for path in (gateway.path.parent / "log").iterdir()))
    return next(x for x in read_log(gateway.path.parent / "log").requests if x.id == identity)


def test_a_request_is_logged_with_what_came_of_it(gateway: RunningGateway) -> None:
    """The decision, its probability, the shadow's choice and the times; neither prompt nor key nor token."""
    body = chat("a secret prompt", stream=True, mock={"tokens": 9, "first_s": 0.02, "pace_s": 0.005})
    reply = ask(gateway.url, "POST", "/v1/chat/completions", body, _bearer("alice") | {"x-request-id": "one"})
    line = _logged(gateway, "one")
    names = [entry.name for entry in gateway.traffic.gateway.config.experts]
    assert names[line.expert] == names[line.outcome.expert] == reply.headers["x-edgeroute-expert"]
    assert (line.tenant, line.probability, line.candidates, line.outcome.status) == ("alice", 0.5, (0, 1), "finished")
    assert (line.outcome.output_tokens, line.outcome.attempts, line.shadow.policy) == (9, 1, "least-work")
    assert line.outcome.ttft_s >= 0.02
    assert line.outcome.tpot_s >= 0.004
    assert sum(waiting + running for waiting, running, _, _ in line.load) >= 1
    text = "".join(path.read_text() for path in (gateway.path.parent / "log").iterdir())
    for word in ("secret prompt", SECRET, *KEYS.values(), *(sha256(key.encode()).hexdigest() for key in KEYS.values())):
        assert word not in text


def test_a_request_that_goes_nowhere_is_logged(gateway: RunningGateway) -> None:
    """With the reason."""
    body = chat("x" * 10**6)
    reply = ask(gateway.url, "POST", "/v1/chat/completions", body, _bearer("bob") | {"x-request-id": "long"})
    assert reply.status == 400
    line = _logged(gateway, "long")
    assert (line.refusal, line.expert, line.outcome, line.candidates) == ("too_long", None, None, ())


def test_agreement_is_counted(gateway: RunningGateway) -> None:
    """Each decision that the shadow took is one that agrees or one that does not."""

    def counted() -> float:
        return sum(gateway.metric("edgeroute_shadow_total", agrees=x) for x in ("yes", "no"))

    before = counted()
    for _ in range(4):
        _post(gateway, "/v1/chat/completions", chat())
    assert counted() == before + 4
    assert gateway.metric("edgeroute_log_lines_total") > 0


def test_feedback_is_joined_to_its_request(gateway: RunningGateway) -> None:
    """Of who got the answer alone, and within [0, 1]."""
    ask(gateway.url, "POST", "/v1/chat/completions", chat(), _bearer("alice") | {"x-request-id": "judged"})
    assert _post(gateway, "/v1/feedback", {"id": "judged", "score": 0.75}, "bob").status == 404
    assert _post(gateway, "/v1/feedback", {"id": "unknown", "score": 0.75}).status == 404
    for wrong in (1.5, -0.1, True, "1", None):
        reply = _post(gateway, "/v1/feedback", {"id": "judged", "score": wrong})
        assert (reply.status, reply.json["error"]["param"]) == (400, "score")
    assert _post(gateway, "/v1/feedback", {"id": "judged", "score": 0.75}).json == {"id": "judged", "score": 0.75}
    wait_for(lambda: read_log(gateway.path.parent / "log").feedback.get("judged") == 0.75)


@pytest.mark.parametrize("path", ["/v1/route", "/v1/route/events", "/v1/feedback", "/route", "/llm-d/a/predict/bulk"])
def test_nobody_gets_in_without_a_key(gateway: RunningGateway, path: str) -> None:
    """And what is no JSON is refused in a line."""
    assert ask(gateway.url, "POST", path, {}).status == 401
    reply = ask(gateway.url, "POST", path, b"no json", _bearer("alice"))
    assert (reply.status, reply.code) == (400, "invalid_json")


def test_a_route_is_kept_account_of_to_its_end(gateway: RunningGateway) -> None:
    """Decided here, sent by somebody else, told by events; then it can be judged too."""
    found = _post(gateway, "/v1/route", {"prompt_tokens": 50, "candidates": ["b"], "slo": {"ttft_ms": 500}}).json
    assert (found["expert"], found["ranking"], found["refused"]) == ("b", ["b"], None)
    assert set(found["predicted"]) == {"a", "b"}
    assert found["predicted"]["b"]["ttft_ms"] > 0
    assert _in_flight(gateway) == 1
    assert gateway.metric("edgeroute_inflight", expert="b") == 1
    told = {"id": found["id"]}
    assert _post(gateway, "/v1/route/events", told | {"event": "finished"}, "bob").status == 404
    assert _post(gateway, "/v1/route/events", told | {"event": "first_token"}).status == 200
    assert _post(gateway, "/v1/route/events", told | {"event": "finished", "output_tokens": 7, "prompt_tokens": 52}).status == 200
    assert _post(gateway, "/v1/route/events", told | {"event": "finished"}).status == 404
    assert gateway.idle()
    line = _logged(gateway, found["id"])
    assert (line.outcome.status, line.outcome.output_tokens, line.outcome.prompt_tokens) == ("finished", 7, 52)
    assert line.outcome.ttft_s > 0
    assert (line.bounds.ttft_s, line.candidates) == (0.5, (1,))
    assert _post(gateway, "/v1/feedback", told | {"score": 1}).status == 200


@pytest.mark.parametrize(("event", "status"), [("failed", "broken"), ("cancelled", "client_gone"), (None, "presumed")])
def test_a_route_ends_otherwise(gateway: RunningGateway, event: str | None, status: str) -> None:
    """It failed, was given up, or nobody said anything for as long as is waited."""
    found = _post(gateway, "/v1/route", {"messages": [{"role": "user", "content": "hello"}]}).json
    if event is not None:
        assert _post(gateway, "/v1/route/events", {"id": found["id"], "event": event}).status == 200
    gateway.settle()
    assert _logged(gateway, found["id"]).outcome.status == status


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({}, "messages"),
        ({"prompt": "a", "prompt_tokens": 3}, "messages"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"prompt_tokens": 3, "candidates": []}, "candidates"),
        ({"prompt_tokens": 3, "candidates": ["c"]}, "candidates"),
        ({"prompt_tokens": 3, "slo": {"ttft_ms": -1}}, "slo.ttft_ms"),
        ({"prompt_tokens": 3, "slo": {"colour": 1}}, "slo"),
        ({"prompt_tokens": 3, "model": "c"}, "model"),
    ],
)
def test_a_wrong_question_names_its_field(gateway: RunningGateway, data: dict[str, Any], param: str) -> None:
    """And takes no place."""
    reply = _post(gateway, "/v1/route", data)
    assert reply.status in (400, 404)
    assert reply.json["error"]["param"] == param
    assert gateway.idle()


def test_routes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests elsewhere have places among the gateway's own."""
    monkeypatch.setenv("EDGEROUTE_TEST_TOKEN", SECRET)
    with engines("a", "b") as found:
        data = _settings(found, limits={"concurrent": 3})
        with RunningGateway(tmp_path, data) as gateway:
            replies = [_post(gateway, "/v1/route", {"prompt_tokens": 3}) for _ in range(5)]
            assert [reply.status for reply in replies] == [200, 200, 200, 429, 429]
        lines = read_log(tmp_path / "log").requests
    assert [line.outcome.status for line in lines if line.outcome is not None] == ["shutdown"] * 3


def test_a_query_counts_for_as_long_as_it_is_predicted_to_take(gateway: RunningGateway) -> None:
    """vLLM Semantic Router's protocol: the name of an expert, and no end that is told."""
    found = _post(gateway, "/route", {"query": "what is 2 + 2?"})
    assert found.json["selected_model"] in ("a", "b")
    assert _in_flight(gateway) == 1
    gateway.settle()
    assert _post(gateway, "/route", {"query": ""}).status == 400


def test_latencies_are_those_of_the_profile(gateway: RunningGateway) -> None:
    """llm-d's protocol: more that waits means a later first token, more that runs a slower pace; an idle one is exact."""

    def latency(**fields: float) -> tuple[float, float]:
        data = {"requests": [{"input_token_length": 200} | fields]}
        (found,) = _post(gateway, "/llm-d/b/predict/bulk/strict", data).json["predictions"]
        return found["ttft_ms"], found["tpot_ms"]

    engine = gateway.traffic.gateway.scenario.experts[1].engine
    idle = latency()
    assert idle[0] == pytest.approx(1e3 * (engine.handoff_s + engine.iteration_s(0, 0, ((200, 0),))))
    assert idle[1] == pytest.approx(1e3 * engine.iteration_s(1, 200))
    assert latency(num_request_waiting=5)[0] > idle[0]
    assert latency(prefix_cache_score=0.9)[0] < idle[0]
    busy = latency(num_request_running=20, kv_cache_percentage=0.5)
    assert busy[0] > idle[0]
    assert busy[1] > idle[1]
    whole = _post(gateway, "/llm-d/a/predict/bulk", {"requests": [{"input_token_length": 5}] * 3}).json
    assert (whole["total_requests"], whole["successful_predictions"], whole["failed_predictions"]) == (3, 3, 0)
    assert _post(gateway, "/llm-d/nobody/predict/bulk", {"requests": [{}]}).status == 404
    wrong = _post(gateway, "/llm-d/a/predict/bulk", {"requests": [{"kv_cache_percentage": 2}]})
    assert wrong.json["error"]["param"] == "requests.0.kv_cache_percentage"


def test_prompts_are_logged_where_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The beginning of each; and a reload goes on with the shadow that the command line asked for."""
    monkeypatch.setenv("EDGEROUTE_TEST_TOKEN", SECRET)
    with engines("a", "b") as found:
        data = _settings(found) | {"log": {"folder": "log", "prompts": True}}
        with RunningGateway(tmp_path, data) as gateway:
            _post(gateway, "/v1/chat/completions", chat("tell me " + "x" * 20_000))
            gateway.reload()
            time.sleep(0.01)
            _post(gateway, "/v1/chat/completions", chat("again"))
        log = read_log(tmp_path / "log")
    texts = [line.text for line in log.requests]
    assert texts[0] is not None
    assert (texts[0][:9], len(texts[0]), texts[1]) == ("tell me x", 2**14, "again")
    assert json.loads(next((tmp_path / "log").iterdir()).read_text().splitlines()[0])["kind"] == "start"
