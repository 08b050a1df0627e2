"""Whether a continued bundle takes the place of the one before: on requests that nothing was fitted to, in paired windows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from rllib_envs.decision_log.table import LoggedTable
from rllib_envs.scenario import Scenario
from tuning.logged_worlds.compare import PolicyOnLog, compare_on_log, windows_of
from tuning.metrics.statistics import Interval, paired_difference
from tuning.output.tables import markdown_table
from tuning.run_dir.atomic import write_json
from tuning.specs.routers import parse_router

_WINDOWS, _DRAWS = 20, 4
_BESIDE = "impact-greedy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """The comparison of two bundles."""

    promoted: bool
    difference: Interval  # QoS of the candidate less that of the bundle before, paired by window
    policies: tuple[PolicyOnLog, ...]  # as logged, the bundle before, the candidate, and a heuristic

    @property
    def figures(self) -> str:
        """The difference in words."""
        windows = len(self.policies[0].qos)
        error = self.difference.half_width
        return f"{self.difference.mean:+.4f} ± {error:.4f} QoS over {windows} windows of the log that training did not see"

    def table(self) -> str:
        """All of it as a table."""
        rows = [[name, f"{x.mean.mean:.4f}", f"{100 * x.violations:.1f}"] for name, x in zip(_ROWS, self.policies, strict=True)]
        return markdown_table(["on the later part of the log", "QoS", "late, %"], rows)


_ROWS = ("as logged", "the bundle before", "the new bundle", _BESIDE)


def judge(held_out: LoggedTable, scenario: Scenario, before: Path, candidate: Path, seed: int) -> Promotion:
    """Compare two bundles on a log.

    Args:
        held_out: requests that nothing was fitted to.
        scenario: their cluster.
        before: bundle.
        candidate: bundle that is to take its place.
        seed: of the lengths of answers that nobody saw.

    Raises:
        InputError: a bundle that cannot be loaded.
    """
    routers = [parse_router(text) for text in (f"bundle:{before}", f"bundle:{candidate}", _BESIDE)]
    windows = windows_of(len(held_out.requests), _WINDOWS)
    found = compare_on_log(held_out, scenario, routers, windows, seed, _DRAWS)
    difference = paired_difference(found[2].qos, found[1].qos)
    return Promotion(promoted=difference.low > 0, difference=difference, policies=tuple(found))


def write_promotion(promotion: Promotion, path: Path) -> None:
    """Write the figures as JSON.

    Raises:
        InputError: the file cannot be written.
    """
    policies = [asdict(x) | {"name": name} for name, x in zip(_ROWS, promotion.policies, strict=True)]
    data = {"promoted": promotion.promoted, "difference": asdict(promotion.difference), "policies": policies}
    write_json(path, data)
