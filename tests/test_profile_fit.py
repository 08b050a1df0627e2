"""Fitting: known coefficients come back from files made of them; those of real GPUs obey the GPUs' limits."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_envs.errors import InputError
from rllib_envs.profiles.fit import SERVER_MIXED_MS, SERVER_OVERHEAD, EngineLimits, FittedProfile, compare_run, fit_profile
from rllib_envs.profiles.measurements import Batches, MeasuredRun, measured_batches, read_run
from rllib_envs.sim.profile import EngineProfile
from tests.draws import examples

LAYERS = 4
C0, B, C, A, N0, Q, C_MIXED, C0_MIXED = 9.0, 0.02, 1e-4, 0.03, 128, 2e-6, 7e-5, 0.5
DENSE = ("embedding", "layernorm", "qkv_proj", "rotary_emb", "o_proj", "gate_up_proj", "act_fn", "down_proj", "final_layernorm")


def write_csv(path: Path, header: str, rows: Iterable[tuple[object, ...]]) -> None:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")


def make(folder: Path) -> Path:
    """Layer files of an engine that follows the cost model exactly."""
    sizes = (1, *range(16, 2049, 16))
    rows = [(layer, size, (layer == "embedding") * 1e3 * (C0 + A * max(0, size - N0))) for layer in DENSE for size in sizes]
    write_csv(folder / "dense.csv", "layer,tokens,time_us", rows)
    rows = [(layer, size, 0) for layer in ("lm_head", "sampler") for size in (1, 256)]
    write_csv(folder / "per_sequence.csv", "layer,sequences,time_us", rows)
    batches = [
        (
            chunk,
            cached,
            decodes,
            context,
            1e3
            / LAYERS
            * (
                B * decodes
                + (C + C_MIXED * (chunk > 0)) * decodes * context
                + Q * chunk * (cached + chunk / 2)
                + C0_MIXED * (chunk > 0)
            ),
        )
        for chunk in (0, 64, 192, 512, 1920)
        for cached in ((0, 256, 2048) if chunk else (0,))
        for decodes in (0, 1, 16, 64, 100)
        for context in ((16, 512, 4096) if decodes else (0,))
        if chunk or decodes
    ]
    write_csv(folder / "attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", batches)
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make(tmp_path)


def fit_made(folder: Path, *, kv_tokens: int = 1_000_000, **limits: Unpack[EngineLimits]) -> FittedProfile:
    return fit_profile(folder, layers=LAYERS, kv_tokens=kv_tokens, kv_bytes_per_token=1, server_mixed_ms=0.0, **limits)


def test_known_coefficients_come_back(made: Path) -> None:
    fit = fit_made(made)
    p = fit.profile
    found = [p.c0_ms, p.b_ms, p.c_ms, p.a_ms, p.q_ms, p.c_mixed_ms, p.c0_mixed_ms]
    np.testing.assert_allclose(found, [C0, B, C, A, Q, C_MIXED, C0_MIXED], rtol=1e-6)
    assert p.n0_tokens == N0
    assert max(fit.mape_decode, fit.mape_mixed) < 1e-9
    assert list(fit.by_chunk) == [0, 64, 192, 512, 1920]
    assert max(error.mape for error in fit.by_chunk.values()) < 1e-9


def test_what_a_server_adds_comes_on_top_of_the_kernels(made: Path) -> None:
    kernels = fit_made(made).profile
    server = fit_profile(made, layers=LAYERS, kv_tokens=1_000_000, kv_bytes_per_token=1, overhead=SERVER_OVERHEAD).profile
    assert SERVER_MIXED_MS > 0
    assert server == replace(kernels, overhead=SERVER_OVERHEAD, c0_mixed_ms=kernels.c0_mixed_ms + SERVER_MIXED_MS)


def test_errors_count_in_milliseconds(made: Path) -> None:
    """Where times scatter, what a fit gets wrong in the one batch it makes good in another: the milliseconds sum to nothing."""
    header, *rows = (made / "attention.csv").read_text().splitlines()
    factors = np.random.default_rng(0).uniform(0.9, 1.1, len(rows))
    cells = [(*row.split(",")[:4], factor * float(row.split(",")[4])) for row, factor in zip(rows, factors, strict=True)]
    write_csv(made / "attention.csv", header, cells)
    fit, batches = fit_made(made), measured_batches(made, layers=LAYERS)
    errors_ms = priced_ms(fit.profile, batches) - batches.ms
    for kind in (batches.chunk == 0, batches.chunk > 0):
        assert abs(errors_ms[kind].sum()) < 1e-6 * np.abs(errors_ms[kind]).sum()
    assert fit.mape_mixed > 0.001


def test_the_fitted_profile_prices_each_measured_batch(made: Path) -> None:
    batches = measured_batches(made, layers=LAYERS)
    np.testing.assert_allclose(priced_ms(fit_made(made).profile, batches), batches.ms, rtol=1e-6)


def priced_ms(profile: EngineProfile, batches: Batches) -> np.ndarray:
    """What the profile says that each batch takes."""
    columns = (batches.chunk, batches.cached, batches.decodes, batches.context)
    rows = zip(*(column.astype(int).tolist() for column in columns), strict=True)
    return np.array([1e3 * profile.iteration_s(b, c, ((p, k),) if p else ()) for p, k, b, c in rows])


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
    limits = EngineLimits(max_num_seqs=7, max_model_len=512, max_num_batched_tokens=99)
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


def _only(keep: Callable[[list[int]], bool]) -> Damage:
    """Leave the rows of attention.csv whose (prefill_chunk, kv_prefill, n_decode, kv_decode) ``keep`` holds for."""

    def damage(folder: Path) -> None:
        header, *rows = (folder / "attention.csv").read_text().splitlines()
        kept = [row for row in rows if keep([int(cell) for cell in row.split(",")[:4]])]
        (folder / "attention.csv").write_text("\n".join([header, *kept]) + "\n")

    return damage


def _times(name: str, factor: float) -> Damage:
    def damage(folder: Path) -> None:
        header, *rows = (folder / name).read_text().splitlines()
        changed = [",".join([*row.split(",")[:-1], repr(factor * float(row.split(",")[-1]))]) for row in rows]
        (folder / name).write_text("\n".join([header, *changed]) + "\n")

    return damage


def _all(*damages: Damage) -> Damage:
    return lambda folder: [damage(folder) for damage in damages]


NO_DECODES_BESIDE_PROMPTS = r"mixed batches do not tell c0_mixed, a, q and c_mixed apart: .* 1 of n_decode \(at most 0\)"
ONE_BATCH_SIZE = r"decode-only batches do not tell c0, b and c apart: they have 1 of n_decode \(at most 16\), 3 of kv_decode"
ONE_CONTEXT = r"decode-only batches do not tell c0, b and c apart: they have 4 of n_decode \(at most 100\), 1 of kv_decode"
MILLISECONDS = r"time_us: a decode-only batch takes 0.0\d+ ms, must be from 0.1 .*: are the times microseconds"
OLD_LAYOUT = r"none of dense.csv, per_sequence.csv, attention.csv is there \(it holds layers.csv.gz\): layer times must be in"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_only(lambda row: not (row[0] and row[2])), NO_DECODES_BESIDE_PROMPTS),
        (_only(lambda row: row[0] == 0), r"0 mixed batches fit"),
        (_only(lambda row: row[0] > 0), r"0 decode-only batches fit"),
        (_only(lambda row: row == [0, 0, 1, 16]), r"1 decode-only batches fit, at least 3"),
        (_only(lambda row: row[0] > 0 or row[2] == 16), ONE_BATCH_SIZE),
        (_only(lambda row: row[0] > 0 or row[3] == 512), ONE_CONTEXT),
        (
            _only(lambda row: row[0] in (0, 512) and row[2] <= 1 and row[3] in (0, 16, 512) and row[1] == 0),
            r"decode-only batches",
        ),
        (_all(*(_times(name, 1e-3) for name in ("attention.csv", "dense.csv"))), MILLISECONDS),
        (_times("dense.csv", 1e300), r"dense.csv, line 2, column time_us: .*: must be a finite number from 0 to 1e\+12"),
        (_all(*(_times(name, 0.0) for name in ("attention.csv", "dense.csv"))), r"a decode-only batch takes 0 ms"),
        (_edit("attention.csv", "0,0,1,16,", "0,0,nan,16,"), r"attention.csv, line 2, column n_decode: 'nan'"),
        (_write("attention.csv", b""), r"attention.csv, line 1: columns : 'prefill_chunk' is missing"),
        (
            _write("attention.csv", b'prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n0,0,1,"16,1\n'),
            r"attention.csv, line \d: not CSV",
        ),
        (
            _all(_write("dense.csv.gz", gzip.compress(b"layer")[:-9] + b"damaged!"), _drop("dense.csv")),
            r"dense.csv.gz: not gzipped",
        ),
        (
            _write("moe.csv", b"tokens,activated_experts,time_us\n1,8,3\n"),
            r"moe.csv: a mixture of experts cannot be fitted: .* would do",
        ),
        (_all(*map(_drop, ("dense.csv", "per_sequence.csv", "attention.csv")), _write("layers.csv.gz", b"")), OLD_LAYOUT),
        (_all(*map(_drop, ("dense.csv", "per_sequence.csv", "attention.csv"))), r"it is empty, or no folder"),
    ],
)
def test_files_that_cannot_be_fitted_say_what_is_missing(made: Path, damage: Damage, message: str) -> None:
    damage(made)
    with pytest.raises(InputError, match=message):
        fit_made(made)


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"))


@examples(40)
@given(st.data())
def test_whatever_the_rows_are_the_fit_ends_cleanly(
    undamaged: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Rows left out, made equal or out of scale: a profile, or one clear line."""
    folder = tmp_path_factory.mktemp("fuzz")
    for path in sorted(undamaged.iterdir()):
        header, *rows = path.read_text().splitlines()
        kept = data.draw(st.sampled_from(["all", "some", "one"]), label=path.name)
        if kept == "some":
            rows = rows[:: data.draw(st.integers(2, 40))]
        elif kept == "one":
            rows = [data.draw(st.sampled_from(rows))]
        cells = [row.split(",") for row in rows]
        column = data.draw(st.integers(1, len(cells[0]) - 1))
        value = data.draw(st.sampled_from([None, "0", "1", "16", "1e-9", "1e12", "1e308", "nan", "inf", "-1", ""]))
        for row in cells[: data.draw(st.integers(1, len(cells)))]:
            row[column] = row[column] if value is None else value
        (folder / path.name).write_text("\n".join([header, *(",".join(row) for row in cells)]) + "\n")
    with suppress(InputError):
        fit = fit_made(folder)
        assert math.isfinite(fit.mape_decode + fit.mape_mixed)


