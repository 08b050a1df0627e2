"""Cluster state -> padded graph arrays: the only place that builds a router's view.

The simulator fills the state from its engines. Any other source of the same records (live telemetry) gives the same view. All
entries are float32 of order one. Requests are shown in the engines' order: running ones by admission, waiting ones by queue
position. Requests beyond the slots are counted and summed in the expert's features. Nothing here depends on a true length or
score; remaining tokens come from the predicted length.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.calibration import learnt
from rllib_envs.sim.cluster import fits_none
from rllib_envs.sim.jit import kernel, kernel_inlined
from rllib_envs.sim.offsets import with_odds
from rllib_envs.sim.plan import blocks_crossed, steps_begun
from rllib_envs.sim.profile import BLOCK_TOKENS
from rllib_envs.sim.rows import (
    ARRIVED_FEATURES,
    ARRIVED_ROW,
    ARRIVED_SCALE,
    CLUSTER_FEATURES,
    EXPERT_FEATURES,
    EXPERT_SCALE,
    KV_UNIT_TOKENS,
    PLACE_SCALE,
    REQUEST_FEATURES,
    REQUEST_ROW,
    REQUEST_SCALE,
)
from rllib_envs.sim.terms import budget_s, extras_of, is_allowed, network_s
from rllib_envs.sim.whatif import expected_output, on_its_way, telemetry_of
from rllib_envs.view import View

__all__ = [
    "ARRIVED_FEATURES",
    "CLUSTER_FEATURES",
    "EXPERT_FEATURES",
    "PACE_GAINS",
    "REQUEST_FEATURES",
    "Pace",
    "View",
    "describe_engines",
    "observe",
    "update_gap_ema",
    "write_places",
]

PACE_GAINS = (0.005, 0.05)
"""Gains of the moving averages of gaps and work, slow and fast."""

_SLOW, _FAST = 0, 1

_GUESS_WEIGHT = 8  # weight of the initial guess of a cluster, in gaps


class Pace(NamedTuple):
    """Offered load of B clusters: moving averages, slow and fast."""

    gaps: NDArray[np.float64]  # (B, 2) of the gaps between arrivals, seconds
    work: NDArray[np.float64]  # (B, 2) of the engine time per request, seconds
    counted: NDArray[np.int32]  # (B,) number of requests whose work is included


@kernel
def describe_engines(nominal, calibration, b, slo_s, rows):
    """Write the fields that describe the engines of cluster b, from ``nominal`` (B, N).

    Without calibration they are constant within an episode. ``calibration`` has the learned corrections.
    ``rows`` (B, N): EXPERT_ROW records.
    """
    for e in range(nominal.shape[1]):
        engine, row = nominal[b, e], rows[b, e]
        row.base_time = (engine.c0_s + engine.b_s) / slo_s
        row.sequence_time = engine.b_s / slo_s / EXPERT_SCALE.sequence_time
        row.context_time = engine.c_s / slo_s / EXPERT_SCALE.context_time
        row.prefill_time = engine.a_s / slo_s / EXPERT_SCALE.prefill_time
        row.kv_capacity = math.log2(engine.blocks * BLOCK_TOKENS / KV_UNIT_TOKENS) / EXPERT_SCALE.kv_capacity
        row.max_running = math.log2(engine.max_seqs) / EXPERT_SCALE.max_running
        row.length_drift = learnt(calibration.lengths, b, e)
        row.step_drift = calibration.steps[b, e].log


_ONE = np.float32(1)
_MOST_LATENCY = np.float32(4)  # of ``latency_so_far``, scaled
_NO_REQUEST, _NOTHING_ARRIVED = np.zeros(1, REQUEST_ROW), np.zeros(1, ARRIVED_ROW)


@kernel
def _show(row, request, score, predicted_tokens, generated, cached_share, used, elapsed_slo, remaining):
    """Fill one request's row (REQUEST_ROW)."""
    row.prompt = np.float32(request.prompt) / REQUEST_SCALE.prompt
    row.predicted_score = score
    row.predicted_length = predicted_tokens / REQUEST_SCALE.predicted_length
    row.generated = np.float32(generated) / REQUEST_SCALE.generated
    row.kv_share = cached_share
    row.budget_used = used
    row.latency_so_far = min(elapsed_slo / np.float32(max(generated, 1)) / REQUEST_SCALE.latency_so_far, _MOST_LATENCY)
    row.remaining = np.float32(remaining) / REQUEST_SCALE.remaining


