"""Paths that take JSON and answer JSON at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gateway.server.completion import read_body
from gateway.server.replies import Receive, Refused, Scope, Send, send_json, send_refusal
from gateway.server.traffic import Traffic

Handler = Callable[[dict[bytes, bytes], bytes, int | None], Awaitable[dict[str, Any]]]
"""Takes headers, body and tenant."""


async def call(traffic: Traffic, handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request by a handler, with what holds for all: who asks, and how much the body may have."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    config = traffic.gateway.config
    try:
        tenant = traffic.gateway.keys.tenant(headers.get(b"authorization"))
        with traffic.place(traffic.gateway, tenant):
            body = await read_body(headers, receive, config.limits.body_bytes, config.timeouts.client_s)
        if body is None:
            return  # the client left
        answer = await handler(headers, body, tenant)
    except Refused as refused:
        traffic.metrics.refused(refused.code)
        await send_refusal(send, refused)
        return
    await send_json(send, 200, answer)
