"""Speed of a scenario with the parts of an edge that are optional, beside the same without them.

Run ``python -m benchmarks.edge``. Environment steps per CPU-second of edge6 at moderate load: alone, with service classes and
tenants, with a network too, with watts and prices too, with engines that schedule by priority too. Then edge6 has heat and
patience, or failures and blackouts, or all four, in place of all that. The last two rows have all four too, without and with
priority. The columns are those of ``benchmarks.environment``, with the ratio to edge6 alone in the same run.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.environment import steps_per_cpu_s
from rllib_envs.dynamics import Blackouts, Dynamics, Failures, Patience, Throttling
from rllib_envs.network import Link, Network, Site
from rllib_envs.scenario import Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.service import ServiceClass, Tenant

CLASSES = (
    ServiceClass(name="chat", share=0.6, ttft_s=1.0, tpot_s=0.06, priority=1),
    ServiceClass(name="alarm", share=0.1, weight=2.0, e2e_s=12.0),
    ServiceClass(name="batch", share=0.3, weight=0.5, per_token_s=0.12, priority=2),
)

_ROUNDS = 3


def stages() -> dict[str, Scenario]:
    """edge6 with more and more parts."""
    plain = with_workload(load_scenario("edge6"), requests=1000)
    labelled = tuple(replace(e, labels=("here",) if i < 4 else ()) for i, e in enumerate(plain.experts))
    tenants = (Tenant(name="public"), Tenant(name="patients", confined_to=("here",)))
    classes = replace(plain, experts=labelled, classes=CLASSES, tenants=tenants)
    sites = ("a", "b")
    links = tuple(Link(users=u, experts=e, rtt_s=0.01 if u == e else 0.05, mbit_per_s=20.0) for u in sites for e in sites)
    between = Network(sites=tuple(Site(name=name) for name in sites), links=links, jitter_log_sd=0.3, stay_s=600.0)
    placed = tuple(replace(e, site=sites[i % 2]) for i, e in enumerate(labelled))
    network = replace(classes, experts=placed, network=between)
    metered = tuple(replace(e, idle_w=20.0, active_w=200.0, prompt_price=0.5, output_price=1.0) for e in placed)
    expenses = replace(network, experts=metered)
    by_priority = tuple(replace(e, engine=replace(e.engine, scheduling="priority")) for e in metered)
    scheduled = replace(expenses, experts=by_priority)
    slow = Dynamics(throttling=Throttling(), patience=Patience(total_s=60.0))
    gone = Dynamics(failures=Failures(), blackouts=Blackouts())
    changing = replace(gone, throttling=slow.throttling, patience=slow.patience)
    return {
        "edge6": plain,
        "+ classes, tenants": classes,
        "+ network": network,
        "+ watts, prices": expenses,
        "+ priority": scheduled,
        "heat, patience": replace(plain, dynamics=slow),
        "failures, blackouts": replace(plain, dynamics=gone),
        "all four": replace(plain, dynamics=changing),
        "prices, all four": replace(expenses, dynamics=changing),
        "priority, all four": replace(scheduled, dynamics=changing),
    }


def main() -> None:
    """Print the table: the best of some rounds, in which all rows have their turn, as other work comes and goes."""
    rows, best = stages(), dict[tuple[str, bool], float]()
    for _ in range(_ROUNDS):
        for name, scenario in rows.items():
            for whatif in (False, True):
                found = steps_per_cpu_s(scenario, whatif=whatif)
                best[name, whatif] = max(best.get((name, whatif), 0.0), found)
    first = next(iter(rows))
    print(f"{'':20}{'steps/s':>12}{'ratio':>8}{'with what-if':>14}{'ratio':>8}")
    for name in rows:
        plain, predicted = best[name, False], best[name, True]
        print(f"{name:20}{plain:12,.0f}{plain / best[first, False]:8.2f}{predicted:14,.0f}{predicted / best[first, True]:8.2f}")


if __name__ == "__main__":
    main()
