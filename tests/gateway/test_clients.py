"""Clients that people use, against the gateway: what they send is understood, and what they get is what they expect."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time

import openai
import pytest

from tests.gateway.running import PATIENCE_S, RunningGateway, engines, settings, wait_for

pytestmark = pytest.mark.slow

MESSAGES = [{"role": "user", "content": "hello"}]
SLOW = {"mock": {"pace_s": 0.01, "tokens": 10_000}}


@pytest.fixture(scope="module")
def mocks():
    with engines("a", "b") as found:
        yield found


@pytest.fixture(scope="module")
def gateway(mocks, tmp_path_factory):
    with RunningGateway(tmp_path_factory.mktemp("clients"), settings(mocks)) as running:
        yield running


@pytest.fixture
def client(gateway):
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as found:
        yield found
    gateway.settle()


def test_openai_gets_whole_answers_and_streams(client):
    assert [model.id for model in client.models.list()] == ["auto", "a", "b"]
    whole = client.chat.completions.create(model="a", messages=MESSAGES, max_tokens=3)
    assert whole.choices[0].message.content == "a0 a1 a2"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 3
    chunks = list(client.chat.completions.create(model="b", messages=MESSAGES, stream=True))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks).split() == [f"b{i}" for i in range(16)]
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="b", messages=MESSAGES, stream=True, stream_options=options))
    assert chunks[-1].usage.completion_tokens == 16
    assert client.completions.create(model="auto", prompt="hello").usage.completion_tokens == 16


def test_openai_sees_where_a_request_went(client):
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=MESSAGES, extra_headers={"x-slo-ttft-ms": "500"}
    )
    assert raw.headers["x-edgeroute-expert"] in ("a", "b")
    assert raw.parse().choices


def test_openai_raises_the_error_that_it_has_for_it(client):
    with pytest.raises(openai.NotFoundError, match="model 'nobody'"):
        client.chat.completions.create(model="nobody", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        client.chat.completions.create(model="auto", messages=MESSAGES, max_tokens=-1)
    with pytest.raises(openai.InternalServerError, match="no expert answered"):
        client.chat.completions.create(model="auto", messages=MESSAGES, extra_body={"mock": {"status": 500}})
    stream = client.chat.completions.create(model="auto", messages=MESSAGES, stream=True, extra_body={"mock": {"fail": "mid"}})
    with pytest.raises(openai.APIError, match="in the middle of its answer"):
        list(stream)


def test_openai_may_leave_a_stream_and_may_lose_patience(client, gateway, mocks):
    with client.chat.completions.create(model="a", messages=MESSAGES, stream=True, extra_body=SLOW) as stream:
        next(iter(stream))
    gateway.settle()
    before = mocks[0].seen()["closed_early"]
    hurried = client.with_options(timeout=0.2)
    with pytest.raises(openai.APITimeoutError):
        hurried.chat.completions.create(model="a", messages=MESSAGES, extra_body={"mock": {"first_s": 60.0}})
    wait_for(lambda: mocks[0].seen()["closed_early"] == before + 1)


def test_openai_tries_again_when_it_is_told_to_wait(gateway, mocks):
    mocks[0].told(health=503)
    wait_for(lambda: not gateway.traffic.gateway.ready()[0])
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=3) as client:
        started = time.monotonic()
        with pytest.raises(openai.InternalServerError):
            client.with_options(max_retries=0).chat.completions.create(model="a", messages=MESSAGES)
        assert time.monotonic() - started < 1
        mocks[0].told()
        assert client.chat.completions.create(model="a", messages=MESSAGES).choices


def test_openai_asks_many_at_once_and_cancels_some(gateway):
    async def one(client, number):
        request = client.chat.completions.create(
            model="auto", messages=MESSAGES, stream=True, extra_body=SLOW if number % 2 else None
        )
        words = []
        async for chunk in await request:
            words.append(chunk.choices[0].delta.content)
        return words

    async def many():
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
            tasks = [asyncio.create_task(one(client, number)) for number in range(16)]
            whole = await asyncio.gather(*tasks[::2])
            for task in tasks[1::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return whole

    assert [len(words) for words in asyncio.run(many())] == [16] * 8
    gateway.settle()


def test_curl_shows_a_stream_as_it_comes(gateway):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"model": "a", "messages": MESSAGES, "stream": True})
    command = ["curl", "-sN", f"{gateway.url}/v1/chat/completions", "-H", "content-type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert done.stdout.count("data: ") == 17
    assert done.stdout.endswith("data: [DONE]\n\n")
