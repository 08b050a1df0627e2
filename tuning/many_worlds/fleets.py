"""The fleets of the measurement: 60 drawn ones, half of them from laws that training does not have, and three fixed ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rllib_envs.capacity import capacity_rps
from rllib_envs.expert import Expert
from rllib_envs.json_files import read_json
from rllib_envs.scenario import Catalogue, Scenario, Workload
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from rllib_envs.scenarios.procedural import TRAINING, UNSEEN, draw_able_fleet
from rllib_envs.sim.profile import EngineProfile
from tuning.evaluation.processes import run_all
from tuning.output.progress import Progress
from tuning.run_dir.atomic import write_json
from tuning.run_dir.digests import code_digest

FIRST_SEED = 5000
"""Seeds of drawn fleets begin here. Smaller ones belong to training."""

TRAINING_KIND, FIXED_KIND = "training", "fixed"
_PER_LAW = 6
_STREAM = 60  # keeps a fleet's draws apart from all other draws with its seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """One fleet by name, before it is drawn."""

    name: str
    kind: str  # "training", a key of ``UNSEEN``, or "fixed"
    phase: int  # where it begins in the order of the conditions
    seed: int  # of its draws, and of its episodes


def fleets(first_seed: int = FIRST_SEED) -> list[Fleet]:
    """All fleets, so that each stretch of the list has as many of each kind as any other, as nearly as can be.

    Args:
        first_seed: the first of their seeds; each has its own.
    """
    half, laws = _PER_LAW * len(UNSEEN), list(UNSEEN)
    training = [
        Fleet(name=f"training-{i + 1}", kind=TRAINING_KIND, phase=i, seed=first_seed + 2 * i) for i in range(half)
    ]  # fmt: skip
    # 30 fleets do not divide by four loads: the second half begins where the first one leaves off.
    unseen = [
        Fleet(name=f"{law}-{i // len(laws) + 1}", kind=law, phase=i + 2, seed=first_seed + 2 * i + 1)
        for i, law in enumerate(laws * _PER_LAW)
    ]
    fixed = [
        Fleet(name=name, kind=FIXED_KIND, phase=i, seed=first_seed + 2 * half + i) for i, name in enumerate(FIXED)
    ]  # fmt: skip
    placed = [((i + 0.5) / len(part), fleet) for part in (training, unseen, fixed) for i, fleet in enumerate(part)]
    return [fleet for _, fleet in sorted(placed, key=lambda pair: pair[0])]


def make_fleets(wanted: Sequence[Fleet], folder: Path, jobs: int | None, *, experts: int | None) -> dict[Fleet, Scenario]:
    """Draw fleets and measure their capacity, in processes; those that are in ``folder`` are read.

    Args:
        wanted: fleets, each once.
        folder: where each is kept as one file.
        jobs: processes; None for one a core.
        experts: experts of the drawn ones; None to draw the number.

    Raises:
        InputError: a file that cannot be read or written.
    """
    work = [(fleet, experts, folder / f"{fleet.name}-{_key(fleet, experts)}.json") for fleet in wanted]
    todo = [item for item in work if not item[2].exists()]
    if todo:
        run_all(_make_and_keep, todo, jobs, Progress("fleets", len(work), len(work) - len(todo)))
    return {fleet: parse_scenario(read_json(file), str(file)) for fleet, _, file in work}


def _key(fleet: Fleet, experts: int | None) -> str:
    return hashlib.sha256(repr((fleet, experts, code_digest(), Path(__file__).read_bytes())).encode()).hexdigest()[:16]


def _make_and_keep(work: tuple[Fleet, int | None, Path]) -> None:
    fleet, experts, file = work
    write_json(file, make_fleet(fleet, experts=experts).to_dict())


def make_fleet(fleet: Fleet, *, experts: int | None = None) -> Scenario:
    """The fleet as a scenario, with its capacity measured."""
    if fleet.kind == FIXED_KIND:
        scenario = FIXED[fleet.name]()
        return replace(scenario, capacity_rps=capacity_rps(scenario))
    law = TRAINING if fleet.kind == TRAINING_KIND else UNSEEN[fleet.kind]
    return replace(draw_able_fleet(np.random.default_rng([fleet.seed, _STREAM]), law, experts), name=fleet.name)


def _two_experts(name: str, slo_s: float) -> Scenario:
    """Two small experts with a large cost per context token: some 800 tokens in a batch exhaust an SLO of .03 s."""
    sizes = (("a", 7.0, 10.0, 0.6), ("b", 3.0, 7.0, 0.5))
    experts = tuple(
        Expert(
            name=expert, model=f"model-{expert}", gpu="any", params_b=params_b, mean_score=score, mean_output_tokens=200.0,
            engine=EngineProfile(
                c0_ms=c0_ms, b_ms=0.03, c_ms=0.025, a_ms=0.07, n0_tokens=64, q_ms=0.0, kv_tokens=40_000,
                kv_bytes_per_token=131_072, max_model_len=2048,
            ),
        )
        for expert, params_b, c0_ms, score in sizes
    )  # fmt: skip
    workload = Workload(catalogue=Catalogue(prompt_tokens_mean=60.0))
    return Scenario(name=name, experts=experts, slo_s_per_token=slo_s, workload=workload)


FIXED: dict[str, Callable[[], Scenario]] = {
    "paper3": lambda: load_scenario("paper3"),
    "two-tight": lambda: _two_experts("two-tight", 0.03),
    "two-slack": lambda: _two_experts("two-slack", 0.06),
}
"""Fixed fleets by name, in which context is the scarce resource."""
