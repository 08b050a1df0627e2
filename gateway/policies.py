"""Policies by name, for one live cluster: a bundle, by ONNX Runtime or by torch, or a heuristic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from gateway.live import LiveCluster
from models.envelope import Envelope
from models.export.description import WEIGHTS, describe_bundle
from models.export.onnx_scores import ONNX_FILE, load_onnx
from rllib_envs.baselines import HEURISTICS, impact_value, predicted_work
from rllib_envs.errors import InputError
from rllib_envs.heuristic import Heuristic
from rllib_envs.scenario import Observation
from rllib_envs.simulation import Simulation
from tuning.specs.routers import NamedRouter, build_router, parse_router

IMPACT_GREEDY, LEAST_WORK, RANDOM = "impact-greedy", "least-work", "random"

_SAMPLED = "sampled:"
_BARELY = np.nextafter(0.0, 1.0)  # a drop is worth nothing, and an expert must be worth more
_ALLOWED = f"bundle:PATH, {_SAMPLED}PATH or a heuristic: "

Scores = NDArray[np.float64]


class Verdict(NamedTuple):
    """What a policy says of a request at N experts."""

    action: int  # an expert, or N: drop
    probability: float  # of this action; NaN: not known
    scores: Scores | None  # (N+1,) value of each expert and of a drop; None: it has none
    odds: Scores | None = None  # (N+1,) probability of each action, of a policy that draws them; None: it does not


Decide = Callable[[LiveCluster, np.random.Generator], Verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class LivePolicy:
    """A policy that is ready to decide."""

    name: str  # as asked for
    version: str
    observation: Observation  # what it needs to see
    decide: Decide
    trained_on: Envelope | None = None  # where it may be trusted; None: it was not trained, or nobody knows


def load_policy(text: str, observation: Observation) -> LivePolicy:
    """Load a policy.

    Args:
        text: ``bundle:PATH``, ``sampled:PATH`` (a bundle that draws its actions), or a heuristic as for ``edgeroute evaluate``.
        observation: of the scenario, for a heuristic.

    Raises:
        InputError: no such policy, a bundle that cannot be loaded, or a router that no gateway can follow.
    """
    router = parse_router(text)
    if router.is_trained:
        if text.startswith("checkpoint:"):
            raise InputError(f"policy {text!r}: a checkpoint is exported first: edgeroute export; allowed are {_usable()}")
        assert router.path is not None
        return _load_bundle(text, router.path)
    if router.heuristic is None or not _is_usable(HEURISTICS[router.heuristic]):
        raise InputError(f"policy {text!r}: no gateway can follow it; allowed are {_usable()}")
    return _load_heuristic(router, observation)


def _is_usable(heuristic: Heuristic) -> bool:
    """Whether it sees no truth, and does not learn from a simulation's records."""
    return not heuristic.sees_truth and not isinstance(heuristic.decide, type)


def _usable() -> str:
    return _ALLOWED + ", ".join(name for name, heuristic in HEURISTICS.items() if _is_usable(heuristic))


def _load_heuristic(router: NamedRouter, observation: Observation) -> LivePolicy:
    policy, needed = build_router(router, observation)
    # What it is told is corrected by what comes back, unless the scenario says otherwise.
    needed = replace(needed, calibrate=needed.calibrate or observation.calibrate)
    value = _valued(cast(str, router.heuristic), dict(router.parameters))

    def act(live: LiveCluster, rng: np.random.Generator) -> Verdict:
        return Verdict(int(policy(cast(Simulation, live), rng)[0]), np.nan, None)

    decide = act if value is None else partial(_by_value, value)
    return LivePolicy(name=router.text, version=_own_version(), observation=needed, decide=decide)


def _valued(name: str, parameters: dict[str, float]) -> Callable[[LiveCluster], Scores] | None:
    """The values that a heuristic goes by, (N+1,), if it has any."""
    parameters.pop("tau", None)
    if name.endswith(IMPACT_GREEDY):

        def impact(live: LiveCluster) -> Scores:
            return np.append(impact_value(cast(Simulation, live), **parameters)[0], _BARELY)

        return impact
    if name == RANDOM:
        return lambda live: np.append(np.zeros(live.view.action_mask.shape[1] - 1), -np.inf)  # all tie
    if name == LEAST_WORK:
        return lambda live: np.append(-predicted_work(cast(Simulation, live))[0], -np.inf)
    return None


