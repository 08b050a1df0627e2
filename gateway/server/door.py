"""The ASGI application: which path is what."""

from __future__ import annotations

import logging
import time
from functools import partial

from gateway.config import AUTO
from gateway.server.calls import Handler, call
from gateway.server.completion import complete
from gateway.server.judged import judge
from gateway.server.metrics import CONTENT_TYPE
from gateway.server.other_routers import LLM_D, predict_latency, select_model
from gateway.server.page import GUARDS, STATE, page_file, page_state
from gateway.server.replies import Receive, Refused, Scope, Send, send_bytes, send_json, send_refusal
from gateway.server.routed import Routes
from gateway.server.traffic import Traffic

_LOG = logging.getLogger(__name__)
_COMPLETIONS = {"/v1/chat/completions": True, "/v1/completions": False}
_MODELS = "/v1/models"


class Door:
    """The application, in front of ``traffic``."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._started = int(time.time())
        routes = Routes(traffic)
        traffic.at_end.append(routes.close)
        self._handlers: dict[str, Handler] = {
            "/v1/route": routes.ask,
            "/v1/route/events": routes.tell,
            "/v1/feedback": partial(judge, traffic),
            "/route": partial(select_model, routes),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever it is."""
        started = False

        async def sending(message: dict[str, object]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._route(scope, receive, sending)  # pyright: ignore[reportArgumentType]
        except Exception:
            _LOG.exception("a request failed in the gateway")
            if started:
                raise
            await send_refusal(send, Refused(500, "internal_error", "the gateway failed; its log says why"))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if (chat := _COMPLETIONS.get(path)) is not None:
            if method == "POST":
                await complete(self._traffic, scope, receive, send, chat=chat)
                return
            await send_refusal(send, Refused(405, "method_not_allowed", f"{path} takes POST"), [(b"allow", b"POST")])
            return
        if method == "POST" and (handler := self._handler(path)) is not None:
            await call(self._traffic, handler, scope, receive, send)
            return
        if method not in ("GET", "HEAD"):
            await send_refusal(send, Refused(404, "not_found", f"there is no {method} {path}"[:200]))
            return
        await self._show(path, dict(scope["headers"]), send)

    def _handler(self, path: str) -> Handler | None:
        """What answers a POST with JSON."""
        if path.startswith(LLM_D):
            return partial(predict_latency, self._traffic, path)
        return self._handlers.get(path)

    async def _show(self, path: str, headers: dict[bytes, bytes], send: Send) -> None:
        if (file := page_file(path)) is not None:
            await send_bytes(send, 200, *file, GUARDS)
        elif path == STATE:
            try:
                tenant = self._traffic.gateway.keys.tenant(headers.get(b"authorization"))
                await send_json(send, 200, page_state(self._traffic, tenant), GUARDS)
            except Refused as refused:
                await send_refusal(send, refused, GUARDS)
        elif path == "/health":
            await send_json(send, 200, {"status": "ok"})
        elif path == "/ready":
            ready = not self._traffic.draining and any(self._traffic.gateway.ready())
            await send_json(send, 200 if ready else 503, {"ready": ready, "draining": self._traffic.draining})
        elif path == "/metrics":
            await send_bytes(send, 200, self._traffic.metrics_page(), CONTENT_TYPE)
        elif path == _MODELS or path.startswith(f"{_MODELS}/"):
            try:
                await send_json(send, 200, self._models(path, headers))
            except Refused as refused:
                await send_refusal(send, refused)
        else:
            await send_refusal(send, Refused(404, "not_found", f"there is no {path}"[:200]))

    def _models(self, path: str, headers: dict[bytes, bytes]) -> dict[str, object]:
        self._traffic.gateway.keys.tenant(headers.get(b"authorization"))
        names = [AUTO, *(entry.name for entry in self._traffic.gateway.config.experts)]
        models = [{"id": name, "object": "model", "created": self._started, "owned_by": "edgeroute"} for name in names]
        if path == _MODELS:
            return {"object": "list", "data": models}
        name = path.removeprefix(f"{_MODELS}/")
        if name not in names:
            raise Refused(404, "model_not_found", f"model {name[:80]!r}: must be one of /v1/models", param="model")
        return dict(models[names.index(name)])
