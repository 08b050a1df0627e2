"""Time of a gateway's decision in a running cluster: observation, what-if results and policy, and all of it.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.gateway_decision`` from the repository root; it takes the extra ``onnx``. Simulated
engines of edge6 at moderate load get the requests of an episode, each by a decision of the gateway. CPU time of the one thread,
median and 99th percentile over the decisions after ``WARM_UP``, in milliseconds and over the median of *traced*: the shipped
router alone, traced, on the observation of the same moment. Expect the whole decision by ONNX Runtime to cost less than the
traced router alone and what it sees together.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from gateway.decider import Decider
from gateway.policies import load_policy
from gateway.request import RouteRequest
from gateway.simulated import SimulatedEngines
from models.export.bundle import load_bundle, save_bundle
from rllib_envs.capacity import capacity_rps
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.service_terms import terms_of
from rllib_envs.workload.episode import draw_episode
from tuning.specs.routers import SHIPPED_ROUTER

REQUESTS, WARM_UP = 1500, 200


def main() -> None:
    """Print the table."""
    scenario = with_workload(load_scenario("edge6"), requests=REQUESTS)
    episode = draw_episode(scenario, capacity_rps(scenario), 9_000_000)
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = load_bundle(SHIPPED_ROUTER)
        graph = Path(folder) / "router"
        save_bundle(graph, bundle.router, bundle.observation, bundle.about, onnx=True)
        traced, onnx = (load_policy(f"bundle:{path}", scenario.observation) for path in (SHIPPED_ROUTER, graph))
        deciders = {"decision, traced": Decider(scenario, traced), "decision, ONNX": Decider(scenario, onnx)}
        for decider in deciders.values():
            decider.warm_up()
        alone = {"traced": traced, "ONNX": onnx}
        engines = SimulatedEngines(episode, terms_of(scenario))
        keys: dict[int, list[str]] = {}
        for r in range(REQUESTS):
            now_s = float(episode.arrival_s[r])
            for iteration in engines.run(now_s):
                for i in iteration.got:
                    for decider, key in zip(deciders.values(), keys[i], strict=True):
                        decider.ledger.streamed(key, 1, iteration.time_s)
                for i in iteration.ended:
                    for decider, key in zip(deciders.values(), keys.pop(i), strict=True):
                        decider.ledger.finished(key, iteration.time_s)
            request = RouteRequest(prompt_tokens=int(episode.prompt[r]))
            chosen: list[str] = []
            for name, decider in deciders.items():
                before = time.thread_time()
                decision = decider.decide(request, now_s, [True] * scenario.n_experts)
                times.setdefault(name, []).append(time.thread_time() - before)
                assert decision.expert is not None
                chosen.append(decision.id)
                expert = decision.expert
            live = decider.live
            for name, policy in alone.items():
                before = time.thread_time()
                policy.decide(live, rng)
                times.setdefault(name, []).append(time.thread_time() - before)
            assert engines.send(r, expert)
            keys[r] = chosen
    base = float(np.median(times["traced"][WARM_UP:]))
    print(f"{'':20}{'p50 ms':>8}{'p99 ms':>8}{'p50':>8}{'p99':>8}  over the median of traced")
    for name, values in sorted(times.items(), key=lambda entry: np.median(entry[1])):
        p50, p99 = np.percentile(values[WARM_UP:], [50, 99])
        print(f"{name:20}{1e3 * p50:8.3f}{1e3 * p99:8.3f}{p50 / base:8.2f}{p99 / base:8.2f}")


if __name__ == "__main__":
    main()
