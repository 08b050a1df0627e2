"""Tables and the picture of a calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rllib_envs.profiles.estimate import Estimate, LatencyInterval
from rllib_envs.profiles.fit import HeldOut, RunErrors
from rllib_envs.profiles.measurements import Floats, MeasuredRun
from tuning.output.plot_style import COLOURS, GREY, log_axis, panels, write_figure
from tuning.output.tables import markdown_table

_SHOWN = ((64, 64, 1), (512, 64, 1), (256, 64, 4), (256, 64, 8))  # prompt tokens, output tokens, requests at once
_BAND = 0.1  # relative error that the picture marks


def latency_errors(errors: RunErrors) -> str:
    """A table of the errors of requests that the fit has not seen."""
    rows = [
        [
            name,
            *(f"{100 * value:.1f}" for value in (np.median(np.abs(e)), np.quantile(np.abs(e), 0.9))),
            f"{100 * np.mean(e):+.1f}",
        ]
        for name, e in (("end to end", errors.e2e), ("TTFT", errors.ttft), ("TPOT", errors.tpot[np.isfinite(errors.tpot)]))
        if e.size
    ]
    return markdown_table(["held out", "median error, %", "nine tenths are below, %", "mean signed error, %"], rows)


def interval_table(estimate: Estimate) -> str:
    """A table of predicted latencies with their 95 % intervals."""
    rows: list[list[str]] = []
    for prompt, output, together in _SHOWN:
        if prompt + output <= estimate.profile.max_model_len:
            times = estimate.latency_interval(prompt, output, together)
            rows.append([str(together), f"{prompt:,}", f"{output:,}", *map(_interval, times)])
    return markdown_table(
        ["requests at once", "prompt tokens", "output tokens", "TTFT of the last, s", "its end, s"], rows, names=0
    )


def log_errors(unseen: HeldOut) -> str:
    """A table of the errors of iterations that the fit has not seen, and their error weighted by time."""
    errors = np.abs(unseen.fitted_ms / unseen.measured_ms - 1)
    rows = [
        [name, f"{part.sum():,}", f"{100 * np.median(errors[part]):.1f}", f"{100 * np.mean(errors[part]):.1f}"]
        for name, part in (("decode only", unseen.chunk == 0), ("with prefill", unseen.chunk > 0))
    ]
    by_time = np.abs(unseen.fitted_ms - unseen.measured_ms).sum() / unseen.measured_ms.sum()
    table = markdown_table(["iterations, held out", "number", "median error, %", "mean error, %"], rows)
    return f"{table}\n\nWeighted by time: {100 * by_time:.1f} %."


def draw_latencies(path: Path, run: MeasuredRun, first_s: Floats, last_s: Floats, title: str) -> None:
    """Draw predicted against measured TTFT and whole time of each request, on logarithmic axes.

    Args:
        path: PNG file to write.
        run: the measured requests.
        first_s: predicted time from arrival to the first token, (R,) s.
        last_s: to the last token, (R,) s.
        title: of the figure.
    """
    figure, every = panels(2, 2, 4.4)
    for axes, name, measured, predicted, colour in (
        (every[0], "TTFT", run.first_token_s - run.arrival_s, first_s, COLOURS[0]),
        (every[1], "end to end", run.last_token_s - run.arrival_s, last_s, COLOURS[1]),
    ):
        both = 1e3 * np.concatenate([measured, predicted])
        ends = np.array([0.8 * both.min(), 1.25 * both.max()])
        axes.fill_between(
            ends, (1 - _BAND) * ends, (1 + _BAND) * ends, color="0.9", linewidth=0, label=f"within {100 * _BAND:.0f} %"
        )
        axes.plot(ends, ends, color=GREY, linewidth=1)
        axes.plot(1e3 * measured, 1e3 * predicted, ".", markersize=5, alpha=0.6, color=colour, label="a request")
        log_axis(axes, *ends.tolist())
        log_axis(axes, *ends.tolist(), vertical=True)
        error = float(np.median(np.abs(predicted / measured - 1)))
        axes.set_title(f"{name}: median error {100 * error:.1f} %", loc="left", fontsize=10)
        axes.set_xlabel("measured, ms")
        axes.set_ylabel("predicted, ms")
        axes.legend(loc="upper left", frameon=False, fontsize=9)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    write_figure(figure, path)


def _interval(interval: LatencyInterval) -> str:
    return f"{interval.mean:.3f} ({interval.low:.3f} to {interval.high:.3f})"
