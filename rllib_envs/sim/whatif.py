"""What-if results: an expert rolled forward from its present state, with no further arrivals.

The roll-out runs the engine's own kernels on a copy. With true lengths and the actual engine it gives the simulator's result.
With predicted ones, its only errors are those of the predictions. The state itself never changes.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.jit import items_of, kernel, kernel_inlined
from rllib_envs.sim.kernels import advance, next_event, push, work_of
from rllib_envs.sim.offsets import with_odds
from rllib_envs.sim.plan import blocks_of, cut_at, steps_begun
from rllib_envs.sim.profile import BLOCK_TOKENS
from rllib_envs.sim.rows import WHATIF_ROW
from rllib_envs.sim.state import FINISHED, NEVER, ROUTED, Arrived, State, Telemetry, Work, allocate
from rllib_envs.sim.terms import (
    Service,
    away_s,
    budget_s,
    class_of,
    in_time,
    latency_ratio,
    mean_network_s,
    promise,
    worth_of,
)

OVERRUN = 0.25
"""The expected remaining output is at least this share of the tokens generated so far, also beyond the prediction.

For log-normal prediction errors with a standard deviation of 0.2-0.4, take requests at 0.8 to 1.3 times their predicted length.
On average they have 0.2-0.4 of the tokens generated so far still to generate.
"""

SOFTENED = 4.0
"""Softness of softened deadlines over that of the normal ones."""

STAY_SCALES_S = (1.0, 4.0, 16.0)

_MOST_LATENCY = 10.0  # in units of the SLO: an upper limit, also for requests that never finish
_NO_EFFECT = np.zeros(1, WHATIF_ROW)


class Scratch(NamedTuple):
    """Memory for one expert's copy and a newcomer; one per thread. S requests at most."""

    state: State  # one cluster of one expert
    spare: State  # another, for a copy of that copy
    order: NDArray[np.int64]  # (S,) decoding requests by finish: iteration << 32 | request
    per_slo: NDArray[np.float64]  # (S,) 1 / (time that the answer may take): time since arrival -> latency in units of the SLO
    before: NDArray[np.float64]  # (S,) latency per token, in units of the SLO, without the newcomer
    own_s: NDArray[np.float64]  # (N, 2) time to the newcomer's first token and to its end at each expert; inf: the queue is full
    service: Service


class Desk(NamedTuple):
    """The scratch as its kernels pass it on: ``Items`` of its arrays."""

    expert: Any  # (1,) EXPERT
    lists: Work  # of the expert and the newcomer
    order: Any
    per_slo: Any
    before: Any
    terms: Any


def scratch_for(state: State, service: Service) -> Scratch:
    """Allocate a scratch for copies of the state's experts; ``service``: what their requests are promised.

    It has room for all requests of an episode: with delayed telemetry, many short ones may have been sent since.
    """
    slots, queue = state.running.shape[2], state.waiting.shape[2]
    size = 1 + state.requests.shape[1]
    copy, spare = (
        allocate(np.zeros((1, 1), state.engines.dtype), size, plain=state.extras is None)._replace(
            running=np.zeros((1, 1, slots), np.int32),
            finish_at=np.zeros((1, 1, slots), np.int32),
            waiting=np.zeros((1, 1, queue), np.int32),
        )
        for _ in range(2)
    )
    return Scratch(
        state=copy,
        spare=spare,
        order=np.zeros(size, np.int64),
        per_slo=np.zeros(size),
        before=np.zeros(size),
        own_s=np.zeros((state.experts.shape[1], 2)),
        service=service,
    )


@kernel_inlined
def telemetry_of(telemetry, extras, e):
    """The telemetry of expert e: with the state that shows it as ``source``; ``extras`` None: that is the same for all."""
    source = telemetry.source
    if extras is not None and not telemetry.held[e]:
        source = telemetry.actual
    return Telemetry(
        source,
        telemetry.actual,
        telemetry.held,
        telemetry.first_pending,
        telemetry.arrived,
        telemetry.view_s,
        telemetry.now_s,
    )


