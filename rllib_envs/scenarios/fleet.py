"""Generated scenarios ``edgeN``: a heterogeneous fleet of N experts, from scaling rules instead of measurements.

The rules, for a model with ``p`` billion fp16 parameters (2 bytes each) on a GPU:

- ``c0 = c0_rate * p``, ``a = a_rate * p``: per-GPU rates, arithmetic on public per-layer fits (Vidur, Helix, LLMServingSim);
- ``b = 0.002 * c0``: the measured pairs have .0017 to .0026;
- ``c = KV bytes per token / memory bandwidth``, KV bytes = 2 * layers * KV heads * head size * 2;
- ``q = 3.8e-9 * a_rate * layers * heads * head size``. A pair of tokens costs 4 * heads * head size floating-point
  operations a layer and a parameter 2 per token. At equal efficiency the factor would be 2e-9, so attention runs at about
  half the efficiency of the linear layers. Measured: 3.7e-9 (RTX 4090, Llama-3.1-8B), 3.9e-9 (A30, Qwen2-7B), and 5.2e-9 to
  5.7e-9 on the RTX PRO 6000, for which this rule is too optimistic;
- ``n0``: measured on RTX 4090, A30 and RTX PRO 6000, 64 assumed on T4 and L4, else the token count above which arithmetic
  takes longer than the transfer of the weights, ``c0_rate / a_rate``;
- KV tokens = 0.75 * (0.9 * memory - weights - 1 GiB) / KV bytes: the plain formula exceeds the figures that engines report
  by up to 31 %, hence the 0.75.

Quality and length of a model's answers are its ZeroEval means. Every scenario here assumes that they hold on any GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.scenario import Scenario
from rllib_envs.sim.profile import EngineProfile

GIB = 2**30
ATTENTION_FACTOR = 3.8e-9
KV_SHARE = 0.75
OVERHEAD = 1.05  # step time over kernel time: edge6's measured pair needs it to replay a run of its server
MAX_MODEL_LEN = 4096
SLO_S_PER_TOKEN = 0.06
SLOWEST_STEP_SHARE = 0.75  # an expert whose idle iteration takes more of the SLO could hardly ever meet it


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU and the cost of a model on it."""

    name: str
    memory_gib: int
    bandwidth_gb_s: int  # memory bandwidth, data sheet, 1e9 bytes/s
    c0_ms_per_b: float  # iteration, per billion parameters
    a_ms_per_b: float  # prefill token, per billion parameters
    n0_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A language model: shape from its published configuration, quality and length from ZeroEval."""

    name: str  # short
    zeroeval_name: str
    params_b: float
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mean_score: float
    mean_output_tokens: float

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one token in 16-bit floats."""
        return 2 * self.layers * self.kv_heads * self.head_size * 2


GPUS = (
    Gpu(name="RTX 4090", memory_gib=24, bandwidth_gb_s=1008, c0_ms_per_b=2.1, a_ms_per_b=0.011, n0_tokens=192),
    Gpu(name="T4", memory_gib=16, bandwidth_gb_s=320, c0_ms_per_b=8.0, a_ms_per_b=0.078, n0_tokens=64),
    Gpu(name="A40", memory_gib=48, bandwidth_gb_s=696, c0_ms_per_b=3.7, a_ms_per_b=0.0185, n0_tokens=192),
    Gpu(name="L4", memory_gib=24, bandwidth_gb_s=300, c0_ms_per_b=7.9, a_ms_per_b=0.038, n0_tokens=64),
    Gpu(name="A30", memory_gib=24, bandwidth_gb_s=933, c0_ms_per_b=2.8, a_ms_per_b=0.019, n0_tokens=16),
    Gpu(name="RTX 3090", memory_gib=24, bandwidth_gb_s=936, c0_ms_per_b=2.7, a_ms_per_b=0.028, n0_tokens=96),
    Gpu(name="A6000", memory_gib=48, bandwidth_gb_s=768, c0_ms_per_b=2.9, a_ms_per_b=0.019, n0_tokens=152),
    Gpu(name="A100", memory_gib=40, bandwidth_gb_s=1555, c0_ms_per_b=1.4, a_ms_per_b=0.008, n0_tokens=175),
    Gpu(name="RTX PRO 6000", memory_gib=96, bandwidth_gb_s=1792, c0_ms_per_b=1.4, a_ms_per_b=0.004, n0_tokens=160),
)


def _model(
    name: str, zeroeval_name: str, params_b: float, shape: tuple[int, int, int, int], answers: tuple[float, float]
) -> Model:
    layers, heads, kv_heads, head_size = shape
    return Model(
        name=name,
        zeroeval_name=zeroeval_name,
        params_b=params_b,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        mean_score=answers[0],
        mean_output_tokens=answers[1],
    )


