"""Encoders beside the statistics: what is learned from them, and that those of another version are refused."""

import json
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest

from models.predictors import encoders
from models.predictors.calibration import fit_corrections
from models.predictors.encoders import KINDS, Kind, load_encoder
from models.predictors.fit import Outcomes, fit_weights, predict_raw
from models.predictors.served import Predictors, inputs_of
from models.predictors.text import STATISTICS
from rllib_envs.errors import InputError
from tests.prompts import MODELS

pytestmark = pytest.mark.slow

LETTERS = "aeionrst"


def letters():
    return lambda text: np.array([text.count(letter) / max(len(text), 1) for letter in LETTERS], np.float32)


@pytest.fixture
def encoder(monkeypatch):
    """An encoder that needs no extra: shares of letters. Its version is NumPy's."""
    kind = Kind(extra="predictors-letters", packages=("numpy",), modules=("numpy",), width=len(LETTERS), load=letters)
    monkeypatch.setattr(encoders, "KINDS", {"letters": kind})
    return load_encoder("letters")


@pytest.fixture
def learned(encoder):
    """Prompts whose answers are the longer the more often a letter comes, which no statistic tells."""
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("aeionrstxyzq"), 5)) for _ in range(30)) for _ in range(300)]
    inputs = inputs_of(texts, encoder)
    length = 5 + 40 * inputs[:, -1:] + 0.1 * rng.standard_normal((300, 2))
    return Outcomes(statistics=inputs, score=(rng.random((300, 2)) < 0.5).astype(float), log_length=length)


@pytest.fixture
def folder(encoder, learned, tmp_path):
    weights = fit_weights(learned, "ridge", 0, encoder.width)
    raw = predict_raw(weights, learned.statistics)
    corrections = fit_corrections(raw.logit, raw.log_length, raw.log_sd, learned.score, learned.log_length)
    predictors = Predictors(models=MODELS, weights=weights, corrections=corrections, usual_novelty=1.5, about={}, encoder=encoder)
    predictors.save(tmp_path / "p")
    return tmp_path / "p"


def test_what_the_encoder_alone_tells_is_learned(encoder, learned):
    fitted, asked = learned.at(np.arange(200)), learned.at(np.arange(200, 300))
    error = {}
    for name, width in (("both", encoder.width), ("statistics", 0)):
        some = [replace(part, statistics=part.statistics[:, : len(STATISTICS) + width]) for part in (fitted, asked)]
        raw = predict_raw(fit_weights(some[0], "ridge", 0, width), some[1].statistics)
        error[name] = float(np.square(raw.log_length - asked.log_length).mean())
    assert error["both"] < 0.25 * error["statistics"]


@pytest.mark.parametrize("kind", ["ridge", "network"])
def test_of_the_embedding_only_its_principal_components_count(kind, monkeypatch, learned, encoder):
    """Weights are over all inputs. A change that no principal component sees moves nothing."""
    monkeypatch.setattr("models.predictors.fit.DIRECTIONS", 3)
    weights = fit_weights(learned.at(np.arange(64)), kind, 0, encoder.width)
    own = len(STATISTICS)
    linear = weights.skip[own:] if kind == "ridge" else np.hstack([weights.first[own:], weights.skip[own:]])
    assert np.linalg.matrix_rank(linear, tol=1e-4 * np.abs(linear).max()) == 3
    assert weights.skip.shape[0] == own + encoder.width


def test_what_went_in_comes_out_with_the_encoder(folder, encoder):
    assert json.loads((folder / "predictors.json").read_text())["encoder"] == {
        "name": "letters",
        "packages": {"numpy": version("numpy")},
    }
    loaded = Predictors.load(folder)
    texts = ["Write a poem about rain.", "Compute 1 + 2.", ""]
    assert loaded.encoder is not None
    assert loaded.encoder.versions == encoder.versions
    together = loaded.predict(texts)
    for i, text in enumerate(texts):
        np.testing.assert_allclose(loaded.predict([text]).output_tokens[0], together.output_tokens[i], rtol=1e-5)


def described(folder, encoder):
    where = folder / "predictors.json"
    where.write_text(json.dumps(json.loads(where.read_text()) | {"encoder": encoder}))


FAULTS = {
    "another version": ({"name": "letters", "packages": {"numpy": "1.0"}}, r"fitted with another: pip install 'numpy==1.0'"),
    "no such encoder": ({"name": "words", "packages": {}}, r"encoder = 'words': must be stats, letters"),
    "no name": ({"packages": {}}, r"must have a name, and packages with their versions"),
    "no encoder": ("letters", r"must have a name, and packages with their versions"),
    "a command": (
        {"name": "letters", "packages": {"numpy": "1'; echo '"}},
        r"must have a name, and packages with their versions",
    ),
    "none": (None, r"does not fit: mean must be float32 \[62\]"),
}


@pytest.mark.parametrize(("encoder_of", "message"), FAULTS.values(), ids=FAULTS)
def test_another_encoder_is_refused_in_one_line(folder, encoder_of, message):
    described(folder, encoder_of)
    with pytest.raises(InputError, match=message) as error:
        Predictors.load(folder)
    assert len(str(error.value).splitlines()) == 1
    assert str(folder) in str(error.value)


def test_an_extra_that_is_not_installed_is_named(encoder, monkeypatch):
    absent = replace(encoders.KINDS["letters"], packages=("no-such-package-of-letters",))
    monkeypatch.setattr(encoders, "KINDS", {"letters": absent})
    with pytest.raises(InputError, match=r"pip install 'edgeroute\[predictors-letters\]'"):
        load_encoder("letters")


def test_what_breaks_within_a_package_is_one_line(encoder, monkeypatch):
    def broken():
        raise RuntimeError("no weights\nat all")

    monkeypatch.setattr(encoders, "KINDS", {"letters": replace(encoders.KINDS["letters"], load=broken)})
    with pytest.raises(InputError, match="cannot be loaded: no weights at all"):
        load_encoder("letters")


@pytest.mark.parametrize("name", KINDS)
def test_an_installed_encoder_is_of_the_text_alone(name):
    try:
        encoder = load_encoder(name)
    except InputError as error:
        pytest.skip(str(error))
    texts = [
        "A poem about rain",
        "Verses on the weather",
        "def f(x):\n    return x",
        "",
        "\ud800 名前",
        "x " * 50_000,
        "word " * 3000,
    ]
    found = encoder(texts)
    assert found.shape == (len(texts), KINDS[name].width)
    assert np.isfinite(found).all()
    assert (encoder(texts[::-1]) == found[::-1]).all()
    poem, verses, code = found[:3] / np.linalg.norm(found[:3], axis=1, keepdims=True)
    assert poem @ verses > poem @ code
