"""What a training run reports: a record an iteration, a line for the reader, the learning curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rllib_envs.errors import InputError
from tuning.storage import write_atomically, write_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One iteration, with the exploration of training.

    The QoS of a decision is its true marginal QoS: known at once, and summed over an episode the QoS that it came to.
    """

    iteration: int  # from 1
    steps: int  # environment steps since the run began
    elapsed_s: float  # training time since the run began
    seconds: float  # of this iteration
    qos: float  # per decision
    late_share: float  # of the requests that finished or were dropped
    drop_share: float
    entropy: float  # of the policy, nats
    kl: float  # divergence of the updated policy from the one that acted
    explained_variance: float  # of the value targets, by the critic


def summarise(result: dict[str, Any], iteration: int, elapsed_s: float, seconds: float) -> Iteration:
    """The record of an iteration from what RLlib returned for it."""
    sampled, learned = result["env_runners"], result["learners"]["default_policy"]
    decided = max(float(sampled["finished"] + sampled["dropped"] + sampled["rejected"]), 1.0)
    return Iteration(
        iteration=iteration,
        steps=int(sampled["num_env_steps_sampled_lifetime"]),
        elapsed_s=elapsed_s,
        seconds=seconds,
        qos=float(sampled["reward"]) / float(sampled["num_env_steps_sampled"]),
        late_share=float(sampled["late"]) / decided,
        drop_share=float(sampled["dropped"] + sampled["rejected"]) / decided,
        entropy=float(learned["entropy"]),
        kl=float(learned["mean_kl_loss"]),
        explained_variance=float(learned["vf_explained_var"]),
    )


def describe(record: Iteration, steps_per_s: float, left_s: float) -> str:
    """One line on an iteration; ``left_s`` is the time that is likely left."""
    minutes, seconds = divmod(round(max(left_s, 0.0)), 60)
    return (
        f"iteration {record.iteration:4d}  steps {record.steps:9,d}  QoS {record.qos:.3f}  late {record.late_share:5.1%}  "
        f"drop {record.drop_share:5.1%}  {steps_per_s:6,.0f} steps/s  left {minutes:d}:{seconds:02d}"
    )


def write_log(path: Path, records: Sequence[Iteration]) -> None:
    """Write the records as JSON lines."""
    write_text(path, "".join(to_line(record) for record in records))


def to_line(record: Iteration) -> str:
    """The record as a line of JSON."""
    return json.dumps(asdict(record)) + "\n"


def read_log(path: Path, last: int) -> list[Iteration]:
    """The records up to iteration ``last``.

    Raises:
        InputError: a line is not a record.
    """
    records: list[Iteration] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(Iteration(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}:{number}: not the record of an iteration: {error}") from None
    return [record for record in records if record.iteration <= last]


def draw_curve(path: Path, records: Sequence[Iteration], title: str, window: int) -> None:
    """Draw QoS, late and dropped shares over the steps: each iteration faint, the mean over the last ``window`` strong.

    Episodes begin together, with empty clusters, so that QoS goes up and down with their age: a window that is as long as an
    episode shows what is learned.
    """
    figure = Figure(figsize=(9, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    steps = [record.steps for record in records]
    curves = (
        (top, "QoS", "#0072B2", [record.qos for record in records]),
        (bottom, "late", "#D55E00", [100 * record.late_share for record in records]),
        (bottom, "dropped", "#009E73", [100 * record.drop_share for record in records]),
    )
    for axes, label, colour, values in curves:
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        axes.plot(steps[window - 1 :], _smoothed(values, window), color=colour, linewidth=2, label=label)
    top.set_title(title, loc="left")
    top.set_ylabel("QoS per decision")
    bottom.set_ylabel("share of requests, %")
    bottom.set_xlabel("environment steps")
    bottom.legend(frameon=False, ncols=2)
    bottom.xaxis.set_major_formatter("{x:,.0f}")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.8)
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=150, metadata={"Software": None}))


def _smoothed(values: Sequence[float], window: int) -> list[float]:
    return [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]