@kernel
def on_its_way(record, e):
    """Whether a request that telemetry does not show yet was sent to expert e, and accepted."""
    return record.route == e and (record.status == ROUTED or record.status == FINISHED)


@kernel
def expected_output(predicted_tokens, generated, room):
    """Expected output length, int32, of a request with ``predicted_tokens`` predicted and ``generated`` tokens generated.

    At most ``room``, the part of max_model_len that the prompt leaves.
    """
    least = np.int32(generated + max(np.int32(1), np.int32(np.float32(OVERRUN) * np.float32(generated))))
    return np.int32(min(max(np.int32(predicted_tokens + np.float32(0.5)), least), room))


@kernel
def desk_of(scratch, state):
    """The scratch as its kernels pass it on, with one of its two states."""
    lists = work_of(state, 0, 0)
    order, per_slo, before = items_of(scratch.order), items_of(scratch.per_slo), items_of(scratch.before)
    return Desk(items_of(state.experts[0]), lists, order, per_slo, before, items_of(scratch.service.terms))


@kernel
def _copy_extra(source, extras, index, i):
    """Copy the extras of request ``index`` to number i of the scratch."""
    if extras is not None:
        extras[i] = source[index]


@kernel
def _promise_believed(record, extras, i, terms, output):
    """Write what request i of the scratch is promised if it has ``output`` tokens. Without extras nobody asks for it."""
    if extras is not None:
        promise(record, extras, i, terms, output, extras[i].network_s)


@kernel
def _copy_expert(source, lists, desk, engine, time_s, believe):
    """Copy an expert with its lists (``Work``) at ``time_s`` to the desk; returns the number of requests copied.

    Requests are renumbered: running ones first, then waiting ones, each in order. With ``believe`` their true lengths are
    replaced by the router's expectations.
    """
    copy = desk.lists
    desk.expert[0] = source
    expert = desk.expert[0]
    begun = steps_begun(expert, time_s)
    cut_at(expert, time_s)
    iteration = expert.iteration + max(begun - 1, 0)
    requests, records, extras = copy.requests, copy.records, copy.extras
    n_run, n_dec = expert.n_run, expert.n_dec
    n = n_run + expert.n_wait
    least = np.int32(NEVER)
    for i in range(n):
        if i < n_run:
            index = lists.running[i]
            copy.running[i] = i
        else:
            index = lists.waiting[(expert.wait_head + i - n_run) & lists.last]
            copy.waiting[i - n_run] = i
        requests[i] = lists.requests[index]
        request = requests[i]
        _copy_extra(lists.extras, extras, index, i)
        if i >= n_dec or not believe or extras is not None:
            records[i] = lists.records[index]
        if believe:
            generated = np.int32(iteration - request.start if i < n_dec else request.generated)
            predicted_tokens = request.predicted_tokens * engine.length_factor
            output = expected_output(predicted_tokens, generated, np.int32(engine.max_model_len - request.prompt))
            request.output = max(generated + 1, output)
        terms = desk.terms[class_of(extras, i)]
        if believe:
            _promise_believed(records[i], extras, i, terms, request.output)
        desk.per_slo[i] = 1.0 / budget_s(extras, terms, request.output)
        if i < n_dec:
            finish = request.start + request.output
            copy.finish_at[i] = finish
            least = min(least, copy.finish_at[i])
        elif i < n_run:
            copy.finish_at[i] = NEVER
    expert.min_finish = least
    expert.wait_head = 0
    return n


@kernel
def _sort(desk, n_sorted):
    """Update ``order`` with the decoding requests; returns the start and end of their part of it.

    Its first ``n_sorted`` entries are from an earlier roll. Those complete by now are skipped. New decoding requests are at the
    tail of the running list and are inserted (batches are short, and usually one is new).
    """
    expert, running, finish_at, order = desk.expert[0], desk.lists.running, desk.lists.finish_at, desk.order
    first = 0
    while first < n_sorted and (order[first] >> 32) <= expert.iteration:
        first += 1
    last = n_sorted
    for i in range(n_sorted - first, expert.n_dec):
        key = (np.int64(finish_at[i]) << 32) | running[i]
        k = last
        while k > first and order[k - 1] > key:
            order[k] = order[k - 1]
            k -= 1
        order[k] = key
        last += 1
    return first, last