@pytest.mark.parametrize("folder", ["RTXPRO6000_Qwen3-30B-A3B-Instruct-2507", "RTX3090_Llama-3.1-8B", "../vidur"])
def test_public_layer_times_of_other_kinds_say_what_would_do(data_dir: Path, folder: str) -> None:
    with pytest.raises(InputError, match=r"moe.csv: .* would do|none of dense.csv, .*layer times must be in the layout that"):
        fit_profile(data_dir / "llmservingsim" / folder, layers=32, kv_tokens=40_000, kv_bytes_per_token=131_072)


def test_an_impossible_engine_is_refused(made: Path) -> None:
    with pytest.raises(InputError, match=r"kv_tokens = 10: 0 decode-only batches fit, at least 3 are needed"):
        fit_made(made, kv_tokens=10)
    with pytest.raises(InputError, match=r"kv_tokens = 1000000: must hold the largest request"):
        fit_made(made, max_model_len=2_000_000)
    with pytest.raises(InputError, match=r"layers = 0: must be >= 1"):
        fit_profile(made, layers=0, kv_tokens=1_000_000, kv_bytes_per_token=1)


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
    assert fit.mape_decode < 0.0125
    assert fit.mape_mixed < 0.057
    assert abs(fit.by_chunk[0].bias) < 0.002
    assert all(error.mape < (0.085 if chunk < 1024 else 0.035) for chunk, error in fit.by_chunk.items())
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
        (_edit("x_meta.json", "8", "Infinity"), r"x_meta.json: .*Infinity is no number in JSON"),
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