MODELS = (  # strong and weak in turn, so that every prefix of the list is a mixed pool
    _model("gemma-2-9b", "gemma-2-9b-it", 9.24, (42, 16, 8, 256), (0.585, 246.0)),
    _model("gemma-2-2b", "gemma-2-2b-it", 2.61, (26, 8, 4, 256), (0.312, 373.1)),
    _model("llama-3.1-8b", "Meta-Llama-3.1-8B-Instruct", 8.03, (32, 32, 8, 128), (0.559, 520.1)),
    _model("phi-3.5-mini", "Phi-3.5-mini-instruct", 3.82, (32, 32, 32, 96), (0.543, 455.1)),
    _model("qwen2-7b", "Qwen2-7B-Instruct", 7.62, (28, 28, 4, 128), (0.539, 248.0)),
    _model("llama-3-8b", "Meta-Llama-3-8B-Instruct", 8.03, (32, 32, 8, 128), (0.491, 337.7)),
    _model("yi-1.5-9b", "Yi-1.5-9B-Chat", 8.83, (48, 32, 4, 128), (0.533, 351.5)),
)


def generate_fleet(n: int) -> Scenario:
    """The scenario ``edge{n}``: deterministic; the experts of a smaller fleet are the first ones of a larger fleet.

    GPUs and models are walked along diagonals, so neighbours differ in both. Infeasible pairs are left out: weights that leave no
    room for one longest request, or an idle iteration too slow for the SLO. After every feasible pair, replicas follow.

    Raises:
        InputError: ``n`` is outside 2 to 256.
    """
    if not 2 <= n <= 256:
        raise InputError(f"scenario 'edge{n}': {n} experts, must be from 2 to 256")
    pairs = [(GPUS[(i + shift) % len(GPUS)], model) for shift in range(len(GPUS)) for i, model in enumerate(MODELS)]
    working = [(gpu, model) for gpu, model in pairs if _works(gpu, model)]
    replicas = math.ceil(n / len(working))
    experts = (_expert(gpu, model, replica) for replica in range(1, replicas + 1) for gpu, model in working)
    return Scenario(name=f"edge{n}", experts=tuple(islice(experts, n)), slo_s_per_token=SLO_S_PER_TOKEN)


def engine_by_rule(gpu: Gpu, model: Model) -> EngineProfile:
    """The engine that the scaling rules give for a model on a GPU.

    Raises:
        ValueError: the weights leave too little room for KV blocks.
    """
    return EngineProfile(
        c0_ms=_round(gpu.c0_ms_per_b * model.params_b),
        b_ms=_round(0.002 * gpu.c0_ms_per_b * model.params_b),
        c_ms=_round(model.kv_bytes_per_token / (gpu.bandwidth_gb_s * 1e9) * 1e3),
        a_ms=_round(gpu.a_ms_per_b * model.params_b),
        n0_tokens=gpu.n0_tokens,
        q_ms=_round(ATTENTION_FACTOR * gpu.a_ms_per_b * model.layers * model.heads * model.head_size),
        kv_tokens=_kv_tokens(gpu, model),
        kv_bytes_per_token=model.kv_bytes_per_token,
        overhead=OVERHEAD,
        max_model_len=MAX_MODEL_LEN,
    )


def _kv_tokens(gpu: Gpu, model: Model) -> int:
    free_bytes = 0.9 * gpu.memory_gib * GIB - 2e9 * model.params_b - GIB
    return int(KV_SHARE * free_bytes / model.kv_bytes_per_token)


def _works(gpu: Gpu, model: Model) -> bool:
    idle_step_s = OVERHEAD * gpu.c0_ms_per_b * model.params_b * 1e-3
    room = _kv_tokens(gpu, model) >= MAX_MODEL_LEN + 2 * 16  # besides the server's null block and a partly filled block
    return room and idle_step_s <= SLOWEST_STEP_SHARE * SLO_S_PER_TOKEN


def _expert(gpu: Gpu, model: Model, replica: int) -> Expert:
    name = f"{model.name}.{gpu.name.lower().replace(' ', '-')}"
    return Expert(
        name=name if replica == 1 else f"{name}.{replica}",
        model=model.zeroeval_name,
        gpu=gpu.name,
        params_b=model.params_b,
        engine=engine_by_rule(gpu, model),
        mean_score=model.mean_score,
        mean_output_tokens=model.mean_output_tokens,
    )


def _round(value: float) -> float:
    """Three significant digits, the accuracy of the rules."""
    return float(f"{value:.3g}")
