"""LiteLLM asks edgeroute which of its models to take: a file to put beside LiteLLM's config.yaml. It needs LiteLLM alone.

``EDGEROUTE_URL`` and ``EDGEROUTE_KEY`` in the environment say whom to ask. See docs/how-to/route-for-litellm.md.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import httpx

try:
    from litellm.integrations.custom_logger import CustomLogger  # pyright: ignore
except ImportError:  # for tests of the protocol
    CustomLogger = object

_LOG = logging.getLogger("edgeroute")
_TIMEOUT_S = 1.0


class EdgeroutePlugin(CustomLogger):  # pyright: ignore[reportGeneralTypeIssues]
    """A routing plug-in of LiteLLM's router, and the callback that tells edgeroute how requests ended."""

    async def run(self, context: Any) -> Any:
        """Narrow the candidates to the model that edgeroute chooses. They stay as they are if it knows none, or is away."""
        names = {model: model.partition("/")[2] or model for model in context.candidate_models}
        messages = context.structured_messages or context.raw_messages
        found = await self._post("/v1/route", {"messages": messages, "candidates": list(names.values())})
        left = [model for model, name in names.items() if name in (found.get("expert"), found.get("model"))]
        if left:
            context.candidate_models = left
            context.signals["edgeroute_id"] = found["id"]
        return context

    async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """It finished."""
        usage = getattr(response_obj, "usage", None)
        tokens = {
            "prompt_tokens": getattr(usage, "prompt_tokens", None),
            "output_tokens": getattr(usage, "completion_tokens", None),
        }
        await self._tell(kwargs, "finished", {name: count for name, count in tokens.items() if count})

    async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
        """It failed."""
        await self._tell(kwargs, "failed", {})

    async def _tell(self, kwargs: Any, event: str, more: dict[str, int]) -> None:
        metadata = (kwargs.get("litellm_params") or {}).get("metadata") or {}
        identity = (metadata.get("routing_plugin_signals") or {}).get("edgeroute_id")
        if identity is not None:
            await self._post("/v1/route/events", {"id": identity, "event": event, **more})

    async def _post(self, path: str, data: dict[str, Any]) -> dict[str, Any]:
        """The answer; {} where there is none, so that LiteLLM goes on without."""
        key = os.environ.get("EDGEROUTE_KEY")
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        try:
            async with httpx.AsyncClient(timeout=_TIMEOUT_S, headers=headers) as client:
                reply = await client.post(os.environ.get("EDGEROUTE_URL", "http://127.0.0.1:8080") + path, json=data)
                return reply.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            _LOG.warning("edgeroute did not answer %s: %s", path, error)
            return {}


plugin = EdgeroutePlugin()
"""For LiteLLM's settings: ``router_settings.plugins`` and ``litellm_settings.callbacks``."""
