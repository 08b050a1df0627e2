"""Build Ray Tune's searcher, scheduler and trials for a sweep."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from models.rllib.checkpoint import of_this_version
from tuning.run_dir.remote_copy import RemoteCopy
from tuning.sweeps.plan import GPU_S, QOS, TrialPlan
from tuning.sweeps.signed_state import own_state
from tuning.sweeps.space import Domain, Settings, Space, default_settings
from tuning.training.options import TrainOptions

if TYPE_CHECKING:
    from ray.tune import Tuner

    from tuning.sweeps.options import SweepOptions

_LEVELS = 3  # of a range, in a grid
_ASHA_REDUCTION = 3
_PBT_PERIODS = 4  # times that a population's settings change


def tuner_of(options: SweepOptions, plan: TrialPlan, remote_copy: RemoteCopy | None) -> Tuner:
    """Build Ray Tune's tuner: for a new sweep, or for the one in the folder or the storage in its last written state.

    Raises:
        InputError: this user did not sign Tune's state there, and its author is not trusted; or another version wrote it.
    """
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3")  # or what a killed sweep knew of its trials is minutes old
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    from ray import tune

    from tuning.sweeps.table import SweepTable
    from tuning.sweeps.trial import Trial

    place, filesystem = own_state(plan.folder, remote_copy, resume=options.resume, trusted=options.trust_checkpoint)
    space = plan.space
    trainable: Any = tune.with_parameters(Trial, plan=plan)
    first, more = {"CPU": 1.0, "GPU": options.gpus_per_trial}, options.cpus_per_trial - 1
    bundles = [first] + [{"CPU": 1.0} for _ in range(more)]
    trainable = tune.with_resources(trainable, tune.PlacementGroupFactory(bundles))
    if options.resume and tune.Tuner.can_restore(place, storage_filesystem=filesystem):
        with of_this_version(place, "its finished trials keep their checkpoints, the sweep must begin anew"):
            return tune.Tuner.restore(
                place, trainable, resume_unfinished=True, restart_errored=True, storage_filesystem=filesystem
            )
    keep_all = options.scheduler == "pbt"  # a trial may go on from a checkpoint of another that is not its last
    return tune.Tuner(
        trainable,
        param_space={path: to_tune(domain, options.search) for path, domain in space.parameters.items()},
        tune_config=tune.TuneConfig(
            num_samples=options.num_samples,
            search_alg=searcher_of(options, space, plan.options),
            scheduler=_scheduler(options, space),
            max_concurrent_trials=options.max_concurrent if options.search != "random" else None,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=plan.folder.name,
            storage_path=place.rpartition("/")[0],
            storage_filesystem=filesystem,
            stop={"training_iteration": options.iterations},
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=1, checkpoint_at_end=True, num_to_keep=None if keep_all else 2
            ),
            callbacks=[SweepTable(list(space.parameters), options.iterations)],
            verbose=0,
        ),
    )


def searcher_of(options: SweepOptions, space: Space, train: TrainOptions) -> Any:
    """Tune's searcher; the usual settings come first where the space holds them, but for a grid, which has its own order."""
    usual = default_settings(train, space)
    first = [] if usual is None else [usual]
    if options.search == "optuna":
        from ray.tune.search.optuna import OptunaSearch

        pareto, searcher = options.objective == "pareto", cast(Any, OptunaSearch)  # a decorator hides its arguments
        return searcher(
            metric=[QOS, GPU_S] if pareto else QOS,
            mode=["max", "min"] if pareto else "max",
            seed=options.seed,
            points_to_evaluate=first or None,
        )
    from ray.tune.search import BasicVariantGenerator

    return BasicVariantGenerator(
        random_state=options.seed,
        points_to_evaluate=first if options.search == "random" else None,
        max_concurrent=options.max_concurrent or 0,
    )


def _scheduler(options: SweepOptions, space: Space) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining

    if options.scheduler == "asha":
        grace = min(options.grace, options.iterations)
        return ASHAScheduler(
            metric=QOS, mode="max", max_t=options.iterations, grace_period=grace, reduction_factor=_ASHA_REDUCTION
        )
    if options.scheduler == "pbt":
        mutations = {path: to_tune(domain, "random") for path, domain in space.parameters.items()}
        interval = max(options.iterations // (_PBT_PERIODS + 1), 1)
        return PopulationBasedTraining(
            metric=QOS,
            mode="max",
            perturbation_interval=interval,
            hyperparam_mutations=mutations,
            custom_explore_fn=partial(within, space),
        )
    return FIFOScheduler()


def within(space: Space, settings: Settings) -> Settings:
    """Clip settings that PBT has scaled to the space."""
    return {path: space.parameters[path].nearest(value) for path, value in settings.items()}


def to_tune(domain: Domain, search: str) -> Any:
    """Convert a domain to Tune's type."""
    from ray import tune

    if search == "grid":
        return tune.grid_search(domain.spread(_LEVELS))
    if domain.kind == "choice":
        return tune.choice(list(domain.values))
    low, high = domain.values
    if domain.kind == "integer":
        return tune.randint(low, high + 1)
    return tune.loguniform(low, high) if domain.kind == "log_uniform" else tune.uniform(low, high)


def expected_trials(options: SweepOptions, space: Space) -> int:
    """How many trials the sweep has when it is complete."""
    count = options.num_samples
    if options.search == "grid":
        for domain in space.parameters.values():
            count *= len(domain.spread(_LEVELS))
    return count


def _trial_name(trial: Any) -> str:
    """Its number, by which it is called everywhere; the searchers begin their tags with it."""
    return f"trial-{int(trial.experiment_tag.partition('_')[0]):05d}"
