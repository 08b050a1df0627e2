"""Clusters that change within an episode: other speeds, failures, drains, clients that give up, telemetry that stops.

All of it acts between two calls of the engine's kernels. An expert is advanced to the time of what happens next. Then its state
is changed, and it goes on. The rules are those of ``reference.py``.

Speed. Iteration times are those of ``base`` times ``track * thermal``. ``track`` changes at given times. ``thermal`` follows the
heat h of the engine, a first-order model of a chip and its heat sink. Every ``every_s`` seconds::

    h = u + (h - u) * exp(-every_s / time_constant_s)        u: share of that time spent in iterations
    thermal = 1 + (slowest - 1) * clip((h - from_heat) / (to_heat - from_heat), 0, 1)

A new speed holds for iterations that begin from then on.

Failures. An expert that is down loses all that it has, and all that is sent to it. The router knows after a while. Then the
requests arrive again, as new rows of the tables (LOST, and a new one), or they have FAILED. An expert that is known to be down,
or is drained, has no room in its queue (``max_waiting`` 0): so no router can send anything there.

Views. While telemetry is stopped, or the expert is down and the router does not know it yet, the view of an expert stays at the
time when that began. ``late`` then keeps the expert as it was. Where telemetry comes late too, ``late`` is a replica of the whole
cluster instead, to which the same happens at the same times.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.cluster import copy_sent, is_due, was_accepted
from rllib_envs.sim.jit import items_of, kernel, kernel_inlined, move_items
from rllib_envs.sim.kernels import advance, push, work_of
from rllib_envs.sim.leaving import fail, forget, remove_running, settle, take_out
from rllib_envs.sim.plan import busy_until, cut_at
from rllib_envs.sim.state import CANCELLED, ENGINE, FAILED, HELD, LOST, REJECTED, ROUTED, Work
from rllib_envs.sim.whatif import future_qos

SPEED, DOWN, KNOWN_DOWN, UP, KNOWN_UP, DRAIN, DARK, LIT = range(8)
"""Kinds of an EVENT: another speed (``value``: iteration time over the base's), the expert is down, the router knows that, it is
up again, the router knows that too, it is drained (``value``: seconds that it is down then), its telemetry stops, and goes on."""

EVENT = np.dtype([("at_s", "f8"), ("value", "f8"), ("kind", "i4")], align=True)

THERMAL = np.dtype(
    [
        ("every_s", "f8"),  # inf: the engine does not throttle
        ("kept", "f8"),  # share of the distance to the steady heat that is left after every_s
        ("slowest", "f8"), ("from_heat", "f8"), ("to_heat", "f8"),
    ],
    align=True,
)  # fmt: skip

LIFE = np.dtype(
    [
        ("next", "i4"), ("next_loss", "i4"),  # places in the lists of events and of losses
        ("down", "i4"), ("closed", "i4"),  # closed: bits, 1 the router knows that it is down, 2 it is drained
        ("dark", "i4"),  # number of reasons why telemetry is stopped
        ("changed", "i4"),  # 1: the QoS to come is no longer what it was
        ("dark_s", "f8"),  # since when it is stopped
        ("drain_s", "f8"), ("down_for_s", "f8"), ("back_s", "f8"),  # of a drain: begin, time without the expert, end; else inf
        ("leave_s", "f8"),  # end of the iteration after which requests of clients that have given up leave; inf: none
        ("quit_s", "f8"),  # no client gives up before
        ("next_s", "f8"),  # nothing of all this happens before
        ("heat_s", "f8"), ("heat", "f8"), ("busy_s", "f8"),  # next update of the heat; the last heat and its busy seconds
        ("track", "f8"), ("thermal", "f8"),
        ("cancelled", "i8"), ("failed", "i8"), ("retried", "i8"),  # requests so far
    ],
    align=True,
)  # fmt: skip

_KNOWN, _DRAINED = 1, 2


class Living(NamedTuple):
    """What changes in B clusters of N experts and M rows of requests."""

    lives: NDArray[np.void]  # (B, N) LIFE
    shown: NDArray[np.void]  # (B, N) LIFE of the replica that telemetry shows
    base: NDArray[np.void]  # (B, N) ENGINE, the actual engines at speed 1
    thermal: NDArray[np.void]  # (B, N) THERMAL
    events: NDArray[np.void]  # (B, N, K) EVENT, ascending in time; inf: none
    losses: NDArray[np.float64]  # (B, N, L) times at which the router learns of a failure, ascending; inf: none
    first_token_s: NDArray[np.float64]  # (B, M) patience until the first token, since the first arrival
    total_s: NDArray[np.float64]  # (B, M) patience until the end
    attempts: NDArray[np.int32]  # (B, M) how often the request has been sent before
    origin: NDArray[np.int32]  # (B, M) number of the request among the episode's arrivals
    retries: NDArray[np.int32]  # (B,) how often a request is sent again


def allocate_living(batch: int, rows: int, n_experts: int) -> Living:
    """Records of B clusters in which nothing changes yet, with M rows of requests."""
    pair, table = (batch, n_experts), (batch, rows)
    return Living(
        lives=np.zeros(pair, LIFE),
        shown=np.zeros(pair, LIFE),
        base=np.zeros(pair, ENGINE),
        thermal=np.zeros(pair, THERMAL),
        events=np.zeros((*pair, 0), EVENT),
        losses=np.zeros((*pair, 0)),
        first_token_s=np.zeros(table),
        total_s=np.zeros(table),
        attempts=np.zeros(table, np.int32),
        origin=np.zeros(table, np.int32),
        retries=np.zeros(batch, np.int32),
    )


def reset_lives(living: Living, cluster: int) -> None:
    """Begin an episode in one cluster, whose other tables are filled."""
    for lives in (living.lives, living.shown):
        lives[cluster] = np.zeros((), LIFE)
        for name in ("dark_s", "drain_s", "back_s", "leave_s", "quit_s"):
            lives[name][cluster] = np.inf
        lives["heat_s"][cluster] = living.thermal["every_s"][cluster]
        lives["track"][cluster] = lives["thermal"][cluster] = 1
    living.attempts[cluster] = 0
    living.origin[cluster] = np.arange(living.origin.shape[1])


class Course(NamedTuple):
    """What happens to one expert, and how long clients of its cluster wait, as ``Items``."""

    events: Any  # (K,) EVENT
    n_events: int
    age_s: Any  # (M,) time since the first arrival, of requests that arrive again
    first_token_s: Any  # (M,) patience, since the first arrival
    total_s: Any  # (M,)


class Kept(NamedTuple):
    """Where an expert is kept as it was when its telemetry stopped."""

    on: bool  # whether it has to be
    expert: Any  # (1,) EXPERT, as ``Items``
    work: Work


@kernel
def _course_of(workload, living, b, e):
    """The course of expert e of cluster b."""
    events, age_s = items_of(living.events[b, e]), items_of(workload.age_s[b])
    return Course(events, living.events.shape[2], age_s, items_of(living.first_token_s[b]), items_of(living.total_s[b]))


@kernel
def _kept_in(late, on, b, e):
    """The place in ``late`` of expert e of cluster b."""
    return Kept(on, items_of(late.experts[b][e:]), work_of(late, b, e))


@kernel
def _quits_s(work, course, r):
    """When the client of request r gives up, if nothing comes before."""
    first_s = work.requests[r].arrival_s - course.age_s[r]
    quits_s = first_s + course.total_s[r]
    if math.isnan(work.records[r].first_token_s):
        quits_s = min(quits_s, first_s + course.first_token_s[r])
    return quits_s


@kernel
def _note_quit(life, quits_s):
    """A client gives up at ``quits_s``, if nothing comes before."""
    life.quit_s = min(life.quit_s, quits_s)
    life.next_s = min(life.next_s, quits_s)


@kernel
def _set_speed(engine, expert, life, base, time_s):
    """Take the present speed into the engine: the iteration under way at ``time_s`` is the last at the old one."""
    factor = life.track * life.thermal
    if engine.c0_s == base.c0_s * factor and engine.b_s == base.b_s * factor and engine.a_s == base.a_s * factor:
        return
    cut_at(expert, time_s)
    engine.c0_s = base.c0_s * factor
    engine.b_s = base.b_s * factor
    engine.c_s = base.c_s * factor
    engine.a_s = base.a_s * factor
    engine.q_s = base.q_s * factor
    engine.c_mixed_s = base.c_mixed_s * factor
    engine.c0_mixed_s = base.c0_mixed_s * factor
    life.changed = 1


@kernel
def _heat_up(engine, expert, life, base, thermal, time_s):
    """Update the heat at ``time_s``, and the speed with it (see the module)."""
    busy_s = busy_until(expert, time_s)
    share = min(max((busy_s - life.busy_s) / thermal.every_s, 0.0), 1.0)
    life.busy_s = busy_s
    life.heat = share + (life.heat - share) * thermal.kept
    above = min(max((life.heat - thermal.from_heat) / (thermal.to_heat - thermal.from_heat), 0.0), 1.0)
    life.thermal = 1.0 + (thermal.slowest - 1.0) * above
    life.heat_s = time_s + thermal.every_s
    _set_speed(engine, expert, life, base, time_s)


@kernel
def _give_up(expert, life, work, course, time_s):
    """Mark the requests whose clients give up by ``time_s``: they leave at the end of the iteration under way."""
    life.quit_s = np.inf
    for i in range(expert.n_run + expert.n_wait):
        running = i < expert.n_run
        place = i if running else (expert.wait_head + i - expert.n_run) & work.last
        r = work.running[place] if running else work.waiting[place]
        record = work.records[r]
        if record.status != ROUTED:
            continue
        quits_s = _quits_s(work, course, r)
        if quits_s > time_s:
            life.quit_s = min(life.quit_s, quits_s)
            continue
        record.status = CANCELLED
        work.extras[r].worth = 0.0
        life.cancelled += 1
        life.changed = 1
        if expert.plan_steps > 0 and running:
            forget(expert, work, place)
        cut_at(expert, time_s)
        life.leave_s = expert.plan_end_s if expert.plan_steps > 0 else time_s


@kernel
def _close(record, request, time_s):
    """The outcome of a request that left at ``time_s``, unfinished: it got ``generated`` tokens."""
    request.output = request.generated
    if record.first_token_s >= time_s:  # computed in vain
        record.first_token_s = np.nan


@kernel
def _leave(engine, expert, work, time_s):
    """Between two iterations: requests of clients that have given up leave."""
    for i in range(expert.n_run - 1, -1, -1):
        r = work.running[i]
        if work.records[r].status == CANCELLED:
            remove_running(expert, work, i, 0)
            _close(work.records[r], work.requests[r], time_s)
    for i in range(expert.n_wait - 1, -1, -1):
        r = work.waiting[(expert.wait_head + i) & work.last]
        if work.records[r].status == CANCELLED:
            take_out(expert, work, i)
            _close(work.records[r], work.requests[r], time_s)
    settle(engine, expert, work)


@kernel
def _go_down(engine, expert, life, work, kept, time_s):
    """The expert fails: what it has is lost."""
    n_run, n_wait = expert.n_run, expert.n_wait
    fail(engine, expert, work, time_s)
    for i in range(n_run + n_wait):
        r = work.running[i] if i < n_run else work.waiting[(expert.wait_head + i - n_run) & work.last]
        if work.records[r].status == CANCELLED:
            _close(work.records[r], work.requests[r], time_s)
    life.down = 1
    life.leave_s = np.inf
    life.quit_s = np.inf
    life.changed = 1
    _darken(expert, life, work, kept, time_s)


@kernel
def _darken(expert, life, work, kept, time_s):
    """One more reason why telemetry is stopped."""
    if life.dark == 0:
        life.dark_s = time_s
        if kept.on:
            _keep(expert, work, kept)
    life.dark += 1


@kernel
def _keep(expert, work, kept):
    """Keep the expert as it is now, with the requests that it has."""
    kept.expert[0] = expert
    copy = kept.work
    for i in range(expert.n_run + expert.n_wait):
        if i < expert.n_run:
            r = work.running[i]
            copy.running[i] = r
            copy.finish_at[i] = work.finish_at[i]
        else:
            place = (expert.wait_head + i - expert.n_run) & work.last
            r = work.waiting[place]
            copy.waiting[place] = r
        copy.requests[r] = work.requests[r]
        copy.records[r] = work.records[r]
        copy.extras[r] = work.extras[r]


@kernel
def _lighten(life):
    """One reason less."""
    life.dark -= 1
    if life.dark == 0:
        life.dark_s = np.inf


@kernel
def _take(engine, expert, life, base, work, event, kept):
    """Carry out an EVENT."""
    kind, at_s = event.kind, event.at_s
    if kind == SPEED:
        life.track = event.value
        _set_speed(engine, expert, life, base, at_s)
    elif kind == DOWN:
        _go_down(engine, expert, life, work, kept, at_s)
    elif kind == KNOWN_DOWN:
        life.closed |= _KNOWN
        _lighten(life)
    elif kind == UP:
        life.down = 0
    elif kind == KNOWN_UP:
        life.closed &= ~_KNOWN
    elif kind == DRAIN:
        life.closed |= _DRAINED
        life.drain_s = at_s
        life.down_for_s = event.value
    elif kind == DARK:
        _darken(expert, life, work, kept, at_s)
    else:
        _lighten(life)


@kernel
def _live(engine, expert, life, base, thermal, work, course, kept, time_s):
    """Advance one expert to ``time_s`` with all that happens to it by then; inf: until it has no request."""
    while time_s < np.inf or expert.n_run + expert.n_wait > 0:
        event_s = course.events[life.next].at_s if life.next < course.n_events else np.inf
        at_s = min(life.leave_s, life.back_s, event_s, life.heat_s, life.quit_s)
        life.next_s = at_s
        if at_s > time_s or at_s == np.inf:
            advance(engine, expert, work, time_s)
            if not _drained(expert, life):
                return
            continue
        advance(engine, expert, work, at_s)
        if life.leave_s <= at_s:
            life.leave_s = np.inf
            _leave(engine, expert, work, at_s)
        elif life.back_s <= at_s:
            life.back_s = np.inf
            life.closed &= ~_DRAINED
        elif event_s <= at_s:
            life.next += 1
            _take(engine, expert, life, base, work, course.events[life.next - 1], kept)
        elif life.heat_s <= at_s:
            _heat_up(engine, expert, life, base, thermal, at_s)
        else:
            _give_up(expert, life, work, course, at_s)
        _drained(expert, life)


@kernel
def _drained(expert, life):
    """Whether a drain has come to its end only now: then it is known when the expert is back."""
    if life.drain_s == np.inf or expert.n_run + expert.n_wait > 0:
        return False
    life.back_s = max(expert.clock_s, life.drain_s) + life.down_for_s
    life.drain_s = np.inf
    return True


@kernel
def _guard(engine, nominal, life, base):
    """Open or close the expert's queue, in fact and for the router."""
    engine.max_waiting = base.max_waiting if life.down == 0 and life.closed == 0 else 0
    nominal.max_waiting = base.max_waiting if life.closed == 0 else 0


@kernel_inlined
def _live_until(state, late, views, workload, nominal, living, b, e, time_s):
    """Advance expert e of cluster b to ``time_s`` with all that happens to it by then."""
    engine, expert, work = state.engines[b, e], state.experts[b, e], work_of(state, b, e)
    life, base, thermal = living.lives[b, e], living.base[b, e], living.thermal[b, e]
    kept = _kept_in(late, views.kind[b] == HELD, b, e)
    _live(engine, expert, life, base, thermal, work, _course_of(workload, living, b, e), kept, time_s)
    _guard(engine, nominal[b, e], life, base)


@kernel_inlined
def _live_all(state, late, views, workload, nominal, living, b, time_s):
    """Advance every expert of cluster b to ``time_s``."""
    for e in range(state.experts.shape[1]):
        life, expert = living.lives[b, e], state.experts[b, e]
        if life.next_s > time_s and life.drain_s == np.inf:
            if is_due(expert, time_s):
                advance(state.engines[b, e], expert, work_of(state, b, e), time_s)
        else:
            _live_until(state, late, views, workload, nominal, living, b, e, time_s)


@kernel
def begin_living(state, late, views, workload, nominal, living, now_s, b):
    """What happens in cluster b before its first arrival."""
    _live_all(state, late, views, workload, nominal, living, b, now_s[b])
    for e in range(state.experts.shape[1]):
        life, losses = living.lives[b, e], living.losses[b, e]
        while life.next_loss < losses.size and losses[life.next_loss] <= now_s[b]:  # nobody was there yet
            life.next_loss += 1


@kernel_inlined
def note_sent(state, workload, living, b, r, action, step):
    """After ``route``: a request to an expert that is down, without the router's knowledge, is on its way to be lost."""
    if action == state.experts.shape[1]:
        return
    record, request, life = state.records[b, r], state.requests[b, r], living.lives[b, action]
    base = living.base[b, action]
    if record.status == REJECTED and life.down == 1 and life.closed == 0 and request.prompt < base.max_model_len:
        record.status = ROUTED
        step.rejected = 0
    if record.status == ROUTED:
        _note_quit(life, _quits_s(work_of(state, b, action), _course_of(workload, living, b, action), r))


@kernel
def _move_back(state, workload, living, b, place, count):
    """Make room for ``count`` rows at ``place`` of the tables of cluster b: the rows from there on move back.

    Nobody has decided on them yet, so their records are all alike.
    """
    total, n = workload.total[b], workload.score.shape[2]
    rows, cells = total - place, (total - place) * n
    for table in (workload.score, workload.predicted_score, workload.predicted_tokens, workload.predicted_log_sd):
        move_items(items_of(table[b].reshape(table[b].size)), place * n, (place + count) * n, cells)
    output = workload.output[b]
    move_items(items_of(output.reshape(output.size)), place * n, (place + count) * n, cells)
    for table in (workload.arrival_s, workload.age_s, living.first_token_s, living.total_s):
        move_items(items_of(table[b]), place, place + count, rows)
    for table in (workload.prompt, living.attempts, living.origin):
        move_items(items_of(table[b]), place, place + count, rows)
    move_items(items_of(workload.judged[b]), place, place + count, rows)
    move_items(items_of(workload.user[b]), place, place + count, rows)
    move_items(items_of(state.requests[b]), place, place + count, rows)
    move_items(items_of(state.extras[b]), place, place + count, rows)
    for r in range(total, total + count):
        state.records[b, r].route = -1
    workload.total[b] = total + count


@kernel
def _send_again(state, workload, living, b, place, r, time_s):
    """Request r of cluster b arrives again at ``time_s``, as row ``place``, which is free."""
    workload.arrival_s[b, place] = time_s
    workload.age_s[b, place] = workload.age_s[b, r] + (time_s - workload.arrival_s[b, r])
    workload.prompt[b, place] = workload.prompt[b, r]
    workload.judged[b, place] = workload.judged[b, r]
    workload.user[b, place] = workload.user[b, r]
    for e in range(workload.score.shape[2]):
        workload.score[b, place, e] = workload.score[b, r, e]
        workload.output[b, place, e] = workload.output[b, r, e]
        workload.predicted_score[b, place, e] = workload.predicted_score[b, r, e]
        workload.predicted_tokens[b, place, e] = workload.predicted_tokens[b, r, e]
        workload.predicted_log_sd[b, place, e] = workload.predicted_log_sd[b, r, e]
    seen = not math.isnan(state.records[b, r].first_token_s)  # the client has seen that it is served
    living.first_token_s[b, place] = np.inf if seen else living.first_token_s[b, r]
    living.total_s[b, place] = living.total_s[b, r]
    living.attempts[b, place] = living.attempts[b, r] + 1
    living.origin[b, place] = living.origin[b, r]
    state.requests[b, place].arrival_s = time_s
    state.requests[b, place].prompt = workload.prompt[b, r]
    state.extras[b, place].service = workload.user[b, r].service


@kernel
def _lose(state, workload, living, cursor, b, e, time_s):
    """The router learns that expert e has failed: what became of each request there; returns how many there were."""
    life, work, course = living.lives[b, e], work_of(state, b, e), _course_of(workload, living, b, e)
    lost, again = 0, 0
    for r in range(cursor[b]):
        record, request = work.records[r], work.requests[r]
        if record.route != e or record.status != ROUTED:
            continue
        lost += 1
        if _quits_s(work, course, r) <= time_s:
            record.status = CANCELLED
            life.cancelled += 1
            request.output = request.generated
        elif living.attempts[b, r] < living.retries[b]:
            again += 1
        else:
            record.status = FAILED
            life.failed += 1
    if again > 0:
        place = cursor[b]
        _move_back(state, workload, living, b, place, again)
        for r in range(cursor[b]):
            record = work.records[r]
            if record.route == e and record.status == ROUTED:
                record.status = LOST
                _send_again(state, workload, living, b, place, r, time_s)
                place += 1
        life.retried += again
    return lost


@kernel
def _next_loss(lives, losses):
    """The expert of a cluster whose failure the router learns of next, and when; ``losses`` (N, L)."""
    first, first_s = 0, np.inf
    for e in range(losses.shape[0]):
        place = lives[e].next_loss
        if place < losses.shape[1] and losses[e, place] < first_s:
            first, first_s = e, losses[e, place]
    return first, first_s


@kernel
def _totals(experts, lives, n):
    """QoS, finished, late, cancelled, failed and retried requests of a cluster of ``n`` experts so far."""
    qos, done, late, cancelled, failed, retried = 0.0, 0, 0, 0, 0, 0
    for e in range(n):
        expert, life = experts[e], lives[e]
        qos += expert.qos
        done += expert.done
        late += expert.late
        cancelled += life.cancelled
        failed += life.failed
        retried += life.retried
    return qos, done, late, cancelled, failed, retried


@kernel_inlined
def advance_living(state, late, views, workload, nominal, living, cursor, now_s, b, step):
    """``advance_to_next`` with all that happens until then. A request that a failure took may be the next to arrive."""
    experts, lives, n = items_of(state.experts[b]), items_of(living.lives[b]), state.experts.shape[1]
    qos, done, tardy, cancelled, failed, retried = _totals(experts, lives, n)
    cursor[b] += 1
    end_s = now_s[b]
    while True:
        last = cursor[b] == workload.total[b]
        next_s = np.inf if last else workload.arrival_s[b, cursor[b]]
        e, loss_s = _next_loss(lives, living.losses[b])
        if loss_s > next_s or loss_s == np.inf:
            break
        living.lives[b, e].next_loss += 1
        _live_until(state, late, views, workload, nominal, living, b, e, loss_s)
        if _lose(state, workload, living, cursor, b, e, loss_s) > 0:
            end_s = loss_s
    _live_all(state, late, views, workload, nominal, living, b, next_s)
    if last:
        next_s = end_s
        for e in range(state.experts.shape[1]):
            next_s = max(next_s, state.experts[b, e].clock_s)
    qos_then, done_then, tardy_then, cancelled_then, failed_then, retried_then = _totals(experts, lives, n)
    step.dt_s = next_s - now_s[b]
    step.qos = qos_then - qos
    step.finished = done_then - done
    step.late = tardy_then - tardy
    step.cancelled = cancelled_then - cancelled
    step.failed = failed_then - failed
    step.retried = retried_then - retried
    now_s[b] = next_s


@kernel
def renew_future_qos(state, living, b, now_s, scratch):
    """After a change: the QoS to come of each expert that it concerns."""
    for e in range(state.experts.shape[1]):
        life = living.lives[b, e]
        if life.changed == 1:
            state.experts[b, e].future_qos = future_qos(state, b, e, now_s, scratch)
            life.changed = 0


@kernel_inlined
def hold(state, views, living, cursor, now_s, b):
    """Whose view is held, since when, and what has been sent there since."""
    for e in range(state.experts.shape[1]):
        life, r, view_s = living.lives[b, e], cursor[b], now_s[b]
        if life.dark > 0:
            r, view_s = views.first_pending[b, e], min(view_s, life.dark_s)
            while r < cursor[b] and state.requests[b, r].arrival_s <= view_s:
                r += 1
        views.held[b, e] = life.dark > 0
        views.first_pending[b, e] = r
        views.view_s[b, e] = view_s


@kernel_inlined
def follow(state, late, workload, views, living, cursor, delay_s, now_s, b):
    """Advance the replica of each expert of cluster b to the time that telemetry shows."""
    for e in range(state.experts.shape[1]):
        view_s = max(now_s[b] - delay_s[b], 0.0)
        if living.lives[b, e].dark > 0:
            view_s = min(view_s, living.lives[b, e].dark_s)
        engine, expert, work = late.engines[b, e], late.experts[b, e], work_of(late, b, e)
        life, base, thermal = living.shown[b, e], living.base[b, e], living.thermal[b, e]
        course, kept = _course_of(workload, living, b, e), _kept_in(late, False, b, e)
        r = views.first_pending[b, e]
        while r < cursor[b] and state.requests[b, r].arrival_s <= view_s:
            record = state.records[b, r]
            if record.route == e and was_accepted(record):
                copy_sent(state, late, b, r)
                request = work.requests[r]
                request.output = workload.output[b, r, e]  # of one that has left since, the record has what it got
                work.records[r].status = ROUTED
                work.records[r].route = e
                _live(engine, expert, life, base, thermal, work, course, kept, request.arrival_s)
                if life.down == 0:
                    push(engine, expert, work, r, request.arrival_s)
                    _note_quit(life, _quits_s(work, course, r))
            r += 1
        views.first_pending[b, e] = r
        _live(engine, expert, life, base, thermal, work, course, kept, view_s)
        views.view_s[b, e] = view_s
