"""The catalogue: the synthetic law against the moments it was fitted to, and the reader of prompt files."""

import gzip
import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.scenario import Catalogue, Scenario, Workload
from rllib_envs.service import ServiceClass
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.workload import catalogue as shipped
from rllib_envs.workload.catalogue import RequestBatch, draw_requests
from rllib_envs.workload.lengths import LENGTH_NOISE_LOG_SD, given_lengths
from rllib_envs.workload.prompt_files import in_train_split, read_prompt_file
from tests.draws import examples

ENGINE = EngineProfile(c0_ms=10, b_ms=0, c_ms=0, a_ms=0, n0_tokens=0, q_ms=0, kv_tokens=8192, kv_bytes_per_token=1)

ZEROEVAL = {  # model: mean 0/1 score, mean output tokens
    "gemma-2-2b-it": (0.312, 373.1),
    "Phi-3.5-mini-instruct": (0.543, 455.1),
    "Qwen2-7B-Instruct": (0.539, 248.0),
    "Meta-Llama-3-8B-Instruct": (0.491, 337.7),
    "Meta-Llama-3.1-8B-Instruct": (0.559, 520.1),
    "gemma-2-9b-it": (0.585, 246.0),
    "Yi-1.5-9B-Chat": (0.533, 351.5),
}
# What the file says of these seven, and how near the synthetic catalogue must come: one factor cannot meet score correlation and
# oracle at once; lengths have heavy tails, so their sample correlation is uncertain too.
TARGETS = {
    "score_correlation": (0.531, 0.02),
    "oracle": (0.771, 0.02),
    "length_correlation": (0.329, 0.03),
    "score_length_correlation": (-0.271, 0.02),
    "length_log_sd": (0.718, 0.01),
}


def pool(answers: dict[str, tuple[float, float]] = ZEROEVAL, **catalogue: Any) -> Scenario:
    experts = tuple(
        Expert(name=f"e{i}", model=model, gpu="G", params_b=1, engine=ENGINE, mean_score=score, mean_output_tokens=tokens)
        for i, (model, (score, tokens)) in enumerate(answers.items())
    )
    return Scenario(name="pool", experts=experts, slo_s_per_token=0.06, workload=Workload(catalogue=Catalogue(**catalogue)))


def draw(scenario: Scenario, n: int, seed: int = 0) -> RequestBatch:
    return draw_requests(scenario, n, np.random.default_rng(seed))


