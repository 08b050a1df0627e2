"""The measured layer times themselves as an engine: what the fitted cost form is held against where no run was measured.

Attention is interpolated between the measured batches, all else comes from its own curves. Several prompts in one iteration
count as one of their total length and mean cached context, less the pairs of tokens of different prompts, which attend to
each other in the one but not in the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from rllib_envs.profiles.fit import Floats
from rllib_envs.profiles.measurements import LayerTimes
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.sim.reference import Engine, Request


class LayerTable:
    """Iteration times by interpolation of the layer times in a folder."""

    def __init__(self, folder: Path, *, layers: int, pair_ms: float) -> None:
        """Read the files; ``pair_ms``: what a pair of tokens that attend to each other costs (``EngineProfile.q_ms``)."""
        self._times = LayerTimes(folder, layers=layers)
        self._pair_us = 1e3 * pair_ms / layers
        chunk, _, decodes, _, _ = self._times.attention
        self._decode = _interpolator(self._times.attention, (chunk == 0) & (decodes > 0), (2, 3))
        self._prefill = _interpolator(self._times.attention, (chunk > 0) & (decodes == 0), (0, 1))
        self._mixed = _interpolator(self._times.attention, (chunk > 0) & (decodes > 0), (0, 1, 2, 3))

    def iteration_ms(self, decodes: int, context_tokens: int, prompts: tuple[tuple[int, int], ...] = ()) -> float:
        """Milliseconds of an iteration, as ``EngineProfile.iteration_s`` takes it."""
        chunk = sum(new for new, _ in prompts)
        if chunk == 0:
            attention_us = self._decode([[decodes, context_tokens / decodes]])
        else:
            cached = sum(new * before for new, before in prompts) / chunk
            batch = [chunk, cached, decodes, context_tokens / max(decodes, 1)]
            attention_us = self._mixed([batch]) if decodes else self._prefill([batch[:2]])
            apart = chunk * (cached + chunk / 2) - sum(new * (before + new / 2) for new, before in prompts)
            attention_us = attention_us - self._pair_us * apart
        tokens, sequences = np.array([float(chunk + decodes)]), np.array([float(len(prompts) + decodes)])
        return float(self._times.iteration_ms(tokens, sequences, attention_us)[0])


class TableEngine(Engine):
    """A reference engine whose iterations take what the table says, times the profile's overhead."""

    def __init__(self, profile: EngineProfile, table: LayerTable) -> None:
        """An idle engine; of the profile only limits and overhead count."""
        super().__init__(profile)
        self._table = table

    def _duration_s(self, scheduled: dict[Request, int]) -> float:
        decodes = [request for request in scheduled if not request.prefilling]
        prompts = tuple((new, request.computed) for request, new in scheduled.items() if request.prefilling)
        ms = self._table.iteration_ms(len(decodes), sum(request.computed for request in decodes), prompts)
        return 1e-3 * self.profile.overhead * ms


def _interpolator(attention: list[Floats], rows: NDArray[np.bool_], axes: tuple[int, ...]) -> RegularGridInterpolator:
    """Linear interpolation of the attention times of ``rows`` over the powers of two, the full grid that all files have."""
    points = np.column_stack([attention[axis] for axis in axes])
    kept = rows & ((points == 0) | (np.log2(np.maximum(points, 1)) % 1 == 0)).all(axis=1)
    points, us = points[kept], attention[4][kept]
    values = [np.unique(points[:, i]) for i in range(len(axes))]
    grid = us[np.lexsort(points.T[::-1])].reshape([len(v) for v in values])
    beyond: Any = None  # it extrapolates
    return RegularGridInterpolator(values, grid, bounds_error=False, fill_value=beyond)
