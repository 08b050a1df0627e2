"""Slow predictors: nobody else waits for them, and who does waits no longer than a bound."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from gateway.predicting import Predicting
from gateway.request import RouteRequest
from gateway.server import aside, state
from gateway.server.aside import AT_ONCE_S, MOST_WAITING, Aside, Heard
from models.predictors.served import Prediction, Predictors
from rllib_envs.scenarios.load import load_scenario
from tests.gateway.running import PATIENCE_S, RunningGateway, ask, engines, settings, wait_for

EXPERTS = load_scenario("edge3").experts
REQUEST = RouteRequest(prompt_tokens=10, text="Why?", max_tokens=50)
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "Why?"}]}


class Held:
    """Predictors that take processor time, and more time where ``release`` is not set. All answers are 321 tokens."""

    def __init__(self, cost_s: float = 5 * AT_ONCE_S) -> None:
        self.models = tuple(dict.fromkeys(expert.model for expert in load_scenario("edge6").experts))
        self.weights = SimpleNamespace(mean=np.zeros(3))
        self.cost_s, self.release, self.asked, self.breaks = cost_s, threading.Event(), 0, False
        self.release.set()

    def predict(self, texts: list[str]) -> Prediction:
        self.asked += 1
        until_s = time.thread_time() + self.cost_s
        while time.thread_time() < until_s:
            pass
        assert self.release.wait(PATIENCE_S)
        if self.breaks:
            raise ValueError("broken")
        return self.predict_from(np.zeros((len(texts), 3)))

    def predict_from(self, statistics: np.ndarray) -> Prediction:
        shape = (len(statistics), len(self.models))
        return Prediction(
            score=np.full(shape, 0.5),
            output_tokens=np.full(shape, 321.0),
            log_sd=np.ones(shape),
            novelty=np.ones(len(statistics)),
        )


@pytest.fixture
def held() -> Generator[Held]:
    """Whatever waits for them goes on at the end."""
    found = Held()
    yield found
    found.release.set()


def aside_of(predictors: Held | None) -> Aside:
    return Aside(Predicting(EXPERTS, cast(Predictors | None, predictors)))


def test_fast_predictors_and_means_have_no_thread() -> None:
    """The decider asks them itself."""
    for predictors in (None, Held(cost_s=0.0)):
        found = aside_of(predictors)
        assert not found.slow
        assert asyncio.run(found.of(REQUEST)) == Heard(None)


def test_slow_ones_are_heard_while_others_go_on(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop turns a hundred times meanwhile; what comes is theirs, with the request's own limit of tokens."""
    monkeypatch.setattr(aside, "BOUND_S", PATIENCE_S)
    found = aside_of(held)
    assert found.slow

    async def go() -> Heard:
        held.release.clear()
        before = held.asked
        task = asyncio.create_task(found.of(REQUEST))
        while held.asked == before:
            await asyncio.sleep(0.001)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()
        held.release.set()
        return await task

    heard = asyncio.run(go())
    assert heard.missed is None
    assert heard.told is not None
    assert heard.told.tokens.tolist() == [321.0] * 3
    assert heard.told.most == 50.0
    assert heard.told.score.tolist() == [0.5] * 3
    without_text = asyncio.run(found.of(replace(REQUEST, text="")))
    assert without_text == Heard(None)
    found.close()


def test_who_waits_too_long_or_behind_too_many_gets_the_means(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as may wait are late, and one more does not wait at all; then all is as before."""
    monkeypatch.setattr(aside, "BOUND_S", 0.02)
    found = aside_of(held)

    async def go() -> list[Heard]:
        held.release.clear()
        return await asyncio.gather(*(found.of(REQUEST) for _ in range(MOST_WAITING + 1)))

    heard = asyncio.run(go())
    assert [x.missed for x in heard] == ["late"] * MOST_WAITING + ["busy"]
    usual = Predicting(EXPERTS).of(REQUEST)
    for x in heard:
        assert x.told is not None
        assert np.array_equal(x.told.tokens, usual.tokens)
        assert np.array_equal(x.told.score, usual.score)
    held.release.set()
    monkeypatch.setattr(aside, "BOUND_S", PATIENCE_S)
    assert asyncio.run(found.of(REQUEST)).missed is None
    held.breaks = True
    assert asyncio.run(found.of(REQUEST)).missed == "failed"
    found.close()


def test_a_gateway_answers_others_while_predictors_think(held: Held, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request waits for them, and the page of health does not; where they are late, the request is answered all the same."""
    monkeypatch.setattr(state.Predictors, "load", lambda folder: held)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    monkeypatch.setattr(aside, "BOUND_S", PATIENCE_S)
    answers: list[Any] = []
    with engines("a", "b") as made, RunningGateway(tmp_path, settings(made, predictors="folder")) as running:

        def send() -> None:
            answers.append(ask(running.url, "POST", "/v1/chat/completions", CHAT))

        held.release.clear()
        before = held.asked
        thread = threading.Thread(target=send)
        thread.start()
        wait_for(lambda: held.asked > before)
        assert ask(running.url, "GET", "/health").status == 200
        assert not answers
        held.release.set()
        thread.join(PATIENCE_S)
        (entry,) = [exchange for _, exchange in running.traffic.recent]
        assert answers[0].status == 200
        assert set(entry.decision.predicted_tokens) == {321.0}
        monkeypatch.setattr(aside, "BOUND_S", 0.02)
        held.release.clear()
        send()
        assert answers[1].status == 200
        assert 321.0 not in running.traffic.recent[-1][1].decision.predicted_tokens
        assert 'edgeroute_unpredicted_total{reason="late"} 1.0' in ask(running.url, "GET", "/metrics").text
        held.release.set()
