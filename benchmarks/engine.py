"""Speed of the engine: routed requests per CPU-second, with and without observations, and against a plain Python stepper.

Run ``python -m benchmarks.engine``. Join-shortest-queue, compiled, routes 64 clusters of the preset edge6; every figure is the
best of five runs on one core, without the drawing of the episodes. Expect the engine to be limited by its events (about two
for each request) and the observation by the number of requests in flight, which is printed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.timing import cpu_s
from rllib_envs.decision import Rules, World, decide, write_observation
from rllib_envs.scenario import Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.sim.cluster import STEP
from rllib_envs.sim.jit import borrow, kernel
from rllib_envs.sim.reference import Arrival, simulate
from rllib_envs.simulation import Simulation

CLUSTERS, REQUESTS = 64, 1000


@kernel
def _route_all(world: World, rules: Rules, show: bool) -> float:
    """Route every request to the expert with the fewest; returns the mean number in flight at a decision."""
    world = borrow(world)
    experts = world.state.experts
    step = np.zeros(1, STEP)
    total = 0
    for _ in range(world.workload.arrival_s.shape[1]):
        for b in range(experts.shape[0]):
            best, least = 0, experts[b, 0].n_run + experts[b, 0].n_wait
            total += least
            for e in range(1, experts.shape[1]):
                present = experts[b, e].n_run + experts[b, e].n_wait
                total += present
                if present < least:
                    best, least = e, present
            decide(world, rules, b, best, step[0])
            if show:
                write_observation(world, rules, b)
    return total / world.workload.arrival_s.size


class Shortest:
    """An episode in each of ``clusters`` clusters under join-shortest-queue, first expert on ties, in compiled code."""

    def __init__(self, scenario: Scenario, *, show: bool, clusters: int = CLUSTERS) -> None:
        """Prepare the simulation; ``show``: write the observations."""
        self.simulation = Simulation(scenario, clusters, show=show)
        self._show = show
        self.present = 0.0  # requests in flight at a decision, mean

    def start(self) -> None:
        """Draw the episodes (not part of the engine's time)."""
        self.simulation.start_all(list(range(self.simulation.batch)))

    def run(self) -> None:
        """Route every request."""
        self.present = _route_all(self.simulation.world, self.simulation.rules, self._show)

    def per_cpu_s(self) -> float:
        """Routed requests per CPU-second."""
        return self.simulation.workload.arrival_s.size / cpu_s(self.run, before=self.start)


def python_stepper_per_cpu_s(scenario: Scenario) -> float:
    """Requests per CPU-second of the plain Python stepper, given the same requests on the same experts as the engine."""
    shortest = Shortest(scenario, show=False, clusters=1)
    shortest.start()
    shortest.run()
    records = shortest.simulation.records(0)
    rows = list(zip(records.route, records.arrival_s, records.prompt_tokens, records.output_tokens, strict=True))
    shares = [
        [Arrival(arrival_s=float(t), prompt_tokens=int(p), output_tokens=int(o)) for route, t, p, o in rows if route == e]
        for e in range(scenario.n_experts)
    ]

    def run() -> None:
        for expert, share in zip(scenario.experts, shares, strict=True):
            simulate(expert.engine, share)

    return len(rows) / cpu_s(run, repeats=2)


def main() -> None:
    """Print the tables."""
    edge6 = with_workload(load_scenario("edge6"), requests=REQUESTS)
    print(f"{'edge6':10}{'in flight':>10}{'routed/s':>12}{'observed/s':>12}{'Python/s':>10}{'ratio':>8}")
    for load in ("light", "moderate", "heavy"):
        scenario = with_workload(edge6, load=load)
        bare, shown = Shortest(scenario, show=False), Shortest(scenario, show=True)
        routed, observed, plain = bare.per_cpu_s(), shown.per_cpu_s(), python_stepper_per_cpu_s(scenario)
        print(f"{load:10}{bare.present:10.0f}{routed:12,.0f}{observed:12,.0f}{plain:10,.0f}{routed / plain:8.0f}")
    print(f"\n{'N':>4}{'us/decision':>14}{'us/decision, observed':>24}{'us/decision/N':>16}{'KiB/cluster':>14}")
    for n in (6, 16, 64, 256):
        fleet = with_workload(load_scenario(f"edge{n}"), requests=4 * n + 100, load="moderate")
        bare, shown = Shortest(fleet, show=False, clusters=8), Shortest(fleet, show=True, clusters=8)
        routed, observed = 1e6 / bare.per_cpu_s(), 1e6 / shown.per_cpu_s()
        print(f"{n:4}{routed:14.2f}{observed:24.2f}{observed / n:16.3f}{memory_kib(shown.simulation):14,.0f}")
    azure = replace(edge6, workload=replace(edge6.workload, arrivals=replace(edge6.workload.arrivals, kind="azure-conversation")))
    whole = Shortest(with_workload(azure, requests=19_366, load="native"), show=False, clusters=1)
    print(f"\n19,366 requests of the Azure conversation trace's shape, one cluster: {19_366 / whole.per_cpu_s():.3f} CPU-s")


def memory_kib(simulation: Simulation) -> float:
    """Memory of one cluster: state, workload tables and observation, KiB."""
    arrays = (*simulation.state, *simulation.workload, *simulation.view)
    return sum(np.asarray(array).nbytes for array in arrays if array is not None) / simulation.batch / 1024


if __name__ == "__main__":
    main()
