"""Replay: a log says again what was simulated, and an off-policy estimate covers the truth."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import edgeroute
from gateway.proof.again import decide_again
from gateway.proof.latency import accuracy_of, pairs_of
from gateway.proof.off_policy import doubly_robust
from gateway.request import Budgets
from gateway.server.exchange import Exchange
from rllib_envs.decision_log.promises import MOST_CLASSES, with_promises
from rllib_envs.decision_log.reader import read_log
from rllib_envs.decision_log.table import LoggedTable, lengths_of, table_of
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.service import ServiceClass
from tests.gateway.logs import log_text, request
from tests.gateway.simulated_log import write_simulated_log
from tuning.logged_worlds.compare import LOGGED, compare_on_log, windows_of
from tuning.specs.routers import parse_routers

EDGE6 = load_scenario("edge6")
COUNT = 240


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Exchange]]:
    """A log of requests that were sent at random, with a shadow."""
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    return path, write_simulated_log(path, EDGE6, "random", COUNT, 0, shadow="impact-greedy")


@pytest.fixture(scope="module")
def table(logged: tuple[Path, list[Exchange]]) -> LoggedTable:
    """The same as arrays."""
    return table_of(read_log(logged[0]))


def test_a_log_in_the_simulator_gets_what_it_got(logged: tuple[Path, list[Exchange]], table: LoggedTable) -> None:
    """Sent where the log says, from the same beginning, the same requests are late: engines and lengths are the true ones."""
    (found,) = compare_on_log(table, EDGE6, [], [slice(0, COUNT)], seed=3)
    late = np.mean([exchange.violates for exchange in logged[1]])
    assert found.name == LOGGED
    assert found.violations == pytest.approx(late, abs=1e-12)
    assert (found.agreement, found.impossible) == (1.0, 0.0)


def test_policies_meet_the_same_requests(table: LoggedTable) -> None:
    """Paired: what was logged is the base of every difference, and a policy that is no better than random is not shown to be."""
    windows = windows_of(COUNT, 4)
    assert [x.stop - x.start for x in windows] == [60] * 4
    found = {x.name: x for x in compare_on_log(table, EDGE6, parse_routers(["impact-greedy", "random"]), windows, seed=0)}
    assert found["impact-greedy"].mean.mean > found[LOGGED].mean.mean > 0
    for x in found.values():
        assert x.difference.mean == pytest.approx(np.mean(np.subtract(x.qos, found[LOGGED].qos)))


def test_bounds_that_requests_bring_count_in_the_simulator(tmp_path: Path) -> None:
    """Some bring a loose bound on the first token, others one that nobody meets: the simulator says late where the log does.

    Two experts with classes: the bounds that a request does not bring stay those of its class.
    """
    classes = (ServiceClass(name="chat", share=2.0, tpot_s=0.06), ServiceClass(name="batch", e2e_s=600.0, weight=0.5))
    scenario = replace(EDGE6, classes=classes)
    brought = (Budgets(), Budgets(ttft_s=1e-4), Budgets(ttft_s=30.0), Budgets(e2e_s=4.0))
    path = tmp_path / "log.jsonl"
    exchanges = write_simulated_log(path, scenario, "random", 120, 1, bounds=lambda r: brought[r % 4])
    table = table_of(read_log(path))
    promised = with_promises(scenario, table.requests, table.service)
    assert promised.rounded == 0
    assert promised.scenario.classes[:2] == classes
    for i, exchange in enumerate(exchanges):
        entry, own = promised.scenario.classes[promised.service[i]], classes[exchange.request.service]
        assert (entry.weight, entry.priority, entry.confined_to) == (own.weight, own.priority, own.confined_to)
        assert {name: getattr(entry, name) for name in ("per_token_s", "ttft_s", "tpot_s", "e2e_s")} == asdict(exchange.bounds)
    (found,) = compare_on_log(table, scenario, [], [slice(0, 120)], seed=0)
    late = np.mean([exchange.violates for exchange in exchanges])
    assert 0.2 < late < 0.9
    assert found.violations == pytest.approx(late, abs=1e-12)


def test_of_too_many_promises_the_nearest_is_taken(tmp_path: Path) -> None:
    """A bound of its own for each of 300 requests: a scenario holds a hundred, and no request's is far from its own."""
    path = tmp_path / "log.jsonl"
    bounds = np.geomspace(0.1, 10, 300).tolist()
    order = np.random.default_rng(0).permutation(300)
    path.write_bytes(log_text(EDGE6, *(request(6, i, bounds={"ttft_s": bounds[order[i]]}) for i in range(300))))
    table = table_of(read_log(path))
    promised = with_promises(EDGE6, table.requests, table.service)
    assert len(promised.scenario.classes) == MOST_CLASSES
    assert promised.rounded == 300 - (MOST_CLASSES - 1)
    got = np.array([promised.scenario.classes[c].ttft_s for c in promised.service], np.float64)
    assert np.abs(np.log(got / np.array(bounds)[order])).max() < 0.3
    assert with_promises(EDGE6, table.requests[:0], table.service[:0]).scenario is EDGE6


