"""Warn if a workload lies outside a trained router's training range, with the inputs that do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from models.envelope import Envelope, Measured, Outside, measure
from rllib_envs.scenario import Scenario
from tuning.output.literal import printable
from tuning.specs.routers import NamedRouter, bundle_of
from tuning.specs.workloads import NamedWorkload

UNKNOWN = "this bundle does not say what it was trained on"


def envelope_of_router(router: NamedRouter) -> Envelope | None:
    """The training range of a trained router; None if its bundle has none.

    Raises:
        InputError: the bundle or checkpoint cannot be loaded.
    """
    from models.export.bundle import load_bundle  # here: it imports torch

    folder = bundle_of(router)
    assert folder is not None
    return load_bundle(folder).trained_on


def notes_on_training(routers: Iterable[NamedRouter], workloads: Sequence[NamedWorkload]) -> list[str]:
    """Write a line for each trained router without a training range, or with a workload outside it.

    Raises:
        InputError: a bundle or checkpoint cannot be loaded, or a workload's files.
    """
    trained = [router for router in routers if router.is_trained]
    if not trained:
        return []
    scenarios = {workload.name: (workload.scenario, measure([workload.scenario])) for workload in workloads}
    notes = [(router.name, _note(envelope_of_router(router), scenarios)) for router in trained]
    return [printable(f"{name}: {note}") for name, note in notes if note is not None]


def _note(envelope: Envelope | None, scenarios: Mapping[str, tuple[Scenario, Measured]]) -> str | None:
    """The note on one router; scenarios by the names of their workloads."""
    if envelope is None:
        return UNKNOWN
    found = {name: envelope.outside(measured) for name, (_, measured) in scenarios.items()}
    names = [name for name, outside in found.items() if outside]
    if not names:
        return None
    worst = max(names, key=lambda name: found[name][0].excess)
    inputs = {outside.name for name in names for outside in found[name]}
    others = "" if len(inputs) == 1 else f"; {len(inputs) - 1} more of its inputs are outside"
    where = "" if len(names) == len(scenarios) else f", at {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return f"{_sentence(found[worst][0], scenarios[worst][0])}{others}{where}: its decisions there are not to be trusted " + (
        "(impact-greedy needs no training)"
    )


def _sentence(outside: Outside, scenario: Scenario) -> str:
    whose = scenario.name if outside.expert is None else f"expert {scenario.experts[outside.expert].name!r} of {scenario.name}"
    return f"trained with {outside.name} from {outside.low} to {outside.high}; {whose} has {outside.value}"