@kernel
def _tally(sums, request, score, output, remaining, used, elapsed_slo, step_slo):
    """Add one request to the expert's sums (see ``_observe_expert``)."""
    reserved, decode, used_sum, used_max, present, at_risk = sums
    late = elapsed_slo + np.float32(remaining) * step_slo > np.float32(output)
    return (
        reserved + (request.prompt + output),
        decode + remaining,
        used_sum + used,
        max(used_max, used),
        present + score,
        at_risk + (score if late else np.float32(0)),
    )


@kernel_inlined
def _observe_decoding(telemetry, engine, terms, age_s, b, e, iteration, share, step_slo, slo_s, rows, extras):
    """Show the decoding requests of expert e of cluster b; returns their sums, and the tokens left of those beyond the slots.

    ``share``: of a KV token. With ``extras`` there may be several service classes, and each request is in units of its own; some
    may have been sent before, and ``age_s`` (M,) is the time since then.
    """
    source, now_s = telemetry.source, telemetry.now_s
    requests, running = source.requests[b], source.running[b, e]
    slots = rows.running.shape[2]
    shown, mask = rows.running[b, e], rows.running_mask[b, e]
    sums = (0, 0, np.float32(0), np.float32(0), np.float32(0), np.float32(0))
    beyond = 0
    per_slo, own_step = 1.0 / slo_s, step_slo
    for i in range(source.experts[b, e].n_dec):
        index = np.uint32(running[np.uint32(i)])  # unsigned: no test for an index from the end
        request = requests[index]
        generated = np.int32(iteration - request.start)
        score = with_odds(request.predicted_score, engine.score_odds)
        predicted_tokens = request.predicted_tokens * engine.length_factor
        output = expected_output(predicted_tokens, generated, np.int32(engine.max_model_len - request.prompt))
        remaining = np.int32(max(output - generated, 1))
        if extras is not None:
            own_slo_s = terms[extras[index].service].unit_s
            per_slo, own_step = 1.0 / own_slo_s, step_slo * np.float32(slo_s / own_slo_s)
            elapsed_slo = np.float32((now_s - request.arrival_s + age_s[index]) * per_slo)
        else:
            elapsed_slo = np.float32((now_s - request.arrival_s) * per_slo)
        used = elapsed_slo / max(predicted_tokens, _ONE)
        if i < slots:
            cached_share = np.float32(request.prompt + generated - 1) * share
            _show(shown[np.uint32(i)], request, score, predicted_tokens, generated, cached_share, used, elapsed_slo, remaining)
            mask[np.uint32(i)] = _ONE
        else:
            beyond += remaining
        sums = _tally(sums, request, score, output, remaining, used, elapsed_slo, own_step)
    return sums, beyond


