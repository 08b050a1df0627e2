"""Worlds fitted to a log: what is drawn in them is like the log, and nothing comes from its later part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.request import Budgets
from rllib_envs.decision_log.reader import DecisionLog, read_log
from rllib_envs.decision_log.table import LoggedTable, cut, expected_scores, table_of
from rllib_envs.errors import InputError
from rllib_envs.scenario import Arrivals, Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.service import ServiceClass
from rllib_envs.workload.arrivals import arrival_times
from rllib_envs.workload.episode import Episode, draw_episode
from tests.gateway.logs import log_text, request
from tests.gateway.simulated_log import write_simulated_log
from tuning.logged_worlds.arrivals import dispersion, fit_arrivals
from tuning.logged_worlds.fit import FITTED, REPLAYED, LoggedWorlds, fit_worlds
from tuning.logged_worlds.snapshot import write_snapshot

EDGE3 = load_scenario("edge3")
CHAT, BATCH = ServiceClass(name="chat", share=3.0, tpot_s=0.06), ServiceClass(name="batch, long", share=1.0, e2e_s=90.0)
COUNT = 600


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> DecisionLog:
    """Two classes; every fifth request brings a bound of its own."""
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    scenario = with_workload(replace(EDGE3, classes=(CHAT, BATCH)), load="moderate", arrivals=Arrivals(kind="mmpp"))
    write_simulated_log(path, scenario, "least-work", COUNT, 0, bounds=lambda r: Budgets(ttft_s=2.0) if r % 5 == 0 else Budgets())
    return read_log(path)


@pytest.fixture(scope="module")
def worlds(log: DecisionLog, tmp_path_factory: pytest.TempPathFactory) -> LoggedWorlds:
    """Fitted to all of it."""
    return fit_worlds(table_of(log), log.scenario, tmp_path_factory.mktemp("world"), requests=200, seed=0)


def episodes(scenario: Scenario, count: int = 20) -> list[Episode]:
    assert scenario.capacity_rps is not None
    return [draw_episode(scenario, scenario.capacity_rps, seed) for seed in range(count)]


@pytest.mark.parametrize("name", ["fitted", "replayed"])
def test_drawn_requests_are_those_of_the_log(log: DecisionLog, worlds: LoggedWorlds, name: str) -> None:
    """Prompts and predictions are the log's; classes come as often, and each has the prompts of its own."""
    world: Scenario = getattr(worlds, name)
    table, drawn = table_of(log), episodes(world)
    names = [x.name for x in world.classes]
    assert names[:2] == ["chat", "batch, long"]
    shares = np.bincount(np.concatenate([x.user["service"] for x in drawn]), minlength=len(names)) / sum(
        x.prompt.size for x in drawn
    )
    wanted = np.array([x.share for x in world.classes]) / COUNT
    assert np.abs(shares - wanted).max() < 0.06
    assert wanted[2:].sum() == pytest.approx(0.2)
    for i, own in enumerate(world.classes):
        base = 0 if own.name.startswith("chat") else 1
        rows = [r for r, x in enumerate(table.requests) if x.service == names[base] and (x.bounds.ttft_s is not None) == (i > 1)]
        prompts = np.concatenate([x.prompt[x.user["service"] == i] for x in drawn])
        assert set(prompts.tolist()) <= set(table.prompt[rows].tolist())
    told = {tuple(row) for row in table.predicted_tokens.round(3).tolist()}
    assert {tuple(row) for row in drawn[0].predicted_tokens.astype(float).round(3).tolist()} <= told


def test_lengths_err_as_they_do_in_the_log(log: DecisionLog, worlds: LoggedWorlds) -> None:
    """Spread and median of the log errors of each expert, over the answers that were seen and those that were drawn."""
    table, drawn = table_of(log), episodes(worlds.fitted)
    errors = np.concatenate([np.log(x.output / x.predicted_tokens) for x in drawn])
    assert np.allclose(errors.std(axis=0), table.log_sd, rtol=0.15)
    assert np.allclose(np.median(errors, axis=0), table.log_median, atol=0.15)
    assert np.allclose(drawn[0].predicted_log_sd, table.log_sd, rtol=1e-4)


