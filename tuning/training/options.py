"""Options of a training run: from the command line, from a file, from a preset."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import TypeAdapter, ValidationError

from models.export.description import describe_bundle, typed_fields
from models.rllib.avl.settings import AVLSettings
from models.rllib.sac.settings import SACSettings
from models.rllib.scenario import MARGINAL, SOFT_DEADLINE
from models.router import RouterSpec
from rllib_envs.baselines import HEURISTICS
from rllib_envs.errors import InputError
from rllib_envs.scenario import PredictionLaw, Reward
from rllib_envs.scenarios.kinds import PLAIN_KIND
from rllib_envs.scenarios.load import explain
from rllib_envs.yaml_files import read_mapping
from tuning.output.tracking import TrackOptions
from tuning.specs.grammar import check_limits, nearest
from tuning.specs.routers import parse_router

AlgorithmName = Literal["avl", "sac", "ppo", "dqn"]
PresetName = Literal["ours", "any-cluster", "paper", "paper-published", "paper-mended"]
PAPER_NETWORKS = ("paper", "paper-published")
"""Presets with the networks of the paper."""

PAPER = Reward(realised_qos=1.0, paper_impact=1.0)

DEFAULT_STEPS = 2_000_000
_STEPS_PER_ITERATION: Mapping[str, int] = {"avl": 32_768, "sac": 3_072, "ppo": 16_384, "dqn": 3_072}
_STEPS_HELP = (
    f"Stop after this many decisions, counted from the beginning of the run. Default, if no limit is given: {DEFAULT_STEPS:,}."
)
_STEPS_PER_ITERATION_HELP = (
    "Decisions in an iteration, over all environments. Default: "
    f"{', '.join(f'{algo} {steps:,}' for algo, steps in _STEPS_PER_ITERATION.items())}."
)
HELP = {
    "task": (
        "algo scenario load seed",
        "preset config fleets catalogue predictions predictors information_levels requests calibrate variation running_slots "
        "waiting_slots",
    ),
    "a log instead of a task": ("", "from_log bundle held_out"),
    "length and folder of the run": ("run_dir steps iterations minutes resume smoke", "auto_resume trust_checkpoint storage"),
    "processes": ("num_env_runners", "address num_learners gpus_per_learner envs_per_runner steps_per_iteration"),
    "learning": ("", "lr temperature soft_deadline validate_every keep_replay guide avl sac"),
    "network": ("", "router told_apart correction"),
    "reward": ("", "reward"),
    "tracking": ("", "track"),
}
"""Groups of the help (``tuning/specs/command_line.py``): title -> (basic options, advanced options)."""
_OF_ONE_START = (
    "config", "run_dir", "steps", "iterations", "minutes", "num_env_runners", "num_learners", "gpus_per_learner", "address",
    "resume", "auto_resume", "trust_checkpoint", "storage", "smoke", "track",
)  # fmt: skip
"""Options that do not define the run: each start has its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Options of the command."""

    algo: AlgorithmName = "avl"
    """avl: impact-guided afterstate value learning. sac: soft actor-critic. ppo: proximal policy optimisation. dqn: double
    DQN."""
    preset: PresetName = "ours"
    """paper: the method of arXiv 2508.00234. It takes SAC with the paper's reward. The policy reads a pooled graph embedding and
    no what-if results. The defaults of other options are the scenario paper3 under its own load. Some hyperparameters depart from
    the paper's, as it does not learn with those (docs/experiments.md). paper-published: the same with the paper's own.
    paper-mended: the same, mended. Graph attention is read at each expert. An impact estimator learns the marginal QoS, which is
    the reward at once. The entropy suits such rewards. It too begins from nothing.
    any-cluster: a price alone, in proportion to the cluster. The search for it draws clusters, loads, arrivals and predictions
    anew in each generation. The router suits other clusters too."""
    config: Path | None = None
    """YAML file of options, by name, as a sweep writes it. The command line wins."""
    scenario: str = "edge6"
    """A preset (edge6, edge6-sites, paper3, balance13, edgeN) or a YAML file. Training sets its reward and
    observation."""
    load: str = "mixed"
    """mixed, light, moderate, heavy, native, requests/s, a share of the capacity (70%), or own (the scenario's). mixed draws a
    load for each environment from the scenario's mixed_range, and some episodes have bursts."""
    from_log: str | None = None
    """Continue a bundle on worlds fitted to a decision log of serve: a folder, or one of its files. The new bundle is promoted if
    it is better on the later part of the log (docs/how-to/learn-from-your-own-log.md). --minutes is 10 then unless given."""
    bundle: str | None = None
    """Folder of the bundle that --from-log continues."""
    held_out: float = 0.3
    """Share of the log, its last part, that training does not see: it decides whether the new bundle is promoted."""
    fleets: tuple[str, ...] = ("edge3", "edge10")
    """Other clusters to train on too, in an eighth of the environments each. The router then fits any number of experts."""
    catalogue: str | None = None
    """File of real prompts, instead of the scenario's catalogue; its train split is used. See evaluate."""
    predictions: PredictionLaw | None = None
    """The router's predictions in training: auto, measured, oracle-noise, given, means or task-means, as for evaluate.
    Default: the scenario's. The other fleets have the same."""
    predictors: str | None = None
    """Folder of predictors from fit-predictors, as for evaluate. Their predictions in training are out of fold."""
    information_levels: bool = False
    """Give environments predictions of different worth, from expert means to nearly the truth, so that the router suits any
    predictor. Without, all have those above."""
    calibrate: bool = True
    """Correct observations by the errors of lengths and engine figures that telemetry has shown."""
    variation: bool = True
    """Draw faults for every other episode: wrong predictions, wrong engine figures, late telemetry, scarce memory."""
    running_slots: int = 16
    """Running requests of each expert that an observation shows one by one; it sums up the others."""
    waiting_slots: int = 8
    """The same for waiting requests."""
    soft_deadline: float = SOFT_DEADLINE
    """Scale of the soft deadline in what-if results, as a share of the SLO. What is trained needs the same."""
    reward: Reward = MARGINAL
    """Weights of the reward's terms."""
    router: Annotated[RouterSpec, tyro.conf.arg(name="")] = field(default_factory=lambda: RouterSpec(bounded=True))
    told_apart: bool = False
    """paper: beside the graph's embedding the outputs read each expert's features and predictions. The embedding has neither."""
    correction: bool = True
    """Learn a correction of the impact estimate. Without it, impact-hidden counts as 0."""
    avl: Annotated[AVLSettings, tyro.conf.arg(name="")] = field(default_factory=AVLSettings)
    sac: Annotated[SACSettings, tyro.conf.arg(name="")] = field(default_factory=SACSettings)
    temperature: float = 0.01
    """QoS difference that makes an action e times as likely in training; small is close to greedy. dqn: without effect."""
    lr: float | None = None
    """Learning rate. Default: avl and ppo 1e-3, sac and dqn 3e-4, the paper's 3e-5. That of avl falls to a tenth
    over the run if --steps or --iterations limits it. With --minutes alone it stays."""
    seed: int = 0
    """Seed of weights, episodes and exploration. Without worker processes, the same seed gives the same weights."""
    envs_per_runner: int = 96
    """Environments in each process that steps them."""
    requests: int = 2000
    """Requests in a training episode."""
    steps_per_iteration: Annotated[int | None, tyro.conf.arg(help=_STEPS_PER_ITERATION_HELP)] = None
    validate_every: int = 10
    """Iterations between two comparisons with tuned impact-greedy on a few short episodes (a rough figure). 0: none."""
    keep_replay: bool = False
    """sac, dqn: checkpoints hold the replay buffer, some 300 MB. Without it, a resumed run fills a new one before it learns
    on."""
    guide: str = "impact-greedy"
    """dqn: heuristic that exploration follows, perhaps with parameters (impact-greedy:price=3)."""
    run_dir: Path = Path("runs/train")
    """Folder of the run: configuration, progress, checkpoints, learning curve."""
    steps: Annotated[int | None, tyro.conf.arg(help=_STEPS_HELP)] = None
    iterations: int | None = None
    """Stop after this many iterations, counted from the beginning of the run."""
    minutes: float | None = None
    """Stop after this many minutes, counted from this start."""
    num_env_runners: int | None = None
    """Worker processes that step environments; 0: the learning process steps them. Default on this machine: 0 on up to 2 cores,
    else one for each core but one. Default on a cluster: one for each core."""
    num_learners: int = 0
    """Processes that learn, each from its share of the decisions. Two give the result of one, but for rounding, in less time. 0:
    the process that directs the run learns too. sac, dqn: 0 or 1."""
    gpus_per_learner: int | None = None
    """1: learn on a GPU; 0: on processors. Default: 1 if there is a GPU for each learner, else 0."""
    address: str = "local"
    """Ray: local starts one for this run, auto or a URL attaches to a running cluster."""
    track: Annotated[TrackOptions, tyro.conf.arg(name="")] = field(default_factory=TrackOptions)
    resume: bool = False
    """Continue the run in the folder from its newest whole checkpoint. Scenario, seed and all else that defines the run stay."""
    auto_resume: bool = False
    """Continue the run in the folder if there is one, else begin it: for jobs that restart after a failure. --minutes then counts
    from the beginning of the run."""
    trust_checkpoint: bool = False
    """Continue from a checkpoint that you did not write. It holds pickles, which can run any code, so trust its author."""
    storage: str | None = None
    """Keep a remote copy of the run after every checkpoint, in a folder or at a URL such as s3://bucket/runs. It lies there under
    the name of the run's folder. --resume fetches it if the folder has no run or an older one (docs/reliability.md)."""
    smoke: bool = False
    """A tiny run that takes seconds."""

    @property
    def steps_in_iteration(self) -> int:
        """Decisions in an iteration."""
        return _STEPS_PER_ITERATION[self.algo] if self.steps_per_iteration is None else self.steps_per_iteration

    @property
    def spec(self) -> RouterSpec:
        """The specification of the router's network."""
        return self.router if self.correction else replace(self.router, impact_hidden=0)

    @property
    def total_steps(self) -> int | None:
        """Environment steps of the whole run, if known."""
        by_iterations = None if self.iterations is None else self.iterations * self.steps_in_iteration
        known = [total for total in (self.steps, by_iterations) if total is not None]
        return min(known) if known else None


_PUBLISHED = TrainOptions(
    preset="paper-published",
    algo="sac",
    scenario="paper3",
    load="own",
    fleets=(),
    calibrate=False,
    variation=False,
    requests=5000,
    running_slots=10,
    waiting_slots=10,
    reward=PAPER,
    router=RouterSpec(encoder="pooled", graph_hidden=64, heads=8, layers=2, impact=False),
)
_PAPER = replace(
    _PUBLISHED,
    preset="paper",
    told_apart=True,
    lr=1e-3,
    sac=SACSettings(initial_alpha=0.03, gamma=0.97, target_entropy_share=0.05, critic_warmup=200, centre_rewards=True),
)
_ANY_CLUSTER = TrainOptions(
    preset="any-cluster",
    fleets=(),
    requests=300,
    envs_per_runner=24,
    steps_per_iteration=960,
    validate_every=0,
    router=RouterSpec(encoder="aggregates", price="relative", hidden=0),
    correction=False,
    soft_deadline=0.07,
    avl=AVLSettings(
        warmup=0,
        generations=60,
        refinements=4,
        population=18,
        search_variants=0,
        search_drawn=24,
        search_requests=600,
        search_kinds=(PLAIN_KIND, "edge", "changing"),
    ),
    iterations=65,
)
_MENDED = replace(
    _PUBLISHED,
    preset="paper-mended",
    reward=MARGINAL,
    router=RouterSpec(encoder="han", graph_hidden=32, heads=8, impact=False, future=False),
    temperature=0.03,
    lr=1e-3,
    sac=SACSettings(gamma=0.9, critic_warmup=0),
)
_PRESETS: Mapping[str, TrainOptions] = {preset.preset: preset for preset in (_ANY_CLUSTER, _PAPER, _PUBLISHED, _MENDED)}
_SMOKE: dict[str, Any] = {
    "requests": 20, "envs_per_runner": 4, "steps_per_iteration": 64, "num_env_runners": 0, "validate_every": 2,
}  # fmt: skip
_PARTS: dict[str, type[RouterSpec] | type[AVLSettings] | type[SACSettings] | type[TrackOptions]] = {
    "router": RouterSpec,
    "avl": AVLSettings,
    "sac": SACSettings,
    "track": TrackOptions,
}
"""Options that are records of others, which go by their own names."""
_LIMITS: Mapping[str, tuple[float, float]] = {
    "steps": (1, 10**12),
    "iterations": (1, 10**9),
    "minutes": (1e-3, 1e7),
    "envs_per_runner": (1, 10**5),
    "requests": (1, 10**9),
    "steps_per_iteration": (1, 10**8),
    "lr": (1e-9, 10),
    "temperature": (1e-6, 1e3),
    "soft_deadline": (1e-4, 1e3),
    "running_slots": (1, 4096),
    "waiting_slots": (1, 4096),
    "num_env_runners": (0, 4096),
    "num_learners": (0, 1024),
    "seed": (0, 2**31 - 1),  # RLlib seeds NumPy's global generator, which takes 32 bits; each start of a run has its own
    "validate_every": (0, 10**9),
    "held_out": (0.05, 0.9),
}
_LOGGED: dict[str, Any] = {
    "fleets": (), "scenario": "edge6", "load": "mixed", "catalogue": None, "predictions": None, "predictors": None,
    "information_levels": False, "algo": "avl",
}  # fmt: skip
"""Options that a log leaves no choice of."""
LOGGED_MINUTES = 10.0
"""Of a run that continues a bundle, unless it has another limit."""
_LOGGED_GENERATIONS = {False: 30, True: 10}  # of the search for the price, by whether there are networks
_FORMER = {"search_worlds": "search_variants"}
_ADAPTER: TypeAdapter[TrainOptions] = TypeAdapter(TrainOptions)


def preset(name: PresetName) -> TrainOptions:
    """The options of a preset."""
    return _PRESETS.get(name, TrainOptions())


def defaults(arguments: Sequence[str]) -> TrainOptions:
    """Defaults for the command line: the preset's options, overridden by the file that ``--config`` names.

    Raises:
        InputError: the file cannot be read or is not one of options.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--preset", default="ours")
    parser.add_argument("--from-log", "--from_log")
    parser.add_argument("--bundle")
    named, _ = parser.parse_known_args(list(arguments))
    if named.from_log is not None and named.bundle is not None and named.config is None:
        return logged_options(named.from_log, named.bundle)
    if named.config is None:
        return preset(named.preset)
    return options_from(named.config, named.preset)


def options_from(path: Path, preset_name: str = "ours") -> TrainOptions:
    """Read the options of a file; those that it lacks are the preset's that it names, or this one's.

    Raises:
        InputError: the file cannot be read or is not one of options.
    """
    given = {str(key).replace("-", "_"): value for key, value in read_mapping(path, "options").items()}
    usual: dict[str, Any] = {"preset": preset_name}
    if isinstance(log := given.get("from_log"), str) and isinstance(bundle := given.get("bundle"), str):
        usual = definition(logged_options(log, bundle)) | {"minutes": LOGGED_MINUTES}
    return replace(parse_options(usual | given, str(path)), config=path)


def logged_options(log: str, bundle: str) -> TrainOptions:
    """The options of a run that continues a bundle on worlds fitted to a log: those of the preset that the bundle is like.

    A bundle of a price alone goes on as that of ``any-cluster``, by search alone, in the log's worlds. One with networks goes on
    as that of ``ours``: a shorter search, then learning.

    Raises:
        InputError: no bundle, or one whose router has neither impact nor price to go on from.
    """
    described = describe_bundle(Path(bundle))
    where = f"bundle = {bundle!r}"
    if described.kind != "router":
        raise InputError(f"{where}: a router of the paper, which no log continues: must be one that train made by default")
    try:
        spec = RouterSpec(**typed_fields(RouterSpec, dict(described.network)))
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None
    if not (spec.impact and spec.future):
        raise InputError(f"{where}: its router has no impact or no price: must be one that train made by default")
    if spec.hidden or spec.impact_hidden:
        base = TrainOptions(avl=AVLSettings(generations=_LOGGED_GENERATIONS[True]))
    else:
        search = {"search_variants": 24, "search_drawn": 0, "generations": _LOGGED_GENERATIONS[False], "refinements": 0}
        base = replace(_ANY_CLUSTER, avl=replace(_ANY_CLUSTER.avl, **search), iterations=_LOGGED_GENERATIONS[False] + 1)
    seen = described.observation
    return replace(
        base,
        from_log=log,
        bundle=bundle,
        fleets=(),
        minutes=LOGGED_MINUTES,
        router=spec,
        correction=spec.impact_hidden > 0,
        calibrate=seen.calibrate,
        soft_deadline=seen.whatif_tau,
        running_slots=seen.running_slots,
        waiting_slots=seen.waiting_slots,
        validate_every=0,
    )


def option_names() -> list[str]:
    """The names of all options, including those of nested records."""
    own = [f.name for f in fields(TrainOptions) if f.name not in _PARTS]
    return own + [f.name for kind in _PARTS.values() for f in fields(kind)]


def parse_options(data: Mapping[str, Any], where: str) -> TrainOptions:
    """Parse options from a mapping by name; missing ones are the preset's.

    Raises:
        InputError: an unknown name or a value that is not possible.
    """
    given = {_current(str(key).replace("-", "_"), where): value for key, value in data.items()}
    known = option_names()
    for key in given:
        if key not in known:
            raise InputError(f"{where}: unknown option {key!r}; {nearest(key, known)}")
    usual = to_mapping(preset(given.get("preset", "ours")))
    if isinstance(given.get("reward"), Mapping):  # weights that are not given are the preset's
        given["reward"] = usual["reward"] | given["reward"]
    flat = usual | given
    parts = {part: {f.name: flat.pop(f.name) for f in fields(kind)} for part, kind in _PARTS.items()}
    try:
        return _ADAPTER.validate_json(json.dumps({**flat, **parts}, default=str), strict=True)  # in JSON a list is a tuple
    except ValidationError as error:
        raise InputError("\n".join(explain(error, where, "options", _own))) from None


def _current(name: str, where: str) -> str:
    """The present name of an option; files of earlier versions have the former one."""
    if name not in _FORMER:
        return name
    print(f"{where}: {name} is called {_FORMER[name]} now", file=sys.stderr)
    return _FORMER[name]


def _own(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """Where an option stands in a file, of its place among the options: those of a part go by their own names."""
    return location[1:] if len(location) > 1 and location[0] in _PARTS else location


def to_mapping(options: TrainOptions) -> dict[str, Any]:
    """Options by name, including those of nested records; ``parse_options`` reads them back."""
    flat = asdict(options)
    parts = [flat.pop(part) for part in _PARTS]
    return {**flat, **{key: value for part in parts for key, value in part.items()}}


def definition(options: TrainOptions) -> dict[str, Any]:
    """The options that define the run, in YAML's types."""
    others = (*_OF_ONE_START, *(f.name for f in fields(TrackOptions)))
    kept = {key: value for key, value in to_mapping(options).items() if key not in others}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}


