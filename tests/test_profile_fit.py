"""Fitting: known coefficients come back from files made of them; those of real GPUs obey the GPUs' limits."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Unpack

import numpy as np
import pytest

from rllib_envs.errors import InputError
from rllib_envs.measurements import MeasuredRun, measured_batches, read_run
from rllib_envs.profile_fit import FittedProfile, Limits, compare_run, fit_profile

LAYERS = 4
C0, B, C, A, N0, Q, C_MIXED = 9.0, 0.02, 1e-4, 0.03, 128, 2e-6, 7e-5
DENSE = ("embedding", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj", "final_layernorm")


def write_csv(path: Path, header: str, rows: Iterable[tuple[object, ...]]) -> None:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Layer files of an engine that follows the cost model exactly."""
    sizes = (1, *range(16, 2049, 16))
    rows = [(layer, size, (layer == "embedding") * 1e3 * (C0 + A * max(0, size - N0))) for layer in DENSE for size in sizes]
    write_csv(tmp_path / "dense.csv", "layer,tokens,time_us", rows)
    rows = [(layer, size, 0) for layer in ("lm_head", "sampler") for size in (1, 256)]
    write_csv(tmp_path / "per_sequence.csv", "layer,sequences,time_us", rows)
    batches = [
        (
            chunk,
            cached,
            decodes,
            context,
            1e3 / LAYERS * (B * decodes + (C + C_MIXED * (chunk > 0)) * decodes * context + Q * chunk * (cached + chunk / 2)),
        )
        for chunk in (0, 64, 192, 512, 1920)
        for cached in ((0, 256, 2048) if chunk else (0,))
        for decodes in (0, 1, 16, 64, 100)
        for context in ((16, 512, 4096) if decodes else (0,))
        if chunk or decodes
    ]
    write_csv(tmp_path / "attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", batches)
    return tmp_path


def fit_made(folder: Path, *, kv_tokens: int = 1_000_000, **limits: Unpack[Limits]) -> FittedProfile:
    return fit_profile(folder, layers=LAYERS, kv_tokens=kv_tokens, kv_bytes_per_token=1, **limits)


def test_known_coefficients_come_back(made: Path) -> None:
    fit = fit_made(made)
    p = fit.profile
    np.testing.assert_allclose([p.c0_ms, p.b_ms, p.c_ms, p.a_ms, p.q_ms, p.c_mixed_ms], [C0, B, C, A, Q, C_MIXED], rtol=1e-6)
    assert p.n0_tokens == N0
    assert max(fit.mape_decode, fit.mape_mixed) < 1e-9


def test_the_fitted_profile_prices_each_measured_batch(made: Path) -> None:
    profile, batches = fit_made(made).profile, measured_batches(made, layers=LAYERS)
    columns = (batches.chunk, batches.cached, batches.decodes, batches.context)
    for chunk, cached, decodes, context, ms in zip(*(c.astype(int).tolist() for c in columns), batches.ms, strict=True):
        prompts = ((chunk, cached),) if chunk else ()
        assert 1e3 * profile.iteration_s(decodes, context, prompts) == pytest.approx(ms, rel=1e-6)


def test_an_operator_of_some_models_and_each_layer_add_their_time(made: Path) -> None:
    before = measured_batches(made, layers=LAYERS).ms
    with (made / "dense.csv").open("a") as file:
        file.write("qk_norm,1,100\nqk_norm,2048,100\n")
    np.testing.assert_allclose(measured_batches(made, layers=LAYERS).ms - before, LAYERS * 0.1)
    assert (measured_batches(made, layers=LAYERS + 1).ms > measured_batches(made, layers=LAYERS).ms).all()


def test_gzipped_files_read_the_same(made: Path) -> None:
    plain = fit_made(made)
    for path in list(made.iterdir()):
        made.joinpath(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert fit_made(made) == plain


def test_limits_reach_the_profile_and_leave_the_fit_alone(made: Path) -> None:
    limits = Limits(max_num_seqs=7, max_model_len=512, max_num_batched_tokens=99)
    profile = fit_made(made, **limits).profile
    assert {name: getattr(profile, name) for name in limits} == limits
    assert profile.c0_ms == fit_made(made).profile.c0_ms


Damage = Callable[[Path], object]


def _drop(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def _write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def _edit(name: str, old: str, new: str) -> Damage:
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("attention.csv"), r"neither attention.csv nor attention.csv.gz"),
        (_edit("dense.csv", "tokens", "size"), r"dense.csv, line 1: columns layer, size, time_us: 'tokens' is missing"),
        (_edit("dense.csv", "embedding,16,9000.0", "embedding,16,fast"), r"dense.csv, line 3, column time_us: 'fast'"),
        (_edit("attention.csv", "0,0,1,16,", "0,0,-1,16,"), r"attention.csv, line 2, column n_decode: '-1': must be"),
        (_write("per_sequence.csv", b"layer,sequences,time_us\nsampler,1,0\n"), r"layer = sampler: 'lm_head' is missing"),
        (_write("per_sequence.csv", b"layer,sequences,time_us\n"), r"per_sequence.csv: no rows"),
        (_write("dense.csv", b"\xff\xfe\x00"), r"dense.csv: not text"),
    ],
)
def test_a_wrong_file_is_named(made: Path, damage: Damage, message: str) -> None:
    damage(made)
    with pytest.raises(InputError, match=message):
        fit_made(made)


