"""Service classes in a report: a table for each, and what confinement costs."""

import numpy as np
import pytest

import edgeroute
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.sim.state import FINISHED
from tuning.metrics.groups import GROUP_METRICS, groups_of, latency_over_bound
from tuning.output.tables import metric_title
from tuning.reports.episode_replay import OUTCOMES, Question, replay_episode
from tuning.reports.explanations import notable_decisions
from tuning.reports.replay_section import replay_sections
from tuning.reports.run_folders import read_run
from tuning.reports.service_tables import confinement_tables, group_tables
from tuning.specs.routers import SHIPPED_ROUTER

pytestmark = pytest.mark.slow

SITES = load_scenario("edge6-sites")
TITLES = [group.title for group in groups_of(SITES)]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    routers = ["join-shortest-queue", "round-robin"]
    options = ["--scenario", "edge6-sites", "--load", "moderate", "--faults", "none", "unconfined", "--routers", *routers]
    assert edgeroute.main(["evaluate", "--smoke", "--jobs", "1", *options, "--out", str(out)]) == 0
    return read_run(out)


def test_each_class_and_tenant_has_a_table(evaluation):
    tables = group_tables(evaluation.workloads[0])
    assert [table.caption for table in tables] == [f"poisson at moderate: {title}" for title in TITLES]
    for table in tables:
        assert {"cost per 1,000 requests", metric_title("active_j_per_request")} <= set(table.header)
        assert len(table.rows) == 2
        assert set(table.header[1:]) <= {metric_title(name) for name in GROUP_METRICS}


def test_what_confinement_costs_is_the_difference_to_the_same_requests_without_it(evaluation):
    (table,) = confinement_tables(evaluation)
    confined, free = evaluation.workloads
    assert free.fault == "unconfined"
    assert table.header[4:-1] == TITLES
    for row, router in zip(table.rows, confined.routers, strict=True):
        other = free.router(router.name)
        qos = [(router.qos, other.qos), *((router.groups[t]["qos"], other.groups[t]["qos"]) for t in TITLES)]
        for cell, (own, others) in zip(row[3:-1], qos, strict=True):
            assert float(cell.split(" ")[0]) == pytest.approx(np.mean(own) - np.mean(others), abs=1e-4)


@pytest.fixture(scope="module")
def replay():
    return replay_episode(
        Question(bundle=SHIPPED_ROUTER, router="the router", scenario=SITES, load="moderate", minute=0, seed=1_000_000)
    )


def test_a_replay_knows_the_bounds_of_each_class(replay, tmp_path):
    records = replay.records
    ratio = latency_over_bound(SITES, records)
    finished = records.status == FINISHED
    assert np.isnan(ratio[~finished]).all()
    clear = finished & (np.abs(ratio - 1) > 1e-9)
    np.testing.assert_array_equal(ratio[clear] > 1, records.late[clear])
    assert {decision.service for decision in notable_decisions(replay)} <= set(replay.classes)
    traffic = replay_sections(replay, tmp_path)[0].blocks
    by_class = next(block for block in traffic if block.kind == "table" and block.header[0] == "class")
    assert [row[0] for row in by_class.rows] == replay.classes
    assert sum(int(row[1].replace(",", "")) for row in by_class.rows) == records.qos.size
    for row in by_class.rows:
        assert sum(float(cell) for cell in row[2 : 2 + len(OUTCOMES)]) == pytest.approx(100, abs=0.05)
    assert (tmp_path / "timeline-classes.png").is_file()