def assert_equal(a: RequestBatch, b: RequestBatch) -> None:
    for name in ("prompt_tokens", "score", "probability", "output_tokens"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.fixture(scope="module")
def fitting() -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "fit_catalogue.py"
    spec = importlib.util.spec_from_file_location("fit_catalogue", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def binary() -> RequestBatch:
    return draw(pool(scores="binary"), 200_000)


@pytest.fixture(scope="session")
def zeroeval(data_dir: Path) -> Path:
    return data_dir / "zeroeval" / "zeroeval_gsm_crux_math.jsonl.gz"


def test_binary_catalogue_has_the_published_moments(fitting: ModuleType, binary: RequestBatch) -> None:
    found = fitting.moments(binary.score, binary.output_tokens)
    for name, (target, tolerance) in TARGETS.items():
        assert getattr(found, name) == pytest.approx(target, abs=tolerance), name


def test_binary_catalogue_has_the_moments_of_the_real_file(fitting: ModuleType, binary: RequestBatch, zeroeval: Path) -> None:
    score, output_tokens = fitting.read_pool(zeroeval)
    real, found = fitting.moments(score, output_tokens), fitting.moments(binary.score, binary.output_tokens)
    for name, (target, tolerance) in TARGETS.items():
        assert getattr(real, name) == pytest.approx(target, abs=6e-4), name
        assert getattr(found, name) == pytest.approx(getattr(real, name), abs=tolerance), name
    np.testing.assert_allclose(score.mean(axis=0), [mean for mean, _ in ZEROEVAL.values()], atol=6e-4)
    np.testing.assert_allclose(output_tokens.mean(axis=0), [mean for _, mean in ZEROEVAL.values()], atol=0.06)


def test_shipped_constants_are_the_fit_to_the_real_file(fitting: ModuleType, zeroeval: Path) -> None:
    score, output_tokens = fitting.read_pool(zeroeval)
    fit = fitting.fit_constants(score.mean(axis=0), fitting.moments(score, output_tokens))
    assert fit.shared_variance == pytest.approx(shipped.SHARED_VARIANCE, abs=1e-3)
    assert fit.length_log_sd == pytest.approx(shipped.LENGTH_LOG_SD, abs=1e-3)
    assert fit.length_ease == pytest.approx(shipped.LENGTH_EASE, abs=1e-3)
    assert fit.length_shared == pytest.approx(shipped.LENGTH_SHARED, abs=1e-3)
    assert fitting.noise_log_sd(output_tokens) == pytest.approx(LENGTH_NOISE_LOG_SD, abs=1e-3)


def test_model_moments_are_those_of_draws(fitting: ModuleType, binary: RequestBatch) -> None:
    constants = fitting.Fit(
        shared_variance=shipped.SHARED_VARIANCE,
        length_log_sd=shipped.LENGTH_LOG_SD,
        length_ease=shipped.LENGTH_EASE,
        length_shared=shipped.LENGTH_SHARED,
    )
    exact = fitting.model_moments(np.array([mean for mean, _ in ZEROEVAL.values()]), constants)
    found = fitting.moments(binary.score, binary.output_tokens)
    for name in TARGETS:
        assert getattr(found, name) == pytest.approx(getattr(exact, name), abs=0.01), name


@pytest.mark.parametrize("scores", ["continuous", "binary"])
def test_means_are_the_experts(scores: str) -> None:
    batch = draw(pool(scores=scores, prompt_tokens_mean=400, prompt_tokens_cv=0.8), 200_000)
    np.testing.assert_allclose(batch.score.mean(axis=0), [mean for mean, _ in ZEROEVAL.values()], atol=0.005)
    np.testing.assert_allclose(batch.output_tokens.mean(axis=0), [mean for _, mean in ZEROEVAL.values()], rtol=0.01)
    assert batch.prompt_tokens.mean() == pytest.approx(400, rel=0.01)
    assert batch.prompt_tokens.std() / batch.prompt_tokens.mean() == pytest.approx(0.8, rel=0.03)


def test_probability_is_the_chance_of_a_correct_answer(binary: RequestBatch) -> None:
    for low in np.arange(0, 1, 0.1):
        inside = (binary.probability >= low) & (binary.probability < low + 0.1)
        sigma = 0.5 / np.sqrt(inside.sum())
        assert binary.score[inside].mean() == pytest.approx(binary.probability[inside].mean(), abs=5 * sigma)
    assert set(np.unique(binary.score)) == {0.0, 1.0}


def test_continuous_scores_are_their_own_probability_and_keep_half_of_the_oracles_lead(binary: RequestBatch) -> None:
    batch = draw(pool(), 200_000)
    np.testing.assert_array_equal(batch.score, batch.probability)
    best_single = max(mean for mean, _ in ZEROEVAL.values())
    lead = batch.score.max(axis=1).mean() - best_single
    assert 0.5 < lead / (binary.score.max(axis=1).mean() - best_single) < 1


def test_failures_are_longer_at_every_expert(binary: RequestBatch) -> None:
    for e in range(len(ZEROEVAL)):
        right = binary.score[:, e] == 1
        assert binary.output_tokens[~right, e].mean() > 1.1 * binary.output_tokens[right, e].mean()


def test_experts_with_the_same_model_give_the_same_answer() -> None:
    experts = pool(scores="binary").experts
    twin = replace(experts[1], name="twin")
    batch = draw(replace(pool(scores="binary"), experts=(*experts, twin)), 1000)
    np.testing.assert_array_equal(batch.score[:, 1], batch.score[:, -1])
    np.testing.assert_array_equal(batch.output_tokens[:, 1], batch.output_tokens[:, -1])
    assert (batch.output_tokens[:, 1] != batch.output_tokens[:, 2]).mean() > 0.9


@pytest.mark.parametrize("scores", ["continuous", "binary"])
def test_same_seed_same_requests(scores: str) -> None:
    scenario = pool(scores=scores)
    assert_equal(draw(scenario, 500, seed=7), draw(scenario, 500, seed=7))
    assert (draw(scenario, 500, seed=7).output_tokens != draw(scenario, 500, seed=8).output_tokens).any()


def test_a_traces_prompts_replace_the_drawn_ones_and_nothing_else() -> None:
    own = draw(pool(), 300)
    prompts = np.arange(300) - 5
    traced = draw_requests(pool(), 300, np.random.default_rng(0), prompts)
    np.testing.assert_array_equal(traced.prompt_tokens, np.maximum(prompts, 1))
    assert_equal(own, replace(traced, prompt_tokens=own.prompt_tokens))
    with pytest.raises(InputError, match=r"prompt_tokens: shape \(299,\), must be \(300,\)"):
        draw_requests(pool(), 300, np.random.default_rng(0), prompts[1:])


@examples(40)
@given(
    mean_score=st.floats(1e-6, 1 - 1e-6),
    tokens=st.floats(2, 1e9),
    prompt=st.floats(1e-3, 1e9),
    cv=st.floats(1e-3, 1e3),
    scores=st.sampled_from(["continuous", "binary"]),
    n=st.integers(0, 50),
)
def test_every_setting_gives_legal_requests(
    mean_score: float, tokens: float, prompt: float, cv: float, scores: str, n: int
) -> None:
    answers = {"a": (mean_score, tokens), "b": (0.5, 2.0)}
    batch = draw(pool(answers, scores=scores, prompt_tokens_mean=prompt, prompt_tokens_cv=cv), n)
    assert batch.prompt_tokens.shape == (n,)
    assert batch.score.shape == batch.output_tokens.shape == batch.probability.shape == (n, 2)
    assert batch.prompt_tokens.dtype == batch.output_tokens.dtype == np.int32
    assert batch.score.dtype == batch.probability.dtype == np.float64
    assert (batch.prompt_tokens >= 1).all()
    assert (batch.output_tokens >= 1).all()
    assert ((batch.score >= 0) & (batch.score <= 1) & (batch.probability >= 0) & (batch.probability <= 1)).all()


# --- files -----------------------------------------------------------------------------------------------------------

HEADER = {"header": True, "models": ["a", "b", "c"], "fields": ["correct", "out_tokens"]}


def row(i: int, **changes: Any) -> dict[str, Any]:
    """Prompt i: lengths tell the prompt (and expert) apart; task 'even' is solved by a and never by b."""
    even = i % 2 == 0
    task = "even" if even else "odd"
    answers = {"correct": [int(even), int(not even), None], "out_tokens": [10 * i + 1, 10 * i + 2, None]}
    return {"id": f"p{i}", "task": task, "prompt": "?", "prompt_tokens": i, **answers, **changes}


def write(path: Path, records: list[Any]) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    return path


def file_pool(path: Path, split: str = "all", models: tuple[str, ...] = ("b", "a")) -> Scenario:
    return pool(dict.fromkeys(models, (0.5, 100.0)), kind="file", path=str(path), split=split)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write(tmp_path / "prompts.jsonl", [HEADER, *map(row, range(400))])


def test_file_requests_are_prompts_of_the_file_with_the_experts_columns(prompts: Path) -> None:
    batch = draw(file_pool(prompts), 5000)
    number = batch.output_tokens[:, 1] // 10
    np.testing.assert_array_equal(batch.output_tokens, np.stack([10 * number + 2, 10 * number + 1], axis=1))
    np.testing.assert_array_equal(batch.prompt_tokens, np.maximum(number, 1))
    np.testing.assert_array_equal(batch.score, np.stack([number % 2 == 1, number % 2 == 0], axis=1).astype(float))
    assert len(np.unique(number)) > 390  # with replacement, from all of it


def test_train_and_test_splits_share_no_prompt_and_make_the_whole(prompts: Path) -> None:
    drawn = {split: set(draw(file_pool(prompts, split), 20_000).output_tokens[:, 1]) for split in ("train", "test", "all")}
    assert drawn["train"].isdisjoint(drawn["test"])
    assert drawn["train"] | drawn["test"] == drawn["all"]
    assert drawn["train"] == {10 * i + 1 for i in range(400) if in_train_split(f"p{i}")}


def test_split_shares_are_seventy_and_thirty() -> None:
    share = np.mean([in_train_split(f"prompt-{i}") for i in range(20_000)])
    assert share == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / 20_000))


