"""What ``edgeroute serve`` is told: experts, policy, classes, tenants, privacy sets, limits and timeouts, from one YAML file.

Paths in the file are relative to its folder. Tokens of experts come from the environment or from a file, keys of tenants are
SHA-256 hashes: the file itself holds no secret.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self, cast
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.limits import CONFIG, InnerShare, Name, NonNegative, Order, Positive
from rllib_envs.network import Network
from rllib_envs.own_code import PREFIX
from rllib_envs.scenario import Scenario
from rllib_envs.scenarios.load import explain, load_scenario
from rllib_envs.service import ServiceClass, Tenant
from rllib_envs.text_files import read_text
from rllib_envs.yaml_files import parse_yaml, read_mapping
from tuning.specs.routers import ANY_CLUSTER_ROUTER, SHIPPED_ROUTER

AUTO = "auto"
"""Name of the model that stands for "the gateway decides"."""

MOST_WORKERS = 64

_TOKEN_BYTES = 2**14
_PROFILE_BYTES = 2**19
_KEY = re.compile(r"sha256:[0-9a-f]{64}")
_SHIPPED = {folder.name: folder for folder in (SHIPPED_ROUTER, ANY_CLUSTER_ROUTER)}
_TRAINED = ("bundle", "sampled", "checkpoint")
_EXPERTS: TypeAdapter[Expert] = TypeAdapter(Expert)


def _is_url(text: str) -> str:
    parts = urlsplit(text)
    bare = not (parts.query or parts.fragment or parts.username or parts.password)
    if parts.scheme not in ("http", "https") or not parts.hostname or not bare or not text.isascii() or not text.isprintable():
        raise ValueError(f"{text!r}: must be http://HOST:PORT or https://HOST:PORT, perhaps with a path, and no more")
    try:
        _ = parts.port
    except ValueError:
        raise ValueError(f"{text!r}: the port must be from 0 to 65535") from None
    return text.rstrip("/").removesuffix("/v1")


def _is_hash(text: str) -> str:
    if not _KEY.fullmatch(text):
        raise ValueError("must be sha256: and 64 hexadecimal digits in small letters, the hash of the key")  # never the value
    return text


def _in_header(name: str) -> str:
    if not name.isascii() or not name.isprintable() or name != name.strip() or "," in name:
        raise ValueError(f"{name!r}: must be ASCII without commas, as it stands in headers")
    return name


def _is_no_code(text: str) -> str:
    if text.startswith(PREFIX):
        raise ValueError(f"{text!r}: code is run only where the command line names it, never from a file")
    return text


Url = Annotated[str, Field(max_length=2000), AfterValidator(_is_url)]
KeyHash = Annotated[str, AfterValidator(_is_hash)]
HeaderName = Annotated[Name, AfterValidator(_in_header)]
Policy = Annotated[Name, AfterValidator(_is_no_code)]
Seconds = Annotated[float, Field(ge=1e-3, le=86_400)]
Count = Annotated[int, Field(ge=1, le=10**6)]
Bytes = Annotated[int, Field(ge=1024, le=2**30)]


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Secret:
    """Where a secret is read: an environment variable, or a file whose first line it is."""

    env: Name | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise ValueError("exactly one of env and file must be given")
        return self

    def read(self, folder: Path, where: str) -> str:
        """The secret.

        Raises:
            InputError: it is not there, is empty, or cannot stand in a header.
        """
        if self.env is not None:
            text, source = os.environ.get(self.env), f"environment variable {self.env}"
            if text is None:
                raise InputError(f"{where}: {source} is not set")
        else:
            path = folder / (self.file or "")
            text, source = read_text(path, _TOKEN_BYTES), str(path)
        first = text.strip().partition("\n")[0].strip()
        if not first or not first.isascii() or not first.isprintable():
            raise InputError(f"{where}: {source}: must be one line of printable ASCII")
        return first


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class ExpertEntry:
    """An engine behind the gateway. Its figures come from ``profile`` or ``preset``; fields that are given here override them."""

    name: HeaderName
    url: Url  # base of the engine's OpenAI API, with or without /v1
    model: Name | None = None  # as the engine calls it; None: that of the profile
    profile: str | None = None  # file of edgeroute calibrate or fit-profile
    preset: str | None = None  # SCENARIO/EXPERT, as in edge6/llama-3.1-8b
    token: Secret | None = None  # bearer token that the engine wants
    tokenizer: str | None = None  # tokenizer.json of the model; None: prompt tokens are estimated from characters
    max_concurrent: Count | None = None  # requests that the gateway has there at once; None: no limit of its own
    mean_score: InnerShare | None = None
    mean_output_tokens: Annotated[float, Field(ge=2, le=1e9)] | None = None
    labels: tuple[Name, ...] | None = None
    site: Name | None = None
    prompt_price: NonNegative | None = None
    output_price: NonNegative | None = None

    @model_validator(mode="after")
    def _figures_from_one_place(self) -> Self:
        if (self.profile is None) == (self.preset is None):
            raise ValueError(f"{self.name!r}: exactly one of profile and preset must be given")
        if self.name == AUTO:
            raise ValueError(f"name = {AUTO!r}: this name stands for the gateway's choice")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class ClassEntry:
    """A service class: the bounds of ``rllib_envs.service.ServiceClass``, and whether its requests may be dropped."""

    name: HeaderName
    weight: Positive = 1.0
    per_token_s: Positive | None = None
    ttft_s: Positive | None = None
    tpot_s: Positive | None = None
    e2e_s: Positive | None = None
    confined_to: tuple[Name, ...] = ()
    priority: Order = 0
    may_drop: bool = False  # whether the policy may answer 429 instead of sending a request to an expert


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class TenantEntry:
    """Who may send requests, by what keys, with what class unless a header says otherwise, and where they may go."""

    name: HeaderName
    keys: Annotated[tuple[KeyHash, ...], Field(min_length=1, max_length=1000)]  # of bearer tokens
    service_class: Name | None = None  # None: the first class
    confined_to: tuple[Name, ...] = ()  # names, sites or labels of experts; () = all
    max_concurrent: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class PrivacySet:
    """A named set of experts that a request may be confined to by header."""

    name: HeaderName
    confined_to: Annotated[tuple[Name, ...], Field(min_length=1)]  # names, sites or labels of experts


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Listen:
    """Where the gateway listens."""

    host: Name = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080  # 0: a free one
    without_keys: bool = False  # listen beyond loopback although no tenant has a key: somebody else guards the door

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Limits:
    """Bounds on what clients can take."""

    body_bytes: Bytes = 4 * 2**20  # of a request
    answer_bytes: Bytes = 16 * 2**20  # of an answer that is no stream, which is held whole
    concurrent: Annotated[int, Field(ge=1, le=2**16)] = 4096  # requests in the gateway; one more gets 429


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Timeouts:
    """How long who is waited for."""

    connect_s: Seconds = 1.0  # connection to an expert
    first_byte_factor: Annotated[float, Field(ge=1, le=1000)] = 5.0  # times the predicted TTFT
    first_byte_min_s: Seconds = 5.0
    first_byte_max_s: Seconds = 60.0  # also where nothing is predicted
    answer_s: Seconds = 600.0  # an answer that is no stream, whole
    idle_s: Seconds = 30.0  # between two reads of a stream
    client_s: Seconds = 60.0  # until a client takes what is written
    routed_s: Seconds = 600.0  # until somebody tells the end of a request that the gateway only decided about
    ttft_budget_s: Seconds = 10.0  # no other expert is tried later than this, where no bound on TTFT is promised
    drain_s: Seconds = 30.0  # for requests in flight, after SIGTERM


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Breaker:
    """When an expert is left alone."""

    failures: Count = 3  # one after the other; a refused connection is enough alone
    period_s: Seconds = 5.0  # until one request, or a look at its health, tries it again
    probe_s: Seconds = 2.0  # between two looks at the health of each expert


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class LogEntry:
    """The decision log."""

    folder: str  # for its files
    file_bytes: Annotated[int, Field(ge=65_536, le=2**25)] = 2**24  # of a file, after which another begins
    files: Annotated[int, Field(ge=1, le=10_000)] = 64  # the oldest ones go
    waiting: Count = 4096  # lines that may wait for the disk; more are lost and counted
    prompts: bool = False  # whether prompts are written, the first 16,384 characters of each


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class GatewayConfig:
    """The complete configuration. ``load_config`` reads it."""

    experts: Annotated[tuple[ExpertEntry, ...], Field(min_length=2, max_length=256)]
    policy: Policy  # as on the command line: a heuristic, or bundle:PATH; or the name of a shipped bundle
    fallback: Policy = "impact-greedy"  # a heuristic, for when the policy fails or is too slow
    shadow: Policy | None = None  # a policy that decides beside the acting one, and of which nothing comes
    log: LogEntry | None = None  # of decisions; None: there is none
    predictors: str | None = None  # folder of edgeroute fit-predictors
    slo_s_per_token: Positive = 0.06  # of requests without a class of their own bounds
    classes: Annotated[tuple[ClassEntry, ...], Field(max_length=100)] = ()
    tenants: Annotated[tuple[TenantEntry, ...], Field(max_length=1000)] = ()  # (): no key is asked for
    privacy_sets: Annotated[tuple[PrivacySet, ...], Field(max_length=100)] = ()
    network: Network | None = None
    may_drop: bool = False  # as of a class, where there are no classes
    workers: Annotated[int, Field(ge=1, le=MOST_WORKERS)] = 1  # processes that serve
    listen: Listen = Field(default_factory=Listen)
    limits: Limits = Field(default_factory=Limits)
    timeouts: Timeouts = Field(default_factory=Timeouts)
    breaker: Breaker = Field(default_factory=Breaker)

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        names = [entry.name for entry in self.privacy_sets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"privacy_sets: name {twice[0]!r} is used more than once")
        classes = [entry.name for entry in self.classes]
        for tenant in self.tenants:
            if tenant.service_class is not None and tenant.service_class not in classes:
                raise ValueError(
                    f"tenants: service_class = {tenant.service_class!r} of {tenant.name!r}: "
                    f"there is {', '.join(classes) if classes else 'none'}"
                )
        keys = [key for tenant in self.tenants for key in tenant.keys]
        if len(set(keys)) < len(keys):
            raise ValueError("tenants: a key stands there twice")
        return self

    @model_validator(mode="after")
    def _door_is_guarded(self) -> Self:
        if not (self.listen.is_loopback or self.tenants or self.listen.without_keys):
            raise ValueError(
                f"listen.host = {self.listen.host!r} without tenants: whoever reaches it could send requests; "
                "give tenants with keys, or say listen.without_keys: true"
            )
        return self

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change whenever any field changes."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A configuration with what its paths and variables led to."""

    config: GatewayConfig
    scenario: Scenario  # the cluster as the simulator knows it: experts, classes and tenants in the order of the configuration
    models: tuple[str, ...]  # as each engine calls its model
    tokens: tuple[str | None, ...] = field(repr=False)  # bearer token of each engine
    folder: Path  # that paths are relative to
    shadow_asked: str | None = None  # what the command line put in place of the file's ``shadow``
    workers_asked: int | None = None  # the same of ``workers``

    def path(self, given: str) -> Path:
        """A path of the configuration."""
        return self.folder / given

    def policy(self, given: str) -> str:
        """A policy of the configuration, as the command line would name it: paths are relative to the file's folder."""
        kind, colon, path = given.partition(":")
        if given in _SHIPPED:
            return f"bundle:{_SHIPPED[given]}"
        return f"{kind}:{self.path(path)}" if colon and kind in _TRAINED else given


