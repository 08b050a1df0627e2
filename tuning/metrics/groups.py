"""Metrics of the requests of each service class and of each tenant."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.service_terms import terms_of
from rllib_envs.simulation import Records
from tuning.metrics.episode import ACTIVE_J, active_j_per_request, cost_per_1000, request_metrics

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
    ACTIVE_J,
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


def group_metrics(scenario: Scenario, records: Records, busy_s: NDArray[np.floating[Any]]) -> dict[str, dict[str, float]]:
    """Compute the metrics of each service class and tenant.

    Args:
        scenario: its classes and tenants.
        records: of an episode.
        busy_s: (N,) time that each expert ran iterations in it.

    Returns:
        Title of each group -> ``GROUP_METRICS`` of its requests; NaN where it has none.
    """
    return {group.title: _metrics(scenario, records, group.among(records), busy_s) for group in groups_of(scenario)}


def latency_over_bound(scenario: Scenario, records: Records) -> NDArray[np.float64]:
    """(M,) the largest latency of each request over its bound, of those that its class has; NaN if it has not finished."""
    terms = terms_of(scenario)[records.service]
    stay_s = records.finish_s - records.arrival_s + records.network_s
    tpot = np.nan_to_num(records.tpot_s / terms["tpot_s"])  # of one-token answers there is none
    return np.maximum.reduce(
        [records.latency_per_token_s / terms["slo_s"], records.ttft_s / terms["ttft_s"], tpot, stay_s / terms["e2e_s"]]
    )


def _metrics(
    scenario: Scenario, records: Records, among: NDArray[np.bool_], busy_s: NDArray[np.floating[Any]]
) -> dict[str, float]:
    if not among.any():
        return dict.fromkeys(GROUP_METRICS, float("nan"))
    own = replace(records, **{field.name: getattr(records, field.name)[among] for field in fields(records)})
    active_j = active_j_per_request(scenario, records, among, busy_s)
    metrics = request_metrics(own) | {"cost_per_1000": cost_per_1000(scenario, own), ACTIVE_J: active_j}
    return {name: metrics[name] for name in GROUP_METRICS}