def test_told_probability_of_a_file_is_the_task_mean_of_the_train_split(prompts: Path) -> None:
    batch = draw(file_pool(prompts, "test"), 2000)
    even = batch.prompt_tokens % 2 == 0
    assert len(np.unique(batch.probability[even], axis=0)) == 1  # it knows the task, not the prompt
    train_evens = sum(in_train_split(f"p{i}") for i in range(0, 400, 2))
    certain = 1 - 1 / (train_evens + 1)  # all right on train; one more prompt with the overall mean
    assert (batch.probability[even, 1] >= certain).all()
    assert (batch.probability[even, 1] < 1).all()
    assert (batch.probability[even, 0] <= 1 - certain).all()
    assert (batch.probability[even, 0] > 0).all()


def test_an_id_may_hold_half_a_character_as_json_allows() -> None:
    assert {in_train_split(f"\ud800{i}") for i in range(50)} == {True, False}


def test_task_means_of_a_file_are_those_of_the_train_split_whatever_is_asked(prompts: Path) -> None:
    train = [i for i in range(400) if in_train_split(f"p{i}")]
    for split in ("train", "test"):
        batch = draw(file_pool(prompts, split), 500)
        told = batch.task_means
        assert told is not None
        for remainder in (0, 1):
            asked = batch.prompt_tokens % 2 == remainder  # task even or odd; but for prompt 0, whose length is 1
            asked &= batch.prompt_tokens > 1
            mean = np.mean([i for i in train if i % 2 == remainder])
            expected = [10 * mean + 2, 10 * mean + 1]  # experts b and a
            np.testing.assert_allclose(told.output_tokens[asked], np.tile(expected, (asked.sum(), 1)))
            np.testing.assert_allclose(told.score[asked], np.tile([remainder, 1 - remainder], (asked.sum(), 1)))


