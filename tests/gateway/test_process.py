"""The gateway as a process: how it starts, what signals do, and an expert that is killed in the middle of its streams."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import edgeroute
from tests.gateway.running import (
    PATIENCE_S,
    MockEngine,
    RunningGateway,
    ask,
    chat,
    engines,
    open_stream,
    settings,
    wait_for,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CHAT = "/v1/chat/completions"


@pytest.fixture
def mocks():
    with engines("a", "b") as found:
        yield found


def command(*arguments):
    return [sys.executable, str(ROOT / "edgeroute.py"), "serve", *arguments]


def test_a_process_serves_reloads_and_drains(mocks, tmp_path):
    path = tmp_path / "gateway.yaml"
    data = settings(mocks)
    path.write_text(json.dumps(data))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command("--config", str(path)), env=environment, stderr=subprocess.PIPE, text=True) as process:
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")))
        reader.start()
        try:
            wait_for(lambda: "listening at" in "".join(lines), 4 * PATIENCE_S)  # it may have to compile
            url = re.search(r"listening at (\S+)", "".join(lines))[1]
            wait_for(lambda: reachable(url))
            assert url.startswith("http://127.0.0.1:")
            path.write_text(json.dumps(data | {"experts": data["experts"][::-1]}))
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: [x["id"] for x in ask(url, "GET", "/v1/models").json["data"]] == ["auto", "b", "a"])
            with open_stream(url, chat(stream=True, mock={"pace_s": 0.02, "tokens": 30})) as client:
                body = client.recv(1)
                process.send_signal(signal.SIGTERM)
                while part := client.recv(65536):
                    body += part
            assert body.count(b'"content"') == 30
            assert b"[DONE]" in body
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
            reader.join()
    assert "Traceback" not in "".join(lines)


def reachable(url):
    with contextlib.suppress(ConnectionRefusedError):
        return ask(url, "GET", "/health").status == 200
    return False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("policy: x", "gateway.yaml: experts: Field required"),
        ("policy: [", "gateway.yaml:1:10: not YAML"),
        (None, "gateway.yaml: cannot be read: No such file or directory"),
    ],
)
def test_what_is_wrong_is_told_in_a_line_with_code_2(tmp_path, capsys, text, told):
    path = tmp_path / "gateway.yaml"
    if text is not None:
        path.write_text(text)
    assert edgeroute.main(["serve", "--config", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("edgeroute: error: ")
    assert told in line


def test_without_the_extra_the_command_says_what_is_missing(tmp_path):
    (tmp_path / "uvloop.py").write_text("raise ModuleNotFoundError('no', name='uvloop')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command("--config", "x"), env=environment, capture_output=True, text=True, timeout=4 * PATIENCE_S)
    assert done.returncode == 2
    assert done.stderr == "edgeroute: error: serve: uvloop is missing: pip install 'edgeroute[serve]'\n"


def test_an_expert_that_is_killed_ends_its_own_streams_and_no_others(mocks, tmp_path):
    data = settings(mocks, breaker={"period_s": 1.0, "probe_s": 0.2})
    slow = {"pace_s": 0.02, "tokens": 60}
    with RunningGateway(tmp_path, data) as gateway:
        answers: dict[str, list[bytes]] = {"a": [], "b": []}

        def read(name):
            with open_stream(gateway.url, chat(model=name, stream=True, mock=slow)) as client:
                body = b""
                while not body.endswith(b"0\r\n\r\n"):
                    body += client.recv(65536)
            answers[name].append(body)

        readers = [threading.Thread(target=read, args=(name,)) for name in "abababab"]
        for reader in readers:
            reader.start()
        wait_for(
            lambda: (
                len(gateway.traffic.watches) == len(readers) and gateway.traffic.gateway.decider.ledger.loads()[0].running == 4
            )
        )
        mocks[0].kill()
        for reader in readers:
            reader.join(PATIENCE_S)
        assert all(b'"code": "expert_failed"' in body and b"[DONE]" not in body for body in answers["a"])
        assert all(body.count(b'"content"') == 60 and b"[DONE]" in body for body in answers["b"])
        assert [len(found) for found in answers.values()] == [4, 4]
        gateway.settle()
        for _ in range(10):
            assert ask(gateway.url, "POST", CHAT, chat()).headers["x-edgeroute-expert"] == "b"
        assert ask(gateway.url, "POST", CHAT, chat(model="a")).status == 503
        mocks[0] = MockEngine("a", mocks[0].port)
        wait_for(lambda: gateway.traffic.gateway.ready()[0])
        assert ask(gateway.url, "POST", CHAT, chat(model="a")).status == 200
        wait_for(lambda: ask(gateway.url, "POST", CHAT, chat()).headers["x-edgeroute-expert"] == "a")