def load_config(path: Path, shadow: str | None = None, workers: int | None = None) -> LoadedConfig:
    """Read a configuration and all that it names, but for policies, predictors and tokenizers.

    Args:
        path: of the file.
        shadow: a policy in place of the file's ``shadow``; None: the file's.
        workers: the number in place of the file's; None: the file's.

    Raises:
        InputError: a line for each mistake: file, field, value and what is allowed.
    """
    config = parse_config(read_mapping(path, "the gateway's settings"), str(path))
    if shadow is not None:
        config = replace(config, shadow=shadow)
    if workers is not None:
        if not 1 <= workers <= MOST_WORKERS:
            raise InputError(f"--workers = {workers}: must be from 1 to {MOST_WORKERS}")
        config = replace(config, workers=workers)
    if config.log is not None and config.log.files < config.workers:
        raise InputError(f"{path}: log.files = {config.log.files}: must be >= the number of workers, {config.workers}")
    folder = path.resolve().parent
    experts = tuple(_expert(entry, folder, f"{path}: experts.{i}") for i, entry in enumerate(config.experts))
    tokens = tuple(
        None if entry.token is None else entry.token.read(folder, f"{path}: experts.{i}.token")
        for i, entry in enumerate(config.experts)
    )
    models = tuple(entry.model or expert.model for entry, expert in zip(config.experts, experts, strict=True))
    return LoadedConfig(
        config=config,
        scenario=_scenario(config, experts, str(path)),
        models=models,
        tokens=tokens,
        folder=folder,
        shadow_asked=shadow,
        workers_asked=workers,
    )


