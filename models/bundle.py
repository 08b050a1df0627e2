"""The trained router as an artefact: weights and what they are, loadable without Ray and without pickle.

A bundle is a folder with ``router.safetensors``, the weights; ``router.json``, what they fit and where they come from; and, if it
was asked for, ``router.onnx``, the same router for other runtimes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from models.files import check_digests, digests, written_aside
from models.onnx_export import export_onnx
from models.paper import PaperPolicy, PaperSpec
from models.router import Router, RouterSpec
from models.traced import fast_scores, random_observation
from rllib_envs import baselines
from rllib_envs.errors import InputError
from rllib_envs.observation import ARRIVED_FEATURES, CLUSTER_FEATURES, EXPERT_FEATURES, REQUEST_FEATURES
from rllib_envs.scenario import Observation
from rllib_envs.sim.whatif import WHATIF_FEATURES
from rllib_envs.simulation import Simulation

FORMAT = "edgeroute-bundle-1"
LAYOUT: dict[str, tuple[str, ...]] = {
    "experts": EXPERT_FEATURES,
    "requests": REQUEST_FEATURES,
    "arrived": ARRIVED_FEATURES,
    "cluster": CLUSTER_FEATURES,
    "whatif": WHATIF_FEATURES,
}
"""Columns of each part of an observation: weights are of use with these alone."""

Network = Router | PaperPolicy
"""What a bundle may hold."""

_KINDS: dict[str, tuple[Any, Any]] = {"router": (RouterSpec, Router), "paper": (PaperSpec, PaperPolicy)}
_WEIGHTS, _ABOUT = "router.safetensors", "router.json"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """A router as it was loaded."""

    router: Network
    observation: Observation  # what it needs of a scenario's observation
    about: dict[str, Any]  # where it comes from: scenario, fingerprint, training


def save_bundle(
    folder: Path, router: Network, observation: Observation, about: Mapping[str, Any], *, onnx: bool = False
) -> float:
    """Write a bundle aside and rename it.

    Args:
        folder: the bundle; what was there is replaced.
        router: whose weights to keep.
        observation: of the scenario that it was trained in; a router does not see the counterfactual.
        about: anything JSON that says where the router comes from.
        onnx: write the ONNX graph too.

    Returns:
        The largest difference of the ONNX graph's scores to torch's (``export_onnx``); 0 without.

    Raises:
        InputError: the place cannot be written to, or there can be no ONNX graph (``export_onnx``).
    """
    with written_aside(folder) as aside:
        (aside / _WEIGHTS).write_bytes(save({name: x.contiguous() for name, x in router.state_dict().items()}))
        worst = export_onnx(aside, router, observation) if onnx else 0.0
        contents = {
            "format": FORMAT,
            "paper" if isinstance(router, PaperPolicy) else "router": router.spec.to_dict(),
            "layout": LAYOUT,
            "observation": asdict(replace(observation, counterfactual=False)),
            "about": dict(about),
            "sha256": digests(aside),
        }
        (aside / _ABOUT).write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    return worst


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle.

    Raises:
        InputError: there is none, it is damaged, or of another version or layout.
    """
    where = folder / _ABOUT
    try:
        loaded: Any = json.loads(where.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{folder}: no bundle: {_ABOUT} is missing") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: damaged: {error}") from None
    if not isinstance(loaded, dict) or cast(dict[str, Any], loaded).get("format") != FORMAT:
        raise InputError(f"{where}: format is not {FORMAT!r}: not a bundle, or one of another version")
    contents = cast(dict[str, Any], loaded)
    try:
        layout, sha256 = dict(contents["layout"]), dict(contents["sha256"])
        kind = "paper" if "paper" in contents else "router"
        make_spec, make_router = _KINDS[kind]
        spec, observation = make_spec(**contents[kind]), Observation(**contents["observation"])
        about = dict(contents["about"])
        router: Network = make_router(spec)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: damaged: {error}") from None
    for part, names in LAYOUT.items():
        if layout.get(part) != list(names):
            raise InputError(f"{where}: layout.{part} = {layout.get(part)}: this version has {list(names)}: train anew")
    if _WEIGHTS not in sha256:
        raise InputError(f"{where}: sha256 has no entry for {_WEIGHTS}: damaged")
    check_digests(folder, sha256, where, "bundle")
    try:
        router.load_state_dict(load_file(folder / _WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{folder / _WEIGHTS}: does not fit the router in {_ABOUT}: {error}") from None
    return Bundle(router=router.eval(), observation=observation, about=about)


def bundle_router(folder: Path) -> tuple[baselines.Router, Observation]:
    """The bundle's router as a function of a simulation, and the observation that it needs. It takes the best score.

    Scores come from a traced graph where there can be one (``fast_scores``).

    Raises:
        InputError: as ``load_bundle``.
    """
    bundle = load_bundle(folder)
    scores = fast_scores(bundle.router, random_observation(bundle.observation, batch=2, experts=3, seed=0))

    def route(simulation: Simulation, rng: np.random.Generator) -> baselines.Actions:
        """(B,) greedy actions; ``rng`` is not used."""
        for name in ("whatif", "calibrate"):
            if getattr(bundle.observation, name) and not getattr(simulation.scenario.observation, name):
                raise InputError(f"{folder}: the router needs observation.{name} = True; the scenario has False")
        with torch.inference_mode():  # also for the arrays: what is made outside has more to keep track of
            observation = {key: torch.from_numpy(x) for key, x in simulation.view._asdict().items() if x.size}
            return scores(observation).numpy().argmax(axis=-1)

    return route, bundle.observation
