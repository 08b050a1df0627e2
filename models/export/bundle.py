"""Bundles: a trained router as a folder that loads without Ray and without pickle.

A bundle has ``router.safetensors`` (the weights), ``router.json`` (network specification and origin) and, on request,
``router.onnx`` (the same router for other runtimes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.envelope import Envelope
from models.export.description import (
    DESCRIPTION,
    FORMAT,
    TRAINED_ON,
    VERSION,
    WEIGHTS,
    damaged,
    describe_bundle,
    layout_of,
    typed_fields,
)
from models.export.files import staged_folder
from models.export.manifest import manifest_of
from models.export.onnx import export_onnx
from models.export.traced import fast_scores, random_observation
from models.export.weights import load_weights, save_weights
from models.paper.networks import PaperPolicy, PaperSpec
from models.router import Router, RouterSpec
from rllib_envs import baselines
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation
from rllib_envs.sim.rows import OBSERVATION_VERSION
from rllib_envs.simulation import Simulation

Network = Router | PaperPolicy
"""What a bundle may hold."""

TEMPERATURE = "temperature"
"""Entry of what a bundle says about itself: QoS that a difference of 1 in the logits stood for in training."""

_KINDS: dict[str, tuple[Any, Any]] = {"router": (RouterSpec, Router), "paper": (PaperSpec, PaperPolicy)}
_TRIED_EXPERTS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """A loaded router with its description."""

    router: Network
    observation: Observation  # what it needs of a scenario's observation
    about: dict[str, Any]  # origin: scenario, fingerprint, training
    trained_on: Envelope | None  # None: unknown


def save_bundle(
    folder: Path,
    router: Network,
    observation: Observation,
    about: Mapping[str, Any],
    *,
    trained_on: Envelope | None = None,
    onnx: bool = False,
) -> float:
    """Write a bundle atomically.

    Args:
        folder: the bundle; what was there is replaced.
        router: whose weights to keep.
        observation: of the scenario that it was trained in; a router does not see the counterfactual.
        about: anything JSON that says where the router comes from.
        trained_on: its training range, if known.
        onnx: write the ONNX graph too.

    Returns:
        The largest difference of the ONNX graph's scores to torch's (``export_onnx``); 0 without.

    Raises:
        InputError: the place cannot be written to, or the ONNX export fails (``export_onnx``).
    """
    with staged_folder(folder) as staged:
        save_weights(staged / WEIGHTS, router)
        worst = export_onnx(staged, router, observation) if onnx else 0.0
        contents = {
            "format": FORMAT,
            VERSION: OBSERVATION_VERSION,
            "paper" if isinstance(router, PaperPolicy) else "router": router.spec.to_dict(),
            "layout": layout_of(observation),
            "observation": asdict(replace(observation, counterfactual=False)),
            "about": dict(about),
            **({} if trained_on is None else {TRAINED_ON: trained_on.to_json()}),
            **manifest_of(staged).to_dict(),
        }
        (staged / DESCRIPTION).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    return worst


def load_bundle(folder: Path) -> Bundle:
    """Load a bundle. It runs no code from the bundle, and its memory is bounded by the specification, also if untrusted.

    Raises:
        InputError: there is none, it is damaged, has other files than were written, or is of another version or layout; its
            specification or weights cannot have been saved so.
    """
    where = folder / DESCRIPTION
    described = describe_bundle(folder)
    make_spec, make_router = _KINDS[described.kind]
    try:
        spec = make_spec(**typed_fields(make_spec, dict(described.network)))
    except (TypeError, ValueError) as error:
        raise damaged(where, error) from None
    router: Network = load_weights(lambda: make_router(spec), folder / WEIGHTS, described.manifest.sha256[WEIGHTS])
    _check_scores(router, described.observation, folder / WEIGHTS)
    return Bundle(router=router, observation=described.observation, about=described.about, trained_on=described.trained_on)


def _check_scores(router: Network, observation: Observation, where: Path) -> None:
    """Refuse finite weights that give non-finite scores on an ordinary observation."""
    experts = router.spec.experts if isinstance(router, PaperPolicy) else _TRIED_EXPERTS
    with torch.inference_mode():
        scores = router(random_observation(observation, batch=2, experts=experts, seed=0))
    if not torch.isfinite(scores).all():
        raise InputError(f"{where}: scores that are not finite: the weights are too large")


def bundle_router(folder: Path, *, sampled: bool = False) -> tuple[baselines.RoutingPolicy, Observation]:
    """Load the bundle's router as a function of a simulation, with the observation that it needs.

    Scores come from a traced graph if possible (``fast_scores``).

    Args:
        folder: the bundle.
        sampled: draw actions as in training, with the probabilities softmax(scores / temperature); else take the best.

    Raises:
        InputError: as ``load_bundle``, or the bundle does not say the temperature that it is to be sampled with.
    """
    bundle = load_bundle(folder)
    temperature = _temperature(bundle, folder) if sampled else 0.0
    scores = fast_scores(bundle.router, random_observation(bundle.observation, batch=2, experts=3, seed=0))

    def route(simulation: Simulation, rng: np.random.Generator) -> baselines.Actions:
        """(B,) actions; greedy ones do not use ``rng``."""
        for name in ("whatif", "calibrate", "information", "demand", "places"):
            if getattr(bundle.observation, name) and not getattr(simulation.scenario.observation, name):
                raise InputError(f"{folder}: the router needs observation.{name} = True; the scenario has False")
        with torch.inference_mode():  # also for the arrays: what is made outside has more to keep track of
            observation = {key: torch.from_numpy(x) for key, x in simulation.view._asdict().items() if x.size}
            found = scores(observation).numpy()
        # The largest of logits with Gumbel noise is a draw from their softmax.
        return (found + temperature * rng.gumbel(size=found.shape) if sampled else found).argmax(axis=-1)

    return route, bundle.observation


def _temperature(bundle: Bundle, folder: Path) -> float:
    value = bundle.about.get(TEMPERATURE)
    if not isinstance(value, float) or not 0 < value < float("inf"):
        raise InputError(f"{folder / DESCRIPTION}: about.{TEMPERATURE} = {value!r}: must be a positive number to sample with")
    return value
