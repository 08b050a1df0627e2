"""Build a training run from its options: environment variants, algorithm, validation."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from models.envelope import Envelope, measure
from models.export.bundle import TEMPERATURE
from models.export.description import TRAINED_ON
from models.rllib.rollout.env_groups import Group
from rllib_envs.errors import InputError
from rllib_envs.footprint import machine_bytes
from rllib_envs.scenario import Observation, Scenario
from rllib_envs.scenarios.kinds import PLAIN_KIND, of_kind
from rllib_envs.scenarios.procedural import draw_scenario
from rllib_envs.simulation import Simulation
from tuning.ray_cluster.check import Needs
from tuning.training.algorithms import algorithm_config, network_spec
from tuning.training.options import PAPER_NETWORKS, TrainOptions
from tuning.training.validation import Validator
from tuning.training.variants import VariantOptions

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

_SEED_STRIDE = 1_000_003  # from one start of a run to the next, so that a resumed one does not meet the same episodes again
_DRAWN, _MEASURED = 4000, 24  # seed and number of the drawn scenarios that stand for all that a run draws
_VALIDATION = {"seeds": 4, "requests": 1200}


def variant_options(options: TrainOptions) -> VariantOptions:
    """The options of its environment variants."""
    observation = Observation(
        whatif=options.spec.impact,
        information=options.spec.information,
        demand=options.spec.demand,
        places=options.spec.places,
        whatif_tau=options.soft_deadline,
        counterfactual=options.preset not in PAPER_NETWORKS,
        calibrate=options.calibrate,
        running_slots=options.running_slots,
        waiting_slots=options.waiting_slots,
    )
    return VariantOptions(
        scenario=options.scenario,
        load=options.load,
        requests=options.requests,
        fleets=options.fleets,
        catalogue=options.catalogue,
        predictions=options.predictions,
        predictors=options.predictors,
        information_levels=options.information_levels,
        variation=options.variation,
        observation=observation,
        reward=options.reward,
    )


def needs_of(options: TrainOptions) -> Needs:
    """The resources that a run needs on a cluster, as far as its options say."""
    return Needs(
        cpus=(options.num_env_runners or 0) + options.num_learners,
        gpus=max(options.num_learners, 1) * (options.gpus_per_learner or 0),
        storage=options.storage,
    )


@contextmanager
def algorithm_of(options: TrainOptions, scenario: Scenario, groups: list[Group], starts: int) -> Generator[Algorithm]:
    """Build the algorithm in its initial state; stop it at the end of the context.

    Args:
        options: complete.
        scenario: ``variants.base_scenario`` of the run.
        groups: ``variants.training_groups`` of the run.
        starts: how often the run has been started, this time included.
    """
    _check_sample(options, _compile_kernels(scenario))
    options = _with_workers(options)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    seed = options.seed + (starts - 1) * _SEED_STRIDE
    algorithm = algorithm_config(options, groups, network_spec(options, scenario), seed=seed).build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


def validator_of(options: TrainOptions, scenario: Scenario) -> Validator:
    """Short paired comparisons with the best heuristic, in the run's scenario; episodes are no longer than those of training."""
    size = {"seeds": 2, "requests": 20} if options.smoke else _VALIDATION
    return Validator(scenario, options.load, seeds=size["seeds"], requests=min(size["requests"], options.requests))


def envelope_of(groups: Sequence[Group], drawn: int = 0, kinds: Sequence[str] = (PLAIN_KIND,)) -> Envelope:
    """The training range of a run: of its environment variants (``variants.training_groups``), or of drawn scenarios.

    Args:
        groups: the environment variants.
        drawn: how many scenarios to draw instead, where the run draws its own.
        kinds: of those, in turn.
    """
    if drawn:
        scenarios = [draw_scenario(np.random.default_rng([_DRAWN, i])) for i in range(drawn)]
        made = [of_kind(kinds[i % len(kinds)], scenario, (_DRAWN, i)) for i, scenario in enumerate(scenarios)]
        return Envelope.of([measure([scenario]) for scenario in made])
    return Envelope.of([measure([variants] if isinstance(variants, Scenario) else list(variants)) for variants, _ in groups])


def about_run(options: TrainOptions, scenario: Scenario, groups: Sequence[Group], starts: int) -> dict[str, Any]:
    """Metadata for the checkpoints of a run."""
    return {
        TRAINED_ON: envelope_of(groups, _drawn(options), options.avl.search_kinds).to_json(),
        "starts": starts,
        "algo": options.algo,
        "seed": options.seed,
        TEMPERATURE: 1.0 if options.preset in PAPER_NETWORKS else float(options.temperature),
        "observation": asdict(replace(scenario.observation, counterfactual=False)),
        "scenario": "drawn" if _drawn(options) else scenario.name,
        "fingerprint": scenario.fingerprint(),
    }


def _drawn(options: TrainOptions) -> int:
    """How many drawn scenarios stand for those of a run; none where it trains in its environment variants too."""
    if options.algo != "avl" or not options.avl.search_drawn or options.avl.search_variants:
        return 0
    return 1 if options.smoke else _MEASURED


def _with_workers(options: TrainOptions) -> TrainOptions:
    """Set the number of rollout workers, if not given, to the number of cores of the cluster."""
    if options.num_env_runners is not None:
        return options
    import ray

    cores = int(ray.cluster_resources().get("CPU", 0))
    return replace(options, num_env_runners=max(cores - options.num_learners, 1))


def _check_sample(options: TrainOptions, simulation: Simulation) -> None:
    """Check that the machine can hold the observations of an iteration.

    Raises:
        InputError: it cannot.
    """
    sample, machine = options.steps_in_iteration * sum(part.nbytes for part in simulation.view), machine_bytes()
    if sample > machine:
        raise InputError(
            f"steps-per-iteration = {options.steps_in_iteration:,}: the observations of an iteration would take "
            f"{sample / 2**30:,.1f} GiB, this machine has {machine / 2**30:,.1f} GiB: ask for fewer steps or slots"
        )


def _compile_kernels(scenario: Scenario) -> Simulation:
    """Take one step, so that compiling counts neither as training time nor for each worker process; what it was taken in."""
    simulation = Simulation(scenario, 1)
    simulation.start(0, 0)
    simulation.step(np.zeros(1, np.int64))
    return simulation
