"""Parse routers by name, and build them.

A router is written ``NAME`` or ``NAME:key=value,...`` (of ``rllib_envs.baselines``), ``checkpoint:PATH``, ``bundle:PATH`` or
``sampled:PATH`` (a trained one; the last is a bundle that draws its actions as in training), or ``python:FILE.py:FUNCTION`` (a
user's own, whose file is run). ``all`` and ``best`` stand for several. ``tau`` of
impact-greedy is not the function's own parameter but the scenario's ``observation.whatif_tau``: a router comes with the
observation that it needs. From Python, a function is a router too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rllib_envs.baselines import HEURISTICS
from rllib_envs.errors import InputError
from rllib_envs.heuristic import Heuristic, RoutingPolicy, as_heuristic
from rllib_envs.own_code import PREFIX, load_own, parse_own
from rllib_envs.scenario import Observation
from tuning.specs.grammar import format_spec, nearest, parse_spec

BEST = tuple(name for name, heuristic in HEURISTICS.items() if heuristic.best)
"""What ``best`` stands for: the strongest that looks at queues, at work, at quality, at predicted impact, and at that corrected
on the way, which is what counts where the router is told wrong figures."""

REFERENCES = tuple(name for name, heuristic in HEURISTICS.items() if heuristic.sees_truth)
"""Heuristics that see true lengths and scores, as no router does: shown for reference, never a baseline unasked."""

_PRESETS = Path(__file__).resolve().parents[1] / "presets"
SHIPPED_ROUTER, ANY_CLUSTER_ROUTER = _PRESETS / "edge6-router", _PRESETS / "any-cluster-router"
"""Bundles that ship with the project, of ``edgeroute train`` and ``edgeroute train --preset any-cluster``."""

_CHECKPOINT, _BUNDLE, _SAMPLED = "checkpoint:", "bundle:", "sampled:"
_TRAINED = (_CHECKPOINT, _BUNDLE, _SAMPLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRouter:
    """One router, as asked for."""

    name: str  # as tables show it: a heuristic's name, with the parameters that were given; or checkpoint:PATH
    heuristic: str | None  # key of HEURISTICS; None for a trained one and for a user's own
    parameters: tuple[tuple[str, float], ...] = ()
    path: Path | None = None  # of a trained one, or the file of a user's own

    @property
    def text(self) -> str:
        """The text that parses to this router, with all the parameters that are not left at their defaults."""
        return self.name if self.heuristic is None else format_spec(self.heuristic, dict(self.parameters))

    @property
    def is_baseline(self) -> bool:
        """Whether it may be the default baseline: a heuristic without privileged information."""
        return self.heuristic is not None and self.heuristic not in REFERENCES

    @property
    def is_plain(self) -> bool:
        """Whether it is a heuristic on queues, work, memory or quality alone, which predicts no impact."""
        return self.heuristic is not None and not HEURISTICS[self.heuristic].needs

    @property
    def is_trained(self) -> bool:
        """Whether it is a checkpoint or a bundle, sampled or not."""
        return self.name.startswith(_TRAINED)


def parse_router(text: str) -> NamedRouter:
    """Parse one router. A user's own file is run, as only that tells its parameters.

    Raises:
        InputError: unknown name or parameter (with the nearest ones), a value out of range, no such checkpoint or function.
    """
    if text.startswith(_TRAINED):
        path = Path(text.partition(":")[2])
        if not path.exists():
            raise InputError(f"router {text!r}: no such file or folder: {path}")
        return NamedRouter(name=text, heuristic=None, path=path)
    if text.startswith(PREFIX):
        own = parse_own(text, "router")
        typed = own.function if own.rest is None else f"{own.function}:{own.rest}"
        values = _parse_numbers(text, typed, {own.function: _load_own(own.text)})
        return NamedRouter(name=format_spec(own.text, values), heuristic=None, parameters=_sorted(values), path=own.file)
    if text.partition(":")[0] not in HEURISTICS:
        raise InputError(
            f"router {text!r}: unknown; {nearest(text, HEURISTICS)} (or bundle:PATH, checkpoint:PATH, {PREFIX}FILE.py:FUNCTION)"
        )
    values = _parse_numbers(text, text, HEURISTICS)
    name = text.partition(":")[0]
    return NamedRouter(name=format_spec(name, values), heuristic=name, parameters=_sorted(values))


def _parse_numbers(text: str, typed: str, known: Mapping[str, Heuristic]) -> dict[str, float]:
    """Parse the numeric parameters of ``text`` and check their bounds."""
    taken = {name: heuristic.parameters for name, heuristic in known.items()}
    name, values = parse_spec(typed, "router", taken, given=text)
    for key, value in values.items():
        bounds = known[name].parameters[key]
        if not bounds.low <= value <= bounds.high:
            raise InputError(f"router {text!r}: {key} = {value:g}: must be from {bounds.low:g} to {bounds.high:g}")
    return values


def _sorted(values: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(values.items()))


def parse_routers(texts: Iterable[str]) -> list[NamedRouter]:
    """Parse routers in order, with ``all`` and ``best`` expanded and without duplicates.

    Raises:
        InputError: as ``parse_router``, or none given.
    """
    groups = {"all": tuple(HEURISTICS), "best": BEST}
    singles = [single for text in texts for single in groups.get(text, (text,))]
    if not singles:
        others = f"bundle:PATH, checkpoint:PATH, {PREFIX}FILE.py:FUNCTION"
        raise InputError(f"routers: none given; allowed are all, best, {others} and {', '.join(HEURISTICS)}")
    return list({spec.text: spec for spec in map(parse_router, singles)}.values())


def with_tuned(spec: NamedRouter, tuned: Mapping[str, Mapping[str, float]]) -> NamedRouter:
    """Give a heuristic with a bare name its tuned parameters, if there are any; its name stays."""
    if spec.heuristic is None or spec.parameters:
        return spec
    found = tuned.get(spec.heuristic, tuned.get(HEURISTICS[spec.heuristic].tuned_as or "", {}))
    parameters = parse_router(format_spec(spec.heuristic, found)).parameters
    return replace(spec, parameters=parameters)


def build_router(router: NamedRouter | RoutingPolicy, observation: Observation) -> tuple[RoutingPolicy, Observation]:
    """Build the router as a function, and adapt the scenario's ``observation`` to it.

    Args:
        router: as asked for, or a function of (simulation, generator), which ``rllib_envs.heuristic`` may have described.
        observation: of the scenario.

    Raises:
        InputError: a checkpoint that cannot be loaded.
        TypeError: a function that does not take what a router takes.
    """
    if not isinstance(router, NamedRouter):
        return _with_needs(as_heuristic(router), {}, observation)
    if router.is_trained:
        trained, wanted = _load_trained(router)
        return trained, replace(wanted, judged_share=observation.judged_share)  # whoever routes, the same answers are judged
    heuristic = _load_own(router.name) if router.heuristic is None else HEURISTICS[router.heuristic]
    return _with_needs(heuristic, dict(router.parameters), observation)


def _with_needs(heuristic: Heuristic, values: dict[str, float], observation: Observation) -> tuple[RoutingPolicy, Observation]:
    needs: dict[str, bool | float] = dict.fromkeys(heuristic.needs, True)
    if "tau" in values and "whatif" in heuristic.needs:
        needs["whatif_tau"] = values.pop("tau")
    # Only what it needs: what-if results and counterfactuals are the expensive part of a simulation.
    parts = ("whatif", "information", "demand", "places", "counterfactual", "calibrate")
    off: dict[str, bool | float] = dict.fromkeys(parts, False)
    return heuristic.policy(**values), replace(observation, **(off | needs))


def _load_own(text: str) -> Heuristic:
    """The router of a user's own file."""
    own = parse_own(text, "router")
    function = load_own(own, "router")
    try:
        return as_heuristic(function)
    except TypeError as error:
        raise InputError(f"router {own.text!r}: {error}") from None


def bundle_of(spec: NamedRouter) -> Path | None:
    """The folder of a trained router's bundle; None for a heuristic.

    Raises:
        InputError: no checkpoint there.
    """
    if spec.path is None or not spec.is_trained:
        return None
    if not spec.name.startswith(_CHECKPOINT):
        return spec.path
    from models.rllib.checkpoint import BUNDLE, find_checkpoint  # here: it imports torch

    return find_checkpoint(spec.path) / BUNDLE


def _load_trained(spec: NamedRouter) -> tuple[RoutingPolicy, Observation]:
    import torch  # here: who compares heuristics need not wait for torch

    from models.export.bundle import bundle_router
    from models.rllib.checkpoint import load_router

    torch.set_num_threads(1)  # a sum split over threads rounds otherwise, and cells already use every core
    assert spec.path is not None
    if spec.name.startswith(_CHECKPOINT):
        return load_router(spec.path)
    return bundle_router(spec.path, sampled=spec.name.startswith(_SAMPLED))