def test_predictions_of_a_file_know_where_half_of_the_answers_are_longer(prompts: Path) -> None:
    """On the train split, whatever is asked: so calibration finds nothing wrong with means, though most answers are shorter."""
    learned, asked = (draw(file_pool(prompts, split), 3000) for split in ("train", "test"))
    for told in ("means", "task_means"):
        known, same = getattr(learned, told), getattr(asked, told)
        np.testing.assert_array_equal(known.median, same.median)
        errors = np.log(learned.output_tokens / known.output_tokens)
        assert (np.abs((errors > known.median).mean(axis=0) - 0.5) < 0.05).all()
        assert (known.median != -np.square(known.log_sd).mean(axis=0) / 2).all()


def test_a_task_of_one_prompt_has_the_means_of_all(tmp_path: Path) -> None:
    alone = next(i for i in range(2, 400) if in_train_split(f"p{i}"))
    rows = [row(i, task="alone" if i == alone else "all") for i in range(400)]
    batch = draw(file_pool(write(tmp_path / "f.jsonl", [HEADER, *rows])), 3000)
    assert batch.task_means is not None
    own = batch.prompt_tokens == alone
    np.testing.assert_allclose(batch.task_means.score[own], np.broadcast_to(batch.means.score, (own.sum(), 2)))
    assert own.any()


