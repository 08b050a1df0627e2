"""Tables of predictions: what went in comes out for the same prompts, and for no others."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rllib_envs.errors import InputError
from rllib_envs.scenario import Predictions
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.catalogue import draw_requests
from rllib_envs.workload.episode import draw_episode
from rllib_envs.workload.predicted import Predicted
from rllib_envs.workload.prediction_table import TABLE, check_ids, read_table, table_of
from rllib_envs.workload.prompt_files import read_prompt_file
from tests.draws import examples
from tests.prompts import MODELS, prompts, write_prompts
from tuning.specs.prompts import with_prompts

RECORDS = prompts(80)
SCENARIO = load_scenario("edge6")
EXPERTS = tuple(replace(expert, model=MODELS[i % 2]) for i, expert in enumerate(SCENARIO.experts))


def values(count, seed=0):
    rng = np.random.default_rng(seed)
    shape = (count, len(MODELS))
    return Predicted(
        score=rng.random(shape),
        output_tokens=1 + 500 * rng.random(shape),
        log_sd=rng.random(shape),
    )


@pytest.fixture
def file(tmp_path):
    return read_prompt_file(str(write_prompts(tmp_path / "prompts.jsonl", RECORDS)))


@pytest.fixture
def folder(file, tmp_path):
    table_of(file, MODELS, values(80)).write(tmp_path / TABLE)
    return tmp_path


def test_every_expert_gets_the_values_of_its_model_at_every_prompt(file, folder):
    predicted, written = read_table(folder).predicted(file, EXPERTS), values(80)
    for name in ("score", "output_tokens", "log_sd"):
        expected = getattr(written, name).astype(np.float32)[:, [0, 1, 0, 1, 0, 1]]
        np.testing.assert_array_equal(getattr(predicted, name), expected)


@examples(30)
@given(order=st.permutations(range(80)), keep=st.integers(1, 80))
def test_neither_order_nor_number_of_prompts_matters(order, keep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("order")
    whole = read_prompt_file(str(write_prompts(folder / "whole.jsonl", RECORDS)))
    part = read_prompt_file(str(write_prompts(folder / "part.jsonl", [RECORDS[i] for i in order[:keep]])))
    table = table_of(whole, MODELS, values(80))
    np.testing.assert_array_equal(table.predicted(part, EXPERTS).score, table.predicted(whole, EXPERTS).score[list(order[:keep])])


@pytest.mark.parametrize("change", [{"id": "new"}, {"prompt": "Another text."}, {"prompt": None}], ids=["id", "text", "no text"])
def test_a_prompt_with_another_id_or_text_is_refused(change, folder):
    other = write_prompts(folder / "other.jsonl", [*RECORDS[:5], RECORDS[5] | change])
    with pytest.raises(InputError, match=r"other\.jsonl: 1 of 6 prompts are not among those .* \(first: '(new|p5)'\)"):
        read_table(folder).predicted(read_prompt_file(str(other)), EXPERTS)


def test_a_model_without_predictions_is_refused(file, folder):
    experts = [replace(EXPERTS[0], model="huge"), *EXPERTS[1:]]
    with pytest.raises(InputError, match=rf"model 'huge' of expert '{EXPERTS[0].name}': they have small, large"):
        read_table(folder).predicted(file, experts)


def test_ids_must_differ(tmp_path):
    with pytest.raises(InputError, match="the id 'p4'"):
        check_ids(read_prompt_file(str(write_prompts(tmp_path / "twice.jsonl", [*RECORDS[:6], RECORDS[4]]))))


def changed(folder, change, metadata=None):
    arrays = load_file(folder / TABLE)
    change(arrays)
    save_file(arrays, folder / TABLE, metadata={"models": json.dumps(MODELS)} if metadata is None else metadata)


DAMAGES = {
    "gone": (lambda f: (f / TABLE).unlink(), "cannot be read"),
    "cut": (lambda f: (f / TABLE).write_bytes((f / TABLE).read_bytes()[:-9]), "damaged"),
    "no bytes": (lambda f: (f / TABLE).write_bytes(b""), "damaged"),
    "no models": (lambda f: changed(f, lambda a: None, metadata={}), "must name different models"),
    "models twice": (lambda f: changed(f, lambda a: None, metadata={"models": '["a", "a"]'}), "must name different models"),
    "models of no JSON": (lambda f: changed(f, lambda a: None, metadata={"models": "["}), "damaged"),
    "another order": (lambda f: changed(f, lambda a: a.update(keys=a["keys"][::-1].copy())), "ascending keys"),
    "one array less": (lambda f: changed(f, lambda a: a.pop("score")), "ascending keys, score"),
    "another type": (lambda f: changed(f, lambda a: a.update(score=a["score"].astype(np.float64))), "score must be float32"),
    "a score above 1": (lambda f: changed(f, lambda a: a["score"].fill(1.01)), "score must be from 0 to 1"),
    "NaN": (lambda f: changed(f, lambda a: a["log_sd"].fill(np.nan)), "log_sd must be from 0"),
    "no tokens": (lambda f: changed(f, lambda a: a["output_tokens"].fill(0)), "output_tokens must be from 1"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_clear_error(damage, message, folder):
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        read_table(folder)
    assert len(str(error.value).splitlines()) == 1


def told(scenario, folder, **fields):
    return replace(scenario, predictions=Predictions(predictors=str(folder), **fields))


@pytest.fixture
def scenario(folder):
    return with_prompts(replace(SCENARIO, experts=EXPERTS), folder / "prompts.jsonl")


def test_requests_have_the_predictions_of_their_prompts(folder, scenario, file):
    drawn = draw_requests(told(scenario, folder), 200, np.random.default_rng(0))
    of_prompt = np.column_stack([file.prompt_tokens, read_table(folder).predicted(file, EXPERTS).score])
    of_request = np.column_stack([drawn.prompt_tokens, drawn.given.score])
    assert set(map(tuple, of_request)) <= set(map(tuple, of_prompt))


def test_predictors_change_predictions_alone(folder, scenario):
    without, with_them = (draw_episode(world, 10.0, 5) for world in (scenario, told(scenario, folder)))
    for name in ("arrival_s", "prompt", "score", "output"):
        np.testing.assert_array_equal(getattr(without, name), getattr(with_them, name))
    assert (without.predicted_score != with_them.predicted_score).any()


def test_predictors_come_before_the_files_own_predictions(folder, tmp_path):
    own = [record | {"predicted_score": [0.123] * 2} for record in RECORDS]
    world = with_prompts(replace(SCENARIO, experts=EXPERTS), write_prompts(tmp_path / "own.jsonl", own))
    assert (draw_requests(world, 5, np.random.default_rng(0)).given.score == 0.123).all()
    assert (draw_requests(told(world, folder), 5, np.random.default_rng(0)).given.score != 0.123).all()


def test_what_does_not_go_together_is_refused(folder, scenario):
    with pytest.raises(ValueError, match="predictors go with law 'auto' or 'given'"):
        told(scenario, folder, law="means")
    with pytest.raises(ValueError, match="predictors predict prompts"):
        told(SCENARIO, folder)


def test_without_predictors_text_and_fingerprint_know_nothing_of_them(folder, scenario):
    assert "predictors" not in SCENARIO.to_yaml()
    assert told(scenario, folder).fingerprint() != scenario.fingerprint()
    assert f"predictors: {folder}" in told(scenario, folder).to_yaml()
