"""``--predictors``: every command takes the predictions of a folder of fit-predictors, and refuses what does not fit."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import edgeroute
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.episode import draw_episode
from rllib_envs.workload.prediction_table import TABLE, read_table
from rllib_envs.workload.prompt_files import in_train_split, read_prompt_file
from tests.prompts import MODELS, prompts, write_prompts
from tests.workload.test_answer_logs import as_csv
from tuning.evaluation.matrix import Cell
from tuning.specs.prompts import with_information
from tuning.specs.routers import parse_router
from tuning.sweep import _train_options
from tuning.sweeps.options import SweepOptions
from tuning.training.options import TrainOptions, parse_options
from tuning.training.setup import variant_options
from tuning.training.variants import base_scenario, training_groups

pytestmark = pytest.mark.slow

RECORDS = prompts(400)
EDGE6 = load_scenario("edge6")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with prompts, predictors, and a scenario whose experts are the models of both."""
    folder = tmp_path_factory.mktemp("place")
    path = write_prompts(folder / "prompts.jsonl", RECORDS)
    assert edgeroute.main(["fit-predictors", "--smoke", "--catalogue", str(path), "--out", str(folder / "predictors")]) == 0
    experts = tuple(replace(expert, model=MODELS[i % 2]) for i, expert in enumerate(EDGE6.experts))
    (folder / "fleet.yaml").write_text(replace(EDGE6, experts=experts, capacity_rps=None).to_yaml())
    return folder


def options_of(place, **more):
    named = {"scenario": "fleet.yaml", "catalogue": "prompts.jsonl", "predictors": "predictors"}
    return [text for key, name in named.items() for text in (f"--{key}", more.get(key, str(place / name)))]


def test_simulate_evaluate_and_tuning_take_them_and_say_so(place, tmp_path, capsys):
    common = [*options_of(place), "--smoke", "--load", "10"]
    said = f"Predictions: those of the predictors {place / 'predictors'}, each by predictors that have not seen its prompt."
    tuned = tmp_path / "tuned.json"
    assert edgeroute.main(["simulate", *common, "--out", str(tmp_path / "requests.csv")]) == 0
    assert edgeroute.main(["tune-heuristics", *common, "--jobs", "1", "--out", str(tuned)]) == 0
    evaluate = ["--jobs", "1", "--routers", "impact-greedy", "--tuned", str(tuned), "--out", str(tmp_path / "out")]
    assert edgeroute.main(["evaluate", *common, *evaluate]) == 0
    assert capsys.readouterr().out.count(said) >= 3
    assert said in json.loads((tmp_path / "out" / "results.json").read_text())["notes"]
    assert json.loads(tuned.read_text())["predictions"] == "given"


def test_an_evaluation_is_run_anew_where_the_predictors_have_changed(place, tmp_path):
    folder = tmp_path / "predictors"
    shutil.copytree(place / "predictors", folder)
    scenario = with_information(load_scenario(place / "fleet.yaml"), place / "prompts.jsonl", None, folder)
    cell = Cell(router=parse_router("impact-greedy"), scenario=scenario, seeds=(1,))
    before = cell.key
    assert cell.key == before
    (folder / TABLE).write_bytes((folder / TABLE).read_bytes()[:-1] + b"\1")
    assert cell.key != before


def test_training_is_out_of_fold_in_every_fleet_and_trials_of_a_sweep_likewise(place):
    named = {"scenario": str(place / "fleet.yaml"), "catalogue": str(place / "prompts.jsonl")}
    train = parse_options({**named, "predictors": str(place / "predictors"), "fleets": [named["scenario"]]}, "options")
    sweep = SweepOptions(catalogue=named["catalogue"], predictors=str(place / "predictors"))
    of_trial = _train_options(sweep, replace(TrainOptions(), scenario=named["scenario"], fleets=(named["scenario"],)))
    file = read_prompt_file(named["catalogue"])
    table = read_table(place / "predictors").predicted(file, load_scenario(named["scenario"]).experts)
    learned = np.array([in_train_split(prompt_id) for prompt_id in file.ids])
    out_of_fold = set(map(tuple, table.score[learned].astype(np.float32).tolist()))
    for options in (train, of_trial):
        variants = variant_options(options)
        groups = training_groups(base_scenario(variants), variants, 8)
        worlds_of = [world if isinstance(world, Scenario) else world[0] for world, _ in groups]
        assert len(worlds_of) == 2
        for world in worlds_of:
            episode = draw_episode(replace(world, variation=None), 10.0, 1)
            assert set(map(tuple, episode.predicted_score.tolist())) <= out_of_fold


def test_a_log_that_predictors_were_fitted_to_can_be_served_from(place, tmp_path, capsys):
    log, folder = tmp_path / "log.csv", tmp_path / "predictors"
    common = ("id", "task", "prompt", "prompt_tokens")
    rows = [
        {name: record[name] for name in common} | {"model": model, "score": score, "out_tokens": tokens}
        for record in RECORDS
        for model, score, tokens in zip(MODELS, record["correct"], record["out_tokens"], strict=True)
    ]
    log.write_bytes(as_csv(rows))
    assert edgeroute.main(["fit-predictors", "--smoke", "--catalogue", str(log), "--out", str(folder)]) == 0
    asked = options_of(place, catalogue=str(log), predictors=str(folder))
    assert edgeroute.main(["simulate", *asked, "--smoke", "--load", "10"]) == 0
    assert f"Predictions: those of the predictors {folder}" in capsys.readouterr().out


def other_prompts(place, tmp_path):
    return {"catalogue": str(write_prompts(tmp_path / "other.jsonl", prompts(100, seed=1)))}


def no_folder(place, tmp_path):
    return {"predictors": str(tmp_path / "nowhere")}


def damaged(place, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(place / "predictors", copy)
    (copy / TABLE).write_bytes((copy / TABLE).read_bytes()[:-1] + b"\1")
    return {"predictors": str(copy)}


def other_models(place, tmp_path):
    return {"scenario": "edge6"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_prompts, "100 of 100 prompts are not among"),
        (no_folder, "nowhere"),
        (damaged, TABLE),
        (other_models, "no results for"),
    ],
)
@pytest.mark.parametrize("command", ["simulate", "evaluate"])
def test_what_does_not_fit_is_one_line_before_anything_runs(command, change, message, place, tmp_path, capsys):
    out = tmp_path / "out.csv"
    asked = [*options_of(place, **change(place, tmp_path)), "--smoke", "--load", "10", "--out", str(out)]
    assert edgeroute.main([command, *asked]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_predictors_want_prompts_and_no_other_law(place):
    with pytest.raises(InputError, match="predictors predict prompts"):
        with_information(EDGE6, None, None, place / "predictors")
    with pytest.raises(InputError, match="predictors go with law 'auto' or 'given'"):
        with_information(load_scenario(place / "fleet.yaml"), place / "prompts.jsonl", "means", place / "predictors")


def test_another_law_ends_the_use_of_the_scenarios_predictors(place):
    told = with_information(load_scenario(place / "fleet.yaml"), place / "prompts.jsonl", None, place / "predictors")
    assert with_information(told, None, None, None) is told
    assert with_information(told, None, "means", None).predictions.predictors is None
    assert with_information(told, None, "given", None).predictions.predictors == str(place / "predictors")
