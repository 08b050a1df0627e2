"""The description of a bundle: what it is and what it needs, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, cast

from models.envelope import Envelope
from models.export.manifest import Manifest, check_folder, manifest_in, read_description
from models.former_names import current_names
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

DESCRIPTION = "router.json"
"""File of a bundle that says what it is."""

WEIGHTS = "router.safetensors"
"""File of a bundle that has its weights."""

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

VERSION = "observation_version"
"""Entry of a description: version of the observations that the router was trained on (``sim.rows``)."""

TRAINED_ON = "trained_on"
"""Part of a description, which earlier versions left out: the ranges of the inputs in training."""

KINDS = ("router", "paper")
"""Networks that a bundle may hold, by the part of the description that specifies them."""

_MOST_SLOTS = 4096  # of each kind; a scenario's engines have fewer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BundleDescription:
    """What a bundle says of itself."""

    kind: str  # of KINDS
    network: Mapping[str, Any]  # specification of its network
    observation: Observation  # what it needs of a scenario's observation
    about: dict[str, Any]  # origin: scenario, fingerprint, training
    trained_on: Envelope | None  # None: unknown
    manifest: Manifest


def describe_bundle(folder: Path) -> BundleDescription:
    """Read the description of a bundle, and check that its files are those that were written.

    Raises:
        InputError: there is no bundle, it is damaged, has other files than were written, or is of another version or layout.
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
        layout, about, network = _mapping(contents, "layout"), _mapping(contents, "about"), _mapping(contents, kind)
        observation = Observation(**typed_fields(Observation, _mapping(contents, "observation")))
        trained_on = Envelope.from_json(contents[TRAINED_ON]) if TRAINED_ON in contents else None
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(where, error) from None
    for part, names in layout_of(observation).items():
        if current_names(layout.get(part)) != list(names):
            raise InputError(f"{where}: layout.{part} = {layout.get(part)!r:.200}: this version has {list(names)}: train anew")
    _check_slots(observation, where)
    manifest = manifest_in(contents, where)
    if WEIGHTS not in manifest.sha256:
        raise InputError(f"{where}: sha256 has no entry for {WEIGHTS}: damaged")
    check_folder(folder, manifest, where, "bundle")
    return BundleDescription(
        kind=kind, network=network, observation=observation, about=about, trained_on=trained_on, manifest=manifest
    )


def damaged(where: Path, error: Exception) -> InputError:
    """The error that says that a description is damaged."""
    return InputError(f"{where}: damaged: {' '.join(str(error).split())}")


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


def typed_fields(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
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
