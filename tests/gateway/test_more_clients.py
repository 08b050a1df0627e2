"""Clients that are too heavy for everybody's environment. EDGEROUTE_CLIENTS names a folder that has them:

python -m venv CLIENTS && CLIENTS/bin/pip install langchain-openai litellm llm && npm install --prefix CLIENTS openai
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.gateway.running import RunningGateway, engines, settings

CLIENTS = os.environ.get("EDGEROUTE_CLIENTS")

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.nightly,
    pytest.mark.skipif(CLIENTS is None, reason="EDGEROUTE_CLIENTS names no folder with the clients"),
]

WORDS = " ".join(f"a{i}" for i in range(16))

LANGCHAIN = """
import sys
from langchain_openai import ChatOpenAI
chat = ChatOpenAI(base_url=sys.argv[1], api_key="none", model="a")
assert chat.invoke("hello").content.split() == sys.argv[2].split()
assert "".join(part.content for part in chat.stream("hello")).split() == sys.argv[2].split()
assert len(chat.batch(["hello"] * 4)) == 4
"""

LITELLM = """
import sys, litellm
about = dict(model="openai/a", api_base=sys.argv[1], api_key="none", messages=[{"role": "user", "content": "hello"}])
assert litellm.completion(**about).choices[0].message.content.split() == sys.argv[2].split()
parts = [part.choices[0].delta.content or "" for part in litellm.completion(stream=True, **about)]
assert "".join(parts).split() == sys.argv[2].split()
try:
    litellm.completion(**about | {"model": "openai/nobody"})
except litellm.NotFoundError:
    pass
else:
    raise SystemExit("no error")
"""

NODE = """
import OpenAI from "openai";
import assert from "node:assert";
const [url, words] = process.argv.slice(2);
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });
const about = { model: "a", messages: [{ role: "user", content: "hello" }] };
const whole = await client.chat.completions.create(about);
assert.equal(whole.choices[0].message.content, words);
let text = "";
for await (const part of await client.chat.completions.create({ ...about, stream: true })) text += part.choices[0].delta.content;
assert.equal(text.trim(), words);
await assert.rejects(client.chat.completions.create({ ...about, model: "nobody" }), OpenAI.NotFoundError);
const broken = await client.chat.completions.create({ ...about, stream: true, mock: { fail: "mid" } });
await assert.rejects(async () => { for await (const part of broken); }, /in the middle of its answer/);
const stopped = await client.chat.completions.create({ ...about, stream: true, mock: { tokens: 10000, pace_s: 0.01 } });
for await (const part of stopped) break;
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with engines("a", "b") as mocks, RunningGateway(tmp_path_factory.mktemp("clients"), settings(mocks)) as running:
        yield running


def run(command, folder, **more):
    """Without our packages, whose names others use too."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("program", [LANGCHAIN, LITELLM], ids=["langchain-openai", "LiteLLM"])
def test_a_python_client_gets_answers_streams_and_errors(gateway, tmp_path, program):
    (tmp_path / "client.py").write_text(program)
    run([f"{CLIENTS}/bin/python", "client.py", f"{gateway.url}/v1", WORDS], tmp_path)
    gateway.settle()


def test_openai_for_node_gets_answers_streams_and_errors(gateway, tmp_path):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    (tmp_path / "client.mjs").write_text(NODE)
    (tmp_path / "node_modules").symlink_to(Path(CLIENTS or "").resolve() / "node_modules")
    run(["node", "client.mjs", f"{gateway.url}/v1", WORDS], tmp_path)
    gateway.settle()


def test_llm_answers_in_a_terminal(gateway, tmp_path):
    entry = f"- model_id: gateway\n  model_name: a\n  api_base: {gateway.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry)
    command = [f"{CLIENTS}/bin/llm", "-m", "gateway", "--key", "none", "hello"]
    assert run(command, tmp_path, LLM_USER_PATH=str(tmp_path)).split() == WORDS.split()
    gateway.settle()