def test_replicas_of_a_model_give_one_answer(tmp_path: Path) -> None:
    """The length that was seen is that of every expert with the model; that of another model is not known."""
    experts = tuple(replace(x, model="twin") if i in (1, 4) else x for i, x in enumerate(EDGE6.experts))
    scenario = replace(EDGE6, experts=experts)
    path = tmp_path / "log.jsonl"
    path.write_bytes(log_text(scenario, *(request(6, i, expert=i % 6) for i in range(60))))
    log = read_log(path)
    lengths = lengths_of(table_of(log), scenario, np.random.default_rng(0))
    assert (lengths[:, 1] == lengths[:, 4]).all()
    for i in range(60):
        assert lengths[i, i % 6] == 200
    assert (lengths[0::6, 1] != 200).any()


def test_a_request_goes_only_where_it_could_go(tmp_path: Path) -> None:
    """A choice that was not possible then becomes the one of the log, and is counted."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(log_text(EDGE6, *(request(6, i, candidates=[i % 6], time=1.7e9 + i) for i in range(60))))
    log = read_log(path)
    _, found = compare_on_log(table_of(log), EDGE6, parse_routers(["random"]), [slice(0, 60)], seed=0)
    assert found.agreement == 1.0
    assert 0.5 < found.impossible < 1.0


def test_asked_again_a_policy_says_what_it_said(logged: tuple[Path, list[Exchange]], table: LoggedTable) -> None:
    """The shadow's choices, from the log alone: but for the times of single tokens it is in the same place."""
    shadows = [x.decision.shadow.expert for x in logged[1] if x.decision.shadow is not None]
    again = decide_again(table, EDGE6, "impact-greedy", seed=0)
    assert np.mean(again == np.array(shadows)) > 0.9


def test_predictions_are_compared_with_what_came(logged: tuple[Path, list[Exchange]]) -> None:
    """Engines that do as their profiles say: the median is near 1, and every stream is counted."""
    log = read_log(logged[0])
    found = {kind: {name: accuracy_of(x) for name, x in pairs_of(log, kind).items()} for kind in ("ttft", "tpot")}
    assert sum(x.count for x in found["ttft"].values()) == COUNT
    assert all(0.7 < x.ratio < 1.4 for x in found["tpot"].values())
    exact = accuracy_of(np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]))
    assert (exact.ratio, exact.error, exact.within) == (pytest.approx(2), pytest.approx(1), 0)