@kernel_inlined
def _observe_expert(telemetry, engine, terms, age_s, b, e, slo_s, rows, known_extras, sent_extras):
    """Fill all features of expert e of cluster b; returns the mask bit: whether it can take one more.

    ``known_extras``, ``sent_extras``: of the requests that telemetry shows, and of those sent since.

    The loop over the decoding requests dominates the run time; 32-bit arithmetic halves it.
    """
    source, actual, now_s = telemetry.source, telemetry.actual, telemetry.now_s
    first_pending = telemetry.first_pending[e]
    expert = source.experts[b, e]
    requests = source.requests[b]
    running, waiting = source.running[b, e], source.waiting[b, e]
    n_run, n_dec, n_wait = expert.n_run, expert.n_dec, expert.n_wait
    n_known = n_run + n_wait
    begun = steps_begun(expert, telemetry.view_s[e])
    complete = max(begun - 1, 0)
    iteration = np.int32(expert.iteration + complete)
    taken = expert.taken
    if begun > 1:
        taken += blocks_crossed(expert, 1, begun)
    capacity = engine.blocks * BLOCK_TOKENS
    share = np.float32(1.0 / capacity)
    per_slo = 1.0 / slo_s
    step_slo = np.float32((engine.c0_s + engine.b_s * n_dec + engine.c_s * (expert.context + n_dec * complete)) * per_slo)

    slots_run, slots_wait = rows.running.shape[2], rows.waiting.shape[2]
    rows_run, rows_wait = rows.running[b, e], rows.waiting[b, e]
    mask_run, mask_wait = rows.running_mask[b, e], rows.waiting_mask[b, e]
    sums, decode_beyond = _observe_decoding(
        telemetry, engine, terms, age_s, b, e, iteration, share, step_slo, slo_s, rows, known_extras
    )
    own_step = step_slo
    # Already cached: of the prompts in the iteration under way, or of the one that the last iteration computed in part.
    prefill = -expert.cached if expert.plan_steps > 0 else -expert.partial * expert.pre_done
    shown_wait = 0
    for i in range(n_dec, n_known + telemetry.arrived - first_pending):
        cached = 0
        generated = np.int32(0)
        if i < n_run:
            index = running[i]
            request = requests[index]
            generated = request.generated
            if i == n_run - 1 and expert.partial == 1:
                cached = expert.pre_done
        elif i < n_known:
            index = waiting[(expert.wait_head + i - n_run) & (waiting.size - 1)]
            request = requests[index]
            generated = request.generated
        else:  # sent since the telemetry was taken
            index = first_pending + i - n_known
            if not on_its_way(actual.records[b, index], e):
                continue
            request = actual.requests[b, index]
            n_wait += 1
        score = with_odds(request.predicted_score, engine.score_odds)
        predicted_tokens = request.predicted_tokens * engine.length_factor
        output = expected_output(predicted_tokens, generated, np.int32(engine.max_model_len - request.prompt))
        remaining = np.int32(max(output - generated, 1))
        if known_extras is not None:
            own_slo_s = terms[(known_extras if i < n_known else sent_extras)[index].service].unit_s
            per_slo, own_step = 1.0 / own_slo_s, step_slo * np.float32(slo_s / own_slo_s)
            elapsed_slo = np.float32((now_s - request.arrival_s + age_s[index]) * per_slo)
        else:
            elapsed_slo = np.float32((now_s - request.arrival_s) * per_slo)
        used = elapsed_slo / max(predicted_tokens, _ONE)
        if i < n_run and i < slots_run:
            cached_share = np.float32(cached) * share
            _show(rows_run[i], request, score, predicted_tokens, generated, cached_share, used, elapsed_slo, remaining)
            mask_run[i] = _ONE
        elif i >= n_run and shown_wait < slots_wait:
            _show(rows_wait[shown_wait], request, score, predicted_tokens, generated, np.float32(0), used, elapsed_slo, remaining)
            mask_wait[shown_wait] = _ONE
            shown_wait += 1
        else:
            decode_beyond += remaining
        prefill += request.prompt + generated
        sums = _tally(sums, request, score, output, remaining, used, elapsed_slo, own_step)
    for i in range(n_run, slots_run):  # clear the entries of the last observation
        if mask_run[i] == 0:
            break
        mask_run[i] = 0
        rows_run[i] = _NO_REQUEST[0]
    for i in range(shown_wait, slots_wait):
        if mask_wait[i] == 0:
            break
        mask_wait[i] = 0
        rows_wait[i] = _NO_REQUEST[0]

    reserved, decode, used_sum, used_max, present, at_risk = sums
    row = rows.experts[b, e]
    row.running = n_run / EXPERT_SCALE.running
    row.waiting = n_wait / EXPERT_SCALE.waiting
    row.kv_used = (engine.blocks - expert.freed - expert.leaving_blocks + taken) / engine.blocks
    row.kv_reserved = reserved * share
    row.step_time = step_slo
    row.prefill_backlog = prefill / EXPERT_SCALE.prefill_backlog
    row.decode_backlog = decode / EXPERT_SCALE.decode_backlog
    row.mean_budget_used = used_sum / max(n_run + n_wait, 1)
    row.max_budget_used = used_max
    row.score_present = present / EXPERT_SCALE.score_present
    row.score_at_risk = at_risk / EXPERT_SCALE.score_at_risk
    row.running_beyond = max(n_run - slots_run, 0) / EXPERT_SCALE.running_beyond
    row.waiting_beyond = max(n_wait - slots_wait, 0) / EXPERT_SCALE.waiting_beyond
    row.decode_backlog_beyond = decode_beyond / EXPERT_SCALE.decode_backlog_beyond
    return n_wait < engine.max_waiting


@kernel
def update_gap_ema(pace, b, seen, gap_s):
    """Update the moving averages of cluster b with a gap between arrivals; ``seen``: gaps so far, this one included.

    The first gaps have more weight than the gains give, since the initial value is a guess.
    """
    for i in range(len(PACE_GAINS)):
        pace.gaps[b, i] += max(PACE_GAINS[i], 1.0 / (seen + _GUESS_WEIGHT)) * (gap_s - pace.gaps[b, i])


