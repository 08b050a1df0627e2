"""The base class of all learners."""

from __future__ import annotations

import copy
from typing import Any

from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO


class StatefulLearner(TorchLearner):
    """Restores any given state, also one older than its own, so that a failed iteration can be undone.

    RLlib would keep the newer weights. It would also let the optimizers of all learners on a machine write to the shared memory
    of the state.
    """

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a copy of what ``get_state`` returned."""
        if COMPONENT_RL_MODULE in state:
            self._weights_seq_no = -1  # older than any
        super().set_state(copy.deepcopy(state))
        self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, max(self._weights_seq_no, 0))