def complete(options: TrainOptions) -> TrainOptions:
    """Fill in options that were left open, and check their limits.

    Raises:
        InputError: one is out of range, or two do not go together.
    """
    if options.smoke:
        fleets = options.fleets[:1]
        options = replace(options, **_SMOKE, fleets=fleets, iterations=2 if options.iterations is None else options.iterations)
    _check_log(options)
    if options.steps is None and options.iterations is None and options.minutes is None and not options.resume:
        options = replace(options, steps=DEFAULT_STEPS)
    if options.num_env_runners is None and options.address == "local":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options = replace(options, num_env_runners=0 if cores <= 2 else cores - 1)
    for name, (low, high) in _LIMITS.items():
        check_limits(name, getattr(options, name), low, high)
    for name in ("scenario", "load", "address", "storage"):
        if getattr(options, name) == "":
            raise InputError(f"{name} = '': must not be empty")
    if options.gpus_per_learner not in (None, 0, 1):
        raise InputError(f"gpus-per-learner = {options.gpus_per_learner}: must be 0 or 1")
    guide_of(options)
    if options.preset in (*PAPER_NETWORKS, "paper-mended") and options.algo != "sac":
        raise InputError(f"algo = {options.algo}: the preset {options.preset} trains with sac")
    return options


def _check_log(options: TrainOptions) -> None:
    """Refuse options that do not go with a log.

    Raises:
        InputError: one does not.
    """
    if (options.from_log is None) != (options.bundle is None):
        name, other = ("from-log", "bundle") if options.bundle is None else ("bundle", "from-log")
        raise InputError(f"{name} = {options.from_log or options.bundle!r}: needs --{other}: a log continues a bundle")
    if options.from_log is None:
        return
    for name, value in _LOGGED.items():
        if getattr(options, name) != value:
            raise InputError(
                f"{name.replace('_', '-')} = {getattr(options, name)}: leave it out: with --from-log the log says what there is"
            )


def guide_of(options: TrainOptions) -> tuple[str, dict[str, float]]:
    """The heuristic that exploration follows, and its parameters.

    Raises:
        InputError: it is none of the built-in ones: options may come from a file, which must not name code to run.
    """
    name = options.guide.partition(":")[0]
    if name not in HEURISTICS:
        raise InputError(f"guide = {options.guide!r}: must be a built-in heuristic; {nearest(name, HEURISTICS)}")
    return name, dict(parse_router(options.guide).parameters)


def resumed(options: TrainOptions, own: Mapping[str, Any], where: str) -> TrainOptions:
    """The options of a resumed run: its own, with those that each start has for itself as given now.

    Raises:
        InputError: an option is given that would change the run, or the run's own are not valid.
    """
    theirs = parse_options(own, where)
    given, usual, kept = definition(options), definition(preset(options.preset)), definition(theirs)
    for name, value in given.items():
        if value not in (kept[name], usual[name]) and not (options.smoke and name in _SMOKE):
            raise InputError(f"{name.replace('_', '-')} = {value}: a resumed run keeps its own, which is {kept[name]}")
    return replace(theirs, **{name: getattr(options, name) for name in _OF_ONE_START})
