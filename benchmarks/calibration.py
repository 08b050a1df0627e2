"""How well records of requests alone give an engine back, by the noise of their times; and a real engine, if there is one.

Simulated engines serve the designed load of ``edgeroute calibrate``. Each time gets noise, and a profile is fitted to the
records. "Held out" are the errors of noisy requests that the fit has not seen. "Clean" are those of another load that the engine
serves without noise. Run it from the repository root ::

    python -m benchmarks.calibration

Expect a median error of 1 to 3 % with 3 % of noise. A fit takes some seconds of one core.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from gateway.calibration.design import Planned, designed_load
from rllib_envs.profiles.estimate import ServerSettings, estimate_profile, predicted_run
from rllib_envs.profiles.fit import Floats, compare_run
from rllib_envs.profiles.measurements import MeasuredRun
from rllib_envs.profiles.records import RequestRecord, as_run
from rllib_envs.profiles.replay import replay_requests
from rllib_envs.sim.profile import EngineProfile

NOISES = (0.0, 0.03, 0.1)
ENGINES = {
    "Llama-3.1-8B on an RTX 4090": EngineProfile(
        c0_ms=17.0, b_ms=0.041, c_ms=1.4e-4, a_ms=0.087, n0_tokens=192, q_ms=5.3e-6, c0_mixed_ms=5.0,
        kv_tokens=41_408, kv_bytes_per_token=1, handoff_s=0.004,
    ),
    "vLLM on a CPU": EngineProfile(
        c0_ms=50.0, b_ms=1.0, c_ms=2e-3, a_ms=0.6, n0_tokens=64, q_ms=3e-4, c_mixed_ms=1e-3, c0_mixed_ms=3.0, handoff_s=0.004,
        kv_tokens=16_384, kv_bytes_per_token=1, max_num_seqs=16, max_num_batched_tokens=512, max_model_len=2048,
    ),
    "llama.cpp on a CPU": EngineProfile(
        c0_ms=5.0, b_ms=2.0, c_ms=1e-3, a_ms=2.2, n0_tokens=0, q_ms=3e-4, c0_mixed_ms=1.0, handoff_s=0.002,
        async_scheduling=False, kv_tokens=16_528, kv_bytes_per_token=1, max_num_seqs=8, max_model_len=2048,
    ),
}  # fmt: skip


def served(engine: EngineProfile, waves: Sequence[Sequence[Planned]], noise: float, seed: int) -> MeasuredRun:
    """Records of the waves, one after the other.

    Args:
        engine: serves them.
        waves: the requests of each.
        noise: standard deviation of the log of the time to the first token, and of the rest.
        seed: of the noise.
    """
    rng, start_s, records = np.random.default_rng(seed), 0.0, list[RequestRecord]()
    for wave in waves:
        after_s, prompts, outputs = (np.array(column) for column in zip(*wave, strict=True))
        times = replay_requests([engine], after_s, prompts, outputs)
        first_s = (times.first_token_s[0] - after_s) * np.exp(noise * rng.standard_normal(after_s.size))
        rest_s = (times.finish_s - times.first_token_s)[0] * np.exp(noise * rng.standard_normal(after_s.size))
        at_s = start_s + after_s
        rows = zip(at_s, prompts, outputs, at_s + first_s, at_s + first_s + rest_s, strict=True)
        records += [RequestRecord(*(x.item() for x in row)) for row in rows]
        start_s = 0.1 + max(record.last_token_s for record in records)
    return as_run(records, max_num_seqs=engine.max_num_seqs, max_num_batched_tokens=engine.max_num_batched_tokens)


def load(engine: EngineProfile, seed: int = 0) -> list[tuple[Planned, ...]]:
    """The whole designed load."""
    return [wave.requests for wave in designed_load(engine, seconds=1e6, tokens=10**9, seed=seed)]


def settings(engine: EngineProfile, async_scheduling: bool | None = None) -> ServerSettings:
    """What is known of the engine's server."""
    return ServerSettings(
        kv_tokens=engine.kv_tokens,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_model_len=engine.max_model_len,
        async_scheduling=async_scheduling,
    )


def main() -> None:
    """Print the table."""
    print(f"{'engine':30}{'noise':>7}{'requests':>10}  held out: E2E   TTFT   clean: E2E   TTFT   CPU s of the fit")
    for name, engine in ENGINES.items():
        for noise in NOISES:
            run = served(engine, load(engine), noise, 1)
            begun_s = time.process_time()
            estimate = estimate_profile(run, settings(engine))
            took_s = time.process_time() - begun_s
            clean = served(engine, load(engine, seed=5), 0.0, 0)
            errors = compare_run(clean, *(clean.arrival_s + part for part in predicted_run(clean, estimate.profile)))
            cells = [_median(e) for e in (estimate.unseen.e2e, estimate.unseen.ttft, errors.e2e, errors.ttft)]
            print(
                f"{name:30}{noise:7.0%}{run.arrival_s.size:10}{cells[0]:>15}{cells[1]:>7}{cells[2]:>13}{cells[3]:>7}{took_s:19.1f}"
            )


def _median(errors: Floats) -> str:
    return f"{np.median(np.abs(errors)):.1%}"


if __name__ == "__main__":
    main()
