"""The range of a network's inputs in training, and how much its output counts beyond it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_UNSEEN = 1e9  # bounds before the first input: no value is inside
_LEAST_WIDTH = 0.1


class LearnedRange(nn.Module):
    """Weight of what a network says about inputs unlike those of training: 1 inside their range, 0 a width of it beyond.

    Between the two it falls in proportion to the distance, of the column that is farthest outside in widths of its own range.
    In training mode the range widens with every input, so the weight is 1. A width counts as .1 at least.

    Args:
        columns: width of the input.

    Shapes:
        - input: (..., columns)
        - output: (..., 1)
    """

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.low: Tensor
        self.high: Tensor
        self.register_buffer("low", torch.full((columns,), _UNSEEN))
        self.register_buffer("high", torch.full((columns,), -_UNSEEN))

    def forward(self, columns: Tensor) -> Tensor:
        """The weight of each row."""
        if self.training:
            self._widen(columns.detach().flatten(0, -2))
            return torch.ones_like(columns[..., :1])
        width = (self.high - self.low).clamp(min=_LEAST_WIDTH)
        beyond = torch.maximum(self.low - columns, columns - self.high) / width
        return (1 - beyond.amax(dim=-1, keepdim=True)).clamp(0, 1)

    def _widen(self, rows: Tensor) -> None:
        if len(rows):
            self.low.copy_(torch.minimum(self.low, rows.amin(dim=0)))
            self.high.copy_(torch.maximum(self.high, rows.amax(dim=0)))
