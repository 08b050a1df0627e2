"""A scenario: experts, workload, service level, reward and observation in one frozen value; YAML in and out.

Scenarios are data. Presets are the YAML files in ``scenarios/`` plus the generated ``edgeN`` (any N from 2 to 256).
Everything stochastic takes its seed from the caller, so a scenario and a seed fix a run bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from rllib_envs.dynamics import Dynamics, check_dynamics
from rllib_envs.expert import Expert
from rllib_envs.limits import (
    CONFIG,
    AtLeastOne,
    Fraction,
    InnerShare,
    LogDeviation,
    Name,
    NonNegative,
    Penalty,
    Positive,
    Rate,
    Share,
    Slots,
    Weight,
)
from rllib_envs.network import Network
from rllib_envs.own_code import PREFIX, parse_own
from rllib_envs.service import ServiceClass, Tenant, unknown_places
from rllib_envs.workload.arrival_processes import PROCESSES
from rllib_envs.yaml_files import dump_yaml

LOAD_FRACTIONS = {"light": 0.3, "moderate": 0.7, "heavy": 1.0}
"""Named loads as fractions of the cluster's capacity (see ``Scenario.capacity_rps``)."""

PredictionLaw = Literal["auto", "measured", "oracle-noise", "given", "means", "task-means"]

TRACE = "trace"
"""The kind of arrivals that replays a trace."""

DEFAULT_REQUESTS = 2000
"""Arrivals in an episode if ``Workload.requests`` is not set and no trace is replayed."""


def _known_kind(kind: str) -> str:
    if kind.startswith(PREFIX):
        if parse_own(kind, "arrivals").rest is not None:  # its file runs when arrivals are drawn, not here
            raise ValueError(f"{kind!r}: numbers are given in parameters")
        return kind
    if kind not in (*PROCESSES, TRACE):
        raise ValueError(f"{kind!r}: allowed are {', '.join(PROCESSES)}, {TRACE}")
    return kind