def test_fractional_scores_of_a_file_are_their_own_probability(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", [HEADER, *(row(i, correct=[i / 50, 0.5, 1]) for i in range(50))])
    batch = draw(file_pool(path), 200)
    np.testing.assert_array_equal(batch.score, batch.probability)


def test_requests_have_prompts_of_their_class_where_the_file_says_whose_they_are(tmp_path: Path) -> None:
    """Each of a class's prompts as often as any other; a file without classes, or a scenario without, draws as ever."""
    rows = [row(i, prompt_tokens=i + 1, **{"class": "chat" if i % 3 else "batch"}) for i in range(30)]
    scenario = file_pool(write(tmp_path / "classes.jsonl", [HEADER, *rows]))
    plain = file_pool(write(tmp_path / "plain.jsonl", [HEADER, *(row(i) for i in range(30))]))
    classes = (ServiceClass(name="batch"), ServiceClass(name="chat"))
    service = np.random.default_rng(0).integers(0, 2, 6000).astype(np.int32)

    def drawn(world: Scenario, service: np.ndarray | None = service) -> RequestBatch:
        return draw_requests(world, 6000, np.random.default_rng(1), service=service)

    found = drawn(replace(scenario, classes=classes)).prompt_tokens - 1
    assert ((found % 3 > 0) == (service == 1)).all()
    for number, share in ((0, 1 / 10), (1, 1 / 20)):
        counts = np.bincount(found[service == number], minlength=30)
        assert np.allclose(counts[counts > 0] / (service == number).sum(), share, atol=0.02)
    assert_equal(drawn(scenario), drawn(scenario, None))
    assert_equal(drawn(replace(plain, classes=classes)), drawn(plain, None))
    with pytest.raises(InputError, match=r"classes.jsonl: no prompt is of class 'other'; there are those of batch, chat"):
        drawn(replace(scenario, classes=(*classes[:1], ServiceClass(name="other"))))
    lengths = given_lengths(np.full(6000, 10))
    with pytest.raises(InputError, match=r"set workload\.arrivals\.lengths: catalogue"):
        draw_requests(replace(scenario, classes=classes), 6000, np.random.default_rng(1), None, lengths, service)
    del rows[3]["class"]
    with pytest.raises(InputError, match=r"mixed.jsonl:5: class = None: must be a string"):
        drawn(file_pool(write(tmp_path / "mixed.jsonl", [HEADER, *rows])))


def test_gzip_blank_lines_byte_order_mark_and_windows_line_ends_are_read_alike(prompts: Path, tmp_path: Path) -> None:
    packed = tmp_path / "prompts.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + prompts.read_bytes().replace(b"\n", b"\r\n\r\n")))
    assert_equal(draw(file_pool(prompts), 200), draw(file_pool(packed), 200))


def test_a_file_is_parsed_once_until_it_is_modified(prompts: Path) -> None:
    first = read_prompt_file(str(prompts))
    assert read_prompt_file(str(prompts)) is first
    write(prompts, [HEADER, row(1)])
    os.utime(prompts, ns=(1, 1))
    assert len(read_prompt_file(str(prompts)).ids) == 1
    assert set(draw(file_pool(prompts), 20).output_tokens[:, 1]) == {11}


def test_an_empty_answer_or_prompt_counts_as_one_token(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", [HEADER, row(0, out_tokens=[0, 0, None])])
    batch = draw(file_pool(path), 3)
    assert (batch.output_tokens == 1).all()
    assert (batch.prompt_tokens == 1).all()


BAD_FILES = {
    "empty": ([], r"not a header"),
    "no header": ([row(1)], r"f\.jsonl:1: not a header"),
    "models twice": ([{"header": True, "models": ["a", "a"]}], r"f\.jsonl:1: not a header"),
    "no prompts": ([HEADER], r"f\.jsonl: no prompts after the header"),
    "not json": ([HEADER, row(1), '{"id": "x",, }'], r"f\.jsonl:3:12: not JSON"),
    "not an object": ([HEADER, "[1, 2]"], r"f\.jsonl:2: '\[1, 2\]' is not a JSON object"),
    "id": ([HEADER, row(1, id=3)], r"f\.jsonl:2: id = 3: must be a string"),
    "task": ([HEADER, row(1, task=None)], r"f\.jsonl:2: task = None: must be a string"),
    "prompt_tokens": ([HEADER, row(1, prompt_tokens=-4)], r"f\.jsonl:2: prompt_tokens = -4: must be a number from 0"),
    "too few": ([HEADER, row(1, correct=[1, 0])], r"f\.jsonl:2: correct must be a list of 3 numbers or nulls"),
    "score": ([HEADER, row(1, correct=[1, 2, None])], r"f\.jsonl:2: correct\[1\] = 2: must be a number from 0 to 1"),
    "length": ([HEADER, row(1, out_tokens=["5", 2, None])], r"f\.jsonl:2: out_tokens\[0\] = '5': must be a number"),
    "nan": ([HEADER, row(1, out_tokens=[float("nan"), 2, None])], r"f\.jsonl:2: not JSON that is read here: NaN"),
}


@pytest.mark.parametrize(("records", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_malformed_file_is_refused_with_line_and_field(tmp_path: Path, records: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(file_pool(write(tmp_path / "f.jsonl", records)), 1)


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8bnonsense", gzip.compress(b"{}" * 500, mtime=0)[:20], b'{"header": "\xff"}'],
    ids=["no gzip", "truncated gzip", "no UTF-8"],
)
def test_unreadable_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="not a readable JSONL file"):
        draw(file_pool(tmp_path / "f.jsonl"), 1)


def test_a_missing_file_a_missing_model_and_a_model_with_gaps_are_named(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jsonl: cannot be read"):
        draw(file_pool(tmp_path / "absent.jsonl"), 1)
    with pytest.raises(InputError, match="no results for model 'z' of expert 'e1'; it has a, b, c"):
        draw(file_pool(prompts, models=("a", "z")), 1)
    with pytest.raises(InputError, match=r"'c' of expert 'e0' was not run on 400 of 400 prompts \(first: 'p0'\).*: a, b$"):
        draw(file_pool(prompts, models=("c", "a")), 1)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    trained = next(i for i in range(100) if in_train_split(f"p{i}"))
    path = write(tmp_path / "f.jsonl", [HEADER, row(trained)])
    with pytest.raises(InputError, match="split = 'test': none of the 1 prompts"):
        draw(file_pool(path, "test"), 1)


def test_the_real_file_serves_requests(zeroeval: Path) -> None:
    scenario = pool(kind="file", path=str(zeroeval), split="test")
    batch = draw(scenario, 20_000)
    np.testing.assert_allclose(batch.score.mean(axis=0), [mean for mean, _ in ZEROEVAL.values()], atol=0.05)
    np.testing.assert_allclose(batch.probability.mean(axis=0), batch.score.mean(axis=0), atol=0.05)
    partial = pool({"gemma-2-9b-it": (0.5, 99), "Qwen2.5-7B-Instruct": (0.5, 99)}, kind="file", path=str(zeroeval))
    with pytest.raises(InputError, match=r"'Qwen2.5-7B-Instruct' of expert 'e1' was not run on \d+ of 2840.*gemma-2-2b-it"):
        draw(partial, 1)
