"""The commands that judge, through the one command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgeroute
from rllib_envs.baselines import HEURISTICS
from rllib_envs.capacity import capacity_rps
from rllib_envs.scenario import LOAD_FRACTIONS
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.matrix import EVALUATION_SEEDS
from tuning.evaluation.tuned import shipped_tuned
from tuning.metrics.episode import METRICS
from tuning.specs.routers import REFERENCES, parse_router

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n"
LOADS = ["light", "heavy"]


def process(*arguments):
    command = [sys.executable, str(ROOT / "edgeroute.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """One evaluation: its folder and what it printed."""
    out = tmp_path_factory.mktemp("evaluate")
    return out, process("evaluate", "--smoke", "--load", *LOADS, "--routers", "all", "--jobs", 2, "--out", out)


def test_evaluate_writes_all_its_files(smoke):
    out, printed = smoke
    files = {file.name for file in out.iterdir()}
    assert files == {
        "results.json",
        "results.md",
        "qos-poisson.png",
        "differences-all-2-workloads.png",
        "cells",
        *(f"latency-poisson-at-{load}.png" for load in LOADS),
    }
    assert all((out / name).read_bytes().startswith(PNG) for name in files if name.endswith(".png"))
    markdown = (out / "results.md").read_text()
    assert printed.stdout.partition("\n\nWritten")[0] in markdown
    assert all(f"![{name}]({name})" in markdown for name in files if name.endswith(".png"))
    assert f"{len(LOADS) * len(HEURISTICS)} of {len(LOADS) * len(HEURISTICS)}" in printed.stderr


def test_results_hold_every_router_seed_and_metric(smoke):
    results = json.loads((smoke[0] / "results.json").read_text())
    assert results["seeds"] == list(EVALUATION_SEEDS[:2])
    assert [comparison["load"] for comparison in results["comparisons"]] == LOADS
    for comparison in results["comparisons"]:
        assert {row["router"] for row in comparison["routers"]} == set(HEURISTICS)
        for row in comparison["routers"]:
            assert set(row["metrics"]) == set(METRICS)
            for metric in row["metrics"].values():
                assert len(metric["values"]) == 2
                if None not in metric["values"]:
                    assert metric["mean"] == pytest.approx(sum(metric["values"]) / 2)
            assert sum(row["routing_share"].values()) == pytest.approx(1)


def test_differences_are_to_the_best_heuristic_that_sees_no_truth(smoke):
    for comparison in json.loads((smoke[0] / "results.json").read_text())["comparisons"]:
        qos = {row["router"]: row["metrics"]["qos"]["mean"] for row in comparison["routers"]}
        fair = {name: value for name, value in qos.items() if name not in REFERENCES}
        assert comparison["baseline"] == max(fair, key=fair.__getitem__)
        assert list(qos.values()) == sorted(qos.values(), reverse=True)
        for row in comparison["routers"]:
            assert row["difference"]["mean"] == pytest.approx(qos[row["router"]] - qos[comparison["baseline"]])


def test_over_plain_is_relative_to_the_best_heuristic_that_predicts_no_impact(smoke):
    results = json.loads((smoke[0] / "results.json").read_text())
    for comparison in results["comparisons"]:
        qos = {row["router"]: row["metrics"]["qos"]["mean"] for row in comparison["routers"]}
        best = max(value for name, value in qos.items() if parse_router(name).is_plain)
        assert qos[comparison["plain"]] == best
        for row in comparison["routers"]:
            assert row["over_plain"]["mean"] == pytest.approx(qos[row["router"]] / best - 1)
    (summary,) = results["summaries"]
    assert summary["workloads"] == [comparison["workload"] for comparison in results["comparisons"]]


def judge(*arguments, code=0):
    """Run a command in this process, where nothing needs to be imported and compiled again."""
    assert edgeroute.main([str(argument) for argument in arguments]) == code


def test_results_do_not_depend_on_the_number_of_processes(smoke, tmp_path):
    judge("evaluate", "--smoke", "--load", *LOADS, "--jobs", 1, "--out", tmp_path)
    for name in ("results.json", "results.md"):
        assert (tmp_path / name).read_bytes() == (smoke[0] / name).read_bytes()


def test_the_same_command_again_runs_nothing_and_says_the_same(smoke, capsys):
    out, printed = smoke
    before = {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()}
    judge("evaluate", "--smoke", "--load", *LOADS, "--routers", "all", "--jobs", 2, "--out", out)
    again = capsys.readouterr()
    assert again.out == printed.stdout
    assert "were finished before" in again.err
    assert {file: file.stat().st_mtime_ns for file in (out / "cells").iterdir()} == before


def test_routers_that_decide_alike_differ_by_exactly_nothing(tmp_path):
    routers = ["quality-greedy:cap=100000", "quality-greedy:cap=inf", "least-work"]
    judge("evaluate", "--smoke", "--jobs", 1, "--routers", *routers, "--baseline", routers[0], "--out", tmp_path)
    (comparison,) = json.loads((tmp_path / "results.json").read_text())["comparisons"]
    differences = {row["router"]: row["difference"] for row in comparison["routers"]}
    assert comparison["baseline"] == routers[0]
    assert differences[routers[0]] == differences[routers[1]] == {"mean": 0, "half_width": 0}
    assert differences["least-work"]["mean"] != 0


def test_tuned_parameters_go_from_one_command_to_the_other(tmp_path, capsys):
    tuned = tmp_path / "tuned.json"
    judge("tune-heuristics", "--smoke", "--jobs", 1, "--load", "heavy", "--out", tuned)
    assert "| quality-greedy:cap=" in capsys.readouterr().out
    (entry,) = json.loads(tuned.read_text())["workloads"].values()
    parameters = entry["parameters"]
    published = {"route-balance", "slo-headroom", "polyserve", "lodestar"}
    assert set(parameters) == {"quality-greedy", "impact-greedy", "myopic-impact-greedy", *published}
    routers = ["quality-greedy", "least-work"]
    options = ["--smoke", "--jobs", 1, "--load", "heavy", "--routers", *routers, "--tuned", tuned, "--out", tmp_path / "evaluate"]
    judge("evaluate", *options)
    (comparison,) = json.loads((tmp_path / "evaluate" / "results.json").read_text())["comparisons"]
    ran = {row["router"]: row["parameters"] for row in comparison["routers"]}
    assert ran == {"quality-greedy": parameters["quality-greedy"], "least-work": {}}
    judge("evaluate", "--smoke", "--scenario", "paper3", "--tuned", tuned, "--out", tmp_path / "no", code=2)
    assert "tuned for another scenario" in capsys.readouterr().err


def test_some_routers_are_tuned_beside_what_a_file_says_of_others(tmp_path, capsys):
    tuned, whole = tmp_path / "tuned.json", tmp_path / "whole.json"
    common = ["tune-heuristics", "--smoke", "--jobs", 1, "--load", "heavy"]
    judge(*common, "--routers", "polyserve", "--out", tuned)
    first = json.loads(tuned.read_text())
    judge(*common, "--routers", "quality-greedy", "slo-headroom", "--out", tuned)
    both = json.loads(tuned.read_text())
    ((name, entry),) = both["workloads"].items()
    assert list(entry["parameters"]) == list(entry["qos"]) == ["polyserve", "quality-greedy", "slo-headroom"]
    for part in ("parameters", "qos"):
        assert entry[part]["polyserve"] == first["workloads"][name][part]["polyserve"]
    (how,) = both.pop("added")
    assert how == {"routers": ["quality-greedy", "slo-headroom"]} | {key: first[key] for key in ("code", "seeds", "requests")}
    assert {**both, "workloads": first["workloads"]} == first
    judge(*common, "--routers", "quality-greedy", "slo-headroom", "polyserve", "--out", whole)
    assert json.loads(whole.read_text())["workloads"][name] == entry  # the same found apart and together
    kept = tuned.read_bytes()
    for options, message in (
        (["--routers", "lmetric"], "routers: 'lmetric' has no parameters to tune"),
        (["--routers", "polyserve", "--predictions", "means"], "predictions = 'measured': must be 'means' to add to it"),
        (["--routers", "polyserve", "--scenario", "paper3"], "tuned for another scenario"),
    ):
        judge(*common, *options, "--out", tuned, code=2)
        assert message in capsys.readouterr().err
    assert tuned.read_bytes() == kept


def test_parameters_that_are_shipped_are_used_unasked(tmp_path, capsys):
    judge("evaluate", "--smoke", "--jobs", 1, "--load", "heavy", "31", "--routers", "quality-greedy", "--out", tmp_path)
    printed = capsys.readouterr().out
    assert "from presets/edge6-heuristics.json" in printed
    assert "Nothing is tuned for poisson at 31: those for poisson at heavy are used." in printed
    heavy = shipped_tuned(load_scenario("edge6")).entries["poisson at heavy"].parameters["quality-greedy"]
    comparisons = json.loads((tmp_path / "results.json").read_text())["comparisons"]
    assert [comparison["routers"][0]["parameters"] for comparison in comparisons] == [heavy, heavy]


def test_a_real_trace_can_be_judged_on(data_dir, tmp_path, capsys):
    trace = data_dir / "azure_llm_2023" / "AzureLLMInferenceTrace_conv.csv.gz"
    options = ["--trace", trace, "--trace-start-s", 600, "--routers", "least-work", "--jobs", 1, "--out", tmp_path]
    judge("evaluate", "--smoke", *options)
    (comparison,) = json.loads((tmp_path / "results.json").read_text())["comparisons"]
    assert comparison["workload"] == "trace AzureLLMInferenceTrace_conv.csv.gz from 600 s at native"
    arrival_rps = comparison["routers"][0]["metrics"]["arrival_rps"]["values"]
    assert arrival_rps[0] != arrival_rps[1]  # fifty requests each, from other parts of the trace


def test_faults_change_the_world_and_neither_the_requests_nor_the_parameters(tmp_path, capsys):
    routers = ["quality-greedy", "calibrated-impact-greedy", "impact-greedy"]
    options = ["--faults", "none", "engine-slow", "lengths-short", "--load", "heavy", "--routers", *routers]
    judge("evaluate", "--smoke", "--jobs", 1, *options, "--out", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    comparisons = results["comparisons"]
    assert [c["workload"] for c in comparisons] == [
        "poisson at heavy",
        "poisson at heavy with engine-slow",
        "poisson at heavy with lengths-short",
    ]
    rows = [{row["router"]: row for row in c["routers"]} for c in comparisons]
    for name in routers:
        assert all(r[name]["parameters"] == rows[0][name]["parameters"] != {} for r in rows)
        assert all(r[name]["metrics"]["arrival_rps"] == rows[0][name]["metrics"]["arrival_rps"] for r in rows)
    assert rows[0]["calibrated-impact-greedy"]["parameters"] == rows[0]["impact-greedy"]["parameters"]
    latency = [r["quality-greedy"]["metrics"]["latency_per_token_mean_s"]["mean"] for r in rows]
    assert latency[1] > 1.1 * latency[0]
    assert [s["title"] for s in results["summaries"]] == ["all 3 workloads", "the 2 workloads with faults"]
    printed = capsys.readouterr().out
    assert "engine-slow (engine_factor = 1.25), lengths-short (length_factor = 0.6)" in printed
    assert "Nothing is tuned" not in printed
    assert {file.name for file in tmp_path.glob("*.png")} == {
        "differences-all-3-workloads.png",
        "differences-the-2-workloads-with-faults.png",
        "latency-poisson-at-heavy.png",
    }


def prompt_file(path, models, prompts=40):
    lines = [{"header": True, "models": list(models)}]
    for i in range(prompts):
        correct, lengths = [(i + j) % 2 for j in range(len(models))], [20 + i + j for j in range(len(models))]
        lines.append({"id": f"p{i}", "task": "t", "prompt_tokens": 50, "correct": correct, "out_tokens": lengths})
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_real_prompts_are_asked_from_the_split_that_nothing_is_tuned_on(tmp_path, capsys):
    models = [expert.model for expert in load_scenario("edge6").experts]
    file = prompt_file(tmp_path / "prompts.jsonl", models)
    tuned = tmp_path / "tuned.json"
    common = ["--smoke", "--jobs", 1, "--catalogue", file, "--load", "heavy"]
    judge("tune-heuristics", *common, "--out", tuned)
    judge("evaluate", *common, "--tuned", tuned, "--routers", "quality-greedy", "--out", tmp_path / "test")
    assert f"Prompts: {file}, split test." in capsys.readouterr().out
    judge("evaluate", *common, "--split", "train", "--routers", "least-work", "--out", tmp_path / "train")
    capacities = [
        json.loads((tmp_path / name / "results.json").read_text())["comparisons"][0]["capacity_rps"] for name in ("test", "train")
    ]
    assert capacities[0] != capacities[1]  # other prompts, another capacity


def test_a_catalogue_without_an_experts_model_says_so_before_anything_runs(tmp_path, capsys):
    models = [expert.model for expert in load_scenario("edge6").experts]
    file = prompt_file(tmp_path / "prompts.jsonl", models[1:])
    judge("evaluate", "--smoke", "--catalogue", file, "--out", tmp_path / "out", code=2)
    assert f"no results for model {models[0]!r} of expert" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_simulate_smoke_runs(tmp_path, capsys):
    judge("simulate", "--smoke", "--router", "least-work", "--out", tmp_path / "run.parquet")
    assert "50 requests" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {"run.parquet", "run.json"}


def test_capacity_prints_each_expert_and_the_sum(tmp_path, capsys):
    judge("capacity", "--scenario", "edge6", "--out", tmp_path / "capacity.json")
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "capacity.json").read_text())
    scenario = load_scenario("edge6")
    assert all(f"| {expert.name} " in printed for expert in scenario.experts)
    assert report["measured_rps"] == pytest.approx(sum(expert["capacity_rps"] for expert in report["experts"]))
    assert report["loads_rps"] == pytest.approx({name: f * capacity_rps(scenario) for name, f in LOAD_FRACTIONS.items()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--routers", "least-wrok"], "did you mean 'least-work'"),
        (["evaluate", "--load", "havy"], "load 'havy'"),
        (["evaluate", "--faults", "engine-fats"], "did you mean 'engine-fast'"),
        (["evaluate", "--catalogue", "nowhere.jsonl"], "nowhere.jsonl: cannot be read"),
        (["evaluate", "--first-seed", "1999999"], "first-seed = 1999999: seeds from 2000000"),
        (["evaluate", "--seeds", "0"], "seeds = 0"),
        (["evaluate", "--tuned", "nowhere.json"], "nowhere.json: cannot be read"),
        (["evaluate", "--trace", "nowhere.csv", "--routers", "random", "--jobs", "1"], "nowhere.csv: no such file"),
        (["simulate", "--seed", "-1"], "seed = -1"),
        (["simulate", "--out", "run.xlsx"], "must end in .csv or .parquet"),
        (["simulate", "--arrivals", "mmpp", "--trace", "t.csv"], "give one of the two"),
        (["tune-heuristics", "--seeds", "0"], "seeds = 0"),
        (["capacity", "--scenario", "edge0"], "edge0"),
    ],
)
def test_bad_options_are_explained_and_exit_with_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    judge(*arguments, code=2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))
