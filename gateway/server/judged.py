"""How good answers were, as those say who read them: ``POST /v1/feedback``."""

from __future__ import annotations

import time
from typing import Any

from gateway.server.asked import parse_object, wrong
from gateway.server.replies import Refused
from gateway.server.traffic import Traffic
from rllib_envs.decision_log.records import feedback_line


async def judge(traffic: Traffic, headers: dict[bytes, bytes], body: bytes, tenant: int | None) -> dict[str, Any]:
    """Take the score of an answer that was given lately.

    Args:
        traffic: what requests share.
        headers: of the request.
        body: JSON with ``id``, which is the header x-request-id of the answer, and ``score`` in [0, 1].
        tenant: who asks, who must be who got the answer.

    Raises:
        Refused: 400, a wrong field; 404, no such answer.
    """
    data = parse_object(body)
    score, identity = data.get("score"), data.get("id")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
        raise wrong("score", "must be a number from 0 to 1")
    answered = traffic.answered.get(identity) if isinstance(identity, str) else None
    if answered is None or answered.tenant != traffic.name_of(tenant):
        raise Refused(404, "not_found", "id: no such answer was given lately", param="id")
    traffic.metrics.judged(answered.expert, score)
    if traffic.log is not None:
        assert isinstance(identity, str)
        time_s = time.time()
        traffic.log.write(answered.scenario, lambda: feedback_line(identity, float(score), time_s))
    return {"id": identity, "score": score}