@kernel
def _sweep(engine, desk, first, last):
    """Finish times of a batch that only decodes: one leap from each completion to the next, as long as the blocks last.

    ``order`` from ``first`` to ``last`` is the batch. Leaves the copied expert unchanged. Returns whether the blocks surely last
    to the end, the end of the last request, and the QoS of all.
    """
    expert, order = desk.expert[0], desk.order
    requests, records, extras = desk.lists.requests, desk.lists.records, desk.lists.extras
    time_s, iteration, context = expert.clock_s, expert.iteration, expert.context
    qos = 0.0
    for i in range(first, last):
        finish = order[i] >> 32
        steps = finish - iteration
        if steps > 0:
            batch = last - i
            time_s += steps * (engine.c0_s + engine.b_s * batch + engine.c_s * (context + 0.5 * batch * (steps - 1)))
            context += batch * steps
            if context + batch * (BLOCK_TOKENS - 1) > engine.blocks * BLOCK_TOKENS:  # each may leave 15 tokens of a block unused
                return False, time_s, qos
            iteration = finish
        index = order[i] & 0xFFFFFFFF
        request, record = requests[index], records[index]
        record.finish_s = time_s
        context -= request.prompt + request.output - 1
        if in_time(record, extras, index, request.arrival_s, time_s):
            qos += worth_of(record, extras, index)
    return True, time_s, qos


@kernel
def roll(desk, engine, n_sorted):
    """Run the copy until it is empty; finish times are then in its records.

    ``n_sorted`` entries of ``order`` are from an earlier roll of the same expert.

    Returns four values: the time of the last completion; the QoS of all requests that the expert has ever finished by then; the
    number of ``order`` entries valid for another roll; whether the copied expert is unchanged.
    """
    expert = desk.expert[0]
    preempted = expert.preempted
    untouched = True
    crowd = NEVER  # with this many running a sweep does not help
    while True:
        if expert.n_wait == 0 and expert.leaving == 0 and expert.n_run == expert.n_dec and expert.n_run < crowd:
            if expert.preempted > preempted:
                n_sorted = 0
            first, last = _sort(desk, n_sorted)
            enough, end_s, qos = _sweep(engine, desk, first, last)
            if enough:
                return end_s, expert.qos + qos, last if untouched else 0, untouched
            n_sorted = 0
            crowd = expert.n_run - expert.n_run // 4
        untouched = False
        next_event(engine, expert, desk.lists)


@kernel
def _promise_newcomer(record, extras, index, terms, output):
    """Write what request ``index`` of the scratch, with ``output`` tokens, is promised."""
    if extras is None:
        promise(record, None, index, terms[0], output, 0.0)
    else:
        promise(record, extras, index, terms[extras[index].service], output, extras[index].network_s)


@kernel
def join(desk, engine, index, time_s):
    """Send request ``index`` of the desk to the copy at ``time_s``; False if its queue is full."""
    expert, lists = desk.expert[0], desk.lists
    advance(engine, expert, lists, time_s)
    if not push(engine, expert, lists, index, time_s):
        return False
    # What it is promised goes by its length, which the engine may have cut.
    _promise_newcomer(lists.records[index], lists.extras, index, desk.terms, lists.requests[index].output)
    return True


@kernel
def _write_extra(extras, index, arrived, terms):
    """Write the class and network of a new request."""
    if extras is not None:
        extras[index].service = arrived.service
        extras[index].network_s = arrived.network_s
        extras[index].priority = terms.priority