def test_loads_are_about_those_of_the_log_and_no_episode_is_the_log(log: DecisionLog, worlds: LoggedWorlds) -> None:
    """The mean rate of the log lies within; drawn episodes spread over all of the range; replayed gaps are the log's, scaled."""
    table = table_of(log)
    mean = (COUNT - 1) / table.arrival_s[-1]
    capacity, (low, high) = worlds.fitted.capacity_rps, worlds.fitted.workload.mixed_range
    assert capacity is not None
    assert low * capacity < mean < high * capacity
    rates = [(x.arrival_s.size - 1) / (x.arrival_s[-1] - x.arrival_s[0]) for x in episodes(worlds.replayed, 40)]
    assert low * capacity <= min(rates) < max(rates) <= high * capacity
    assert max(rates) / min(rates) > (high / low) ** 0.5
    (one,) = episodes(worlds.replayed, 1)
    gaps = np.diff(table.arrival_s.round(6))
    found = np.diff(one.arrival_s)
    alike = [
        i
        for i in range(gaps.size - found.size + 1)
        if np.allclose(gaps[i : i + found.size] * (found.sum() / gaps[i : i + found.size].sum()), found)
    ]
    assert len(alike) == 1
    first = alike[0]
    assert (one.prompt != table.prompt[first : first + one.prompt.size]).mean() > 0.5


def test_its_files_are_scenarios_that_every_command_reads(worlds: LoggedWorlds) -> None:
    """What is written is what is returned."""
    folder = Path(str(worlds.fitted.workload.catalogue.path)).parent
    assert load_scenario(folder / FITTED) == worlds.fitted
    assert load_scenario(folder / REPLAYED) == worlds.replayed
    assert worlds.fitted.experts == EDGE3.experts
    assert any("bursts" in line for line in worlds.said)


