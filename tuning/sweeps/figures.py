"""Figures of a sweep: settings against QoS, which settings matter, and what QoS costs in GPU time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from tuning.output.plot_style import COLOURS, GREY, canvas, write_figure
from tuning.sweeps.space import Domain, Settings, Space

_FEWEST = 4  # trials below which importances mean nothing


def draw_parallel(path: Path, space: Space, settings: Sequence[Settings], qos: Sequence[float], best: int | None) -> bool:
    """Draw each trial as a line through its settings and its QoS, the best one in black.

    Args:
        path: PNG file to write.
        space: what was varied.
        settings: of the trials.
        qos: of the trials.
        best: which of them to mark.

    Returns:
        Whether there was a trial to draw.
    """
    if not settings:
        return False
    columns = [_heights(domain, [one[name] for one in settings]) for name, domain in space.parameters.items()]
    low, high = min(qos), max(qos)
    columns.append((np.array(qos) - low) / ((high - low) or 1.0))
    heights = np.stack(columns, axis=1)
    places = np.arange(heights.shape[1])
    figure, axes = canvas(4.8)
    axes.grid(visible=False)
    norm, order = Normalize(low, high if high > low else low + 1e-9), np.argsort(qos)
    lines = [np.column_stack([places, heights[i]]) for i in order]
    axes.add_collection(LineCollection(lines, cmap="viridis", norm=norm, array=np.array(qos)[order], linewidths=1.4, alpha=0.8))
    if best is not None:
        axes.plot(places, heights[best], color="black", linewidth=2.2, label="best after comparison")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False, fontsize=9)
    for place, domain in enumerate(space.parameters.values()):
        axes.axvline(place, color=GREY, linewidth=0.8)
        for height, text in _ticks(domain):
            axes.annotate(text, (place, height), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center")
    axes.axvline(places[-1], color=GREY, linewidth=0.8)
    for height, value in ((0.0, low), (1.0, high)):
        axes.annotate(f"{value:.4f}", (places[-1], height), xytext=(3, 0), textcoords="offset points", fontsize=8, va="center")
    names = [name.replace(".", ".\n") for name in space.parameters]
    axes.set_xticks(places, [*names, "QoS"], fontsize=9, rotation=25 if len(names) > 5 else 0)
    axes.set_yticks([])
    axes.set_xlim(-0.15, places[-1] + 0.5)
    axes.set_ylim(-0.06, 1.06)
    axes.spines["left"].set_visible(False)
    axes.set_title(f"{space.name}: {len(settings)} trials", loc="left")
    write_figure(figure, path)
    return True


def draw_importance(path: Path, space: Space, settings: Sequence[Settings], qos: Sequence[float]) -> bool:
    """Draw the importance of each setting for being among the better trials, by PED-ANOVA (arXiv 2304.10255).

    Args:
        path: PNG file to write.
        space: what was varied.
        settings: of the trials.
        qos: of the trials.

    Returns:
        Whether there were enough trials to say anything.
    """
    found = importances(space, settings, qos)
    if not found:
        return False
    names = sorted(found, key=lambda name: found[name])
    figure, axes = canvas(1.4 + 0.4 * len(names))
    axes.barh(names, [found[name] for name in names], color=COLOURS[0])
    axes.set_xlabel("share of the importance (PED-ANOVA)")
    axes.set_title(f"{space.name}: what matters, from {len(settings)} trials", loc="left")
    write_figure(figure, path)
    return True


def importances(space: Space, settings: Sequence[Settings], qos: Sequence[float]) -> dict[str, float]:
    """Setting -> share of the importance; empty for too few trials or equal results."""
    import optuna

    if len(settings) < _FEWEST or np.ptp(qos) == 0:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(domain) for name, domain in space.parameters.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction="maximize")
        for one, value in zip(settings, qos, strict=True):
            study.add_trial(optuna.trial.create_trial(params=dict(one), distributions=distributions, value=value))
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.5)
        )
    return {name: float(share) for name, share in found.items() if np.isfinite(share)}


def draw_pareto(path: Path, names: Sequence[str], gpu_s: Sequence[float], qos: Sequence[float]) -> bool:
    """Draw QoS against GPU time of a request, with the Pareto front of the trials.

    Args:
        path: PNG file to write.
        names: of the trials.
        gpu_s: busy GPU-seconds per arrived request, of the trials.
        qos: of the trials.

    Returns:
        Whether there were trials to draw.
    """
    if len(names) < 2 or not np.isfinite(gpu_s).all():
        return False
    x, y = np.array(gpu_s), np.array(qos)
    front = pareto_front(x, y)
    figure, axes = canvas(4.8)
    axes.plot(x, y, "o", color=COLOURS[4], label="trial")
    axes.plot(x[front], y[front], "o-", color=COLOURS[1], label="none is better in both")
    for i in front:
        axes.annotate(names[i], (x[i], y[i]), xytext=(4, -10), textcoords="offset points", fontsize=8)
    axes.set_xlabel("busy GPU-seconds per arrived request")
    axes.set_ylabel("QoS, validation")
    axes.legend(frameon=False, fontsize=9)
    axes.set_title("QoS and what it takes", loc="left")
    write_figure(figure, path)
    return True


def pareto_front(cost: NDArray[np.float64], value: NDArray[np.float64]) -> list[int]:
    """Indices of the Pareto front, by rising cost.

    Args:
        cost: (points,) less is better.
        value: (points,) more is better.
    """
    front: list[int] = []
    best = -np.inf
    for i in np.lexsort((-value, cost)):
        if value[i] > best:
            front.append(int(i))
            best = value[i]
    return front


def _heights(domain: Domain, values: Sequence[Any]) -> NDArray[np.float64]:
    """(trials,) from 0 to 1 along the axis of a setting."""
    if domain.kind == "choice":
        return np.array([domain.values.index(value) for value in values]) / max(len(domain.values) - 1, 1)
    scale = np.log if domain.kind == "log_uniform" else np.asarray
    low, high = (float(scale(end)) for end in domain.values)
    return (np.array([float(scale(value)) for value in values]) - low) / (high - low)


def _ticks(domain: Domain) -> list[tuple[float, str]]:
    if domain.kind == "choice":
        return [(float(height), str(value)) for value, height in zip(domain.values, _heights(domain, domain.values), strict=True)]
    return [(0.0, f"{domain.values[0]:g}"), (1.0, f"{domain.values[1]:g}")]


def _distribution(domain: Domain) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if domain.kind == "choice":
        return CategoricalDistribution(domain.values)
    low, high = domain.values
    if domain.kind == "integer":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=domain.kind == "log_uniform")
