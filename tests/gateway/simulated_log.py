"""A decision log of simulated engines: real decisions, and what the engines' own kernels make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gateway.decider import Decider
from gateway.request import Budgets, RouteRequest
from gateway.server.exchange import Exchange, promised
from gateway.server.logged import request_line
from gateway.simulated import SimulatedEngines
from rllib_envs.capacity import capacity_rps
from rllib_envs.decision_log.records import start_line
from rllib_envs.scenario import Scenario
from rllib_envs.service_terms import terms_of
from rllib_envs.workload.episode import draw_episode


def write_simulated_log(
    path: Path,
    scenario: Scenario,
    policy: str,
    requests: int,
    seed: int,
    shadow: str | None = None,
    bounds: Callable[[int], Budgets] = lambda r: Budgets(),
) -> list[Exchange]:
    """Decide the requests of an episode, one after the other, and log what came of them; returns them in order of arrival.

    ``bounds``: those that a request brings itself, by its number.
    """
    scenario = replace(scenario, workload=replace(scenario.workload, requests=requests))
    episode = draw_episode(scenario, capacity_rps(scenario), seed)
    engines = SimulatedEngines(episode, terms_of(scenario))
    decider = Decider(scenario, policy, shadow=shadow, seed=seed)
    found: list[Exchange] = []

    def run_to(until_s: float) -> None:
        for iteration in engines.run(until_s):
            for r in iteration.got:
                exchange = found[r]
                exchange.tokens += 1
                exchange.first_s = iteration.time_s if exchange.first_s is None else exchange.first_s
                decider.ledger.streamed(exchange.decision.id, 1, iteration.time_s)
            for r in iteration.ended:
                found[r].outcome, found[r].ended_s = "finished", iteration.time_s
                decider.ledger.finished(found[r].decision.id, iteration.time_s)

    for r, now_s in enumerate(episode.arrival_s.tolist()):
        run_to(now_s)
        request = RouteRequest(prompt_tokens=int(episode.prompt[r]), service=int(episode.user["service"][r]), budgets=bounds(r))
        decision = decider.decide(request, now_s, [True] * scenario.n_experts)
        assert decision.expert is not None
        assert engines.send(r, decision.expert)
        found.append(
            Exchange(
                request_id=f"r{r}",
                arrived_s=now_s,
                class_name=scenario.classes[request.service].name if scenario.classes else "default",
                bounds=promised(
                    request.budgets, scenario.classes[request.service] if scenario.classes else None, scenario.slo_s_per_token
                ),
                request=request,
                decision=decision,
                expert=decision.expert,
                load=tuple(decider.ledger.loads()),
            )
        )
    run_to(float("inf"))
    path.write_bytes(start_line(scenario, 1.7e9) + b"".join(request_line(x, 1.7e9, None) for x in found))
    return found
