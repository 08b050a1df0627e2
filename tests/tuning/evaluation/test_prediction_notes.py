"""What the commands say about the source of predictions, and that --predictions sets it."""

import json
from dataclasses import replace

import pytest

import edgeroute
from rllib_envs.errors import InputError
from rllib_envs.scenario import Predictions
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.prediction_notes import notes_on_predictions, predicted_by
from tuning.specs.prompts import with_predictions, with_prompts
from tuning.training.variants import VariantOptions, base_scenario, training_groups

EDGE6 = load_scenario("edge6")


def prompt_file(path, **keys):
    models = [expert.model for expert in EDGE6.experts]
    prompts = [
        {"id": f"p{i}", "task": "t", "prompt_tokens": 50, "correct": [i % 2] * 6, "out_tokens": [20 + i] * 6} | keys
        for i in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, [{"header": True, "models": models}, *prompts])))
    return path


@pytest.fixture
def silent(tmp_path):
    """A file that predicts nothing."""
    return prompt_file(tmp_path / "silent.jsonl")


@pytest.fixture
def telling(tmp_path):
    """A file with predictions."""
    return prompt_file(tmp_path / "telling.jsonl", predicted_score=[0.5] * 6, predicted_tokens=[40] * 6)


def test_the_default_is_measured_errors_or_what_the_file_holds(silent, telling):
    assert predicted_by(EDGE6) == "measured"
    assert notes_on_predictions(EDGE6) == []
    assert notes_on_predictions(with_prompts(EDGE6, telling)) == [
        "Predictions: those of the file itself (predicted_score, predicted_tokens)."
    ]
    (note,) = notes_on_predictions(with_prompts(EDGE6, silent))
    assert "each expert's mean score" in note
    assert "--predictions oracle-noise" in note


@pytest.mark.parametrize("law", ["measured", "oracle-noise", "means"])
def test_a_law_that_is_asked_for_is_named(law):
    (note,) = notes_on_predictions(with_predictions(EDGE6, law))
    assert note.endswith(f"({law}).")


def test_no_law_asked_for_leaves_the_scenarios_own():
    own = replace(EDGE6, predictions=Predictions(law="means", score_bias=0.1))
    assert with_predictions(own, None) is own
    assert with_predictions(own, "measured").predictions == Predictions(law="measured", score_bias=0.1)


def test_a_law_that_does_not_go_with_the_prompts_is_refused_before_anything_runs(silent, tmp_path, capsys):
    with pytest.raises(InputError, match="nothing is predicted"):
        notes_on_predictions(with_predictions(EDGE6, "given"))
    options = ["--smoke", "--catalogue", str(silent), "--predictions", "measured", "--out", str(tmp_path / "out")]
    assert edgeroute.main(["evaluate", *options]) == 2
    assert "predictions.law = 'measured'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_evaluate_says_what_is_told_and_for_what_the_parameters_were_tuned(silent, tmp_path, capsys):
    common = ["--smoke", "--jobs", "1", "--catalogue", str(silent), "--load", "10"]
    tuned = tmp_path / "tuned.json"
    assert edgeroute.main(["tune-heuristics", *common, "--predictions", "oracle-noise", "--out", str(tuned)]) == 0
    assert "Predictions: the truth with Gaussian noise" in capsys.readouterr().out
    assert json.loads(tuned.read_text())["predictions"] == "oracle-noise"
    told = "They were tuned for predictions that are oracle-noise; here these are means."
    options = [*common, "--routers", "quality-greedy", "--tuned", str(tuned), "--out"]
    assert edgeroute.main(["evaluate", *options, str(tmp_path / "means")]) == 0
    notes = json.loads((tmp_path / "means" / "results.json").read_text())["notes"]
    assert told in notes
    assert any(note.startswith("Predictions: each expert's mean score") for note in notes)
    assert edgeroute.main(["evaluate", *options, str(tmp_path / "oracle"), "--predictions", "oracle-noise"]) == 0
    assert told not in json.loads((tmp_path / "oracle" / "results.json").read_text())["notes"]


def test_simulate_tells_what_it_is_asked_to(tmp_path):
    told = {}
    for law in ("measured", "oracle-noise"):
        out = tmp_path / f"{law}.csv"
        assert edgeroute.main(["simulate", "--smoke", "--load", "10", "--predictions", law, "--out", str(out)]) == 0
        told[law] = out.read_text()
    assert told["measured"] != told["oracle-noise"]


def test_training_tells_every_fleet_what_it_is_asked_to():
    options = VariantOptions(
        scenario="edge6",
        load="moderate",
        requests=50,
        fleets=("edge3",),
        variation=True,
        observation=EDGE6.observation,
        reward=EDGE6.reward,
        predictions="oracle-noise",
    )
    groups = training_groups(base_scenario(options), options, 16)
    assert [world.predictions.law for world, _ in groups] == ["oracle-noise"] * 2
    own = replace(options, predictions=None)
    assert {world.predictions.law for world, _ in training_groups(base_scenario(own), own, 16)} == {"auto"}
