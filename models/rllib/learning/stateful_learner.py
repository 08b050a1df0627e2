"""What all learners have in common."""

from __future__ import annotations

import copy
from typing import Any

from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO


class StatefulLearner(TorchLearner):
    """Takes up the state it is given, also an older one than its own, so that an iteration that went wrong can be taken back.

    RLlib would keep the newer weights; and it would let the optimizers of all learners on a machine write to the memory in which
    the state came, which they share.
    """

    def set_state(self, state: dict[str, Any]) -> None:
        """Take up what ``get_state`` gave, copied."""
        if COMPONENT_RL_MODULE in state:
            self._weights_seq_no = -1  # older than any
        super().set_state(copy.deepcopy(state))
        self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, max(self._weights_seq_no, 0))
