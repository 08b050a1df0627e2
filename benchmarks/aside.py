"""What predictors take of the gateway's event loop, in it and in a thread: ``OMP_NUM_THREADS=1 python -m benchmarks.aside``.

Predictors for six models with each encoder that is installed; what they say does not matter here. The prompts are paragraphs of
``docs/``, one after the other. *in the loop*: processor time of the loop's thread for a prediction there, which all streams wait
for. *aside*: the same where a thread predicts, and the share of the predictions that came within the bound.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import numpy as np

from benchmarks.predictors import MODELS, paragraphs
from gateway.predicting import Predicting
from gateway.request import RouteRequest
from gateway.server.aside import AT_ONCE_S, BOUND_S, Aside
from models.predictors.calibration import fit_corrections
from models.predictors.encoders import KINDS, Encoder, load_encoder
from models.predictors.fit import Outcomes, fit_weights
from models.predictors.served import Predictors, inputs_of
from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario

PROMPTS, ROUNDS = 100, 3


def main() -> None:
    """Measure and print."""
    texts = paragraphs()
    encoders: dict[str, Encoder | None] = {"statistics": None}
    for name in KINDS:
        try:
            encoders[name] = load_encoder(name)
        except InputError as error:
            print(error)
    experts = tuple(replace(x, model=m) for x, m in zip(load_scenario("edge6").experts, MODELS, strict=True))
    asides = {name: aside_of(Predicting(experts, fitted(texts, encoder))) for name, encoder in encoders.items()}
    for _ in range(ROUNDS):
        for name, (direct, threaded) in asides.items():
            print(f"{name}: in the loop {1e3 * measured_in_loop(direct, texts):.2f} ms a prediction", end="")
            if threaded.slow:
                loop_s, heard = asyncio.run(measured_aside(threaded, texts))
                print(f", aside {1e3 * loop_s:.2f} ms; {heard:.0%} came within {1e3 * BOUND_S:g} ms", end="")
            print()


def fitted(texts: list[str], encoder: Encoder | None) -> Predictors:
    """Predictors of the default size."""
    rng, inputs = np.random.default_rng(0), inputs_of(texts, encoder)
    shape = (len(texts), len(MODELS))
    score, length = (rng.random(shape) < 0.5).astype(np.float64), 5 + rng.standard_normal(shape)
    weights = fit_weights(Outcomes(statistics=inputs, score=score, log_length=length), "network", 0)
    raw = weights.outputs(weights.standardise(inputs))
    corrections = fit_corrections(raw.logit, raw.log_length, raw.log_sd, score, length)
    return Predictors(models=MODELS, weights=weights, corrections=corrections, usual_novelty=1.5, about={}, encoder=encoder)


def aside_of(predicting: Predicting) -> tuple[Predicting, Aside]:
    """The predictors, and the same with a thread where a gateway would give them one."""
    predicting.of(RouteRequest(prompt_tokens=1, text="warm up"))
    found = Aside(predicting)
    print(f"{'slow' if found.slow else 'fast'}: the bound is {1e3 * AT_ONCE_S:g} ms")
    return predicting, found


def measured_in_loop(predicting: Predicting, texts: list[str]) -> float:
    """Seconds of this thread for a prediction."""
    began_s = time.thread_time()
    for i in range(PROMPTS):
        predicting.of(RouteRequest(prompt_tokens=1, text=texts[i % len(texts)]))
    return (time.thread_time() - began_s) / PROMPTS


async def measured_aside(aside: Aside, texts: list[str]) -> tuple[float, float]:
    """Seconds of the loop's thread for a prediction, and the share of those that came within the bound."""
    began_s, heard = time.thread_time(), 0
    for i in range(PROMPTS):
        found = await aside.of(RouteRequest(prompt_tokens=1, text=texts[i % len(texts)]))
        heard += found.missed is None
    return (time.thread_time() - began_s) / PROMPTS, heard / PROMPTS


if __name__ == "__main__":
    main()