@kernel
def update_work_ema(pace, nominal, workload, b, r):
    """Update the moving averages of cluster b with the work of request r: seconds of engine time, the mean over experts.

    Repeated calls count a request once.

    The work of a request is its share of the batch time: ``b*d + c*d*(p + d/2) + a*p`` for p prompt tokens and d output tokens,
    as predicted (see ``EngineProfile``). The fixed cost of an iteration is shared by the batch and left out.
    """
    if not pace.counted[b] <= r < workload.total[b]:
        return
    pace.counted[b] = r + 1
    n_experts = nominal.shape[1]
    prompt = workload.prompt[b, r]
    mean_s = 0.0
    for e in range(0 if fits_none(nominal, b, prompt) else n_experts):  # a request that fits nowhere needs no work
        engine = nominal[b, e]
        length = workload.predicted_tokens[b, r, e] * engine.length_factor
        mean_s += (length * (engine.b_s + engine.c_s * (prompt + 0.5 * length)) + engine.a_s * prompt) / n_experts
    for i in range(len(PACE_GAINS)):
        pace.work[b, i] += max(PACE_GAINS[i], 1.0 / (r + 1)) * (mean_s - pace.work[b, i])


@kernel_inlined
def observe(telemetry, nominal, workload, pace, service, b, slo_s, rows):
    """Write the observation of cluster b for its arrived request.

    ``nominal`` has the engine figures that the router uses. ``slo_s``: the arrived request's latency per token. After the last
    request the arrived part is zero, and only drop is allowed.
    """
    update_work_ema(pace, nominal, workload, b, telemetry.arrived)
    n_experts = nominal.shape[1]
    r = telemetry.arrived
    present = r < workload.total[b]
    summary = rows.cluster[b]
    slow_s, fast_s = max(pace.gaps[b, _SLOW], 1e-3), max(pace.gaps[b, _FAST], 1e-3)
    summary.log_gap_long_run = math.log(slow_s)
    summary.log_gap_recent = math.log(fast_s)
    summary.log_load_long_run = math.log(max(pace.work[b, _SLOW], 1e-6) / (slow_s * n_experts))
    summary.log_load_recent = math.log(max(pace.work[b, _FAST], 1e-6) / (fast_s * n_experts))
    summary.mean_running = 0.0
    summary.max_running = 0.0
    summary.mean_waiting = 0.0
    summary.mean_kv_reserved = 0.0
    sent_extras = extras_of(telemetry.actual.extras, b)
    for e in range(n_experts):
        engine, shown = nominal[b, e], telemetry_of(telemetry, sent_extras, e)
        known_extras = extras_of(shown.source.extras, b)
        open_ = _observe_expert(shown, engine, service.terms, workload.age_s[b], b, e, slo_s, rows, known_extras, sent_extras)
        row = rows.experts[b, e]
        summary.mean_running += row.running / n_experts
        summary.max_running = max(summary.max_running, row.running)
        summary.mean_waiting += row.waiting / n_experts
        summary.mean_kv_reserved += row.kv_reserved / n_experts
        if present:
            arrived = rows.arrived[b, e]
            arrived.prompt = workload.prompt[b, r] / ARRIVED_SCALE.prompt
            arrived.predicted_score = with_odds(workload.predicted_score[b, r, e], engine.score_odds)
            arrived.predicted_length = workload.predicted_tokens[b, r, e] * engine.length_factor / ARRIVED_SCALE.predicted_length
            open_ = open_ and workload.prompt[b, r] < engine.max_model_len
            open_ = open_ and is_allowed(sent_extras, service, workload.user[b, r], e)
            rows.action_mask[b, e] = 1.0 if open_ else 0.0
        else:
            rows.arrived[b, e] = _NOTHING_ARRIVED[0]
            rows.action_mask[b, e] = 0.0
    rows.action_mask[b, n_experts] = 1.0


@kernel_inlined
def write_places(nominal, workload, service, extras, at_site, b, r, rows):
    """Write how far each expert is from the user of request r of cluster b, as PLACE_ROW records ``rows`` (B, N).

    ``nominal`` has the engine figures that the router uses, ``at_site`` (S, N) whether an expert is at a site of users. After the
    last request all is zero. ``extras``: of the cluster's requests, (M,), or None without optional parts.
    """
    present = r < workload.total[b]
    user = workload.user[b, r if present else 0]
    terms = service.terms[user.service]
    for e in range(rows.shape[1]):
        row = rows[b, e]
        length = max(workload.predicted_tokens[b, r, e] * nominal[b, e].length_factor, 1.0) if present else 1.0
        took_s = network_s(extras, service, user.site, e, workload.prompt[b, r], 1.0) if present else 0.0
        distance = min(took_s / min(budget_s(extras, terms, length), terms.ttft_s), 1.0)
        row.distance = distance / PLACE_SCALE.distance
        row.at_site = 1.0 if present and at_site[user.site, e] else 0.0
