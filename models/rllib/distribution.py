"""The action distribution of a router's logits."""

from __future__ import annotations

from ray.rllib.core.distribution.distribution import Distribution
from ray.rllib.core.distribution.torch.torch_distribution import TorchCategorical
from torch import Tensor


class MaskedCategorical(TorchCategorical):
    """A categorical distribution over finite logits, some of them so low that their probability is 0.

    The stock divergence is infinite as soon as one tiny probability underflows to 0; this one stays finite.
    """

    def kl(self, other: Distribution) -> Tensor:
        """KL(self || other) of each row."""
        p, q = self._dist, other._dist  # pyright: ignore[reportAttributeAccessIssue]
        return (p.probs * (p.logits - q.logits)).sum(dim=-1)
