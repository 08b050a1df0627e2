"""Search spaces of sweeps: paths into an experiment, and the values that each may take.

A space is a YAML file::

    about: what the space is for
    base: {generations: 0}            # options of train that are the same in all trials
    parameters:
      reward.violation: {uniform: [0.0, 0.5]}
      lr: {log_uniform: [1e-4, 1e-2]}
      layers: {integer: [1, 2]}
      edges: {choice: [all, running]}
      scenario.slo_s_per_token: {choice: [0.04, 0.05]}

Paths are the names of train's options (as in its ``--config`` file), ``reward.`` with one of the reward's weights, or
``scenario.`` with what leads to a value in the scenario's YAML.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from rllib_envs.errors import InputError
from rllib_envs.scenario import Reward, Scenario
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from rllib_envs.yaml_files import read_mapping
from tuning.specs.grammar import nearest
from tuning.training.algorithms import learning_rate
from tuning.training.options import TrainOptions, complete, definition, parse_options, to_mapping

SPACES = Path(__file__).parents[1] / "presets" / "spaces"
"""Folder of the spaces that come with the project."""

Kind = Literal["choice", "uniform", "log_uniform", "integer"]
Settings = dict[str, Any]
"""Path -> value, of one trial."""

_KINDS = ("choice", "uniform", "log_uniform", "integer")
_ANEW = ("reward", "observation", "variation")  # parts of a scenario that training sets
_MOST_TRIED = 200  # settings that are built to see whether they can be


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The values that one path may take."""

    kind: Kind
    values: tuple[Any, ...]  # of a choice; else the least and the greatest

    def __str__(self) -> str:
        return f"{self.kind} {', '.join(map(str, self.values))}"

    def contains(self, value: Any) -> bool:
        """Whether it may take this one."""
        if self.kind == "choice":
            return any(value == one and type(value) is type(one) for one in self.values)
        low, high = self.values
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    def nearest(self, value: Any) -> Any:
        """The allowed value nearest to the given one, which may lie outside."""
        return value if self.kind == "choice" else min(max(value, self.values[0]), self.values[1])

    def spread(self, count: int) -> list[Any]:
        """Evenly spaced values from least to greatest; all values of a choice or of few integers."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        if self.kind == "integer":
            return sorted({round(x) for x in np.linspace(low, high, min(count, high - low + 1))})
        spaced = np.geomspace(low, high, count) if self.kind == "log_uniform" else np.linspace(low, high, count)
        return [float(x) for x in spaced]


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A search space: what varies, and what is fixed."""

    name: str
    about: str
    base: dict[str, Any]
    parameters: dict[str, Domain]

    def to_dict(self) -> dict[str, Any]:
        """The content of a space file."""
        return {
            "about": self.about,
            "base": self.base,
            "parameters": {path: {domain.kind: list(domain.values)} for path, domain in self.parameters.items()},
        }


def space_names() -> list[str]:
    """The spaces that come with the project."""
    return sorted(path.stem for path in SPACES.glob("*.yaml"))


def load_space(text: str) -> Space:
    """Load a space by name, or from a file.

    Raises:
        InputError: no such space, or a file that is not one.
    """
    path = SPACES / f"{text}.yaml" if text in space_names() else Path(text)
    if "\0" in text or not path.exists():
        raise InputError(f"space {text!r}: no such file, and no space of that name; {nearest(text, space_names())}")
    return parse_space(read_mapping(path, "about, base and parameters"), path.stem, str(path))


