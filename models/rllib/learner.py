"""What all learners have in common."""

from __future__ import annotations

from typing import Any

from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO


class StatefulLearner(TorchLearner):
    """Takes up the state it is given, also an older one than its own: RLlib would keep the newer weights.

    So an iteration that went wrong half-way can be taken back.
    """

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up what ``get_state`` gave."""
        if COMPONENT_RL_MODULE in state:
            self._weights_seq_no = -1  # older than any
        super().set_state(state)
        self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, max(self._weights_seq_no, 0))
