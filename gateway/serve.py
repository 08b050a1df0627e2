"""Serve: decide for each request which expert answers it, and pass the answer on.

The gateway speaks OpenAI's protocol in front of engines that speak it too (vLLM, SGLang, llama.cpp). Model `auto` lets the policy
decide; the name of an expert asks for that one. See docs/serving.md. Example:

    edgeroute serve --config gateway.yaml
"""

from __future__ import annotations

import logging
import sys
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
    check: bool = False
    """Read the settings and all that they name, and end."""


def run(options: Options) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        InputError: settings that cannot be used, an address that is taken, or the extra is missing.
    """
    try:
        import uvloop

        from gateway.server.lifecycle import serve
        from gateway.server.state import Gateway
    except ModuleNotFoundError as error:
        if error.name not in _OF_THE_EXTRA:
            raise
        raise InputError(f"serve: {error.name} is missing: pip install 'edgeroute[serve]'") from None
    from gateway.config import load_config

    gateway = Gateway(load_config(options.config, _from_here(options.shadow)))
    if options.check:
        print(f"{options.config}: {len(gateway.upstreams)} experts, policy {gateway.config.policy}")
        return
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # a request that is none is no news
    uvloop.run(serve(options.config, gateway))


def _from_here(policy: str | None) -> str | None:
    """A policy of the command line, whose path is relative to the present folder and not to that of the settings."""
    kind, colon, path = (policy or "").partition(":")
    return f"{kind}:{Path(path).resolve()}" if colon and kind in ("bundle", "sampled") else policy
