"""What the router is told: where it comes from, and that each further error does what its name says and nothing when off."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_envs.scenario import Predictions
from rllib_envs.workload.catalogue import RequestBatch
from rllib_envs.workload.predicted import Predicted
from rllib_envs.workload.predictions import predict
from tests.draws import examples

M, N = 4000, 3
EXACT: dict[str, Any] = {"score_sd": 0.0, "length_log_sd": 0.0}


def batch(m: int = M, binary: bool = False) -> RequestBatch:
    rng = np.random.default_rng(1)
    probability = rng.uniform(0.3, 0.7, (m, N))
    return RequestBatch(
        prompt_tokens=np.ones(m, dtype=np.int32),
        score=(rng.random((m, N)) < probability).astype(float) if binary else probability,
        probability=probability,
        output_tokens=rng.integers(1, 5000, (m, N)).astype(np.int32),
        means=Predicted(score=np.full((1, N), 0.5), output_tokens=np.full((1, N), 2500.0), log_sd=np.full((1, N), 1.0)),
    )


def tell(requests: RequestBatch, seed: int = 0, **changes: Any) -> Predicted:
    return predict(Predictions(**({"law": "oracle-noise"} | changes)), requests, np.random.default_rng(seed))


@pytest.mark.parametrize("binary", [False, True])
def test_with_every_error_off_the_truth_is_told(binary: bool) -> None:
    requests = batch(binary=binary)
    told = tell(requests, **EXACT)
    np.testing.assert_array_equal(told.score, requests.probability)
    np.testing.assert_array_equal(told.output_tokens, requests.output_tokens)


def test_score_noise_is_unbiased_and_has_its_standard_deviation() -> None:
    requests = batch()
    error = tell(requests, score_sd=0.05, length_log_sd=0.0).score - requests.score
    assert error.mean() == pytest.approx(0, abs=5 * 0.05 / np.sqrt(M * N))
    assert error.std() == pytest.approx(0.05, rel=0.05)


def test_length_noise_is_right_in_the_median_and_has_its_standard_deviation() -> None:
    requests = batch()
    requests = RequestBatch(**{**_fields(requests), "output_tokens": requests.output_tokens + 500})  # away from the bound at 1
    error = np.log(tell(requests, score_sd=0.0, length_log_sd=0.4).output_tokens / requests.output_tokens)
    assert error.mean() == pytest.approx(0, abs=5 * 0.4 / np.sqrt(M * N))
    assert error.std() == pytest.approx(0.4, rel=0.05)


def test_errors_scale_with_their_setting_request_by_request() -> None:
    requests = batch()
    small, large = (tell(requests, score_sd=sd, length_log_sd=0.0).score - requests.score for sd in (0.02, 0.04))
    np.testing.assert_allclose(large, 2 * small, atol=1e-12)


def test_errors_of_scores_and_lengths_are_independent_of_each_other() -> None:
    requests = batch()
    told = tell(requests, score_sd=0.05, length_log_sd=0.1)
    np.testing.assert_array_equal(told.score, tell(requests, score_sd=0.05, length_log_sd=0.0).score)
    np.testing.assert_array_equal(told.output_tokens, tell(requests, score_sd=0.0, length_log_sd=0.1).output_tokens)
    score_error, length_error = told.score - requests.score, np.log(told.output_tokens / requests.output_tokens)
    assert abs(np.corrcoef(score_error.ravel(), length_error.ravel())[0, 1]) < 5 / np.sqrt(M * N)


def test_bias_adds_to_scores_and_factor_multiplies_lengths() -> None:
    requests = batch()
    told = tell(requests, **EXACT, score_bias=0.2, length_factor=1.5)
    np.testing.assert_allclose(told.score, requests.score + 0.2)
    np.testing.assert_allclose(told.output_tokens, 1.5 * requests.output_tokens)


def test_scores_stay_within_zero_and_one() -> None:
    requests = batch()
    assert (tell(requests, **EXACT, score_bias=5.0).score == 1).all()
    assert (tell(requests, **EXACT, score_bias=-5.0).score == 0).all()


def test_what_is_told_of_a_binary_score_does_not_give_its_luck_away() -> None:
    requests = batch(binary=True)
    other_luck = RequestBatch(**{**_fields(requests), "score": 1 - requests.score})
    np.testing.assert_array_equal(tell(requests).score, tell(other_luck).score)


def test_a_hidden_kind_runs_longer_than_told_at_every_expert() -> None:
    requests = batch()
    requests = RequestBatch(**{**_fields(requests), "output_tokens": requests.output_tokens + 10})
    ratio = requests.output_tokens / tell(requests, **EXACT, hidden_share=0.2, hidden_factor=3.0).output_tokens
    hidden = np.isclose(ratio, 3.0)
    np.testing.assert_allclose(ratio[~hidden], 1.0)
    assert (hidden.all(axis=1) == hidden.any(axis=1)).all()
    assert hidden[:, 0].mean() == pytest.approx(0.2, abs=5 * np.sqrt(0.16 / M))


@pytest.mark.parametrize(("share", "factor"), [(0.0, 3.0), (1.0, 1.0)])
def test_no_hidden_share_or_a_factor_of_one_changes_nothing(share: float, factor: float) -> None:
    requests = batch()
    told = tell(requests, **EXACT, hidden_share=share, hidden_factor=factor)
    np.testing.assert_array_equal(told.output_tokens, requests.output_tokens)


@examples(50)
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=8, unique=True))
def test_lengths_are_told_as_the_nearest_bucket_in_ratio(buckets: list[int]) -> None:
    requests = batch(200)
    told = tell(requests, **EXACT, length_buckets=tuple(buckets)).output_tokens
    distance = np.abs(np.log(requests.output_tokens[..., None] / np.array(buckets)))
    assert np.isin(told, buckets).all()
    np.testing.assert_allclose(np.abs(np.log(told / requests.output_tokens)), distance.min(axis=-1), atol=1e-9)


@examples(50)
@given(
    score_sd=st.floats(0, 1e6),
    score_bias=st.floats(-1e6, 1e6),
    length_log_sd=st.floats(0, 10),
    length_factor=st.floats(1e-6, 1e9),
    hidden_share=st.floats(0, 1),
    hidden_factor=st.floats(1, 1e6),
)
def test_every_setting_tells_legal_figures(**changes: float) -> None:
    told = tell(batch(50), **changes)
    assert told.score.dtype == told.output_tokens.dtype == np.float64
    assert np.isfinite(told.output_tokens).all()
    assert (told.output_tokens >= 1).all()
    assert ((told.score >= 0) & (told.score <= 1)).all()


def test_same_seed_same_predictions() -> None:
    requests = batch()
    a, b, c = tell(requests, seed=3), tell(requests, seed=3), tell(requests, seed=4)
    np.testing.assert_array_equal(a.score, b.score)
    np.testing.assert_array_equal(a.output_tokens, b.output_tokens)
    assert (a.score != c.score).mean() > 0.9


def test_predicting_leaves_the_requests_alone() -> None:
    requests, untouched = batch(), batch()
    tell(requests, hidden_share=0.5, length_buckets=(64, 512))
    for name in ("prompt_tokens", "score", "probability", "output_tokens"):
        np.testing.assert_array_equal(getattr(requests, name), getattr(untouched, name))


def _fields(requests: RequestBatch) -> dict[str, Any]:
    return {name: getattr(requests, name) for name in RequestBatch.__dataclass_fields__}
