"""Notes on a workload's arrivals: which part of a trace is replayed, and which prompts fit no expert."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.scenario import Arrivals, Scenario
from rllib_envs.workload.arrivals import draw_arrivals
from rllib_envs.workload.catalogue import draw_requests
from rllib_envs.workload.replay import episode_requests, recorded
from rllib_envs.workload.traces import cached_trace
from tuning.specs.workloads import NamedWorkload

_DRAWS = 4000  # of prompts, where they are drawn
_RARE = 1e-3  # no note below this share of such prompts: a handful of thousands


def notes_on_arrivals(workloads: Sequence[NamedWorkload]) -> list[str]:
    """Write a sentence or two for each arrival process that needs a note.

    Raises:
        InputError: a trace cannot be read, or no expert can hold any of its requests.
    """
    notes: list[str] = []
    for process in dict.fromkeys(w.scenario.workload.arrivals for w in workloads):
        group = [w for w in workloads if w.scenario.workload.arrivals == process]
        if process.trace is not None:
            notes.append(_on_replay(process, group))
        notes += _on_long_prompts(process, group[0].scenario, group[0].arrivals)
    return notes


def _on_replay(process: Arrivals, group: Sequence[NamedWorkload]) -> str:
    assert process.trace is not None
    trace, rows = cached_trace(process.trace), recorded(process).arrival_s.size
    name, requests = Path(process.trace.path).name, episode_requests(group[0].scenario.workload)
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    window = f"{rows:,} requests in {span_s:,.0f} s" + (f", {trace.rate_rps:.2f}/s" if span_s > 0 else "")
    if requests < rows:
        what = f"{requests:,} consecutive requests for each seed, from a random one on, of the window's {window}"
    else:
        what = f"all of the window, {window}"
    pace = "at their own rate" if all(w.load == "native" for w in group) else "brought to the rate of the load"
    if process.lengths == "catalogue":
        lengths = "the catalogue, as asked for"
    else:
        lengths = "the catalogue, for the trace has none" if trace.output_tokens is None else "the trace"
    return f"Replayed of {name}: {what}; {pace}; output lengths from {lengths}." + (
        "" if requests < rows else f" {_same_for_all_seeds(trace.tick_s)}"
    )


def _same_for_all_seeds(tick_s: float | None) -> str:
    times = "at the same times" if tick_s is None else f"within the same ticks of {tick_s:.3g} s"
    return f"Every seed replays the same requests {times}: seeds differ in scores, and in lengths from expert to expert, alone."


def _on_long_prompts(process: Arrivals, scenario: Scenario, name: str) -> list[str]:
    longest = max(expert.engine.max_model_len for expert in scenario.experts) - 1
    known = recorded(process).prompt_tokens if process.trace is not None else None
    prompts = _drawn_prompts(scenario) if known is None else known
    too_long = int(np.count_nonzero(prompts > longest))
    of_what = f"longer than any expert of {scenario.name} takes ({longest:,} tokens)"
    if too_long == prompts.size:
        raise InputError(f"{name}: all prompts are {of_what}: take experts with a larger max_model_len, or other requests")
    if known is not None and too_long:
        how_many = f"{too_long:,} of {prompts.size:,} requests of {name} have"
    elif too_long >= _RARE * prompts.size:
        how_many = f"About {100 * too_long / prompts.size:.1f} % of the requests of {name} have"
    else:
        return []
    return [f"{how_many} prompts {of_what}: status too_long, not counted in QoS."]


def _drawn_prompts(scenario: Scenario) -> NDArray[np.int32]:
    """Sample prompts as the episodes draw them."""
    rng = np.random.default_rng(0)
    process = scenario.workload.arrivals
    brought = None if process.trace is not None or process.is_own else draw_arrivals(process, 1.0, _DRAWS, rng).prompt_tokens
    return draw_requests(scenario, _DRAWS, rng).prompt_tokens if brought is None else brought