def parse_config(data: Any, where: str) -> GatewayConfig:
    """Build a configuration from parsed YAML; ``where`` says where it was read, for messages.

    Raises:
        InputError: unknown key, wrong type or impossible value; one line for each, with the field's path.
    """
    try:
        return _CONFIGS.validate_json(json.dumps(data, default=str))  # JSON lists are read as tuples; other types stay strict
    except ValidationError as error:
        raise InputError("\n".join(map(_without_keys, explain(error, where, "configuration")))) from None


_CONFIGS: TypeAdapter[GatewayConfig] = TypeAdapter(GatewayConfig)


def _without_keys(line: str) -> str:
    """A message about keys says nothing of what was given: it may be the key itself instead of its hash."""
    return re.sub(r"(tenants\.\d+\.keys.*?) \(got .*\)$", r"\1", line)


def _expert(entry: ExpertEntry, folder: Path, where: str) -> Expert:
    base = _preset(entry.preset, where) if entry.preset is not None else _profile(folder / (entry.profile or ""))
    given = {
        name: value
        for name in ("mean_score", "mean_output_tokens", "labels", "site", "prompt_price", "output_price")
        if (value := getattr(entry, name)) is not None
    }
    return replace(base, name=entry.name, **given)


def _preset(text: str, where: str) -> Expert:
    scenario, _, name = text.partition("/")
    experts = {expert.name: expert for expert in load_scenario(scenario).experts}
    if name not in experts:
        raise InputError(f"{where}.preset = {text!r}: must be SCENARIO/EXPERT; experts of {scenario} are {', '.join(experts)}")
    return experts[name]


