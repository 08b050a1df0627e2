"""CPU time of a decision with a shadow beside it: ``python -m benchmarks.shadow``.

On edge6, twenty requests a second, each with a few tokens reported and an end. The runs alternate, so that what else the machine
does meets all of them.
"""

from __future__ import annotations

import time

from gateway.decider import Decider
from gateway.request import RouteRequest
from rllib_envs.scenarios.load import load_scenario
from tuning.specs.routers import SHIPPED_ROUTER

REQUESTS, ROUNDS, GAP_S = 400, 3, 0.05
SHADOWS = {"no shadow": None, "least-work": "least-work", "the shipped bundle": f"bundle:{SHIPPED_ROUTER}"}


def main() -> None:
    """Measure and print."""
    scenario = load_scenario("edge6")
    deciders = {name: Decider(scenario, "impact-greedy", shadow=shadow) for name, shadow in SHADOWS.items()}
    for decider in deciders.values():
        decider.warm_up()
    start_s = 0.0
    for _ in range(ROUNDS):
        for name, decider in deciders.items():
            began_s = time.process_time()
            play(decider, start_s)
            print(f"{name}: {1e3 * (time.process_time() - began_s) / REQUESTS:.3f} CPU-ms a request")
        start_s += REQUESTS * GAP_S


def play(decider: Decider, start_s: float) -> None:
    """Requests from ``start_s`` on, each of which ends a second after it came."""
    ready = [True] * decider.scenario.n_experts
    keys: list[str] = []
    for i in range(REQUESTS):
        now_s = start_s + i * GAP_S
        if (ended := i - round(1 / GAP_S)) >= 0:
            decider.ledger.finished(keys[ended], now_s, output_tokens=100)
        keys.append(decider.decide(RouteRequest(prompt_tokens=50 + 7 * i % 100), now_s, ready).id)
        decider.ledger.streamed(keys[i // 2], 3, now_s + GAP_S / 2)


if __name__ == "__main__":
    main()
