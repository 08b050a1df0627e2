"""What the gateway itself answers: JSON, errors in the form of OpenAI's protocol, texts."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from gateway.server.events import error_body

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that the gateway answers with an error."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after_s = status, code, param, retry_after_s


async def send_refusal(send: Send, refused: Refused, headers: Headers = ()) -> None:
    """Answer with an error; 401 says how to authenticate, and a wait is told where there is one."""
    kind = _KINDS.get(refused.status, "invalid_request_error" if refused.status < 500 else "server_error")
    extra = list(headers)
    if refused.retry_after_s is not None:
        extra.append((b"retry-after", str(refused.retry_after_s).encode()))
    if refused.status == 401:
        extra.append((b"www-authenticate", b"Bearer"))
    await send_json(send, refused.status, {"error": error_body(str(refused), kind, refused.code, refused.param)}, extra)


async def send_json(send: Send, status: int, data: Any, headers: Headers = ()) -> None:
    """Answer with JSON."""
    await send_bytes(send, status, json.dumps(data).encode(), b"application/json", headers)


async def send_bytes(send: Send, status: int, body: bytes, kind: bytes, headers: Headers = ()) -> None:
    """Answer with a whole body."""
    about = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": body})