def _profile(path: Path) -> Expert:
    data = parse_yaml(read_text(path, _PROFILE_BYTES), str(path))
    if isinstance(data, list) and len(cast(list[Any], data)) == 1:
        data = cast(list[Any], data)[0]
    if not isinstance(data, Mapping):
        raise InputError(f"{path}: must be an expert's fields, or a list of one expert, as edgeroute calibrate writes it")
    try:
        return _EXPERTS.validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise InputError("\n".join(explain(error, str(path), "expert"))) from None


def _scenario(config: GatewayConfig, experts: tuple[Expert, ...], where: str) -> Scenario:
    shared = ("name", "weight", "per_token_s", "ttft_s", "tpot_s", "e2e_s", "confined_to", "priority")
    try:
        scenario = Scenario(
            name="gateway",
            experts=experts,
            slo_s_per_token=config.slo_s_per_token,
            classes=tuple(ServiceClass(**{name: getattr(entry, name) for name in shared}) for entry in config.classes),
            tenants=tuple(Tenant(name=entry.name, confined_to=entry.confined_to) for entry in config.tenants),
            network=config.network,
        )
    except ValidationError as error:
        raise InputError("\n".join(explain(error, where, "configuration"))) from None
    known = {place for expert in experts for place in (expert.name, expert.site, *expert.labels) if place is not None}
    for privacy in config.privacy_sets:
        for place in privacy.confined_to:
            if place not in known:
                raise InputError(
                    f"{where}: privacy_sets: {privacy.name!r} is confined_to {place!r}: no expert has this name or label; "
                    f"there are {', '.join(sorted(known))}"
                )
    return scenario
