"""Lines of decision logs for tests."""

from __future__ import annotations

from typing import Any

from rllib_envs.decision_log.records import line_of, start_line
from rllib_envs.scenario import Scenario


def request(n: int, number: int, **fields: Any) -> dict[str, Any]:
    """A request's line at n experts, as a mapping; ``fields`` in place of its own."""
    expert = fields.get("expert", number % n)
    plain: dict[str, Any] = {
        "kind": "request",
        "id": f"r{number}",
        "time": 1.7e9 + number,
        "tenant": "",
        "service": "default",
        "prompt_tokens": [100 + number % 7] * n,
        "max_tokens": None,
        "streams": True,
        "pinned": False,
        "bounds": {"per_token_s": 0.06},
        "candidates": list(range(n)),
        "policy": "random",
        "version": "",
        "fallback": None,
        "refusal": None,
        "expert": expert,
        "predicted_score": [0.5] * n,
        "predicted_tokens": [200.0] * n,
        "predicted_ttft_s": [0.2] * n,
        "predicted_tpot_s": [0.03] * n,
        "scores": [0.1] * (n + 1),
        "probability": 1 / n,
        "decision_s": 1e-3,
        "reasons": "for a test",
        "load": [[0, 1, 0, 30.0]] * n,
        "shadow": None,
        "outcome": {
            "status": "finished",
            "expert": expert,
            "attempts": 1,
            "ttft_s": 0.25,
            "tpot_s": 0.035,
            "e2e_s": 0.25 + 199 * 0.035,
            "prompt_tokens": 100,
            "output_tokens": 200,
            "violates": False,
        },
    }
    return plain | fields


def log_text(scenario: Scenario, *requests: dict[str, Any]) -> bytes:
    """The text of a log about one cluster."""
    return start_line(scenario, 1.7e9) + b"".join(map(line_of, requests))
