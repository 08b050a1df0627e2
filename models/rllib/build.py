"""The router of an RLlib module, from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces

from models.router import Router, RouterSpec, check_observation


def build_router(model_config: Mapping[str, Any], observation_space: Any) -> Router:
    """A new router of ``model_config["router"]``, the fields of its ``RouterSpec``.

    Raises:
        InputError: a field is not valid, or observations of the space lack what the router begins with.
    """
    spec = RouterSpec(**model_config["router"])
    if isinstance(observation_space, spaces.Dict):
        check_observation(spec, observation_space.spaces)
    return Router(spec)
