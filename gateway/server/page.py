"""The live page ``/ui``: experts, queues, where the last requests went and why, and the shadow against the acting policy.

The page itself says nothing; its state needs a key where completions do. It takes nothing from elsewhere, and the browser is told
to let it load nothing.
"""

from __future__ import annotations

import time
from functools import cache
from pathlib import Path
from typing import Any

from gateway.server.exchange import Exchange
from gateway.server.replies import Headers
from gateway.server.routed import known
from gateway.server.state import Gateway
from gateway.server.traffic import Traffic

STATE = "/ui/state"
"""The path of what the page shows, as JSON."""

_FILES = {
    "/ui": ("page.html", b"text/html"),
    "/ui/page.css": ("page.css", b"text/css"),
    "/ui/page.js": ("page.js", b"text/javascript"),
}
GUARDS: Headers = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
        b"form-action 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
"""Headers of every answer of the page."""


@cache
def page_file(path: str) -> tuple[bytes, bytes] | None:
    """Body and content type of a file of the page; None: it has no such path."""
    if path not in _FILES:
        return None
    name, kind = _FILES[path]
    return (Path(__file__).parent / name).read_bytes(), kind + b"; charset=utf-8"


def page_state(traffic: Traffic, tenant: int | None) -> dict[str, Any]:
    """What the page shows now. A tenant sees requests of its own alone, and all queues.

    Args:
        traffic: what requests share.
        tenant: who looks; None where nobody has a key.
    """
    gateway, now_s = traffic.gateway, time.monotonic()
    loads = gateway.decider.ledger.loads()
    own = [x for x in traffic.recent if tenant is None or x[1].request.tenant == traffic.name_of(tenant)]
    policy = gateway.decider.policy
    return {
        "policy": f"{policy.name}@{policy.version}" if policy.version else policy.name,
        "shadow": None if gateway.decider.shadow is None else gateway.decider.shadow.name,
        "draining": traffic.draining,
        "under_way": len(gateway.decider.ledger),
        "experts": [
            {
                "name": upstream.entry.name,
                "ready": upstream.ready(now_s),
                "waiting": load.waiting,
                "running": load.running,
                "tokens_left": load.tokens_left,
            }
            for upstream, load in zip(gateway.upstreams, loads, strict=True)
        ],
        "recent": [_row(of, exchange, now_s) for of, exchange in reversed(own)],
    }


def _row(gateway: Gateway, exchange: Exchange, now_s: float) -> dict[str, Any]:
    """A request; ``gateway`` is the one that decided it."""
    decision = exchange.decision
    names = [upstream.entry.name for upstream in gateway.upstreams] + ["drop"]
    e = exchange.expert if decision.expert is not None else None
    return {
        "ago_s": now_s - exchange.arrived_s,
        "chosen": "drop" if decision.expert is None else names[decision.expert],
        "expert": None if e is None else names[e],
        "refusal": decision.reason,
        "shadow": None if decision.shadow is None else names[-1 if decision.shadow.expert is None else decision.shadow.expert],
        "reasons": decision.reasons,
        "fallback": decision.fallback,
        "scores": [known(x) for x in decision.scores],
        "ttft_s": exchange.ttft_s,
        "tpot_s": exchange.tpot_s,
        "predicted_ttft_s": None if e is None else known(decision.predicted_ttft_s[e]),
        "predicted_tpot_s": None if e is None else known(decision.predicted_tpot_s[e]),
        "tokens": exchange.tokens if exchange.output_tokens is None else exchange.output_tokens,
        "outcome": exchange.outcome,
        "violates": exchange.outcome == "finished" and exchange.violates,
    }
