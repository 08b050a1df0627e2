"""Environment variants for training (domain randomisation): each environment keeps one scenario for the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.rllib.rollout.env_groups import Group
from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation, PredictionLaw, Predictions, Reward, Scenario, Variation, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.azure import AzureKind
from tuning.specs.prompts import with_information
from tuning.specs.workloads import TraceOptions, make_workloads

MIXED, OWN = "mixed", "own"
"""Loads beside those of ``make_workloads``: one for each environment, and the scenario's own."""

_FLEET_SHARE = 8  # one environment in so many for each of the other fleets
_TRACES: dict[AzureKind, int] = {"azure-conversation": 8, "azure-code": 5}
"""Fits of traces, under mixed load: one environment in so many. Floods come with the code, where there is most to learn."""

_NEARLY_TRUE = {"score_sd": 0.03, "length_log_sd": 0.1}
"""Errors of the best predictions in training. With none at all, a 0/1 score would say the outcome."""

_BURSTS = Variation(fault_share=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantOptions:
    """Options of the environment variants."""

    scenario: str
    load: str
    requests: int
    fleets: Sequence[str]
    variation: bool
    observation: Observation
    reward: Reward
    catalogue: str | None = None  # file of prompts; None, here and below: the scenario's
    predictions: PredictionLaw | None = None
    predictors: str | None = None  # folder
    information_levels: bool = False


def base_scenario(options: VariantOptions) -> Scenario:
    """The scenario under its load, with reward and observation as asked for.

    Raises:
        InputError: no such scenario or load.
    """
    scenario = with_information(load_scenario(options.scenario), options.catalogue, options.predictions, options.predictors)
    return _dressed(scenario, options)


def training_groups(own: Scenario, options: VariantOptions, environments: int, beside: Scenario | None = None) -> list[Group]:
    """Assign scenarios to a worker's environments: most the scenario itself, an eighth each of the other fleets.

    Under mixed load the environments of a group have loads spaced evenly in logarithm over the scenario's ``mixed_range``. Where
    the scenario has Poisson arrivals, they give way to bursts in some episodes, and some environments have the arrivals and long
    prompts of the Azure traces instead (their fits: nothing is read). With ``variation`` episodes have faults drawn for them.
    With ``information_levels`` neighbouring environments have predictions of different worth (``information_levels``).

    Args:
        own: ``base_scenario`` of the options.
        options: as for it; a fleet is a number of experts' preset or any other scenario.
        environments: environments of the worker.
        beside: the same cluster with other arrivals, for half of its environments.

    Raises:
        InputError: too few environments, or no such fleet.
    """
    each = max(environments // _FLEET_SHARE, 1)
    count = environments - each * len(options.fleets)
    if count < 1:
        raise InputError(
            f"envs-per-runner = {environments}: must be more than the {len(options.fleets)} fleets trained on beside"
        )
    alike = {"workload": own.workload, "predictions": own.predictions}
    fleets = [_dressed(replace(load_scenario(name), **alike), options) for name in options.fleets]
    groups: list[Group] = [
        (_spread(own, count, options) if beside is None else _halves(own, beside, count, options), count),
        *((_spread(fleet, each, options), each) for fleet in fleets),
    ]
    return [(_over_levels(scenarios, n), n) for scenarios, n in groups] if options.information_levels else groups


def information_levels(scenario: Scenario) -> tuple[Predictions, ...]:
    """Predictions of different worth for a catalogue, the poorest first.

    These are expert means; for a file the means on the prompt's task; the scenario's own predictions, so those with measured
    errors or those of fitted predictors; the truth with usual noise; nearly the truth.
    """
    own = scenario.predictions
    means, task_means, noisy, nearly_true = (
        replace(own, law=law, predictors=None, **errors)
        for law, errors in (("means", {}), ("task-means", {}), ("oracle-noise", {}), ("oracle-noise", _NEARLY_TRUE))
    )
    of_tasks = (task_means,) if scenario.workload.catalogue.kind == "file" else ()
    return (means, *of_tasks, own, noisy, nearly_true)


def _dressed(scenario: Scenario, options: VariantOptions) -> Scenario:
    loads = () if options.load == OWN else (options.load,)
    (workload,) = make_workloads(scenario, loads, (), TraceOptions(), options.requests)
    return replace(workload.scenario, reward=options.reward, observation=options.observation)


def _spread(scenario: Scenario, count: int, options: VariantOptions) -> Scenario | tuple[Scenario, ...]:
    """Scenarios of the environments of one cluster: one for all, or one for each under mixed load."""
    poisson = scenario.workload.arrivals.kind == "poisson"
    if options.load != MIXED:
        return _varied(scenario, options, bursts=False)
    counts: dict[AzureKind, int] = {kind: count // share for kind, share in _TRACES.items()} if poisson else {}
    varied = [(_varied(scenario, options, bursts=poisson), count - sum(counts.values()))]
    varied += [(_varied(_with_arrivals(scenario, kind), options, bursts=False), each) for kind, each in counts.items()]
    return tuple(with_load for part, number in varied if number for with_load in _over_loads(part, number))


def _halves(own: Scenario, beside: Scenario, count: int, options: VariantOptions) -> tuple[Scenario, ...]:
    """Half of the environments of one cluster each with its own arrivals, and with those of ``beside``."""
    parts = [(own, count - count // 2), (beside, count // 2)]
    found = [(_spread(scenario, number, options), number) for scenario, number in parts if number]
    return tuple(x for spread, number in found for x in ((spread,) * number if isinstance(spread, Scenario) else spread))


def _over_levels(scenarios: Scenario | Sequence[Scenario], count: int) -> tuple[Scenario, ...]:
    """A scenario for each of ``count`` environments, with the information levels in turn."""
    each = (scenarios,) * count if isinstance(scenarios, Scenario) else scenarios
    levels = information_levels(each[0])
    return tuple(replace(scenario, predictions=levels[i % len(levels)]) for i, scenario in enumerate(each))


def _varied(scenario: Scenario, options: VariantOptions, *, bursts: bool) -> Scenario:
    if options.variation:
        return replace(scenario, variation=Variation() if bursts else Variation(burst_share=0.0))
    return replace(scenario, variation=_BURSTS) if bursts else scenario


def _with_arrivals(scenario: Scenario, kind: AzureKind) -> Scenario:
    return with_workload(scenario, arrivals=replace(scenario.workload.arrivals, kind=kind))


def _over_loads(scenario: Scenario, count: int) -> list[Scenario]:
    """The scenario at loads spaced evenly in logarithm over its ``mixed_range`` of what it carries with these arrivals."""
    low, high = scenario.workload.mixed_range
    shares = np.geomspace(low, high, count) if count > 1 else [np.sqrt(low * high)]
    brings_prompts = scenario.workload.arrivals.kind in _TRACES  # longer prompts: a stated or measured capacity is for others
    capacity = capacity_rps(replace(scenario, capacity_rps=None) if brings_prompts else scenario)
    return [with_workload(scenario, load=float(share * capacity)) for share in shares]