@kernel
def newcomer(desk, index, arrived):
    """Write a new request (``Arrived``) as number ``index`` of the desk."""
    request, record, extras = desk.lists.requests[index], desk.lists.records[index], desk.lists.extras
    request.arrival_s = arrived.arrival_s
    request.predicted_score = arrived.predicted_score
    request.predicted_tokens = arrived.predicted_tokens
    request.start = 0
    request.generated = 0
    request.prompt = arrived.prompt
    request.output = arrived.output
    record.first_scheduled_s = np.nan
    record.first_token_s = np.nan
    record.finish_s = np.nan
    record.preemptions = 0
    record.score = arrived.score
    terms = desk.terms[arrived.service]
    _write_extra(extras, index, arrived, terms)
    desk.per_slo[index] = 1.0 / budget_s(extras, terms, arrived.output)


@kernel
def latency_of(desk, extras, index):
    """Latency of a rolled-out request, in units of its SLO: per token, or the largest where its class has several bounds."""
    request, record = desk.lists.requests[index], desk.lists.records[index]
    stay_s = record.finish_s - request.arrival_s
    if extras is None:
        return stay_s * desk.per_slo[index]
    extra = extras[index]
    return latency_ratio(record, extra, (stay_s + extra.network_s) * desk.per_slo[index], request.arrival_s)


@kernel
def _worth(desk, extras, index, engine, arrived):
    """Predicted QoS of a rolled-out request in time, over the weight of the arrived one."""
    score = np.float64(with_odds(desk.lists.requests[index].predicted_score, engine.score_odds))
    if extras is None:
        return score
    return score * (desk.terms[extras[index].service].weight / desk.terms[arrived.service].weight)


@kernel
def _soft(latency, tau):
    """Soft deadline: probability to meet the SLO under prediction errors; latency per token in units of the SLO."""
    return 1.0 / (1.0 + math.exp(min((latency - 1.0) / tau, 700.0)))


@kernel
def _stay(desk, n, now_s):
    """The sums of t / (t + scale) over the first n rolled-out requests, for STAY_SCALES_S; t: the time until each leaves."""
    records = desk.lists.records
    one, four, sixteen = 0.0, 0.0, 0.0
    for i in range(n):
        left_s = max(records[i].finish_s - now_s, 0.0)
        one += left_s / (left_s + STAY_SCALES_S[0])
        four += left_s / (left_s + STAY_SCALES_S[1])
        sixteen += left_s / (left_s + STAY_SCALES_S[2])
    return one, four, sixteen


@kernel
def as_expected(engine, arrival_s, prompt, predicted_score, predicted_tokens, service, network_s):
    """A request with its expected length at an expert with this nominal engine."""
    room = np.int32(engine.max_model_len - prompt)
    output = max(1, expected_output(predicted_tokens * engine.length_factor, np.int32(0), room))
    return Arrived(arrival_s, prompt, output, 0.0, predicted_score, predicted_tokens, service, network_s)


@kernel
def load(source, lists, sent, pending, e, desk, engine, view_s):
    """Copy an expert with expected lengths, and add the requests on their way there (delayed telemetry); count of both.

    ``source``, ``lists``: the expert as telemetry shows it at ``view_s``. ``sent``: the lists of the cluster as it is, in which
    the requests from ``pending[0]`` to before ``pending[1]`` have been sent since.
    """
    n = _copy_expert(source, lists, desk, engine, view_s, True)
    for r in range(pending[0], pending[1]):
        if on_its_way(sent.records[r], e):
            p = sent.requests[r]
            told = (p.prompt, p.predicted_score, p.predicted_tokens, class_of(sent.extras, r), mean_network_s(sent.extras, r))
            newcomer(desk, n, as_expected(engine, p.arrival_s, *told))
            if join(desk, engine, n, p.arrival_s):
                n += 1
    return n


@kernel
def _stands_last(engine, expert, index, lists, now_s):
    """Whether request ``index``, sent to the copy now, stands in the queue behind others and changes nothing by that."""
    if engine.by_priority == 1 or expert.n_wait == 0:
        return False
    if expert.n_wait >= engine.max_waiting or lists.requests[index].prompt >= engine.max_model_len:
        return False
    return expert.plan_end_s > now_s if expert.plan_steps > 0 else expert.clock_s >= now_s