def test_an_impossible_engine_is_refused(made: Path) -> None:
    with pytest.raises(InputError, match=r"kv_tokens = 10: 0 decode-only batches fit, at least 3 are needed"):
        fit_made(made, kv_tokens=10)
    with pytest.raises(InputError, match=r"kv_tokens = 1000000: must hold the largest request"):
        fit_made(made, max_model_len=2_000_000)


# GPU and model: layers, KV tokens, KV bytes per token, GB of weights, GB/s of memory bandwidth, bf16 Tflop/s (data sheets)
GPUS = {
    "RTXPRO6000_Llama-3.1-8B": (32, 430_000, 131_072, 16.06, 1792, 504),
    "RTX4090_Llama-3.1-8B": (32, 41_408, 131_072, 16.06, 1008, 165),
    "RTXPRO6000_Qwen3-32B": (64, 75_000, 262_144, 65.5, 1792, 504),
}


@pytest.mark.parametrize("folder", GPUS)
def test_fits_of_real_gpus_are_close_and_within_what_the_gpu_can_do(data_dir: Path, folder: str) -> None:
    layers, kv_tokens, kv_bytes, weights_gb, bandwidth_gbps, tflops = GPUS[folder]
    fit = fit_profile(data_dir / "llmservingsim" / folder, layers=layers, kv_tokens=kv_tokens, kv_bytes_per_token=kv_bytes)
    p = fit.profile
    assert fit.mape_decode < 0.02
    assert fit.mape_mixed < 0.08
    reading_weights_ms = 1e3 * weights_gb / bandwidth_gbps
    assert 0.9 * reading_weights_ms < p.c0_ms < 1.6 * reading_weights_ms  # embeddings are not read whole
    reading_kv_ms = 1e3 * kv_bytes / (bandwidth_gbps * 1e9)
    assert reading_kv_ms < p.c_ms < 2 * reading_kv_ms
    arithmetic_ms = 1e3 * weights_gb * 1e9 / (tflops * 1e12)  # 2 flop per parameter and token, 2 bytes per parameter
    assert 0.8 * arithmetic_ms < p.a_ms < 2 * arithmetic_ms


def test_the_slower_gpu_is_slower_in_every_way(data_dir: Path) -> None:
    fast, slow = (
        fit_profile(data_dir / "llmservingsim" / folder, layers=32, kv_tokens=41_408, kv_bytes_per_token=131_072).profile
        for folder in ("RTXPRO6000_Llama-3.1-8B", "RTX4090_Llama-3.1-8B")
    )
    for name in ("c0_ms", "b_ms", "c_ms", "a_ms", "q_ms"):
        assert getattr(fast, name) < getattr(slow, name)


HEADER = "prompt_tokens,output_tokens,arrival_s,first_token_s,last_token_s"
ENGINE = {"engine_kwargs": {"max_num_seqs": 8, "max_num_batched_tokens": 512, "max_model_len": None}}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    write_csv(tmp_path / "x_requests.csv", HEADER, [(9, 1, 1.0, 1.5, 1.5), (7, 5, 0.0, 0.5, 2.5)])
    (tmp_path / "x_meta.json").write_text(json.dumps(ENGINE))
    return tmp_path


def test_a_run_is_read_in_order_of_arrival(run_folder: Path) -> None:
    run = read_run(run_folder, "x")
    assert run.prompt_tokens.tolist() == [7, 9]
    assert run.last_token_s.tolist() == [2.5, 1.5]
    assert (run.max_num_seqs, run.max_num_batched_tokens) == (8, 512)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("x_meta.json"), r"neither x_meta.json nor x_meta.json.gz"),
        (_edit("x_meta.json", "8", "null"), r"x_meta.json: engine_kwargs: max_num_seqs .* must be whole numbers"),
        (_edit("x_requests.csv", "9,1,1.0", "9,1,"), r"x_requests.csv, line 2, column arrival_s: ''"),
    ],
)
def test_a_wrong_run_is_named(run_folder: Path, damage: Damage, message: str) -> None:
    damage(run_folder)
    with pytest.raises(InputError, match=message):
        read_run(run_folder, "x")


def scaled(run: MeasuredRun, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """First and last token times of a server ``factor`` as slow."""
    first_s, last_s = (run.arrival_s + factor * (ends - run.arrival_s) for ends in (run.first_token_s, run.last_token_s))
    return first_s, last_s


@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_errors_are_relative_and_signed(run_folder: Path, factor: float) -> None:
    run = read_run(run_folder, "x")
    errors = compare_run(run, *scaled(run, factor))
    np.testing.assert_allclose([errors.e2e, errors.ttft], factor - 1)
    np.testing.assert_allclose(errors.tpot, [factor - 1, np.nan])  # an answer of one token has no time between tokens
