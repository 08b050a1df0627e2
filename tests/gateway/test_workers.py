"""Several processes behind one address: they know of each other, end and reload together, and one that is killed comes back."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

import edgeroute
from gateway.config import load_config
from gateway.decider import share_ledgers
from gateway.request import RouteRequest
from gateway.server.pages import page_of_all, write_page
from gateway.server.state import Gateway, WorkerPlace
from rllib_envs.decision_log.reader import read_log
from rllib_envs.decision_log.records import PATTERN
from rllib_envs.heuristic import present
from tests.gateway.running import PATIENCE_S, MockEngine, ask, chat, engines, open_stream, settings, wait_for

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def mocks():
    with engines("a", "b") as found:
        yield found


class Workers:
    """The command with two of them."""

    def __init__(self, folder: Path, data: dict[str, object]) -> None:
        self.path = folder / "gateway.yaml"
        self.path.write_text(json.dumps(data))
        command = [sys.executable, str(ROOT / "edgeroute.py"), "serve", "--config", str(self.path), "--workers", "2"]
        self.process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stderr.readline, "")))

    def __enter__(self) -> Workers:
        self._reader.start()
        wait_for(lambda: self.said("2 workers serve") or self.process.poll() is not None, 4 * PATIENCE_S)
        port = re.search(r"workers serve port (\d+)", self.text)[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # its workers see that and end
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()
        assert "Traceback" not in self.text

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def said(self, what: str) -> bool:
        return what in self.text

    def metric(self, name: str, **labels: str) -> dict[str, float]:
        """The sum of a metric's samples, by worker."""
        found: Counter[str] = Counter()
        for line in ask(self.url, "GET", "/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{key}="{text}"' in series for key, text in labels.items()):
                found[re.search(r'worker="(\d)"', series)[1]] += float(value)
        return dict(found)

    def open_streams(self, count: int, mocks: list[MockEngine], tokens: int = 60) -> list[socket.socket]:
        """Streams, one after the other has come to an engine."""
        clients: list[socket.socket] = []
        before = sum(engine.seen()["requests"] for engine in mocks)
        for i in range(count):
            clients.append(open_stream(self.url, chat(stream=True, mock={"pace_s": 0.05, "tokens": tokens})))
            wait_for(lambda i=i: sum(engine.seen()["requests"] for engine in mocks) == before + i + 1)
        return clients

    def pids(self) -> list[int]:
        """Of the workers: children that have the address open, by when they began."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def read_whole(client) -> bytes:
    body = b""
    with contextlib.suppress(ConnectionError):
        while not body.endswith(b"0\r\n\r\n") and (part := client.recv(65536)):
            body += part
    client.close()
    return body


@pytest.mark.slow
def test_two_workers_share_what_they_know_and_one_that_is_killed_comes_back(mocks, tmp_path):
    data = settings(mocks, policy="join-shortest-queue", log={"folder": "log"})
    with Workers(tmp_path, data) as workers:
        first = workers.pids()
        assert len(first) == 2
        clients = workers.open_streams(24, mocks)
        # A worker that knows its own requests alone would be out of balance: its connections come by chance.
        assert [engine.seen()["requests"] for engine in mocks] == [12, 12]
        held = {}
        wait_for(lambda: held.update(workers.metric("edgeroute_inflight")) or sum(held.values()) == 24)
        assert set(held) == {"0", "1"}
        assert min(held.values()) > 0

        os.kill(first[1], signal.SIGKILL)
        bodies = [read_whole(client) for client in clients]
        whole = [body.count(b'"content"') == 60 and b"[DONE]" in body for body in bodies]
        assert sum(whole) in held.values()
        assert 0 < sum(whole) < 24
        wait_for(lambda: workers.metric("edgeroute_worker_restarts_total") in ({"0": 0, "1": 1}, {"0": 1, "1": 0}))
        assert [pid for pid in workers.pids() if pid in first] == [first[0]]
        wait_for(lambda: sum(workers.metric("edgeroute_inflight").values()) == 0)

        workers.path.write_text(json.dumps(data | {"slo_s_per_token": 0.1}))
        workers.process.send_signal(signal.SIGHUP)
        wait_for(lambda: workers.metric("edgeroute_reloads_total", result="done") == {"0": 1, "1": 1})
        workers.path.write_text(json.dumps(data | {"experts": data["experts"][::-1]}))
        workers.process.send_signal(signal.SIGHUP)
        wait_for(lambda: workers.metric("edgeroute_reloads_total", result="refused") == {"0": 1, "1": 1})

        before = [engine.seen()["requests"] for engine in mocks]
        clients = workers.open_streams(12, mocks, tokens=40)
        # The dead worker's requests count no more.
        assert [engine.seen()["requests"] - n for engine, n in zip(mocks, before, strict=True)] == [6, 6]
        os.killpg(workers.process.pid, signal.SIGTERM)  # as a service manager does: it is one signal all the same
        assert all(b"[DONE]" in read_whole(client) for client in clients)
        assert workers.process.wait(PATIENCE_S) == 0
    assert len(list((tmp_path / "log").glob(PATTERN))) == 3  # each process has its own
    assert len(read_log(tmp_path / "log").requests) == 12  # of the cluster of the last configuration


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(mocks, tmp_path):
    with Workers(tmp_path, settings(mocks)) as workers:
        pids = workers.pids()
        ledgers = {line.split()[-1] for pid in pids for line in open_maps(pid) if line.rstrip().endswith("/ledgers")}
        (client,) = workers.open_streams(1, mocks, tokens=20)
        assert [Path(path).exists() for path in ledgers] == [True]
        workers.process.kill()
        assert b"[DONE]" in read_whole(client)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert not Path(*ledgers).parent.exists()


def open_maps(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/maps").read_text().splitlines()


@pytest.mark.parametrize(
    ("data", "arguments", "told"),
    [
        ({}, ("--workers", "0"), "--workers = 0: must be from 1 to 64"),
        ({}, ("--workers", "65"), "--workers = 65: must be from 1 to 64"),
        ({"workers": 0}, (), "gateway.yaml: workers: "),
        ({"log": {"folder": "x", "files": 2}}, ("--workers", "3"), "log.files = 2: must be >= the number of workers, 3"),
    ],
)
def test_numbers_of_workers_that_cannot_be_are_told_in_a_line_with_code_2(tmp_path, capsys, data, arguments, told):
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps(settings([_Named("a"), _Named("b")]) | data))
    assert edgeroute.main(["serve", "--config", str(path), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


class _Named:
    def __init__(self, name: str) -> None:
        self.name, self.url = name, "http://127.0.0.1:9"


@pytest.mark.slow
def test_a_taken_address_is_told_in_a_line_with_code_2(mocks, tmp_path, capsys):
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps(settings(mocks, listen={"port": mocks[0].port})))
    done = subprocess.run(
        [sys.executable, str(ROOT / "edgeroute.py"), "serve", "--config", str(path), "--workers", "2"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=4 * PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"edgeroute: error: listen: 127.0.0.1:{mocks[0].port}: Address already in use\n"


def test_what_is_under_way_counts_once_through_reloads(tmp_path):
    path, ledgers = tmp_path / "gateway.yaml", tmp_path / "ledgers"
    path.write_text(json.dumps(settings([_Named("a"), _Named("b")], workers=2)))
    loaded = load_config(path)
    share_ledgers(ledgers, loaded.scenario, 4, loaded.config.limits.concurrent)
    one, other = (Gateway(loaded, WorkerPlace(ledgers, number, 2)) for number in range(2))
    keys = [one.decider.decide(RouteRequest(prompt_tokens=10), 1.0, [True] * 2).id for _ in range(10)]
    there = [load.waiting + load.running for load in one.decider.ledger.loads()]
    for _ in range(3):
        new = Gateway(loaded, one.next_place())
        new.take_over(one)
        one = new
        key = other.decider.decide(RouteRequest(prompt_tokens=10, pinned=0), 2.0, [True] * 2).id
        assert present(other.decider.live.view)[0].tolist() == there
        other.decider.ledger.cancelled(key, 2.0)
    for key in keys:
        one.decider.ledger.finished(key, 3.0)
    other.decider.decide(RouteRequest(prompt_tokens=10), 4.0, [True] * 2)
    assert present(other.decider.live.view)[0].tolist() == [0, 0]


def test_the_command_line_decides_how_many(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text(json.dumps(settings([_Named("a"), _Named("b")]) | {"workers": 3}))
    assert load_config(path).config.workers == 3
    assert load_config(path, workers=1).config.workers == 1


def test_a_page_has_the_series_of_all_workers_by_family(tmp_path):
    places = [WorkerPlace(tmp_path / "ledgers", number, 3) for number in range(3)]
    text = '# HELP a A thing\n# TYPE a counter\na_total 1.0\n# HELP b B\n# TYPE b gauge\nb{expert="x y"} 2.0\n'
    for number in (0, 2):
        write_page(places[number], text.encode())
    assert page_of_all(places[0]).decode().splitlines() == [
        "# HELP a A thing", "# TYPE a counter", 'a_total{worker="0"} 1.0', 'a_total{worker="2"} 1.0',
        "# HELP b B", "# TYPE b gauge", 'b{worker="0",expert="x y"} 2.0', 'b{worker="2",expert="x y"} 2.0',
    ]  # fmt: skip