@kernel
def _may_reach_last(engine, expert, lists):
    """Whether the step to compose might admit all who wait but the last, so that it comes to the last one.

    For that those before the last would all have to find seats and blocks. Running requests take more blocks before. Or they are
    preempted, which admits nobody in this step, unless nobody runs any more.
    """
    others = expert.n_wait - 1
    if expert.n_run <= 1:
        return True
    if expert.n_run + others >= engine.max_seqs:
        return False
    free = expert.freed - expert.taken + expert.leaving_blocks
    for i in range(others):
        request = lists.requests[lists.waiting[(expert.wait_head + i) & lists.last]]
        free -= blocks_of(request.prompt + request.generated)
        if free < 0:
            return False
    return True


@kernel
def _wait_together(engine, desk):
    """Run the copy as long as the last in its queue makes no difference."""
    expert, lists = desk.expert[0], desk.lists
    while expert.plan_steps > 0 or not _may_reach_last(engine, expert, lists):
        next_event(engine, expert, lists)


@kernel
def _copy_desk(desk, copy, n):
    """Copy the expert and its first n requests from one desk to another."""
    copy.expert[0] = desk.expert[0]
    expert, lists, others = desk.expert[0], desk.lists, copy.lists
    for i in range(n):
        others.requests[i] = lists.requests[i]
        others.records[i] = lists.records[i]
        _copy_extra(lists.extras, others.extras, i, i)
    for i in range(expert.n_run):
        others.running[i] = lists.running[i]
        others.finish_at[i] = lists.finish_at[i]
    for i in range(expert.n_wait):
        place = (expert.wait_head + i) & lists.last
        others.waiting[place] = lists.waiting[place]


@kernel_inlined
def predict_action(telemetry, b, e, arrived, scratch, engine, tau, effects):
    """Fill ``effects[e]`` (WHATIF_ROW) with the predicted effect of sending the arrived request to expert e now.

    ``arrived``: the request from ``as_expected``; ``engine``: the expert's nominal engine.
    """
    now_s, view_s, desk = telemetry.now_s, telemetry.view_s[e], desk_of(scratch, scratch.state)
    source, lists, extras = telemetry.source.experts[b, e], work_of(telemetry.source, b, e), desk.lists.extras
    sent, pending = work_of(telemetry.actual, b, e), (telemetry.first_pending[e], telemetry.arrived)
    n = load(source, lists, sent, pending, e, desk, engine, view_s)
    newcomer(desk, n, arrived)
    effects[e] = _NO_EFFECT[0]
    effect = effects[e]
    without = desk
    together = _stands_last(engine, desk.expert[0], n, desk.lists, now_s)
    if together:  # the roll-outs with and without the newcomer are one up to where the newcomer may be admitted
        join(desk, engine, n, now_s)
        _wait_together(engine, desk)
        without = desk_of(scratch, scratch.spare)
        _copy_desk(desk, without, n)
        without.expert[0].n_wait -= 1
    n_sorted, untouched = 0, True
    if n > 0:
        end_s, _, n_sorted, untouched = roll(without, engine, 0)
        for i in range(n):
            desk.before[i] = latency_of(without, without.lists.extras, i)
        effect.drain_before_s = max(end_s - now_s, 0.0)  # with delayed telemetry all may have finished by now
        effect.stay_1_before, effect.stay_4_before, effect.stay_16_before = _stay(without, n, now_s)
    if together:
        n_sorted = 0
    else:
        if not untouched:
            n = load(source, lists, sent, pending, e, desk, engine, view_s)
            newcomer(desk, n, arrived)
        if not join(desk, engine, n, now_s):
            effect.own_latency = _MOST_LATENCY
            scratch.own_s[e] = np.inf
            for i in range(n):
                effect.soft_before += _worth(desk, extras, i, engine, arrived) * _soft(desk.before[i], tau)
            return
    end_s, _, _, _ = roll(desk, engine, n_sorted)
    own = latency_of(desk, extras, n)
    scratch.own_s[e, 0] = desk.lists.records[n].first_token_s - now_s
    scratch.own_s[e, 1] = desk.lists.records[n].finish_s - now_s
    present, soft, loose, hard, pushed = 0.0, 0.0, 0.0, 0.0, 0
    least, total, squares = 1.0, 0.0, 0.0
    for i in range(n):
        score = _worth(desk, extras, i, engine, arrived)
        before, after = desk.before[i], latency_of(desk, extras, i)
        soft_before = score * _soft(before, tau)
        present += soft_before
        if after != before:
            soft += score * _soft(after, tau) - soft_before
            loose += score * (_soft(after, SOFTENED * tau) - _soft(before, SOFTENED * tau))
        if after > 1.0 and before <= 1.0:
            hard -= score
            pushed += 1
        elif after <= 1.0 and before > 1.0:
            hard += score
        slack = max(1.0 - after, -10.0)
        least = min(least, slack)
        total += slack
        squares += slack * slack
    effect.own_latency = min(own, _MOST_LATENCY)
    effect.own_success = _soft(own, tau)
    effect.soft_change = soft
    effect.hard_change = hard
    effect.new_violations = pushed
    effect.least_slack = least
    if n > 0:
        effect.slack_sd = math.sqrt(max(squares / n - (total / n) ** 2, 0.0))
    effect.drain_s = end_s - now_s
    effect.stay_1, effect.stay_4, effect.stay_16 = _stay(desk, n + 1, now_s)
    effect.soft_before = present
    effect.own_success_softened = _soft(own, SOFTENED * tau)
    effect.soft_change_softened = loose