def _pairs(given: Any) -> Any:
    """Numbers by name as a hashable value, given as a mapping or, in JSON, as a list of pairs."""
    if isinstance(given, Mapping):
        return tuple(sorted(cast(Mapping[str, Any], given).items()))
    if isinstance(given, list):
        return tuple(tuple(x) if isinstance(x, list) else x for x in cast(list[Any], given))
    return given


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class TraceFile:
    """A recorded trace to replay. Times become seconds from the start of the window."""

    path: str
    format: Literal["auto", "azure", "mooncake", "burstgpt", "csv"] = (
        "auto"  # auto: detected from the columns; csv if columns are named
    )
    time_column: str = "timestamp"  # for format csv: seconds or ISO time
    prompt_column: str | None = None  # for format csv: prompt tokens
    output_column: str | None = None  # for format csv: output tokens
    class_column: str | None = None  # for format csv: name of the service class; None: drawn by the shares
    start_s: NonNegative = 0.0  # window within the trace
    duration_s: Positive | None = None  # None: to its end
    jitter: bool | None = None  # spread each arrival uniformly within the trace's own tick; None: if its times are quantised

    @property
    def names_columns(self) -> bool:
        """Whether it names columns of its own."""
        return self._named != ("timestamp", None, None, None)

    @property
    def _named(self) -> tuple[str | None, ...]:
        return self.time_column, self.prompt_column, self.output_column, self.class_column

    @model_validator(mode="after")
    def _columns_of_csv(self) -> Self:
        if self.names_columns and self.format not in ("auto", "csv"):
            raise ValueError(
                f"format = {self.format!r} and columns {self._named}: columns are named for format csv; others have their own"
            )
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Arrivals:
    """The arrival process.

    ``kind`` is one of ``rllib_envs.workload.arrival_processes``, or trace, a replay of ``trace``. From Python it may also be
    ``python:FILE.py:FUNCTION``, a user's own process (``rllib_envs.own_code``), which has only times.
    """

    kind: Annotated[str, AfterValidator(_known_kind)] = "poisson"
    cv: Positive = 2.0  # gamma: coefficient of variation of the gaps
    burst_ratio: AtLeastOne = 4.0  # mmpp: burst rate over quiet rate
    burst_share: InnerShare = 0.25  # mmpp: share of time in the burst state
    cycle_s: Positive = 30.0  # mmpp: mean length of quiet + burst
    period_s: Positive = 86_400.0  # diurnal: length of a day (compress it for short episodes)
    amplitude: Fraction = 0.6  # diurnal: peak over mean is 1 + amplitude
    trace: TraceFile | None = None
    # Output lengths, for trace and azure-*: the trace's own (if the file has them; rllib_envs.workload.lengths), or drawn from
    # the catalogue like those of any other request.
    lengths: Literal["trace", "catalogue"] = "trace"
    # Parameters without a field above, as a mapping.
    parameters: Annotated[tuple[tuple[str, float], ...], BeforeValidator(_pairs)] = ()

    @property
    def is_own(self) -> bool:
        """Whether it is a user's own function."""
        return self.kind.startswith(PREFIX)

    @property
    def brings_prompts(self) -> bool:
        """Whether its requests may have prompts that are not from the catalogue."""
        return self.kind == TRACE or (not self.is_own and PROCESSES[self.kind].brings_prompts)

    @property
    def has_own_rate(self) -> bool:
        """Whether it can run at its own rate."""
        return self.kind == TRACE or (not self.is_own and PROCESSES[self.kind].own_rate_rps is not None)

    @model_validator(mode="after")
    def _trace_given(self) -> Self:
        if (self.kind == TRACE) != (self.trace is not None):
            raise ValueError(
                f"kind = {self.kind!r} and trace {'not ' if self.trace is None else ''}given: a trace goes with kind 'trace'"
            )
        return self

    @model_validator(mode="after")
    def _parameters_known(self) -> Self:
        known = PROCESSES[self.kind].parameters if self.kind in PROCESSES else {}
        unknown = [name for name, _ in self.parameters if name not in known]
        if unknown and not self.is_own:
            allowed = f"allowed are {', '.join(known)}" if known else "it takes none here"
            raise ValueError(f"parameters: kind {self.kind!r} has no {unknown[0]!r}: {allowed}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Catalogue:
    """The requests: prompts with each expert's true score and output length.

    synthetic: score and length of all experts drawn jointly (shared difficulty, failures longer). file: JSONL of real
    prompts in the format of the ZeroEval extract; experts are matched by ``Expert.model``.
    """

    kind: Literal["synthetic", "file"] = "synthetic"
    scores: Literal["continuous", "binary"] = "continuous"
    prompt_tokens_mean: Positive = 250.0
    prompt_tokens_cv: Positive = 1.0
    path: str | None = None  # kind file
    split: Literal["train", "test", "all"] = "train"  # kind file: deterministic split by prompt

    @model_validator(mode="after")
    def _path_given(self) -> Self:
        if (self.kind == "file") != (self.path is not None):
            raise ValueError(f"kind = {self.kind!r} and path = {self.path!r}: a path goes with kind 'file'")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Predictions:
    """The router's predictions instead of the truth (it never sees true scores or lengths).

    ``law`` says where they come from (``rllib_envs.workload.predictions``):

    - auto: measured for the synthetic catalogue. For a file given if there are predictions, else means.
    - measured: drawn around the truth, with the errors of predictors that learned from prompts (synthetic catalogue only).
    - oracle-noise: the truth with independent Gaussian noise. In a file the truth of a 0/1 score is the task's mean.
    - given: those of ``predictors``, else the keys predicted_score, predicted_tokens and predicted_log_sd of a file's prompts.
    - means: each expert's mean score and length, the same for every request.
    - task-means: those of the prompt's task (a file's only).

    The other fields are errors beyond those of the law.
    """

    law: PredictionLaw = "auto"
    predictors: str | None = None  # folder of edgeroute fit-predictors; goes with a file of prompts and law auto or given
    score_sd: NonNegative | None = None  # additive noise on scores, then clipped to [0, 1]; None: .1 for oracle-noise, else 0
    score_bias: Weight = 0.0
    length_log_sd: LogDeviation | None = None  # noise on log length; None: .3 for oracle-noise, else 0
    length_factor: Positive = 1.0  # predicted length = factor * true length * noise
    hidden_share: Fraction = 0.0  # share of requests whose answers are longer than predicted, at every expert
    hidden_factor: AtLeastOne = 2.0  # by how much
    length_buckets: Annotated[
        tuple[Annotated[int, Field(ge=1, le=2**30)], ...], Field(max_length=1000)
    ] = ()  # predicted lengths are rounded to these (ascending), () = exact

    @model_validator(mode="after")
    def _predictors_are_asked(self) -> Self:
        if self.predictors is not None and self.law not in ("auto", "given"):
            raise ValueError(f"law = {self.law!r} and predictors = {self.predictors!r}: predictors go with law 'auto' or 'given'")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Faults:
    """Differences between the actual world and the router's figures. All off by default."""

    engine_factor: Positive = 1.0  # actual iteration time over the profile's, every expert
    engine_expert_log_sd: LogDeviation = 0.0  # the same, drawn per expert and episode: log-normal
    engine_coefficient_factor: AtLeastOne = 1.0  # each coefficient multiplied or divided by it, drawn per episode
    telemetry_delay_s: NonNegative = 0.0  # age of the engine states that the router sees (it knows what it sent since)
    kv_factor: Share = 1.0  # share of the KV blocks that an engine has, known to the router; one longest request always fits


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Variation:
    """Random draws per episode (``rllib_envs.workload.variation``), so that one router meets many environment variants.

    A range (low, high) of a factor or a ratio is drawn log-uniformly, other ranges uniformly. Fields that are not drawn keep the
    scenario's value.
    """

    fault_share: Fraction = 0.5  # probability that an episode has faults: at least one of the kinds from engine_factor on
    each: Fraction = 0.2  # probability of each kind in such an episode, independently
    burst_share: Fraction = 0.25  # probability that arrivals are mmpp, faults or not
    burst_ratio: tuple[AtLeastOne, AtLeastOne] = (2.0, 6.0)
    engine_factor: tuple[Positive, Positive] = (0.7, 1.35)
    engine_expert_log_sd: tuple[LogDeviation, LogDeviation] = (0.0, 0.3)
    engine_coefficient_factor: tuple[AtLeastOne, AtLeastOne] = (1.0, 1.5)
    kv_factor: tuple[Share, Share] = (0.35, 1.0)
    telemetry_delay_s: tuple[NonNegative, NonNegative] = (0.0, 0.6)
    length_factor: tuple[Positive, Positive] = (0.55, 1.7)
    length_log_sd: tuple[LogDeviation, LogDeviation] = (0.1, 0.5)
    hidden_share: tuple[Fraction, Fraction] = (0.0, 0.4)  # one kind of fault, together with hidden_factor
    hidden_factor: tuple[AtLeastOne, AtLeastOne] = (1.5, 3.0)
    score_sd: tuple[NonNegative, NonNegative] = (0.05, 0.2)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        for field in fields(self):
            limits = getattr(self, field.name)
            if isinstance(limits, tuple) and limits[0] > limits[1]:
                raise ValueError(f"{field.name} = {limits}: the first must not exceed the second")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Workload:
    """How requests arrive: process, load, length of an episode."""

    arrivals: Arrivals = Field(default_factory=Arrivals)
    load: Rate | Literal["light", "moderate", "heavy", "mixed", "native"] = "moderate"
    # a number = requests/s; light, moderate, heavy = fractions of capacity_rps; mixed = drawn per episode between
    # mixed_range fractions (log-uniform); native = a trace's own rate
    mixed_range: tuple[Positive, Positive] = (0.2, 1.2)
    requests: Annotated[int, Field(ge=1, le=10**9)] | None = None  # arrivals in an episode; None: 2000, or all of a trace
    catalogue: Catalogue = Field(default_factory=Catalogue)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.load == "native" and not self.arrivals.has_own_rate:
            raise ValueError(f"load = 'native' with arrivals.kind = {self.arrivals.kind!r}: only a trace has a rate of its own")
        if self.mixed_range[0] > self.mixed_range[1]:
            raise ValueError(f"mixed_range = {self.mixed_range}: the first must not exceed the second")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Reward:
    """Weights of the reward's terms (``rllib_envs.reward``). Each term is summed over the interval between two decisions."""

    realised_qos: Weight = 1.0  # QoS of the requests that finished
    violation: Penalty = 0.0  # subtracted per request that finished late, or whose client gave up
    paper_impact: Penalty = 0.0  # subtracted: the paper's penalty P_t for the running requests pushed past the SLO
    drop: Penalty = 0.0  # subtracted per dropped or rejected request, and per request that failed with its expert
    marginal_qos: Weight = 0.0  # counterfactual marginal QoS of the action taken, true values
    energy: Penalty = 0.0  # subtracted per kJ that the cluster takes: of experts with watts
    cost: Penalty = 0.0  # subtracted per unit of money that a request will have cost, when it is sent: of experts with prices


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Observation:
    """Parts of an observation beyond the experts and the arrived request."""

    running_slots: Slots = 16  # running requests shown one by one, per expert
    waiting_slots: Slots = 8  # waiting requests shown one by one, per expert
    whatif: bool = False  # key "whatif": the predicted effect of each action
    whatif_tau: Positive = 0.1  # soft deadline: logistic scale of the predicted slack, as a share of the SLO
    information: bool = False  # key "information": what the predictions are worth
    demand: bool = False  # key "demand": what late requests need, and how long there has been overload
    places: bool = False  # key "places": how far each expert is from the user; zeros without a network
    counterfactual: bool = False  # info column "marginal_qos": true marginal QoS of every action, a training target only
    calibrate: bool = False  # correct predictions and engine figures by the episode's observations (sim/calibration.py)
    judged_share: Fraction = 0.0  # share of the finished answers whose score becomes known, to correct predicted scores by


_LATER = (
    ("predictions", "predictors"),
    ("observation", "information"),
    ("observation", "demand"),
    ("observation", "places"),
    ("observation", "judged_share"),
    ("reward", "energy"),
    ("reward", "cost"),
)
"""Part and name of fields that came later and are off by default."""


_OPTIONAL = (
    "classes", "tenants", "network", "dynamics", "labels", "site", "idle_w", "active_w", "prompt_price", "output_price",
    "priority",
)  # fmt: skip
"""Fields of a scenario, an expert or a class that are not written where they say nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Scenario:
    """The complete definition of the router's world."""

    name: Name
    experts: Annotated[tuple[Expert, ...], Field(min_length=2, max_length=256)]
    slo_s_per_token: Positive  # L: bound on (finish - arrival) / output tokens
    capacity_rps: Rate | None = None  # named loads are fractions of it; None: measured when first needed
    workload: Workload = Field(default_factory=Workload)
    predictions: Predictions = Field(default_factory=Predictions)
    faults: Faults = Field(default_factory=Faults)
    variation: Variation | None = None  # None: every episode in the world described above
    reward: Reward = Field(default_factory=Reward)
    observation: Observation = Field(default_factory=Observation)
    classes: Annotated[tuple[ServiceClass, ...], Field(max_length=100)] = ()  # (): one for all, with the bound above
    tenants: Annotated[tuple[Tenant, ...], Field(max_length=1000)] = ()  # (): one for all
    network: Network | None = None  # None: users and experts are in one place
    dynamics: Dynamics | None = None  # None: nothing changes within an episode

    @model_validator(mode="after")
    def _names_unique(self) -> Self:
        for part in ("experts", "classes", "tenants"):
            names = [entry.name for entry in getattr(self, part)]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{part}: name {twice[0]!r} is used more than once")
        return self

    @model_validator(mode="after")
    def _shares_given(self) -> Self:
        for part in ("classes", "tenants"):
            if getattr(self, part) and not sum(entry.share for entry in getattr(self, part)):
                raise ValueError(f"{part}: share is 0 in all of them: at least one must be above 0")
        return self

    @model_validator(mode="after")
    def _all_are_linked(self) -> Self:
        if self.network is None:
            return self
        linked = {(link.users, link.experts) for link in self.network.links}
        for i, expert in enumerate(self.experts):
            if expert.site is None:
                raise ValueError(f"experts.{i}.site: {expert.name!r} has none: with a network each expert must have one")
            for site in self.network.sites:
                if (site.name, expert.site) not in linked:
                    raise ValueError(f"network.links: none from users at {site.name!r} to experts at {expert.site!r}")
        return self

    @model_validator(mode="after")
    def _places_exist(self) -> Self:
        known = {place for expert in self.experts for place in (expert.name, expert.site, *expert.labels) if place is not None}
        for part in ("classes", "tenants"):
            for entry in getattr(self, part):
                for place in unknown_places(entry, known):
                    raise ValueError(
                        f"{part}: {entry.name!r} is confined_to {place!r}: no expert has this name or label; "
                        f"there are {', '.join(sorted(known))}"
                    )
        return self

    @model_validator(mode="after")
    def _changes_possible(self) -> Self:
        if self.dynamics is not None:
            check_dynamics(self.dynamics, {expert.name: {expert.name, expert.site, *expert.labels} for expert in self.experts})
        return self

    @model_validator(mode="after")
    def _bursts_possible(self) -> Self:
        arrivals = self.workload.arrivals
        if self.variation is not None and self.variation.burst_share > 0 and arrivals.brings_prompts:
            plain = [name for name, process in PROCESSES.items() if not process.brings_prompts]
            raise ValueError(
                f"variation.burst_share = {self.variation.burst_share} with arrivals.kind = {arrivals.kind!r}: a trace has "
                f"bursts of its own, so it must be 0 (or the kind one of {', '.join(plain)})"
            )
        return self

    @model_validator(mode="after")
    def _traced_classes_exist(self) -> Self:
        trace = self.workload.arrivals.trace
        if trace is not None and trace.class_column is not None and not self.classes:
            raise ValueError(
                f"workload.arrivals.trace.class_column = {trace.class_column!r} without classes: the scenario must have the "
                "classes that the column names"
            )
        return self

    @model_validator(mode="after")
    def _predictors_have_prompts(self) -> Self:
        if self.predictions.predictors is not None and self.workload.catalogue.kind != "file":
            raise ValueError(
                f"predictions.predictors = {self.predictions.predictors!r} with workload.catalogue.kind = 'synthetic': "
                "predictors predict prompts, so the catalogue must be the file that they were fitted with (kind: file, and path)"
            )
        return self

    @property
    def n_experts(self) -> int:
        """N: number of experts; also the index of the action ``drop``."""
        return len(self.experts)

    @property
    def has_watts(self) -> bool:
        """Whether some expert says what power it takes."""
        return any(expert.active_w for expert in self.experts)

    @property
    def has_prices(self) -> bool:
        """Whether some expert says what its tokens cost."""
        return any(expert.prompt_price or expert.output_price for expert in self.experts)

    def fingerprint(self) -> str:
        """Sixteen hex digits that change whenever any field changes."""
        return hashlib.sha256(json.dumps(self._plain(), sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The scenario as plain data; ``parse_scenario`` reads it back to an equal value."""
        return json.loads(json.dumps(self._plain()))

    def to_yaml(self) -> str:
        """The scenario as YAML for ``load_scenario``."""
        return dump_yaml(self.to_dict())

    def _plain(self) -> dict[str, Any]:
        data = asdict(self)
        parameters = dict(data["workload"]["arrivals"].pop("parameters"))
        # Where these fields say nothing, text and fingerprint are as before there were any.
        if parameters:
            data["workload"]["arrivals"]["parameters"] = parameters
        trace = data["workload"]["arrivals"]["trace"]
        if trace is not None and trace["class_column"] is None:
            del trace["class_column"]
        for part, name in _LATER:
            if not data[part][name]:
                del data[part][name]
        for part in (data, *data["experts"], *data["classes"]):
            for name in _OPTIONAL:
                if not part.get(name, True):
                    del part[name]
        for expert in data["experts"]:
            if expert["engine"]["scheduling"] == "fcfs":
                del expert["engine"]["scheduling"]
        return data


def with_workload(scenario: Scenario, **changes: Any) -> Scenario:
    """The scenario with fields of its workload replaced."""
    return replace(scenario, workload=replace(scenario.workload, **changes))
