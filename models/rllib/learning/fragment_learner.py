"""The common learner of AVL and PPO: minibatch updates on the rows of one sample's fragments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_TRAINED
from torch import Tensor

from models.rllib.learning.all_reduce import DataParallel
from models.rllib.learning.minibatches import minibatches
from models.rllib.learning.stateful_learner import StatefulLearner
from models.rllib.rollout.fragments import Fragment

_CHUNK = 4096  # rows of a forward pass that needs no gradient
_LOSS = "_loss"  # how the names of figures end that must be finite

Batch = list[tuple[dict[str, Any], float]]
"""A minibatch: (rows of a fragment, their share of it); other fragments may have other numbers of experts."""


class FragmentLearner(StatefulLearner):
    """Turns fragments into rows, and takes optimizer steps on minibatches of all rows.

    A subclass says what the rows are (``rows_of``), what is minimised (``compute_loss_for_module``) and how gradients are
    bounded (``clip_gradients``). A subclass of that may add a term to its loss:

    >>> class Mine(AVLLearner):
    ...     def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
    ...         loss = super().compute_loss_for_module(module_id=module_id, config=config, batch=batch, fwd_out=fwd_out)
    ...         return loss + 1e-4 * my_term(self.module[module_id]) / self.parallel.count

    Several learners get the same fragments, and each takes its part of the rows (``DataParallel``). Gradients and metrics are
    summed, so the result is that of one learner, up to rounding.

    Attributes:
        parallel: the learners that take an update together.
    """

    config: Any
    _FIRST = 1  # number of the first sample, as minibatches are drawn

    def build(self) -> None:
        """Build what every learner has."""
        self._samples = 0  # learned from so far, the one in work included
        super().build()
        self.parallel = DataParallel(self._device)

    def update(self, *, training_data: Any = None, timesteps: Any = None, **kwargs: Any) -> Any:  # pyright: ignore
        """Learn from fragments, which come as ``training_data.episodes``.

        Raises:
            FloatingPointError: a loss or gradient is not finite, on all learners alike; nothing has been changed by it.
        """
        self._check_is_built()
        self.before_gradient_based_update(timesteps=timesteps or {})
        self._weights_seq_no += 1  # else the workers would take the new weights for the old ones
        samples = [self.rows_of(fragment) for fragment in training_data.episodes]
        self._samples += 1
        self.metrics.log_dict(self._fit(samples), key=DEFAULT_MODULE_ID, window=1)
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED), sum(map(len, training_data.episodes)), reduce="sum")
        self.after_gradient_based_update(timesteps=timesteps or {})
        return self.metrics.reduce()

    def rows_of(self, fragment: Fragment) -> dict[str, Any]:
        """Rows to learn from: name -> (R, ...) tensor, or a mapping of such; ``action`` is one of them."""
        raise NotImplementedError

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Batch, fwd_out: dict[str, float]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride] (rows for columns)
        """The loss of a minibatch, or what this learner's part of it adds to the loss.

        Args:
            module_id: name of the module.
            config: of the algorithm.
            batch: the rows; none, where they are fewer than the learners.
            fwd_out: takes the figures to log. Those whose names end in ``_loss`` must be finite.
        """
        raise NotImplementedError

    def clip_gradients(self) -> float:
        """Bound the gradients; their norm before."""
        raise NotImplementedError

    def update_figures(self, figures: dict[str, float]) -> None:
        """Process the metrics of a minibatch, summed over the learners, before the optimizer step."""

    def figures_of(self, samples: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Further metrics of a sample to log."""
        return {}

    @property
    def unwrapped(self) -> Any:
        """The module, without the wrapper of several learners."""
        return self.module[DEFAULT_MODULE_ID].unwrapped()

    def look(self, fragment: Fragment, read: Callable[[dict[str, Tensor]], Sequence[Tensor]]) -> list[NDArray[np.float32]]:
        """Apply ``read`` to every observation without gradient: from (R, ...) parts to (T+1, B, ...) results."""
        shape = fragment.obs["action_mask"].shape[:2]
        count = shape[0] * shape[1]
        columns = {key: x.reshape(count, *x.shape[2:]) for key, x in fragment.obs.items()}
        results: list[Sequence[Tensor]] = []
        own = self.parallel.part(count)
        with torch.no_grad():
            for begin in range(own.start, own.stop, _CHUNK):
                # Copied: what another process has sent must not be written to, and torch warns of such memory.
                chunk = slice(begin, min(begin + _CHUNK, own.stop))
                results.append(read({key: torch.tensor(x[chunk], device=self._device) for key, x in columns.items()}))
            found = [self.parallel.gather(torch.cat(column), count) for column in zip(*results, strict=True)]
        return [x.cpu().numpy().reshape(*shape, *x.shape[1:]) for x in found]

    def _fit(self, samples: list[dict[str, Any]]) -> dict[str, float]:
        config = self.config
        generator = torch.Generator().manual_seed(int(config.seed or 0) * 1_000_003 + self._samples - 1 + self._FIRST)
        sizes = [len(rows["action"]) for rows in samples]
        optimizers: list[Any] = list(self._named_optimizers.values())
        logged: dict[str, float] = {}
        for _ in range(config.epochs):
            for batch in minibatches(samples, sizes, max(sum(sizes) // config.minibatch, 1), generator, self.parallel):
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                own: dict[str, float] = {}
                loss = self.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, config=config, batch=batch, fwd_out=own)
                if loss.requires_grad:
                    loss.backward()
                # Summed first, and only then looked at: what one learner alone minds would leave the others waiting for it.
                found = self.parallel.add(self.unwrapped.parameters(), list(own.values()))
                figures = dict(zip(own, found, strict=True))
                self.update_figures(figures)
                logged = figures | {"gradient_norm": self.clip_gradients()}
                _check({name: x for name, x in logged.items() if name.endswith(_LOSS) or name == "gradient_norm"})
                for optimizer in optimizers:
                    optimizer.step()
        return logged | self.figures_of(samples)


def clipped_gain(log_policy: Tensor, rows: dict[str, Any], clip: float) -> Tensor:
    """(R,) clipped surrogate objective (Schulman et al., arXiv 1707.06347, eq. 7).

    Args:
        log_policy: (R, N+1) of the router that learns.
        rows: ``action`` (R, 1), ``advantage`` (R,), and ``log_policy`` (R, N+1) of the router that sampled.
        clip: bound on the probability ratio of an action.
    """
    moved = log_policy.gather(-1, rows["action"]) - rows["log_policy"].gather(-1, rows["action"])
    ratio = moved.squeeze(-1).exp()
    return torch.minimum(ratio * rows["advantage"], ratio.clamp(1 - clip, 1 + clip) * rows["advantage"])


def _check(figures: dict[str, float]) -> None:
    for name, figure in figures.items():
        if not math.isfinite(figure):
            raise FloatingPointError(f"{name.replace('_', ' ')} is {figure}: training cannot go on")
