"""Serve: decide for each request which expert answers it, and pass the answer on.

The gateway speaks OpenAI's protocol in front of engines that speak it too (vLLM, SGLang, llama.cpp). Model `auto` lets the policy
decide; the name of an expert asks for that one. See docs/serving.md. Example:

    edgeroute serve --config gateway.yaml
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from rllib_envs.errors import InputError

_OF_THE_EXTRA = ("aiohttp", "httptools", "prometheus_client", "uvicorn", "uvloop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    config: Path
    """Settings of the gateway: experts, policy, classes, keys and limits, in YAML."""
    shadow: str | None = None
    """A policy that decides beside the acting one, in place of the settings' shadow: a heuristic, or bundle:PATH."""
    workers: int | None = None
    """Processes that serve one address and know of each other's requests, in place of the settings' workers."""
    check: bool = False
    """Read the settings and all that they name, and end."""


def run(options: Options) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InputError: settings that cannot be used, an address that is taken, or the extra is missing.
    """
    try:
        import uvloop

        from gateway.server.lifecycle import log_to_stderr, serve
        from gateway.server.state import Gateway
        from gateway.server.workers import supervise
    except ModuleNotFoundError as error:
        if error.name not in _OF_THE_EXTRA:
            raise
        raise InputError(f"serve: {error.name} is missing: pip install 'edgeroute[serve]'") from None
    from gateway.config import load_config

    loaded = load_config(options.config, _from_here(options.shadow), options.workers)
    if options.check:
        gateway = Gateway(loaded)
        print(f"{options.config}: {len(gateway.upstreams)} experts, policy {gateway.config.policy}")
        return
    if loaded.config.workers > 1:
        asyncio.run(supervise(options.config, loaded))
        return
    gateway = Gateway(loaded)
    log_to_stderr()
    uvloop.run(serve(options.config, gateway))


def _from_here(policy: str | None) -> str | None:
    """A policy of the command line, whose path is relative to the present folder and not to that of the settings."""
    kind, colon, path = (policy or "").partition(":")
    return f"{kind}:{Path(path).resolve()}" if colon and kind in ("bundle", "sampled") else policy
