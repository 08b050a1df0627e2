"""Time of a gateway's decision in a running cluster: observation, what-if results and policy, and all of it.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.gateway_decision`` from the repository root; it takes the extra ``onnx``. Simulated
engines of edge6 at moderate load get the requests of an episode, each by a decision of the gateway. Each way of serving runs the
whole episode. CPU time of the one thread, median and 99th percentile over the decisions after ``WARM_UP``, in milliseconds and
over the median of *traced alone*: the shipped router, traced, asked again on the observation of each decision.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from gateway.decider import Decider
from gateway.policies import load_policy
from gateway.request import RouteRequest
from gateway.simulated import SimulatedEngines
from models.envelope import Envelope
from models.export.bundle import load_bundle, save_bundle
from rllib_envs.capacity import capacity_rps
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.service_terms import terms_of
from rllib_envs.workload.episode import draw_episode
from tuning.specs.routers import SHIPPED_ROUTER

REQUESTS, WARM_UP = 800, 200


def times_s(policy: str) -> tuple[list[float], list[float]]:
    """CPU seconds of each decision, and of the policy alone right after it."""
    scenario = with_workload(load_scenario("edge6"), requests=REQUESTS)
    episode = draw_episode(scenario, capacity_rps(scenario), 9_000_000)
    engines = SimulatedEngines(episode, terms_of(scenario))
    loaded = load_policy(policy, scenario.observation)
    if loaded.trained_on is not None:  # every request is told the same here, which the shipped router never saw
        ranges = {name: limits for name, limits in loaded.trained_on.ranges.items() if not name.startswith("score_")}
        loaded = replace(loaded, trained_on=Envelope(ranges=ranges))
    decider = Decider(scenario, loaded, clock=time.thread_time)  # else what runs beside it would count
    decider.warm_up()
    ready = [True] * scenario.n_experts
    rng, keys = np.random.default_rng(0), dict[int, str]()
    whole: list[float] = []
    alone: list[float] = []
    for r in range(REQUESTS):
        now_s = float(episode.arrival_s[r])
        for iteration in engines.run(now_s):
            for i in iteration.got:
                decider.ledger.streamed(keys[i], 1, iteration.time_s)
            for i in iteration.ended:
                decider.ledger.finished(keys.pop(i), iteration.time_s)
        stamps = [time.thread_time()]
        decision = decider.decide(RouteRequest(prompt_tokens=int(episode.prompt[r])), now_s, ready)
        stamps.append(time.thread_time())
        decider.policy.decide(decider.live, rng)
        stamps.append(time.thread_time())
        whole.append(stamps[1] - stamps[0])
        alone.append(stamps[2] - stamps[1])
        assert decision.expert is not None
        assert decision.fallback is None, decision.reasons
        engines.send(r, decision.expert)
        keys[r] = decision.id
    return whole[WARM_UP:], alone[WARM_UP:]


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder:
        bundle, graph = load_bundle(SHIPPED_ROUTER), Path(folder) / "router"
        save_bundle(graph, bundle.router, bundle.observation, bundle.about, onnx=True)
        found = {"traced": times_s(f"bundle:{SHIPPED_ROUTER}"), "ONNX": times_s(f"bundle:{graph}")}
    found["impact-greedy"] = times_s("impact-greedy")
    base = float(np.median(found["traced"][1]))
    print(f"{'':28}{'p50 ms':>8}{'p99 ms':>8}{'p50':>8}{'p99':>8}  over the median of traced alone")
    for name, (whole, alone) in found.items():
        for what, values in (("whole decision", whole), ("alone", alone)):
            p50, p99 = np.percentile(values, [50, 99])
            print(f"{f'{name}, {what}':28}{1e3 * p50:8.3f}{1e3 * p99:8.3f}{p50 / base:8.2f}{p99 / base:8.2f}")


if __name__ == "__main__":
    main()
