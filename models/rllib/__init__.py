"""The front door for RLlib: the router's module, the algorithms with their configurations, and the training scenario.

Names are imported on first use, so that routers and settings load without Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.rllib.avl.algorithm import AVL, AVLConfig
    from models.rllib.dqn.algorithm import RouterDQN, RouterDQNConfig
    from models.rllib.ppo.algorithm import RouterPPO, RouterPPOConfig
    from models.rllib.router_module import RouterModule
    from models.rllib.sac.algorithm import RouterSAC, RouterSACConfig
    from models.rllib.scenario import training_scenario

__all__ = [
    "AVL",
    "AVLConfig",
    "RouterDQN",
    "RouterDQNConfig",
    "RouterModule",
    "RouterPPO",
    "RouterPPOConfig",
    "RouterSAC",
    "RouterSACConfig",
    "training_scenario",
]

_HOMES = {
    "AVL": "avl.algorithm",
    "AVLConfig": "avl.algorithm",
    "RouterDQN": "dqn.algorithm",
    "RouterDQNConfig": "dqn.algorithm",
    "RouterModule": "router_module",
    "RouterPPO": "ppo.algorithm",
    "RouterPPOConfig": "ppo.algorithm",
    "RouterSAC": "sac.algorithm",
    "RouterSACConfig": "sac.algorithm",
    "training_scenario": "scenario",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
