"""Data-parallel all-reduce between learners: each processes its part of the rows, and all get the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist


class DataParallel:
    """The ``count`` learners of a run, of which this one has the number ``index``.

    Sums and gathered values are bitwise equal on all of them, and so are weights, statistics and decisions such as early
    stopping. A single learner changes nothing.

    Args:
        device: where the learner's tensors are.
    """

    def __init__(self, device: Any = "cpu") -> None:
        together = dist.is_available() and dist.is_initialized()
        self.count, self.index = (dist.get_world_size(), dist.get_rank()) if together else (1, 0)
        self._device = device

    def part(self, rows: int) -> slice:
        """This learner's part of the rows; the parts partition all rows."""
        return slice(rows * self.index // self.count, rows * (self.index + 1) // self.count)

    def gather(self, part: Tensor, rows: int) -> Tensor:
        """Gather (rows, ...) results of all learners' parts."""
        if self.count == 1:
            return part
        whole = part.new_zeros(rows, *part.shape[1:])
        whole[self.part(rows)] = part
        dist.all_reduce(whole)  # sums of one number and zeros: exact
        return whole

    def add(self, parameters: Iterable[nn.Parameter], figures: Sequence[float]) -> Sequence[float]:
        """Replace gradients by their sum over the learners.

        A parameter has a gradient if it has one on any learner, as an optimizer treats none and zero differently.

        Returns:
            The sums of their ``figures``.
        """
        if self.count == 1:
            return figures
        learned = [p for p in parameters if p.requires_grad]
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned]
        known = torch.tensor([float(p.grad is not None) for p in learned], device=self._device)
        summed = torch.cat([known, *(gradient.reshape(-1) for gradient in own)])
        dist.all_reduce(summed)
        known, *gradients = summed.split([len(learned), *(p.numel() for p in learned)])
        for p, has, gradient in zip(learned, known.tolist(), gradients, strict=True):
            p.grad = gradient.view_as(p) if has else None
        total = torch.tensor(figures, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return total.tolist()
