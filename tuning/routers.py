"""Routers by name: what a user types, as something that decides.

A router is written ``NAME``, ``NAME:key=value,...`` (a function of ``rllib_envs.baselines``, with ``-`` for ``_``) or
``checkpoint:PATH`` (a trained one). ``all`` and ``best`` stand for several. ``tau`` of impact-greedy is not the function's own
parameter but the scenario's ``observation.whatif_tau``: a router comes with the observation that it needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rllib_envs import baselines
from rllib_envs.baselines import Router
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation
from tuning.spec import format_spec, nearest, parse_spec

HEURISTICS: dict[str, Router] = {
    name.replace("_", "-"): function
    for name, function in vars(baselines).items()
    if inspect.isfunction(function) and function.__module__ == baselines.__name__ and not name.startswith("_")
}
"""Name on the command line -> function of ``rllib_envs.baselines``."""

BEST = ("join-shortest-queue", "least-work", "quality-greedy", "impact-greedy", "calibrated-impact-greedy")
"""What ``best`` stands for: the strongest that looks at queues, at work, at quality, at predicted impact, and at that corrected
on the way, which is what counts where the router is told wrong figures."""

REFERENCES = ("impact-greedy-true",)
"""Heuristics that see true lengths and scores, as no router does: shown for reference, never a baseline unasked."""

_NEEDS: dict[str, dict[str, bool]] = {
    "impact-greedy": {"whatif": True},
    "myopic-impact-greedy": {"whatif": True},
    "calibrated-impact-greedy": {"whatif": True, "calibrate": True},
    "impact-greedy-true": {"counterfactual": True},
}
_TUNED_AS = {"calibrated-impact-greedy": "impact-greedy"}  # has the parameters of, where it has none of its own
_RANGES = {"cap": (1.0, float("inf")), "tau": (1e-3, 1e3), "price": (0.0, 1e3), "shrink": (0.0, 10.0)}
_CHECKPOINT, _BUNDLE = "checkpoint:", "bundle:"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """One router, as asked for."""

    name: str  # as tables show it: a heuristic's name, with the parameters that were given; or checkpoint:PATH
    heuristic: str | None  # key of HEURISTICS; None for a checkpoint
    parameters: tuple[tuple[str, float], ...] = ()
    path: Path | None = None  # of a checkpoint

    @property
    def text(self) -> str:
        """The text that parses to this router, with all the parameters that are not left at their defaults."""
        return self.name if self.heuristic is None else format_spec(self.heuristic, dict(self.parameters))

    @property
    def is_baseline(self) -> bool:
        """Whether it may be what others are compared with unasked: a heuristic that sees no more than a router may."""
        return self.heuristic is not None and self.heuristic not in REFERENCES

    @property
    def is_plain(self) -> bool:
        """Whether it is a heuristic that looks at queues, work, memory or quality alone: one that predicts no impact."""
        return self.heuristic is not None and self.heuristic not in _NEEDS


def heuristic_parameters(name: str) -> list[str]:
    """Names of the parameters that a heuristic takes."""
    own = [key for key, p in inspect.signature(HEURISTICS[name]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    return [*(["tau"] if _NEEDS.get(name, {}).get("whatif") else []), *own]


def parse_router(text: str) -> RouterSpec:
    """Read one router.

    Raises:
        InputError: unknown name or parameter (with the nearest ones), a value out of range, no such checkpoint.
    """
    if text.startswith((_CHECKPOINT, _BUNDLE)):
        path = Path(text.partition(":")[2])
        if not path.exists():
            raise InputError(f"router {text!r}: no such file or folder: {path}")
        return RouterSpec(name=text, heuristic=None, path=path)
    known = {name: heuristic_parameters(name) for name in HEURISTICS}
    if text.partition(":")[0] not in known:
        raise InputError(f"router {text!r}: unknown; {nearest(text, known)} (or bundle:PATH, checkpoint:PATH)")
    name, values = parse_spec(text, "router", known)
    for key, value in values.items():
        low, high = _RANGES.get(key, (-float("inf"), float("inf")))
        if not low <= value <= high:
            raise InputError(f"router {text!r}: {key} = {value:g}: must be from {low:g} to {high:g}")
    return RouterSpec(name=format_spec(name, values), heuristic=name, parameters=tuple(sorted(values.items())))


def parse_routers(texts: Iterable[str]) -> list[RouterSpec]:
    """Read routers in order, with ``all`` and ``best`` expanded and doubles left out.

    Raises:
        InputError: as ``parse_router``, or none given.
    """
    groups = {"all": tuple(HEURISTICS), "best": BEST}
    singles = [single for text in texts for single in groups.get(text, (text,))]
    if not singles:
        raise InputError(f"routers: none given; allowed are all, best, bundle:PATH, checkpoint:PATH and {', '.join(HEURISTICS)}")
    return list({spec.text: spec for spec in map(parse_router, singles)}.values())


def with_tuned(spec: RouterSpec, tuned: Mapping[str, Mapping[str, float]]) -> RouterSpec:
    """A heuristic asked for by its bare name gets its tuned parameters, where there are any; its name stays."""
    if spec.heuristic is None or spec.parameters:
        return spec
    found = tuned.get(spec.heuristic, tuned.get(_TUNED_AS.get(spec.heuristic, ""), {}))
    parameters = parse_router(format_spec(spec.heuristic, found)).parameters
    return replace(spec, parameters=parameters)


def build_router(spec: RouterSpec, observation: Observation) -> tuple[Router, Observation]:
    """The router as a function, and the scenario's ``observation`` changed to what it needs.

    Raises:
        InputError: a checkpoint that cannot be loaded.
    """
    if spec.path is not None:
        return _load_trained(spec)
    assert spec.heuristic is not None
    values = dict(spec.parameters)
    needs: dict[str, bool | float] = dict(_NEEDS.get(spec.heuristic, {}))
    if "tau" in values:
        needs["whatif_tau"] = values.pop("tau")
    # Only what it needs: what-if results and counterfactuals are the dear part of a simulation.
    wanted = replace(observation, **({"whatif": False, "counterfactual": False, "calibrate": False} | needs))
    return partial(HEURISTICS[spec.heuristic], **values), wanted


def bundle_of(spec: RouterSpec) -> Path | None:
    """The folder of a trained router's bundle; None for a heuristic.

    Raises:
        InputError: no checkpoint there.
    """
    if spec.path is None or spec.name.startswith(_BUNDLE):
        return spec.path
    from models.rllib.checkpoint import BUNDLE, find_checkpoint  # here: it imports torch

    return find_checkpoint(spec.path) / BUNDLE


def _load_trained(spec: RouterSpec) -> tuple[Router, Observation]:
    import torch  # here: who compares heuristics need not wait for torch

    from models.bundle import bundle_router
    from models.rllib.checkpoint import load_router

    torch.set_num_threads(1)  # a sum split over threads rounds otherwise, and cells already use every core
    assert spec.path is not None
    return (bundle_router if spec.name.startswith(_BUNDLE) else load_router)(spec.path)
