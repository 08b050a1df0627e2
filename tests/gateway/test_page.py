"""The live page: it loads nothing from elsewhere, shows nothing without a key, and makes no text markup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256

import pytest

from tests.gateway.running import RunningGateway, ask, chat, engines, settings

ALICE, BOB = ({"authorization": f"Bearer {key}"} for key in ("key-of-alice", "key-of-bob"))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with two tenants."""
    tenants = [{"name": name, "keys": [f"sha256:{sha256(f'key-of-{name}'.encode()).hexdigest()}"]} for name in ("alice", "bob")]
    with engines("a", "b") as found:
        data = settings(found, policy="least-work", shadow="random", tenants=tenants)
        with RunningGateway(tmp_path_factory.mktemp("gateway"), data) as running:
            yield running


def test_the_page_takes_all_from_here(gateway: RunningGateway) -> None:
    """Every file that it names is ours, no script is inline, and the browser may load nothing else."""
    page = ask(gateway.url, "GET", "/ui")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    named = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert sorted(named) == ["/ui/page.css", "/ui/page.js"]
    assert not re.search(r"<script[^>]*>[^<]|\son\w+=|style=", page.text)
    for path in ("/ui", *named, "/ui/state"):
        reply = ask(gateway.url, "GET", path, headers=ALICE)
        assert reply.status == 200
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert ask(gateway.url, "GET", "/ui/other").status == 404


def test_the_script_writes_texts_alone(gateway: RunningGateway) -> None:
    """Nothing in it parses markup or code."""
    script = ask(gateway.url, "GET", "/ui/page.js").text
    assert "textContent" in script
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "DOMParser",
        "http:",
        "https:",
    ):
        assert way not in script


def test_what_it_shows_needs_a_key(gateway: RunningGateway) -> None:
    """As a completion does."""
    assert ask(gateway.url, "GET", "/ui/state").status == 401
    assert ask(gateway.url, "GET", "/ui").status == 200


def test_a_tenant_sees_requests_of_its_own(gateway: RunningGateway) -> None:
    """The last fifty at most, the newest first, with where they went and why; no prompt."""
    replies = [ask(gateway.url, "POST", "/v1/chat/completions", chat(f"secret-{number}"), ALICE) for number in range(60)]
    found = ask(gateway.url, "GET", "/ui/state", headers=ALICE)
    data = found.json
    assert len(data["recent"]) == 50
    first = data["recent"][0]
    assert (first["expert"], first["outcome"], first["tokens"]) == (replies[-1].headers["x-edgeroute-expert"], "finished", 16)
    assert first["shadow"] in ("a", "b")
    assert [x["ago_s"] for x in data["recent"]] == sorted(x["ago_s"] for x in data["recent"])
    assert "secret-" not in found.text
    assert data["shadow"] == "random"
    assert ask(gateway.url, "GET", "/ui/state", headers=BOB).json["recent"] == []


def test_queues_are_those_of_the_ledger(gateway: RunningGateway) -> None:
    """A request that is under way counts where it is."""
    told = ask(gateway.url, "POST", "/v1/route", {"prompt_tokens": 9, "candidates": ["b"]}, ALICE).json
    data = ask(gateway.url, "GET", "/ui/state", headers=BOB).json
    shown = {x["name"]: x["waiting"] + x["running"] for x in data["experts"]}
    assert (shown, data["under_way"]) == ({"a": 0, "b": 1}, 1)
    assert ask(gateway.url, "POST", "/v1/route/events", {"id": told["id"], "event": "cancelled"}, ALICE).status == 200