def test_the_later_part_changes_nothing(log: DecisionLog, tmp_path: Path) -> None:
    """Other answers, prompts and feedback there: the earlier part and what it says of errors stay, to the last bit."""
    changed = tuple(
        x if i < COUNT // 2 or x.outcome is None else replace(x, outcome=replace(x.outcome, output_tokens=3, prompt_tokens=9))
        for i, x in enumerate(log.requests)
    )
    other = replace(log, requests=changed, feedback={changed[-1].id: 0.0})
    parts = [cut(table_of(x), 0.5) for x in (log, other)]
    for earlier, later in parts:
        assert (len(earlier.requests), len(later.requests)) == (COUNT // 2, COUNT // 2)
        assert later.arrival_s[0] == 0
        assert np.array_equal(later.log_sd, earlier.log_sd)
    texts = []
    for i, (earlier, _) in enumerate(parts):
        fit_worlds(earlier, log.scenario, tmp_path / str(i), requests=100, seed=0)
        texts.append(
            [(path.name, path.read_text().replace(str(tmp_path / str(i)), "")) for path in sorted((tmp_path / str(i)).iterdir())]
        )
    assert texts[0] == texts[1]
    assert not np.array_equal(parts[0][1].tokens, parts[1][1].tokens)


def test_replicas_of_a_model_share_their_answers_unless_other_things_were_predicted(tmp_path: Path) -> None:
    """Experts 0 and 1 have one model and one prediction, expert 2 the model with another prediction."""
    twins = replace(EDGE3, experts=tuple(replace(x, model="twin") for x in EDGE3.experts))
    lines = [request(3, i, time=1.7e9 + i + 0.1 * (i % 3), predicted_tokens=[200.0, 200.0, 300.0]) for i in range(150)]
    for i, line in enumerate(lines):
        line["outcome"]["output_tokens"] = 100 + 7 * i % 150
    (tmp_path / "log.jsonl").write_bytes(log_text(twins, *lines))
    log = read_log(tmp_path / "log.jsonl")
    world = fit_worlds(table_of(log), log.scenario, tmp_path / "world", requests=100, seed=0).fitted
    assert world.experts[0].model == world.experts[1].model != world.experts[2].model
    (episode,) = episodes(world, 1)
    assert (episode.output[:, 0] == episode.output[:, 1]).all()
    assert (episode.output[:, 0] != episode.output[:, 2]).any()


def test_feedback_says_what_predictions_are_worth() -> None:
    """Of one expert predictions say nothing and are too high, of another they are right, of the third nobody judged."""
    rng, count = np.random.default_rng(0), 2000
    predicted = rng.uniform(0.3, 0.9, (count, 3))
    expert = np.arange(count) % 2
    truth = np.where(expert == 0, 0.4, predicted[:, 1])
    score = predicted.copy()
    score[np.arange(count), expert] = rng.random(count) < truth
    table = LoggedTable(
        requests=(), arrival_s=np.zeros(count), prompt=np.ones(count, np.int32), expert=expert, tokens=np.ones(count, np.int32),
        predicted_score=predicted, predicted_tokens=predicted, score=score, judged=np.ones(count, np.bool_),
        possible=np.ones((count, 3), np.bool_), service=np.zeros(count, np.int32), tenant=np.zeros(count, np.int32),
        log_median=np.zeros(3), log_sd=np.ones(3),
    )  # fmt: skip
    found = expected_scores(table, predicted)
    assert np.abs(found[:, 0] - 0.4).max() < 0.1
    assert np.abs(found[:, 1] - predicted[:, 1]).max() < 0.1
    assert np.array_equal(found[:, 2], predicted[:, 2])
    assert np.array_equal(expected_scores(replace(table, judged=np.zeros(count, np.bool_)), predicted), predicted)


@pytest.mark.parametrize(
    ("arrivals", "kind"),
    [
        (Arrivals(kind="gamma", cv=0.4), "gamma"),
        (Arrivals(kind="poisson"), "gamma"),
        (Arrivals(kind="mmpp", burst_ratio=6.0, burst_share=0.25, cycle_s=20.0), "mmpp"),
    ],
)
def test_a_fitted_process_spreads_its_counts_as_the_log_does(arrivals: Arrivals, kind: str) -> None:
    """The dispersion in short and long windows, against that of the true process: within two fifths."""
    found = fit_arrivals(arrival_times(arrivals, 5.0, 5000, np.random.default_rng(3)))
    assert found.kind == kind
    lengths_s = np.array([2.0, 10.0, 40.0])
    true, fitted = (dispersion(arrival_times(x, 5.0, 200_000, np.random.default_rng(4)), lengths_s) for x in (arrivals, found))
    assert np.abs(np.log(fitted / true)).max() < 0.35


def test_a_log_that_is_too_short_or_has_no_time_is_refused(log: DecisionLog, tmp_path: Path) -> None:
    """In one line."""
    with pytest.raises(InputError, match="the log has 60 requests to fit worlds to: at least 100"):
        fit_worlds(cut(table_of(log), 0.1)[0], log.scenario, tmp_path, requests=100, seed=0)
    (tmp_path / "log.jsonl").write_bytes(log_text(EDGE3, *(request(3, i, time=1.7e9) for i in range(150))))
    at_once = table_of(read_log(tmp_path / "log.jsonl"))
    with pytest.raises(InputError, match="all come at once"):
        fit_worlds(at_once, EDGE3, tmp_path, requests=100, seed=0)


def test_a_snapshot_says_what_the_log_says(log: DecisionLog, tmp_path: Path) -> None:
    """All that is fitted to and compared on, without what is written there for readers."""
    judged = replace(log, feedback={log.requests[7].id: 0.25})
    write_snapshot(judged, tmp_path / "log")
    again = read_log(tmp_path / "log")
    assert again.scenario == judged.scenario
    assert again.feedback == judged.feedback
    one, other = table_of(judged), table_of(again)
    for name in ("arrival_s", "prompt", "expert", "tokens", "predicted_score", "predicted_tokens", "score", "judged", "possible"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert [x.bounds for x in other.requests] == [x.bounds for x in one.requests]
    assert all(x.text is None for x in again.requests)
