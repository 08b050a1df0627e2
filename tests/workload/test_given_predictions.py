"""A file of prompts that holds the predictions of somebody's own predictor, and what stands in where it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rllib_envs.errors import InputError
from rllib_envs.scenario import Predictions, Scenario
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.catalogue import draw_requests
from rllib_envs.workload.lengths import given_lengths
from rllib_envs.workload.predicted import Predicted
from rllib_envs.workload.predictions import predict
from rllib_envs.workload.prompt_files import in_train_split
from tuning.specs.prompts import with_prompts

MODELS = ("a", "b", "unused")
PROMPTS = 60


def prompt(i: int, *keys: str) -> dict[str, Any]:
    """Prompt i: its number can be read from each of its values."""
    values = {
        "predicted_score": [i / 100, 1 - i / 100, None],
        "predicted_tokens": [100.5 + i, 300 + i, None],
        "predicted_log_sd": [0.1 + i / 100, 0.2, None],
    }
    answers = {"correct": [i % 2, 1, None], "out_tokens": [10 * i + 10, 20 * i + 20, None]}
    return {"id": f"p{i}", "task": "t", "prompt_tokens": i + 1, **answers} | {key: values[key] for key in keys}


def scenario(folder: Path, prompts: list[dict[str, Any]], law: str = "auto", split: str = "all") -> Scenario:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"header": True, "models": MODELS}, *prompts])))
    edge6 = load_scenario("edge6")
    pair = replace(edge6, experts=tuple(replace(x, model=m) for x, m in zip(edge6.experts, MODELS[:2], strict=False)))
    made = with_prompts(pair, path)
    workload = replace(made.workload, catalogue=replace(made.workload.catalogue, split=split))
    return replace(made, workload=workload, predictions=Predictions(law=law))  # type: ignore[arg-type]


def predict_some(world: Scenario, n: int = 200) -> tuple[np.ndarray, Predicted]:
    """The numbers of the prompts that were drawn, and their predictions."""
    requests = draw_requests(world, n, np.random.default_rng(0))
    return requests.prompt_tokens - 1, predict(world.predictions, requests, np.random.default_rng(1))


def numbered(*keys: str) -> list[dict[str, Any]]:
    return [prompt(i, *keys) for i in range(PROMPTS)]


@pytest.mark.parametrize("law", ["auto", "given"])
def test_the_files_own_predictions_come_prompt_by_prompt(tmp_path: Path, law: str) -> None:
    i, predicted = predict_some(scenario(tmp_path, numbered("predicted_score", "predicted_tokens", "predicted_log_sd"), law))
    np.testing.assert_allclose(predicted.score, np.stack([i / 100, 1 - i / 100], axis=1))
    np.testing.assert_allclose(predicted.output_tokens, np.stack([100.5 + i, 300 + i], axis=1))
    np.testing.assert_allclose(predicted.log_sd, np.stack([0.1 + i / 100, np.full(i.size, 0.2)], axis=1))


def test_other_errors_come_on_top_of_the_files_predictions(tmp_path: Path) -> None:
    world = scenario(tmp_path, numbered("predicted_score", "predicted_tokens"))
    i, predicted = predict_some(replace(world, predictions=Predictions(score_bias=0.1, length_factor=2.0)))
    np.testing.assert_allclose(predicted.score[:, 0], i / 100 + 0.1)
    np.testing.assert_allclose(predicted.output_tokens[:, 1], 2 * (300 + i))


def test_a_file_that_predicts_nothing_tells_the_means_of_the_train_split_and_no_truth(tmp_path: Path) -> None:
    _, predicted = predict_some(scenario(tmp_path, numbered(), split="test"))
    train = [i for i in range(PROMPTS) if in_train_split(f"p{i}")]
    assert predicted.score == pytest.approx(np.broadcast_to([np.mean([i % 2 for i in train]), 1.0], predicted.score.shape))
    mean = np.mean(train)
    assert predicted.output_tokens == pytest.approx(np.broadcast_to([10 * mean + 10, 20 * mean + 20], predicted.score.shape))
    assert predicted.log_sd == pytest.approx(np.broadcast_to(np.log1p(train).std(), predicted.score.shape))


def test_one_key_alone_is_completed_by_means_and_by_the_errors_that_it_makes(tmp_path: Path) -> None:
    lengths_alone, scores_alone = numbered("predicted_tokens"), numbered("predicted_score")
    i, predicted = predict_some(scenario(tmp_path, lengths_alone))
    _, means = predict_some(scenario(tmp_path, lengths_alone, law="means"))
    np.testing.assert_allclose(predicted.output_tokens[:, 0], 100.5 + i)
    np.testing.assert_allclose(predicted.score, means.score)
    errors = [np.log((10 * k + 10) / (100.5 + k)) for k in range(PROMPTS) if in_train_split(f"p{k}")]
    assert predicted.log_sd[:, 0] == pytest.approx(np.std(errors))
    (tmp_path / "other").mkdir()
    i, predicted = predict_some(scenario(tmp_path / "other", scores_alone))
    np.testing.assert_allclose(predicted.score[:, 0], i / 100)
    np.testing.assert_allclose(predicted.output_tokens, means.output_tokens)
    np.testing.assert_allclose(predicted.log_sd, means.log_sd)


def test_oracle_noise_tells_the_truth_of_the_file_with_noise(tmp_path: Path) -> None:
    world = scenario(tmp_path, numbered("predicted_tokens"), law="oracle-noise")
    exact = replace(world, predictions=Predictions(law="oracle-noise", score_sd=0.0, length_log_sd=0.0))
    i, predicted = predict_some(exact)
    np.testing.assert_array_equal(predicted.output_tokens, np.stack([10 * i + 10, 20 * i + 20], axis=1))
    assert np.ptp(predicted.score, axis=0) == pytest.approx(0)  # the mean of the only task, and not the 0 or 1
    errors = np.log(predict_some(world, 5000)[1].output_tokens / predict_some(exact, 5000)[1].output_tokens)
    assert errors.std() == pytest.approx(0.3, rel=0.1)


def test_predictions_keep_their_error_where_the_arrivals_bring_the_lengths(tmp_path: Path) -> None:
    world = scenario(tmp_path, numbered("predicted_tokens"))
    lengths = given_lengths(np.random.default_rng(3).integers(200, 4000, 500))
    requests = draw_requests(world, 500, np.random.default_rng(0), lengths=lengths)
    predicted = predict(world.predictions, requests, np.random.default_rng(1))
    i = requests.prompt_tokens - 1
    np.testing.assert_allclose(predicted.output_tokens[:, 0] / requests.output_tokens[:, 0], (100.5 + i) / (10 * i + 10))


BAD = {
    "above 1": ({"predicted_score": [1.2, 0, 0]}, r"jsonl:3: predicted_score\[0\] = 1.2: must be a number from 0 to 1"),
    "negative": ({"predicted_tokens": [1, -3, 1]}, r"jsonl:3: predicted_tokens\[1\] = -3: must be a number from 0 to"),
    "text": ({"predicted_tokens": [1, "9", 1]}, r"jsonl:3: predicted_tokens\[1\] = '9': must be a number"),
    "too wide": ({"predicted_log_sd": [0.1, 0.1]}, r"jsonl:3: predicted_log_sd must be a list of 3 numbers or nulls"),
    "null": ({"predicted_score": [None, 0.5, 0.5]}, r"predicted_score is null for model 'a' of expert 'gemma-2-2b'.*'p1'"),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD.keys())
def test_a_malformed_prediction_is_refused_with_line_and_field(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    (key,) = values
    prompts = numbered(key)
    prompts[1] |= values
    with pytest.raises(InputError, match=message):
        predict_some(scenario(tmp_path, prompts))


def test_a_key_must_stand_in_every_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"jsonl:3: predicted_score must be a list"):
        predict_some(scenario(tmp_path, [prompt(0, "predicted_score"), prompt(1)]))


def test_a_law_that_the_catalogue_cannot_serve_is_refused_with_what_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"predictions.law = 'given': .* one or more of predicted_score, predicted_tokens"):
        predict_some(scenario(tmp_path, numbered(), law="given"))
    with pytest.raises(InputError, match=r"predictions.law = 'measured': .* a file allows given"):
        predict_some(scenario(tmp_path, numbered("predicted_score"), law="measured"))
    with pytest.raises(InputError, match=r"predictions.law = 'given'"):
        predict_some(replace(load_scenario("edge6"), predictions=Predictions(law="given")))
