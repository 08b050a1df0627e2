"""Bundles: a trained router as a folder that loads without Ray and without pickle.

A bundle has ``router.safetensors`` (the weights), ``router.json`` (network specification and origin) and, on request,
``router.onnx`` (the same router for other runtimes).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from models.envelope import Envelope
from models.export.files import staged_folder
from models.export.manifest import check_folder, manifest_in, manifest_of, read_description
from models.export.onnx import DESCRIPTION, export_onnx
from models.export.traced import fast_scores, random_observation
from models.export.weights import load_weights, save_weights
from models.former_names import current_names
from models.paper.networks import PaperPolicy, PaperSpec
from models.router import Router, RouterSpec
from rllib_envs import baselines
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation
from rllib_envs.sim.rows import (
    ARRIVED_FEATURES,
    CLUSTER_FEATURES,
    DEMAND_FEATURES,
    EXPERT_FEATURES,
    INFORMATION_FEATURES,
    OBSERVATION_VERSION,
    PLACE_FEATURES,
    REQUEST_FEATURES,
    WHATIF_FEATURES,
)
from rllib_envs.simulation import Simulation

FORMAT = "edgeroute-bundle-2"
_FORMER = "edgeroute-bundle-1"
"""Format that is still read: it names no version of the observations, which is 1."""
LAYOUT: dict[str, tuple[str, ...]] = {
    "experts": EXPERT_FEATURES,
    "requests": REQUEST_FEATURES,
    "arrived": ARRIVED_FEATURES,
    "cluster": CLUSTER_FEATURES,
    "whatif": WHATIF_FEATURES,
}
"""Columns of each part of an observation: weights are of use with these alone."""

_OPTIONAL = {"information": INFORMATION_FEATURES, "demand": DEMAND_FEATURES, "places": PLACE_FEATURES}
"""Of observations that have it."""

Network = Router | PaperPolicy
"""What a bundle may hold."""

TRAINED_ON = "trained_on"
"""Part of a description, which earlier versions left out: the ranges of the inputs in training."""

VERSION = "observation_version"
"""Entry of a description: version of the observations that the router was trained on (``sim.rows``)."""

TEMPERATURE = "temperature"
"""Entry of what a bundle says about itself: QoS that a difference of 1 in the logits stood for in training."""

_KINDS: dict[str, tuple[Any, Any]] = {"router": (RouterSpec, Router), "paper": (PaperSpec, PaperPolicy)}
_WEIGHTS = "router.safetensors"
_MOST_SLOTS = 4096  # of each kind; a scenario's engines have fewer
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
        save_weights(staged / _WEIGHTS, router)
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
    if folder.is_dir() and not where.exists():
        raise InputError(f"{folder}: no bundle: {DESCRIPTION} is missing")
    contents = read_description(where, "bundle")
    if contents.get("format") not in (FORMAT, _FORMER):
        raise InputError(f"{where}: format is not {FORMAT!r} or {_FORMER!r}: not a bundle, or one of a later version")
    version = 1 if contents["format"] == _FORMER else contents.get(VERSION)
    if type(version) is not int or not 1 <= version <= OBSERVATION_VERSION:
        raise InputError(f"{where}: {VERSION} = {version!r:.100}: this version reads 1 to {OBSERVATION_VERSION}")
    try:
        kind = "paper" if "paper" in contents else "router"
        layout, about = _mapping(contents, "layout"), _mapping(contents, "about")
        make_spec, make_router = _KINDS[kind]
        spec = make_spec(**_typed(make_spec, _mapping(contents, kind)))
        observation = Observation(**_typed(Observation, _mapping(contents, "observation")))
        trained_on = Envelope.from_json(contents[TRAINED_ON]) if TRAINED_ON in contents else None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: damaged: {' '.join(str(error).split())}") from None
    for part, names in layout_of(observation).items():
        if current_names(layout.get(part)) != list(names):
            raise InputError(f"{where}: layout.{part} = {layout.get(part)!r:.200}: this version has {list(names)}: train anew")
    _check_slots(observation, where)
    manifest = manifest_in(contents, where)
    if _WEIGHTS not in manifest.sha256:
        raise InputError(f"{where}: sha256 has no entry for {_WEIGHTS}: damaged")
    check_folder(folder, manifest, where, "bundle")
    router: Network = load_weights(lambda: make_router(spec), folder / _WEIGHTS, manifest.sha256[_WEIGHTS])
    _check_scores(router, observation, folder / _WEIGHTS)
    return Bundle(router=router, observation=observation, about=about, trained_on=trained_on)


def layout_of(observation: Observation) -> dict[str, tuple[str, ...]]:
    """The columns of each part of such an observation."""
    return LAYOUT | {name: columns for name, columns in _OPTIONAL.items() if getattr(observation, name)}


def _mapping(contents: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of a description.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(contents[name], dict):
        raise TypeError(f"{name} is no mapping")
    return cast(dict[str, Any], contents[name])


def _typed(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Values of a dataclass's fields, with strict types: a text or a bool is no number.

    Raises:
        TypeError: one has another type.
    """
    for field in fields(kind):
        value, default = values.get(field.name), field.default
        wanted = (int,) if default is MISSING else (float, int) if type(default) is float else (type(default),)
        if field.name in values and type(value) not in wanted:
            raise TypeError(f"{field.name} = {value!r:.100}: must be of type {wanted[0].__name__}")
    return values


def _check_slots(observation: Observation, where: Path) -> None:
    """Refuse an observation that no memory could hold."""
    for name in ("running_slots", "waiting_slots"):
        if getattr(observation, name) > _MOST_SLOTS:
            raise InputError(f"{where}: observation.{name} = {getattr(observation, name)}: must be <= {_MOST_SLOTS}")


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
