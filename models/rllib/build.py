"""Build the router of an RLlib module from its configuration."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import fields
from typing import Any

from gymnasium import spaces

from models.router import Router, RouterSpec, check_observation
from rllib_envs.errors import InputError

_NEEDED = ("arrived", "experts", "cluster", "action_mask")


def router_spec(model_config: Mapping[str, Any], parts: Container[str]) -> RouterSpec:
    """Parse ``model_config["router"]``, the fields of a ``RouterSpec``.

    Args:
        model_config: of an RLlib module. Without ``router`` the default one.
        parts: names of an observation's parts; the default router starts from what-if results, if there are any.

    Raises:
        InputError: a field is not known or not valid.
    """
    if "router" not in model_config:
        return RouterSpec(impact="whatif" in parts, information="information" in parts, places="places" in parts)
    told = model_config["router"]
    known = [field.name for field in fields(RouterSpec)]
    if not isinstance(told, Mapping):
        raise InputError(f"model_config.router = {told!r}: must be a mapping with fields of RouterSpec: {', '.join(known)}")
    for name in told:
        if name not in known:
            raise InputError(f"model_config.router: {name!r} is not known: allowed are {', '.join(known)}")
    return RouterSpec(**told)


def build_router(model_config: Mapping[str, Any], observation_space: Any) -> Router:
    """Build a new router for an observation space.

    Raises:
        InputError: it is no space of ``EdgeRoutingEnv``; ``router_spec`` refuses the configuration; or observations lack what
            the router begins with.
    """
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
    if missing := [name for name in _NEEDED if name not in parts]:
        raise InputError(
            f"observation space without {', '.join(missing)}: a router reads the observations of rllib_envs:EdgeRouting-v0, as "
            "they are: no connector may flatten them"
        )
    spec = router_spec(model_config, parts)
    check_observation(spec, parts)
    return Router(spec)
