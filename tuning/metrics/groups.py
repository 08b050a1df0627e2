"""Metrics of the requests of each service class and of each tenant."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.simulation import Records
from tuning.metrics.episode import cost_per_1000, request_metrics

GROUP_METRICS = (
    "qos",
    "violation_rate",
    "drop_rate",
    "rejected_rate",
    "confined_rate",
    "cancelled_rate",
    "failed_rate",
    "retried_rate",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p99_s",
    "longest_wait_s",
    "cost_per_1000",
)
"""The metrics of a group, by their names in ``METRICS``."""


class Group(NamedTuple):
    """Requests of a service class or of a tenant."""

    kind: str  # class, tenant
    name: str
    number: int  # in the scenario's list

    @property
    def title(self) -> str:
        """Both, for tables and files."""
        return f"{self.kind} {self.name}"

    def among(self, records: Records) -> NDArray[np.bool_]:
        """(M,) which requests it has."""
        return (records.service if self.kind == "class" else records.tenant) == self.number


def groups_of(scenario: Scenario) -> list[Group]:
    """The scenario's classes, then its tenants."""
    return [
        *(Group("class", entry.name, i) for i, entry in enumerate(scenario.classes)),
        *(Group("tenant", entry.name, i) for i, entry in enumerate(scenario.tenants)),
    ]


def group_metrics(scenario: Scenario, records: Records) -> dict[str, dict[str, float]]:
    """Title of each group -> ``GROUP_METRICS`` of its requests; NaN where it has none."""
    return {group.title: _metrics(scenario, records, group.among(records)) for group in groups_of(scenario)}


def _metrics(scenario: Scenario, records: Records, among: NDArray[np.bool_]) -> dict[str, float]:
    if not among.any():
        return dict.fromkeys(GROUP_METRICS, float("nan"))
    own = replace(records, **{field.name: getattr(records, field.name)[among] for field in fields(records)})
    metrics = request_metrics(own) | {"cost_per_1000": cost_per_1000(scenario, own)}
    return {name: metrics[name] for name in GROUP_METRICS}