def test_doubly_robust_is_unbiased_and_covers_the_truth() -> None:
    """Actions drawn with known odds, rewards of a known law, and a model that is wrong: 300 logs of 600 requests.

    The mean over logs is within four standard errors of the truth; at least nine of ten intervals hold it. What was
    logged is far from it, and so is the model alone.
    """
    rng = np.random.default_rng(0)
    errors, held, logged_errors = [], 0, []
    for _ in range(300):
        x = rng.random(600)
        odds = np.stack([0.6 - 0.4 * x, 0.2 + 0.1 * x, 0.2 + 0.3 * x], axis=1)
        taken = (rng.random((600, 1)) > odds.cumsum(axis=1)[:, :2]).sum(axis=1)
        chance = np.stack([0.3 + 0.2 * x, 0.8 - 0.5 * x, 0.2 + 0.7 * x], axis=1)
        other = np.where(x < 0.5, 1, 2)
        rows = np.arange(600)
        reward = (rng.random(600) < chance[rows, taken]).astype(float)
        model = np.stack([np.full(600, 0.9), 0.5 * x, 0.4 + 0 * x], axis=1)
        found = doubly_robust(reward, odds[rows, taken], other == taken, model[rows, taken], model[rows, other])
        assert found is not None
        truth = chance[rows, other].mean()
        errors.append(found.estimate.mean - truth)
        logged_errors.append(found.logged.mean - truth)
        held += found.estimate.low <= truth <= found.estimate.high
    assert abs(np.mean(errors)) < 4 * np.std(errors) / np.sqrt(300)
    assert held >= 270
    assert np.mean(logged_errors) < -0.1


def test_a_log_of_certain_actions_tells_nothing_of_others() -> None:
    """No action was drawn at random, so nothing is said."""
    values = np.ones(500)
    assert doubly_robust(values, values, values > 0, values, values) is None


def test_the_command_shows_it_all(
    logged: tuple[Path, list[Exchange]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report, its numbers and its picture."""
    out = tmp_path / "out"
    assert edgeroute.main(["replay", str(logged[0]), "--routers", "least-work", "--windows", "4", "--out", str(out)]) == 0
    report = (out / "replay.md").read_text()
    assert capsys.readouterr().out.startswith(report[:200])
    data = json.loads((out / "replay.json").read_text())
    assert [x["name"] for x in data["simulated"]] == [LOGGED, "least-work"]
    assert data["again"][0]["estimate"]["requests"] == COUNT
    assert (out / "latency.png").stat().st_size > 10_000
    assert "The shadow, impact-greedy, agreed in" in report


@pytest.mark.slow
def test_a_report_shows_a_replay(logged: tuple[Path, list[Exchange]], tmp_path: Path) -> None:
    """The same figures as in replay.md: what would have been, agreement, calibration, and the picture."""
    replayed, out = tmp_path / "replay", tmp_path / "report"
    routers = ["--routers", "least-work", "impact-greedy", "--windows", "4"]
    assert edgeroute.main(["replay", str(logged[0]), *routers, "--out", str(replayed)]) == 0
    assert edgeroute.main(["report", str(replayed), "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    data = json.loads((replayed / "replay.json").read_text())
    section = text[text.index("Log: ") :]
    for row in data["simulated"]:
        lines = [x for x in section.splitlines() if x.startswith(f"| {row['name']}")]
        assert any(f"{row['mean']['mean']:.4f}" in x and f"{100 * row['agreement']:.1f}" in x for x in lines)
    for row in data["again"]:
        assert f"{row['estimate']['effective']:,.0f}" in section
    for name, row in data["latency"]["ttft"].items():
        assert any(name in x and "TTFT" in x and f"{row['ratio']:.2f}" in x for x in section.splitlines())
    assert "The shadow, impact-greedy, agreed in" in section
    assert (out / "log-1-latency.png").read_bytes() == (replayed / "latency.png").read_bytes()
    (replayed / "replay.json").write_text("{}")
    assert edgeroute.main(["report", str(replayed), "--out", str(out)]) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--windows", "1"], "windows = 1"),
        (["--routers", "nonsense"], "router 'nonsense': unknown"),
        (["--routers", "impact-greedy-true"], "no gateway can follow it"),
    ],
)
def test_a_wrong_option_is_named(
    logged: tuple[Path, list[Exchange]], capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """In one line, before anything long."""
    assert edgeroute.main(["replay", str(logged[0]), *arguments]) == 2
    assert said in capsys.readouterr().err
