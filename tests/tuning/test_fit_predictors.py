"""``edgeroute fit-predictors`` from a file of prompts to a folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import edgeroute
from models.predictors import kept
from models.predictors.fit import Outcomes
from models.predictors.served import Predictors
from models.predictors.weights import Raw
from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.prediction_table import read_table
from rllib_envs.workload.prompt_files import in_train_split, read_prompt_file
from tests.prompts import MODELS, prompts, write_prompts
from tests.workload.test_answer_logs import as_csv, as_json, as_parquet
from tuning import fit_predictors
from tuning.fit_predictors import Options, run

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "prompts.jsonl"
RECORDS = prompts(400)
EXPERTS = [replace(expert, model=model) for expert, model in zip(load_scenario("edge6").experts, MODELS, strict=False)]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted")
    path = Path(shutil.copy(EXAMPLE, folder / "prompts.jsonl"))
    assert edgeroute.main(["fit-predictors", "--catalogue", str(path), "--out", str(folder / "p"), "--folds", "3"]) == 0
    return path, folder / "p"


def test_the_prompts_of_the_examples_are_those_of_the_tests(tmp_path):
    assert write_prompts(tmp_path / "prompts.jsonl", RECORDS).read_bytes() == EXAMPLE.read_bytes()


def test_it_writes_predictors_their_predictions_and_how_good_they_are(fitted):
    _, folder = fitted
    predictors = Predictors.load(folder)
    assert predictors.models == MODELS
    assert predictors.about["settings"]["kind"] == "ridge"
    figures = predictors.about["figures"]
    assert figures.keys() == {"test split", "train split, out of fold", "task sums, left out", "task poems, left out"}
    held_out = figures["test split"]
    assert held_out["prompts"] == sum(not in_train_split(record["id"]) for record in RECORDS)
    assert held_out["auc"] > 0.65
    assert held_out["log_length_r2"] > 0.3
    assert held_out["best_single"] <= held_out["oracle"]
    assert figures["task sums, left out"]["log_length_r2"] < held_out["log_length_r2"]
    assert matplotlib.image.imread(folder / "calibration.png").std() > 0.01
    assert "| test split " in (folder / "figures.md").read_text()
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_the_table_has_served_predictions_for_the_test_split_and_others_for_the_train_split(fitted):
    path, folder = fitted
    predictors = Predictors.load(folder)
    table = read_table(folder).predicted(read_prompt_file(str(path)), EXPERTS)
    served = predictors.predict([record["prompt"] for record in RECORDS])
    train = np.array([in_train_split(record["id"]) for record in RECORDS])
    for name in ("score", "output_tokens", "log_sd"):
        of_table, of_all = getattr(table, name), getattr(served, name)
        np.testing.assert_allclose(of_table[~train], of_all[~train], rtol=1e-5)
        assert (of_table[train] != of_all[train].astype(np.float32)).all()


def test_the_corrections_of_a_prompt_know_nothing_of_its_fold():
    rng = np.random.default_rng(0)
    fold_of = np.arange(300) % 3
    raw = Raw(logit=rng.standard_normal((300, 2)), log_length=5 + rng.random((300, 2)), log_sd=0.5 + rng.random((300, 2)))
    score, length = (rng.random((300, 2)) < 0.5).astype(float), raw.log_length + rng.standard_normal((300, 2))
    learned = Outcomes(statistics=np.zeros((300, 1)), score=score, log_length=length)
    before = fit_predictors._crossed(raw, learned, fold_of)
    score[fold_of == 1], length[fold_of == 1] = 0, 9.0
    after = fit_predictors._crossed(raw, learned, fold_of)
    for name in ("slope", "offset", "sd_factor", "smearing"):
        changed = getattr(before, name) != getattr(after, name)
        assert changed.shape == (300, 2)
        assert not changed[fold_of == 1].any()
        assert changed[fold_of != 1].all()


def test_an_interrupted_fit_goes_on_with_what_it_has_and_comes_to_the_same(fitted, tmp_path, monkeypatch):
    path, whole = fitted
    fit, fits = fit_predictors.fit_weights, []

    def stopped(*arguments):
        fits.append(arguments)
        if len(fits) == 3:
            raise KeyboardInterrupt
        return fit(*arguments)

    options = Options(catalogue=path, out=tmp_path / "p", folds=3)
    monkeypatch.setattr(fit_predictors, "fit_weights", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(options)
    assert not options.out.exists()
    run(options)
    assert len(fits) == 3 + 4  # the third anew, "all", and each task left out
    for name in ("predictors.safetensors", "predictions.safetensors"):
        assert (options.out / name).read_bytes() == (whole / name).read_bytes()


def test_fits_of_other_data_or_damaged_ones_are_not_gone_on_with(tmp_path):
    made = []

    def fit():
        made.append(True)
        return fit_predictors.fit_weights(some, "ridge", 0)

    some = fit_predictors._outcomes(read_prompt_file(str(write_prompts(tmp_path / "f.jsonl", RECORDS[:60]))), [0, 1])
    one, other = kept.KeptFits(tmp_path / "p", "one"), kept.KeptFits(tmp_path / "p", "other")
    one.get("all", fit)
    one.get("all", fit)
    assert len(made) == 1
    other.get("all", fit)
    assert len(made) == 2
    path = one._path("all")
    path.write_bytes(path.read_bytes()[:-5])
    one.get("all", fit)
    assert len(made) == 3
    one.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["f.jsonl"]


def test_logs_in_every_format_give_the_same_predictors_as_the_file_of_prompts(tmp_path):
    rows = [
        {"id": r["id"], "task": r["task"], "prompt": r["prompt"], "model": model, "score": score, "out_tokens": tokens}
        for r in RECORDS[:250]
        for model, score, tokens in zip(MODELS, r["correct"], r["out_tokens"], strict=True)
    ]
    files = {
        "wide.jsonl": write_prompts(tmp_path / "wide.jsonl", RECORDS[:250]).read_bytes(),
        "log.csv": as_csv(rows),
        "log.jsonl": as_json(rows),
        "log.parquet": as_parquet(rows),
    }
    made = {}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        command = ["fit-predictors", "--catalogue", str(tmp_path / name), "--out", str(tmp_path / "p"), "--smoke"]
        assert edgeroute.main(command) == 0
        made[name] = {file.name: file.read_bytes() for file in (tmp_path / "p").iterdir() if file.suffix == ".safetensors"}
    assert len(made["wide.jsonl"]) == 2
    assert all(weights == made["wide.jsonl"] for weights in made.values())


def test_malformed_rows_of_a_log_are_a_line_each_and_exit_code_2(tmp_path, capsys):
    path = tmp_path / "log.csv"
    path.write_bytes(b"id,prompt,model,score,out_tokens\n1,a,m,7,1\n2,b,m,1,-4\n")
    assert edgeroute.main(["fit-predictors", "--catalogue", str(path), "--out", str(tmp_path / "p")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("edgeroute: error: ")
    assert "line 2: column 'score': '7' must be a number from 0 to 1" in first
    assert "line 3: column 'out_tokens': '-4' must be" in second


def without_text(records):
    del records[7]["prompt"]


def one_id(records):
    records[3]["id"] = records[4]["id"]


def never_run(records):
    for record in records:
        record["correct"][1] = None


FAULTS = {
    "no text": (without_text, {}, r"prompt 'p7' has no text"),
    "one id": (one_id, {}, r"the id 'p4'"),
    "a model without scores": (never_run, {}, r"model 'large' has 0 scores"),
    "few prompts": (lambda records: records.__delitem__(slice(60, None)), {}, r"there must be 50 in each"),
    "a text that is none": (lambda records: records[2].update(prompt=7), {}, r"prompt 'p2' has no text"),
    "a score beyond": (lambda records: records[0].update(correct=[2, 0]), {}, r"jsonl:2: correct\[0\] = 2"),
    "no such model": (lambda records: None, {"models": ("huge",)}, r"models = 'huge'.*small, large"),
    "folds": (lambda records: None, {"folds": 1}, r"folds = 1"),
    "seed": (lambda records: None, {"seed": -1}, r"seed = -1"),
}


@pytest.mark.parametrize(("change", "options", "message"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_fitted_is_one_clear_line_and_leaves_nothing(change, options, message, tmp_path):
    records = json.loads(json.dumps(RECORDS))
    change(records)
    path = write_prompts(tmp_path / "prompts.jsonl", records)
    with pytest.raises(InputError, match=message):
        run(Options(catalogue=path, out=tmp_path / "p", **options))
    assert not (tmp_path / "p").exists()
