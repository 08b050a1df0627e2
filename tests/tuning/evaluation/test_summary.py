"""Means over workloads, worst workloads, and differences relative to the best plain heuristic."""

import dataclasses

import numpy as np
import pytest

from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.comparison import compare
from tuning.evaluation.matrix import CellResult
from tuning.evaluation.summary import summaries, summarise, summary_json, summary_markdown
from tuning.metrics.episode import EXPENSES, METRICS
from tuning.metrics.statistics import mean_interval, relative_difference
from tuning.output.tables import metric_title
from tuning.specs.routers import parse_router
from tuning.specs.workloads import TraceOptions, make_workloads

ROUTERS = [parse_router(name) for name in ("least-work", "quality-greedy", "impact-greedy", "impact-greedy-true")]
EDGE6 = dataclasses.replace(load_scenario("edge6"), capacity_rps=24.8)
WORKLOADS = make_workloads(EDGE6, ["moderate", "heavy"], [], TraceOptions(), None, ["none", "engine-slow"])
SEEDS = 5


def qos_of(workload, router):
    """(SEEDS,) values; quality-greedy beats least-work on the first workload alone, impact-greedy is worst on the third."""
    rng = np.random.default_rng([workload, router])
    level = [0.5, 0.6 if workload == 0 else 0.4, 0.7 - 0.15 * (workload == 2), 0.9][router]
    return (level + 0.01 * rng.normal(size=SEEDS)).tolist()


def comparison(i, baseline=None):
    results = [
        CellResult(
            key=str(j),
            router=router.text,
            seeds=list(range(SEEDS)),
            metrics={name: [0.5] * SEEDS for name in METRICS} | {"qos": qos_of(i, j), "qos_per_gpu_s": [float(j)] * SEEDS},
            shares=[[1 / 7] * 7] * SEEDS,
            latency_quantiles_s=[],
            ttft_quantiles_s=[],
            groups={},
        )
        for j, router in enumerate(ROUTERS)
    ]
    return compare(WORKLOADS[i], ROUTERS, results, baseline)


COMPARISONS = [comparison(i) for i in range(len(WORKLOADS))]


def rows(summary):
    return {row.router.name: row for row in summary.rows}


def test_workloads_are_averaged_seed_by_seed_before_intervals_are_taken():
    summary = summarise("all", COMPARISONS, "least-work")
    of = {j: np.array([qos_of(i, j) for i in range(len(WORKLOADS))]) for j in range(4)}
    row = rows(summary)["impact-greedy"]
    assert row.qos == mean_interval(of[2].mean(axis=0).tolist())
    assert row.difference.mean == pytest.approx((of[2] - of[0]).mean())
    assert row.difference.half_width == pytest.approx(mean_interval((of[2] - of[0]).mean(axis=0).tolist()).half_width)
    assert row.worst == 2
    assert row.differences[2].mean == pytest.approx((of[2] - of[0])[2].mean())
    assert row.qos_per_gpu_s.mean == 2
    assert rows(summary)["least-work"].difference.mean == 0


def test_unasked_the_baseline_is_one_fair_heuristic_for_all_workloads():
    summary = summarise("all", COMPARISONS, None)
    assert (summary.baseline, summary.chosen) == ("impact-greedy", True)
    assert [row.router.name for row in summary.rows] == ["impact-greedy-true", "impact-greedy", "least-work", "quality-greedy"]


def test_the_best_plain_heuristic_is_chosen_for_each_workload():
    assert [c.plain for c in COMPARISONS] == ["quality-greedy", "least-work", "least-work", "least-work"]
    best = np.mean([qos_of(0, 1), *(qos_of(i, 0) for i in (1, 2, 3))], axis=0)
    own = np.mean([qos_of(i, 2) for i in range(4)], axis=0)
    found = rows(summarise("all", COMPARISONS, None))["impact-greedy"].over_plain
    assert found == relative_difference(own.tolist(), best.tolist())
    assert COMPARISONS[0].row("impact-greedy").over_plain == relative_difference(qos_of(0, 2), qos_of(0, 1))


def test_workloads_with_faults_are_summed_up_by_themselves_too():
    made = summaries(COMPARISONS, None)
    assert [[c.workload.name for c in group] for _, group in made] == [
        [w.name for w in WORKLOADS],
        ["poisson at moderate with engine-slow", "poisson at heavy with engine-slow"],
    ]
    assert len(summaries([COMPARISONS[1], COMPARISONS[3]], None)) == 1
    assert len(summaries(COMPARISONS[:2], None)) == 1  # one alone with a fault is no group
    assert not summaries(COMPARISONS[:1], None)


def test_tables_name_the_baseline_the_worst_workload_and_the_gain():
    summary = summarise("all 4 workloads", COMPARISONS, "least-work")
    text = summary_markdown(summary)
    assert "to `least-work`, as asked for" in text
    (line,) = [line for line in text.splitlines() if line.startswith("| impact-greedy ")]
    assert "poisson at heavy " in line
    assert f"{100 * rows(summary)['impact-greedy'].over_plain.mean:+.1f} ± " in line
    data = summary_json(summary)
    assert data["baseline"] == "least-work"
    assert {row["router"]: row["worst"]["workload"] for row in data["routers"]}["impact-greedy"] == "poisson at heavy"


def test_expenses_are_summed_up_where_the_scenario_has_them():
    def with_figures(comparison, **figures):
        scenario = comparison.workload.scenario
        experts = tuple(dataclasses.replace(expert, **figures) for expert in scenario.experts)
        scenario = dataclasses.replace(scenario, experts=experts)
        return dataclasses.replace(comparison, workload=dataclasses.replace(comparison.workload, scenario=scenario))

    for figures, names in (
        ({}, set()),
        ({"active_w": 60.0}, {"energy_j_per_request", "qos_per_kj"}),
        ({"output_price": 2.0}, {"cost_per_1000"}),
    ):
        summary = summarise("all", [with_figures(c, **figures) for c in COMPARISONS], None)
        text, data = summary_markdown(summary), summary_json(summary)
        for name in EXPENSES:
            assert (metric_title(name) in text) == (name in names)
            assert all((name in row) == (name in names) for row in data["routers"])
        for row in summary.rows:
            assert row.expenses == {name: mean_interval([0.5] * SEEDS) for name in names}
