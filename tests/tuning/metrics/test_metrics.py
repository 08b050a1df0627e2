"""The figures of an episode agree with the simulator's own totals and with the table of requests."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from rllib_envs.scenario import Catalogue, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.sim.state import FINISHED
from tuning.evaluation.matrix import Cell, run_cell, start_simulation
from tuning.metrics.episode import ACTIVE_J, EXPENSES, METRICS, episode_metrics, latency_quantiles, routing_shares, ttft_quantiles
from tuning.simulate import Options, request_table, run
from tuning.specs.routers import parse_router

SCENARIO = with_workload(load_scenario("edge6"), requests=400, load=40.0)  # an overload: everything that can happen does
SEEDS = [1, 2, 3]


@pytest.fixture(scope="module", params=["join-shortest-queue", "quality-greedy", "impact-greedy:price=0.1"])
def simulation(request):
    return start_simulation(parse_router(request.param), SCENARIO, SEEDS)


@pytest.mark.parametrize("cluster", range(len(SEEDS)))
def test_figures_agree_with_the_experts_totals(simulation, cluster):
    metrics, experts = episode_metrics(simulation, cluster), simulation.state.experts[cluster]
    requests = simulation.records(cluster).qos.size
    assert metrics["qos"] * requests == pytest.approx(experts["qos"].sum(), rel=1e-12)
    assert metrics["completion_rate"] * requests == pytest.approx(experts["done"].sum())
    assert metrics["violation_rate"] * requests == pytest.approx(experts["late"].sum())
    assert metrics["preemptions_per_request"] * requests == pytest.approx(experts["preempted"].sum())
    assert metrics["qos_per_gpu_s"] * experts["busy_s"].sum() == pytest.approx(experts["qos"].sum())


@pytest.mark.parametrize("cluster", range(len(SEEDS)))
def test_every_request_ends_one_way(simulation, cluster):
    metrics = episode_metrics(simulation, cluster)
    assert metrics["completion_rate"] + metrics["drop_rate"] + metrics["rejected_rate"] == pytest.approx(1)
    assert metrics["violation_rate"] <= metrics["completion_rate"]
    assert metrics["qos"] <= metrics["mean_score"] * metrics["completion_rate"] + 1e-12
    shares = routing_shares(SCENARIO, simulation.records(cluster))
    assert len(shares) == SCENARIO.n_experts + 1
    assert sum(shares) == pytest.approx(1)
    assert shares[-1] == pytest.approx(metrics["drop_rate"])


@pytest.mark.parametrize("cluster", range(len(SEEDS)))
def test_latencies_are_in_order(simulation, cluster):
    metrics = episode_metrics(simulation, cluster)
    p50, p90, p99 = (metrics[f"latency_per_token_p{q}_s"] for q in (50, 90, 99))
    assert p50 <= p90 <= p99
    assert metrics["ttft_p50_s"] <= metrics["ttft_p99_s"]
    assert metrics["tpot_mean_s"] <= metrics["latency_per_token_mean_s"]  # it leaves out the wait and the first token


@pytest.mark.parametrize("cluster", range(len(SEEDS)))
def test_littles_law_holds_for_experts(simulation, cluster):
    """The time integral of the requests being served is the sum of their times in service; each lies in a busy second."""
    records, experts = simulation.records(cluster), simulation.state.experts[cluster]
    for e in range(SCENARIO.n_experts):
        mine = (records.route == e) & ~np.isnan(records.finish_s)
        moments = np.sort(np.concatenate([records.first_scheduled_s[mine], records.finish_s[mine]]))
        middles = (moments[1:] + moments[:-1]) / 2
        inside = (records.first_scheduled_s[mine] <= middles[:, None]) & (middles[:, None] < records.finish_s[mine])
        in_service = inside.sum(axis=1)
        integral = float((in_service * np.diff(moments)).sum())
        assert integral == pytest.approx((records.finish_s - records.first_scheduled_s)[mine].sum(), rel=1e-9, abs=1e-9)
        occupied_s = float(np.diff(moments)[in_service > 0].sum())
        assert experts["busy_s"][e] >= occupied_s - 1e-9
        assert experts["busy_s"][e] <= simulation.now_s[cluster] + 1e-9


def test_quantiles_pool_all_finished_requests(simulation):
    records = [simulation.records(cluster) for cluster in range(len(SEEDS))]
    latency = np.concatenate([r.latency_per_token_s for r in records])
    latency = latency[~np.isnan(latency)]
    ttft = np.concatenate([r.ttft_s[r.status == FINISHED] for r in records])
    for values, quantiles in ((latency, latency_quantiles(records, 5)), (ttft, ttft_quantiles(records, 5))):
        assert quantiles == pytest.approx([values.min(), *np.quantile(values, [0.25, 0.5, 0.75]), values.max()])


def test_where_nothing_finishes_latencies_are_unknown():
    endless = Catalogue(prompt_tokens_mean=1e6, prompt_tokens_cv=0.1)  # no expert can hold such prompts
    scenario = replace(with_workload(load_scenario("edge6"), requests=10, load=1.0, catalogue=endless), capacity_rps=25.0)
    result = run_cell(Cell(router=parse_router("least-work"), scenario=scenario, seeds=(1,)))
    assert result.metrics["too_long_rate"] == [1.0]
    for name in ("qos", "drop_rate", "ttft_p50_s"):  # there was nobody to serve
        assert np.isnan(result.metrics[name]).all()
    assert np.isnan(result.metrics["qos_per_gpu_s"]).all()
    assert result.latency_quantiles_s == []
    assert result.ttft_quantiles_s == []


def test_simulate_writes_figures_that_its_table_confirms(tmp_path, capsys):
    out = tmp_path / "run.csv"
    run(Options(router="impact-greedy:price=0.05", load="40", requests=300, seed=5, out=out))
    table, summary = pd.read_csv(out), json.loads((tmp_path / "run.json").read_text())
    metrics = summary["metrics"]
    done = table[table.status == "finished"]
    expected = {
        "qos": table.qos.mean(),
        "violation_rate": (done.latency_per_token_s > summary["slo_s_per_token"]).sum() / len(table),
        "drop_rate": (table.expert == "drop").mean(),
        "rejected_rate": (table.status == "rejected").mean(),
        "too_long_rate": (table.status == "too_long").mean(),
        "completion_rate": len(done) / len(table),
        "mean_score": done.score.mean(),
        "latency_per_token_mean_s": ((done.finish_s - done.arrival_s) / done.output_tokens).mean(),
        "latency_per_token_p50_s": done.latency_per_token_s.quantile(0.5),
        "latency_per_token_p90_s": done.latency_per_token_s.quantile(0.9),
        "latency_per_token_p99_s": done.latency_per_token_s.quantile(0.99),
        "ttft_mean_s": (done.first_token_s - done.arrival_s).mean(),
        "ttft_p50_s": done.ttft_s.quantile(0.5),
        "ttft_p99_s": done.ttft_s.quantile(0.99),
        "tpot_mean_s": ((done.finish_s - done.first_token_s) / (done.output_tokens - 1)).where(done.output_tokens > 1).mean(),
        "tpot_p99_s": done.tpot_s.quantile(0.99),
        "preemptions_per_request": table.preemptions.mean(),
        "arrival_rps": len(table) / table.arrival_s.max(),
        "duration_s": max(table.finish_s.max(), table.arrival_s.max()),
        **dict.fromkeys(("confined_rate", "cancelled_rate", "failed_rate", "retried_rate"), 0.0),
        "longest_wait_s": (table.first_scheduled_s - table.arrival_s).max(),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    of_experts = {"qos_per_gpu_s", "qos_per_kv_gb_s", *EXPENSES, ACTIVE_J}
    assert set(METRICS) - set(expected) == {*of_experts, "class_fairness", "tenant_fairness"}
    assert {e["name"]: e["share"] for e in summary["experts"]} == pytest.approx(
        {e["name"]: (table.expert == e["name"]).mean() for e in summary["experts"]}
    )
    assert (done.qos == done.score.where(~done.late, 0)).all()
    assert table[table.expert == "drop"][["score", "output_tokens", "finish_s"]].isna().all(axis=None)
    assert "QoS per arrived request" in capsys.readouterr().out


def test_parquet_and_csv_hold_the_same(tmp_path, capsys):
    for name in ("run.csv", "run.parquet"):
        run(Options(requests=60, out=tmp_path / name))
    from_csv, from_parquet = pd.read_csv(tmp_path / "run.csv"), pq.read_table(tmp_path / "run.parquet").to_pandas()
    pd.testing.assert_frame_equal(from_csv, from_parquet, check_dtype=False, rtol=0, atol=1e-6)
    assert (from_csv.arrival_s == from_parquet.arrival_s).all()  # float64 comes back bit for bit


def test_the_table_has_a_row_for_each_request(simulation):
    table = request_table(simulation.records(0), SCENARIO)
    assert table.num_rows == 400
    assert set(table["expert"].to_pylist()) <= {*(expert.name for expert in SCENARIO.experts), "drop"}
    assert set(table["status"].to_pylist()) <= {"finished", "dropped", "rejected"}