@kernel_inlined
def predict(telemetry, nominal, workload, b, scratch, tau, effects):
    """Fill ``effects[b]`` (N,) with the predicted effect of each action; with zeros after all requests have arrived."""
    r = telemetry.arrived
    for e in range(nominal.shape[1]):
        if r < workload.total[b]:
            engine = nominal[b, e]
            predicted_score, predicted_tokens = workload.predicted_score[b, r, e], workload.predicted_tokens[b, r, e]
            prompt, user = workload.prompt[b, r], workload.user[b, r]
            away = away_s(scratch.state.extras, scratch.service, user, workload.age_s[b, r], e, prompt, 1.0)
            arrived = as_expected(engine, telemetry.now_s, prompt, predicted_score, predicted_tokens, user.service, away)
            shown = telemetry_of(telemetry, telemetry.actual.extras, e)
            predict_action(shown, b, e, arrived, scratch, engine, tau, effects[b])
        else:
            effects[b, e] = _NO_EFFECT[0]


@kernel_inlined
def future_qos_with(state, b, e, arrived, scratch):
    """QoS that all requests ever sent to expert (b, e) will have earned if one more joins and no further request arrives.

    True lengths, actual engine. NaN if its queue is full.
    """
    engine = state.engines[b, e]
    desk = desk_of(scratch, scratch.state)
    n = _copy_expert(state.experts[b, e], work_of(state, b, e), desk, engine, arrived.arrival_s, False)
    newcomer(desk, n, arrived)
    if not join(desk, engine, n, arrived.arrival_s):
        return np.nan
    _, qos, _, _ = roll(desk, engine, 0)
    return qos


@kernel
def future_qos(state, b, e, time_s, scratch):
    """QoS that all requests ever sent to expert (b, e) will have earned if no further request arrives.

    True lengths, and the actual engine as it is at ``time_s``.
    """
    engine, desk = state.engines[b, e], desk_of(scratch, scratch.state)
    if _copy_expert(state.experts[b, e], work_of(state, b, e), desk, engine, time_s, False) == 0:
        return state.experts[b, e].qos
    _, qos, _, _ = roll(desk, engine, 0)
    return qos
