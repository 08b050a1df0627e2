"""Predictors from texts: laws of the statistics, the fit, its corrections, and what is served."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from models.export.manifest import digest
from models.predictors.calibration import Z_OF_COVERAGE, fit_corrections
from models.predictors.fit import Outcomes, fit_weights, folds_of, joined, joint_weights, predict_raw
from models.predictors.held_out import figures_of
from models.predictors.network import FitSettings, fit_networks
from models.predictors.ridge import fit_ridge
from models.predictors.served import Predictors
from models.predictors.text import STATISTICS, statistics_of, text_statistics
from rllib_envs.errors import InputError
from tests.draws import examples
from tests.prompts import MODELS, prompts

pytestmark = pytest.mark.slow


def outcomes(count, seed=0):
    records = prompts(count, seed)
    return Outcomes(
        statistics=statistics_of([record["prompt"] for record in records]),
        score=np.array([record["correct"] for record in records], float),
        log_length=np.log([record["out_tokens"] for record in records]),
    )


@pytest.fixture(scope="module")
def learned():
    return outcomes(400)


@pytest.fixture(scope="module")
def unseen():
    return outcomes(1000, seed=1)


@pytest.fixture(scope="module")
def predictors(learned):
    fold_of = folds_of(len(learned), 3, seed=0)
    parts = [predict_raw(fit_weights(learned.at(fold_of != i), "network", 0), learned.statistics[fold_of == i]) for i in range(3)]
    raw = joined(parts, fold_of)
    corrections = fit_corrections(raw.logit, raw.log_length, raw.log_sd, learned.score, learned.log_length)
    weights = fit_weights(learned, "network", 0)
    return Predictors(models=MODELS, weights=weights, corrections=corrections, usual_novelty=1.5, about={"of": "tests"})


@pytest.fixture
def folder(predictors, tmp_path):
    predictors.save(tmp_path / "p")
    return tmp_path / "p"


@examples(100)
@given(st.text(max_size=200))
def test_statistics_are_finite_and_bounded_for_every_text(text):
    values = text_statistics(text)
    assert values.shape == (len(STATISTICS),)
    assert np.isfinite(values).all()
    assert (np.abs(values) < 400).all()  # but for the mean length of words, all are logarithms or shares


def test_statistics_are_of_the_text_alone_and_tell_texts_apart():
    texts = [
        "What is 12 + 30?",
        "what is 12 + 30",
        "def f(x):\n    return x",
        "",
        "名前は何ですか",
        "1" * 5000,
        "x" * 100_000,
        "\n" * 32_768,
        " " * 32_768,
    ]
    whole = statistics_of(texts)
    assert all((text_statistics(text) == row).all() for text, row in zip(texts, whole, strict=True))
    assert len(np.unique(whole, axis=0)) == len(texts)


def test_a_fit_is_fixed_by_its_seed_and_leaves_the_global_generator_alone(learned):
    some = learned.at(np.arange(100))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (fit_weights(some, "network", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all((first.arrays()[name] == x).all() for name, x in second.arrays().items())
    assert any((first.arrays()[name] != x).any() for name, x in other.arrays().items())


def test_what_is_served_is_what_torch_computes(learned):
    x = np.random.default_rng(0).standard_normal((50, len(STATISTICS)))
    networks = fit_networks(x, learned.score[:50], learned.log_length[:50], FitSettings(epochs=2), seed=0)
    some = replace(learned.at(np.arange(50)), statistics=x)
    weights = fit_weights(some, "network", 0)
    served = joint_weights(networks, weights)
    out = served.outputs(served.standardise(x))
    with torch.no_grad():
        inputs = torch.from_numpy(served.standardise(x))
        expected = torch.stack([network(inputs) for network in networks]).mean(dim=0).numpy()
    np.testing.assert_allclose(out.logit, expected[..., 0], atol=1e-5)
    np.testing.assert_allclose(out.log_length, expected[..., 1] * served.length_scale + served.length_mean, atol=1e-4)


@pytest.mark.parametrize("kind", ["network", "ridge"])
def test_it_learns_what_the_text_says(kind, learned, unseen):
    raw = predict_raw(fit_weights(learned, kind, 0), unseen.statistics)
    assert (1 - (raw.log_length - unseen.log_length).var(axis=0) / unseen.log_length.var(axis=0) > 0.3).all()
    right = unseen.score[:, 0] == 1
    assert raw.logit[right, 0].mean() > raw.logit[~right, 0].mean() + 0.5


def test_a_prompt_is_predicted_without_its_own_outcome(learned):
    """Another outcome of a prompt moves the predictions for other folds, and leaves those of its own as they are."""
    some = learned.at(np.arange(300))
    fold_of = folds_of(300, 3, seed=0)
    changed = replace(some, log_length=some.log_length.copy())
    changed.log_length[fold_of == 1] += 2.0

    def out_of_fold(outcomes):
        fits = [fit_weights(outcomes.at(fold_of != i), "ridge", 0) for i in range(3)]
        return joined([predict_raw(fits[i], outcomes.statistics[fold_of == i]) for i in range(3)], fold_of)

    before, after = out_of_fold(some).log_length, out_of_fold(changed).log_length
    np.testing.assert_array_equal(before[fold_of == 1], after[fold_of == 1])
    assert (before[fold_of != 1] != after[fold_of != 1]).all()


def test_folds_are_of_one_size_and_of_the_seed():
    assert set(np.bincount(folds_of(103, 5, 0))) == {20, 21}
    assert (folds_of(103, 5, 0) == folds_of(103, 5, 0)).all()
    assert (folds_of(103, 5, 0) != folds_of(103, 5, 1)).any()


def test_missing_outcomes_are_learned_around(learned):
    for kind in ("network", "ridge"):
        some = learned.at(np.arange(200))
        gaps = replace(some, score=some.score.copy(), log_length=some.log_length.copy())
        gaps.score[::2, 0], gaps.log_length[1::2, 1] = np.nan, np.nan
        raw = predict_raw(fit_weights(gaps, kind, 0), some.statistics)
        assert all(np.isfinite(x).all() for x in (raw.logit, raw.log_length, raw.log_sd))


@examples(30)
@given(seed=st.integers(0, 2**32 - 1), slope=st.floats(0.1, 4.0), offset=st.floats(-2.0, 2.0), sd=st.floats(0.1, 1.5))
def test_corrections_find_what_is_wrong(seed, slope, offset, sd):
    """Platt: an estimate of maximum likelihood is normal about the truth, with the inverse of Fisher's information as covariance.

    Six standard deviations are left by one draw in 500 million. A quantile of n errors leaves its share of them to one in n.
    """
    rng, n = np.random.default_rng(seed), 3000
    logit, length = rng.standard_normal((n, 1)) * 1.5, 5 + 0.3 * rng.standard_normal((n, 1))
    right = 1 / (1 + np.exp(-(slope * logit + offset)))
    score = (rng.random((n, 1)) < right).astype(float)
    truth = length + sd * rng.standard_normal((n, 1))
    found = fit_corrections(logit, length, np.full((n, 1), 0.5), score, truth)
    x = np.hstack([logit, np.ones((n, 1))])
    deviations = np.sqrt(np.linalg.inv((x * right * (1 - right)).T @ x).diagonal())
    assert (np.abs([found.slope[0] - slope, found.offset[0] - offset]) <= 6 * deviations).all()
    within = np.abs(truth - length) <= Z_OF_COVERAGE * 0.5 * found.sd_factor
    assert within.mean() == pytest.approx(0.8, abs=2 / n)  # one for the quantile, one for rounding at it
    np.testing.assert_allclose((np.exp(length) * found.smearing).sum(axis=0), np.exp(truth).sum(axis=0))

    def loss(p):
        return -(score * np.log(p) + (1 - score) * np.log1p(-p)).mean()

    assert loss(found.score(logit)) <= loss(1 / (1 + np.exp(-logit))) + 1e-9  # Platt never makes it worse where it is fitted


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_a_model_that_is_always_right_or_always_wrong_is_no_trouble(score):
    zeros = np.zeros((100, 1))
    found = fit_corrections(zeros, zeros + 5, zeros + 0.5, zeros + score, zeros + 5.1)
    assert all(np.isfinite(x).all() for x in (found.slope, found.offset, found.sd_factor, found.smearing))
    assert found.score(zeros)[0, 0] == pytest.approx(score, abs=0.01)


def test_on_other_prompts_they_are_calibrated(predictors, unseen):
    found = predictors.predict_from(unseen.statistics)
    assert found.score.mean(axis=0) == pytest.approx(unseen.score.mean(axis=0), abs=0.06)
    assert found.output_tokens.sum(axis=0) == pytest.approx(np.exp(unseen.log_length).sum(axis=0), rel=0.1)
    error = np.abs(unseen.log_length - np.log(found.output_tokens / predictors.corrections.smearing))
    assert (error <= Z_OF_COVERAGE * found.log_sd).mean() == pytest.approx(0.8, abs=0.06)


def test_what_nobody_has_seen_is_novel(predictors, unseen):
    usual = predictors.predict_from(unseen.statistics).novelty
    strange = predictors.predict(["\\frac{\\alpha}{\\beta}" * 300, "答えは何ですか" * 500]).novelty
    assert strange.min() > np.quantile(usual, 0.99)


def test_what_went_in_comes_out(folder, predictors):
    loaded = Predictors.load(folder)
    texts = ["Compute 1 + 2.", "Write a poem."]
    for name in ("score", "output_tokens", "log_sd", "novelty"):
        np.testing.assert_array_equal(getattr(loaded.predict(texts), name), getattr(predictors.predict(texts), name))
    assert (loaded.models, loaded.about) == (MODELS, {"of": "tests"})


def rewritten(folder, change):
    """Weights that are changed, with the digests that belong to them."""
    path, where = folder / "predictors.safetensors", folder / "predictors.json"
    arrays = load_file(path)
    change(arrays)
    save_file(arrays, path)
    contents = json.loads(where.read_text())
    contents["sha256"][path.name], contents["bytes"][path.name] = digest(path), path.stat().st_size
    where.write_text(json.dumps(contents))


def described(folder, **changes):
    where = folder / "predictors.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | changes))


DAMAGES = {
    "no description": (lambda f: (f / "predictors.json").unlink(), "predictors.json is missing"),
    "another format": (lambda f: described(f, format="edgeroute-predictors-0"), "another version"),
    "other statistics": (lambda f: described(f, statistics={"version": 0, "names": []}), "fit the predictors anew"),
    "models twice": (lambda f: described(f, models=["a", "a"]), "different names"),
    "one more model": (lambda f: described(f, models=["a", "b", "c"]), "length_mean must be"),
    "no novelty": (lambda f: described(f, usual_novelty=0.0), "usual_novelty = 0.0"),
    "one more file": (lambda f: (f / "more.pkl").write_bytes(b"x"), "more.pkl"),
    "a byte": (
        lambda f: (f / "predictors.safetensors").write_bytes((f / "predictors.safetensors").read_bytes() + b"x"),
        "predictors.safetensors",
    ),
    "not finite": (lambda f: rewritten(f, lambda a: a["skip"].fill(np.nan)), "skip has values that are not finite"),
    "scale 0": (lambda f: rewritten(f, lambda a: a["scale"].fill(0)), "scale must be positive"),
    "one more array": (lambda f: rewritten(f, lambda a: a.update(more=np.zeros(1))), "'more' is no array"),
    "one array less": (lambda f: rewritten(f, lambda a: a.pop("heads")), "heads must be"),
    "another type": (lambda f: rewritten(f, lambda a: a.update(bias=a["bias"].astype(np.float64))), "bias must be float32"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_clear_error(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        Predictors.load(folder)
    assert len(str(error.value).splitlines()) == 1


def test_serving_imports_neither_torch_nor_ray(folder):
    code = (
        "import sys; from pathlib import Path; from models.predictors.served import Predictors;"
        f"Predictors.load(Path({str(folder)!r})).predict(['What is 1 + 1?']);"
        "print([name for name in ('torch', 'ray', 'numba', 'scipy') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("gone", ["scores", "lengths"])
def test_figures_of_what_was_never_run_are_of_the_rest(gone):
    rng = np.random.default_rng(0)
    score, length = rng.random((50, 2)), 5 + rng.random((50, 2))
    truth = {"scores": (rng.random((50, 2)) < score).astype(float), "lengths": length + 0.1}
    truth[gone][:, 1] = np.nan
    found = figures_of(score, np.exp(length), np.full((50, 2), 0.5), length, truth["scores"], truth["lengths"], best=0)
    assert np.isfinite([found.auc, found.brier, found.log_length_r2, found.log_length_mae]).all()
    assert np.isnan(found.argmax) == (gone == "scores")


def test_ridge_learns_nothing_from_noise_and_a_line_from_a_line():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 10))
    skip, bias = fit_ridge(x, rng.random((400, 1)), (2 * x[:, :1] + 0.5))
    skip = skip.reshape(10, 1, 3)
    assert np.abs(skip[:, 0, 0]).max() < 0.35
    np.testing.assert_allclose(skip[:, 0, 1], [2.0, *[0.0] * 9], atol=0.02)
    assert bias[1] == pytest.approx(0.5, abs=0.02)