def parse_space(data: Any, name: str, where: str) -> Space:
    """Parse a space from the YAML data of its file.

    Raises:
        InputError: it is not a space, names an unknown path, or is empty.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where}: must be a mapping with parameters")
    contents = cast(Mapping[str, Any], data)
    for key in contents:
        if key not in ("about", "base", "parameters"):
            raise InputError(f"{where}: unknown key {key!r}; allowed are about, base, parameters")
    parameters, base = contents.get("parameters"), contents.get("base") or {}
    if not isinstance(parameters, Mapping) or not parameters:
        raise InputError(f"{where}: parameters is empty: there is nothing to vary")
    if not isinstance(base, Mapping):
        raise InputError(f"{where}: base must be a mapping of options")
    domains = {str(path): _domain(value, f"{where}: {path}") for path, value in cast(Mapping[str, Any], parameters).items()}
    for path in domains:
        _check_path(path, where)
    for path in cast(Mapping[str, Any], base):
        if path in domains:
            raise InputError(f"{where}: {path} is in base and in parameters")
    return Space(name=name, about=str(contents.get("about", "")), base=dict(cast(Mapping[str, Any], base)), parameters=domains)


def check_space(space: Space, options: TrainOptions, where: str) -> None:
    """Build experiments at the corners and in between, so that invalid ones show before anything starts.

    Args:
        space: what varies.
        options: of train, without the space's base.
        where: what messages call the space.

    Raises:
        InputError: a value that its path does not take, or values that do not go together.
    """
    for settings in _to_try(space):
        try:
            complete(experiment(options, space, settings)[0])
        except InputError as error:
            shown = ", ".join(f"{path} = {value}" for path, value in settings.items())
            raise InputError(f"{where}: impossible with {shown}:\n{error}") from None


def experiment(options: TrainOptions, space: Space, settings: Settings) -> tuple[TrainOptions, Scenario]:
    """The options of train for a trial, and its scenario, with the settings that change it applied.

    Raises:
        InputError: a value that its path does not take, or values that do not go together.
    """
    own: dict[str, Any] = {}
    world: dict[str, Any] = {}
    for path, value in {**space.base, **settings}.items():
        head, _, rest = path.partition(".")
        if head == "scenario" and rest:
            world[rest] = value
        elif head == "reward" and rest:
            own.setdefault("reward", {})[rest] = value
        else:
            own[path.replace("-", "_")] = value
    changed = with_options(options, own, f"space {space.name}")
    scenario = _scenario(changed.scenario)
    if world:
        data = scenario.to_dict()
        for path, value in world.items():
            _put(data, path, value)
        scenario = parse_scenario(data, f"space {space.name}: scenario")
    return changed, scenario


@cache
def _scenario(name: str) -> Scenario:
    return load_scenario(name)


def with_options(options: TrainOptions, changes: Mapping[str, Any], where: str) -> TrainOptions:
    """Change options by name, as in a file of options.

    Raises:
        InputError: an unknown name or a value that is not possible.
    """
    usual = to_mapping(options)
    reward = changes.get("reward", {})
    return replace(parse_options({**usual, **changes, "reward": usual["reward"] | reward}, where), track=options.track)


def default_settings(options: TrainOptions, space: Space) -> Settings | None:
    """The settings that change nothing; None if the space does not hold them."""
    unchanged, scenario = experiment(options, replace(space, parameters={}), {})
    values: dict[str, Any] = to_mapping(unchanged) | {"lr": learning_rate(unchanged)}
    settings: Settings = {}
    for path, domain in space.parameters.items():
        head, _, rest = path.partition(".")
        if head == "scenario" and rest:
            value = _get(scenario.to_dict(), rest)
        else:
            value = values["reward"][rest] if head == "reward" and rest else values[path.replace("-", "_")]
        if not domain.contains(value):
            return None
        settings[path] = value
    return settings


def _domain(value: Any, where: str) -> Domain:
    if not isinstance(value, Mapping) or len(cast(Mapping[str, Any], value)) != 1:
        raise InputError(f"{where} = {value!r}: must be one of {', '.join(_KINDS)} with its values, as in {{uniform: [0, 1]}}")
    ((kind, values),) = cast(Mapping[str, Any], value).items()
    if kind not in _KINDS:
        raise InputError(f"{where}: unknown kind {kind!r}; {nearest(str(kind), _KINDS)}")
    if not isinstance(values, list) or not values:
        raise InputError(f"{where}: {kind} = {values!r}: must be a list that is not empty")
    items = cast(list[Any], values)
    if kind == "choice":
        if len({repr(item) for item in items}) < len(items):
            raise InputError(f"{where}: choice = {items!r}: holds a value twice")
        return Domain(kind="choice", values=tuple(items))
    numbers = [item for item in items if isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)]
    if len(items) != 2 or len(numbers) != 2 or numbers[0] >= numbers[1]:
        raise InputError(f"{where}: {kind} = {items!r}: must be two numbers, the least and the greatest")
    if kind == "log_uniform" and numbers[0] <= 0:
        raise InputError(f"{where}: log_uniform = {items!r}: must be > 0")
    if kind == "integer" and not all(isinstance(number, int) for number in numbers):
        raise InputError(f"{where}: integer = {items!r}: must be two integers")
    return Domain(kind=kind, values=tuple(numbers))


def _check_path(path: str, where: str) -> None:
    head, _, rest = path.partition(".")
    known = [name for name in definition(TrainOptions()) if name not in ("preset", "reward")]
    known += [f"reward.{weight.name}" for weight in fields(Reward)]
    if head == "scenario" and rest:
        if rest.partition(".")[0] in _ANEW:
            raise InputError(f"{where}: {path}: training sets it; its own options are what to vary: {nearest(rest, known)}")
        return  # whether there is such a place, the scenario says
    if path.replace("-", "_") not in known:
        raise InputError(f"{where}: nothing to vary at {path!r}; {nearest(path, [*known, 'scenario.'])}")


def _to_try(space: Space) -> Iterator[Settings]:
    """All combinations of choices with the ends of ranges, or the first of them in a fixed random order."""
    sides = {path: domain.spread(2) for path, domain in space.parameters.items()}
    if math.prod(len(values) for values in sides.values()) <= _MOST_TRIED:
        for combination in product(*sides.values()):
            yield dict(zip(sides, combination, strict=True))
        return
    for path, values in sides.items():  # every value at least once
        for value in values:
            yield {other: value if other == path else options[0] for other, options in sides.items()}
    rng = np.random.default_rng(0)
    for _ in range(_MOST_TRIED):
        yield {path: values[rng.integers(len(values))] for path, values in sides.items()}


def _put(data: Any, path: str, value: Any) -> None:
    """Set a value that is there."""
    _get(data, path)
    *way, last = path.split(".")
    for step in way:
        data = data[int(step)] if isinstance(data, list) else data[step]
    data[int(last) if isinstance(data, list) else last] = value


def _get(data: Any, path: str) -> Any:
    """The value at a path of keys and positions.

    Raises:
        InputError: there is none; names what there is.
    """
    at = "scenario"
    for step in path.split("."):
        if isinstance(data, list):
            items = cast(list[Any], data)
            if not step.isdigit() or int(step) >= len(items):
                raise InputError(f"{at}.{step}: must be a position from 0 to {len(items) - 1}")
            data = items[int(step)]
        elif isinstance(data, Mapping):
            if step not in data:
                raise InputError(f"{at}.{step}: there is no such value; {nearest(step, map(str, cast(Mapping[str, Any], data)))}")
            data = data[step]
        else:
            raise InputError(f"{at}.{step}: {at} is a value with nothing in it")
        at += f".{step}"
    return data