def _by_value(value: Callable[[LiveCluster], Scores], live: LiveCluster, rng: np.random.Generator) -> Verdict:
    return best_of(value(live).astype(np.float64), live.view.action_mask[0] > 0, rng)


def best_of(scores: Scores, mask: NDArray[np.bool_], rng: np.random.Generator) -> Verdict:
    """The best action, of equal experts one at random: else all go to the first while nothing is under way.

    Args:
        scores: (N+1,) of the experts and of a drop.
        mask: (N+1,) actions that are possible.
        rng: for ties.
    """
    n = scores.size - 1
    masked = np.where(mask, scores, -np.inf)
    best = masked[:n].max()
    if not best >= masked[n] or not mask[:n].any():
        return Verdict(n, 1.0, scores)
    ties = np.flatnonzero(masked[:n] == best)
    action = int(ties[0]) if ties.size == 1 else int(rng.choice(ties))
    return Verdict(action, 1 / ties.size, scores)


def without_drop(verdict: Verdict, mask: NDArray[np.bool_], rng: np.random.Generator) -> Verdict:
    """The verdict where no drop is allowed: the best expert in its place, or one drawn among the experts.

    Args:
        verdict: of the policy.
        mask: (N+1,) actions that are possible.
        rng: for ties, and for what is drawn anew.
    """
    n = mask.size - 1
    if verdict.odds is not None and (rest := float(verdict.odds[:n].sum())) > 0:
        odds = np.append(verdict.odds[:n] / rest, 0.0)
        action = int(rng.choice(n + 1, p=odds)) if verdict.action == n else verdict.action
        return Verdict(action, float(odds[action]), verdict.scores, odds)
    if verdict.action != n:
        return verdict
    scores = np.zeros(n + 1) if verdict.scores is None else verdict.scores.copy()
    scores[n] = -np.inf
    return best_of(scores, np.append(mask[:n], False), rng)


def _load_bundle(text: str, folder: Path) -> LivePolicy:
    described = describe_bundle(folder)
    scores = _onnx_scores(folder) if _has_graph(folder) else _torch_scores(folder, described.observation)
    temperature = _temperature(described.about, folder) if text.startswith(_SAMPLED) else None

    def decide(live: LiveCluster, rng: np.random.Generator) -> Verdict:
        found = scores({name: x for name, x in live.view._asdict().items() if x.size})[0].astype(np.float64)
        if not np.isfinite(found).all():
            raise ValueError(f"scores that are not finite: {found}")
        mask = live.view.action_mask[0] > 0
        return best_of(found, mask, rng) if temperature is None else _draw(found, mask, temperature, rng)

    return LivePolicy(
        name=text,
        version=described.manifest.sha256[WEIGHTS][:12],
        observation=described.observation,
        decide=decide,
        trained_on=described.trained_on,
    )


def _draw(scores: Scores, mask: NDArray[np.bool_], temperature: float, rng: np.random.Generator) -> Verdict:
    """Draw an action as in training: softmax(scores / temperature)."""
    logits = np.where(mask, scores, -np.inf) / temperature
    odds = np.exp(logits - logits.max())
    share = odds / odds.sum()
    action = int(rng.choice(share.size, p=share))
    return Verdict(action, float(share[action]), scores, share)


def _temperature(about: Mapping[str, Any], folder: Path) -> float:
    value = about.get("temperature")
    if not isinstance(value, float) or not 0 < value < float("inf"):
        raise InputError(f"{folder}: about.temperature = {value!r}: must be a positive number to sample with")
    return value


def _has_graph(folder: Path) -> bool:
    return (folder / ONNX_FILE).is_file() and find_spec("onnxruntime") is not None


def _onnx_scores(folder: Path) -> Callable[[dict[str, NDArray[np.float32]]], NDArray[np.float32]]:
    return load_onnx(folder)


def _torch_scores(folder: Path, observation: Observation) -> Callable[[dict[str, NDArray[np.float32]]], NDArray[np.float32]]:
    """The bundle's network, traced; torch is imported here alone."""
    import torch

    from models.export.bundle import load_bundle
    from models.export.traced import fast_scores, random_observation

    torch.set_num_threads(1)
    scores = fast_scores(load_bundle(folder).router, random_observation(observation, batch=2, experts=3, seed=0))

    def found(arrays: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return scores({name: torch.from_numpy(x) for name, x in arrays.items()}).numpy()

    return found


def _own_version() -> str:
    try:
        return version("edgeroute")
    except PackageNotFoundError:  # it runs from its sources
        return ""
