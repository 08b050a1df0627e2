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

Views. Telemetry of an expert shows ``late``, a replica to which the same happens at the same times. While telemetry is stopped,
or the expert is down and the router does not know it yet, its view stays at the time when that began.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.cluster import copy_sent, was_accepted
from rllib_envs.sim.jit import kernel, kernel_inlined
from rllib_envs.sim.kernels import advance, push, work_of
from rllib_envs.sim.leaving import fail, forget, remove_running, settle, take_out
from rllib_envs.sim.plan import busy_until, cut_at
from rllib_envs.sim.state import CANCELLED, ENGINE, FAILED, LOST, REJECTED, ROUTED
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


@kernel
def _quits_s(state, workload, living, b, r):
    """When the client of request r of cluster b gives up, if nothing comes before."""
    first_s = state.requests[b, r].arrival_s - workload.age_s[b, r]
    quits_s = first_s + living.total_s[b, r]
    if math.isnan(state.records[b, r].first_token_s):
        quits_s = min(quits_s, first_s + living.first_token_s[b, r])
    return quits_s


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
def _give_up(state, workload, living, expert, life, b, e, time_s):
    """Mark the requests whose clients give up by ``time_s``: they leave at the end of the iteration under way."""
    work = work_of(state, b, e)
    life.quit_s = np.inf
    for i in range(expert.n_run + expert.n_wait):
        running = i < expert.n_run
        place = i if running else (expert.wait_head + i - expert.n_run) & work.last
        r = work.running[place] if running else work.waiting[place]
        record = work.records[r]
        if record.status != ROUTED:
            continue
        quits_s = _quits_s(state, workload, living, b, r)
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
def _leave(state, engine, expert, b, e, time_s):
    """Between two iterations: requests of clients that have given up leave."""
    work = work_of(state, b, e)
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
def _go_down(state, engine, expert, life, b, e, time_s):
    """The expert fails: what it has is lost."""
    work = work_of(state, b, e)
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
    _darken(life, time_s)


@kernel
def _darken(life, time_s):
    """One more reason why telemetry is stopped."""
    if life.dark == 0:
        life.dark_s = time_s
    life.dark += 1


@kernel
def _lighten(life):
    """One reason less."""
    life.dark -= 1
    if life.dark == 0:
        life.dark_s = np.inf


@kernel
def _take(state, engine, expert, life, base, event, b, e):
    """Carry out an EVENT."""
    kind, at_s = event.kind, event.at_s
    if kind == SPEED:
        life.track = event.value
        _set_speed(engine, expert, life, base, at_s)
    elif kind == DOWN:
        _go_down(state, engine, expert, life, b, e, at_s)
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
        _darken(life, at_s)
    else:
        _lighten(life)


@kernel
def _live(state, lives, workload, living, b, e, time_s):
    """Advance one expert to ``time_s`` with all that happens to it by then; inf: until it has no request."""
    engine, expert, life = state.engines[b, e], state.experts[b, e], lives[b, e]
    base, events = living.base[b, e], living.events[b, e]
    while time_s < np.inf or expert.n_run + expert.n_wait > 0:
        event_s = events[life.next].at_s if life.next < events.size else np.inf
        at_s = min(life.leave_s, life.back_s, event_s, life.heat_s, life.quit_s)
        if at_s > time_s or at_s == np.inf:
            advance(engine, expert, work_of(state, b, e), time_s)
            if not _drained(expert, life):
                return
            continue
        advance(engine, expert, work_of(state, b, e), at_s)
        if life.leave_s <= at_s:
            life.leave_s = np.inf
            _leave(state, engine, expert, b, e, at_s)
        elif life.back_s <= at_s:
            life.back_s = np.inf
            life.closed &= ~_DRAINED
        elif event_s <= at_s:
            life.next += 1
            _take(state, engine, expert, life, base, events[life.next - 1], b, e)
        elif life.heat_s <= at_s:
            _heat_up(engine, expert, life, base, living.thermal[b, e], at_s)
        else:
            _give_up(state, workload, living, expert, life, b, e, at_s)
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
def _guard(state, nominal, living, b, e):
    """Open or close the expert's queue, in fact and for the router."""
    life, most = living.lives[b, e], living.base[b, e].max_waiting
    state.engines[b, e].max_waiting = most if life.down == 0 and life.closed == 0 else 0
    nominal[b, e].max_waiting = most if life.closed == 0 else 0


@kernel
def _live_all(state, workload, nominal, living, b, time_s):
    """Advance every expert of cluster b to ``time_s``."""
    for e in range(state.experts.shape[1]):
        _live(state, living.lives, workload, living, b, e, time_s)
        _guard(state, nominal, living, b, e)


@kernel
def begin_living(state, workload, nominal, living, now_s, b):
    """What happens in cluster b before its first arrival."""
    _live_all(state, workload, nominal, living, b, now_s[b])
    for e in range(state.experts.shape[1]):
        life, losses = living.lives[b, e], living.losses[b, e]
        while life.next_loss < losses.size and losses[life.next_loss] <= now_s[b]:  # nobody was there yet
            life.next_loss += 1


@kernel
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
        life.quit_s = min(life.quit_s, _quits_s(state, workload, living, b, r))


@kernel
def _insert(state, workload, living, b, place, r, time_s):
    """Request r of cluster b arrives again at ``time_s``, as row ``place``; the rows from there on move back."""
    total = workload.total[b]
    for i in range(total, place - 1, -1):
        source = r if i == place else i - 1
        workload.arrival_s[b, i] = workload.arrival_s[b, source]
        workload.prompt[b, i] = workload.prompt[b, source]
        workload.judged[b, i] = workload.judged[b, source]
        workload.user[b, i] = workload.user[b, source]
        workload.age_s[b, i] = workload.age_s[b, source]
        for e in range(workload.score.shape[2]):
            workload.score[b, i, e] = workload.score[b, source, e]
            workload.output[b, i, e] = workload.output[b, source, e]
            workload.predicted_score[b, i, e] = workload.predicted_score[b, source, e]
            workload.predicted_tokens[b, i, e] = workload.predicted_tokens[b, source, e]
            workload.predicted_log_sd[b, i, e] = workload.predicted_log_sd[b, source, e]
        living.first_token_s[b, i] = living.first_token_s[b, source]
        living.total_s[b, i] = living.total_s[b, source]
        living.attempts[b, i] = living.attempts[b, source]
        living.origin[b, i] = living.origin[b, source]
        request, record = state.requests[b, i], state.records[b, i]
        request.arrival_s = workload.arrival_s[b, i]
        request.prompt = workload.prompt[b, i]
        record.route = -1
        state.extras[b, i].service = workload.user[b, i].service
    workload.total[b] = total + 1
    workload.age_s[b, place] += time_s - workload.arrival_s[b, r]
    workload.arrival_s[b, place] = time_s
    state.requests[b, place].arrival_s = time_s
    living.attempts[b, place] += 1
    if not math.isnan(state.records[b, r].first_token_s):  # the client has seen that it is served
        living.first_token_s[b, place] = np.inf


@kernel
def _lose(state, workload, living, cursor, b, e, time_s):
    """The router learns that expert e has failed: what became of each request there; returns how many there were."""
    life, place, lost = living.lives[b, e], cursor[b], 0
    for r in range(cursor[b]):
        record, request = state.records[b, r], state.requests[b, r]
        if record.route != e or record.status != ROUTED:
            continue
        lost += 1
        if _quits_s(state, workload, living, b, r) <= time_s:
            record.status = CANCELLED
            life.cancelled += 1
            request.output = request.generated
        elif living.attempts[b, r] < living.retries[b]:
            record.status = LOST
            life.retried += 1
            _insert(state, workload, living, b, place, r, time_s)
            place += 1
        else:
            record.status = FAILED
            life.failed += 1
    return lost


@kernel
def _next_loss(living, b):
    """The expert of cluster b whose failure the router learns of next, and when."""
    first, first_s = 0, np.inf
    for e in range(living.lives.shape[1]):
        place = living.lives[b, e].next_loss
        if place < living.losses.shape[2] and living.losses[b, e, place] < first_s:
            first, first_s = e, living.losses[b, e, place]
    return first, first_s


@kernel
def _totals(state, living, b):
    """QoS, finished, late, cancelled, failed and retried requests of cluster b so far."""
    qos, done, late, cancelled, failed, retried = 0.0, 0, 0, 0, 0, 0
    for e in range(state.experts.shape[1]):
        expert, life = state.experts[b, e], living.lives[b, e]
        qos += expert.qos
        done += expert.done
        late += expert.late
        cancelled += life.cancelled
        failed += life.failed
        retried += life.retried
    return qos, done, late, cancelled, failed, retried


@kernel_inlined
def advance_living(state, workload, nominal, living, cursor, now_s, b, step):
    """``advance_to_next`` with all that happens until then. A request that a failure took may be the next to arrive."""
    qos, done, late, cancelled, failed, retried = _totals(state, living, b)
    cursor[b] += 1
    end_s = now_s[b]
    while True:
        last = cursor[b] == workload.total[b]
        next_s = np.inf if last else workload.arrival_s[b, cursor[b]]
        e, loss_s = _next_loss(living, b)
        if loss_s > next_s or loss_s == np.inf:
            break
        living.lives[b, e].next_loss += 1
        _live(state, living.lives, workload, living, b, e, loss_s)
        if _lose(state, workload, living, cursor, b, e, loss_s) > 0:
            end_s = loss_s
    _live_all(state, workload, nominal, living, b, next_s)
    if last:
        next_s = end_s
        for e in range(state.experts.shape[1]):
            next_s = max(next_s, state.experts[b, e].clock_s)
    qos_then, done_then, late_then, cancelled_then, failed_then, retried_then = _totals(state, living, b)
    step.dt_s = next_s - now_s[b]
    step.qos = qos_then - qos
    step.finished = done_then - done
    step.late = late_then - late
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


@kernel
def follow(state, late, workload, views, living, cursor, delay_s, now_s, b):
    """Advance the replica of each expert of cluster b to the time that telemetry shows."""
    for e in range(state.experts.shape[1]):
        view_s = max(now_s[b] - delay_s[b], 0.0)
        if living.lives[b, e].dark > 0:
            view_s = min(view_s, living.lives[b, e].dark_s)
        r = views.first_pending[b, e]
        while r < cursor[b] and state.requests[b, r].arrival_s <= view_s:
            record = state.records[b, r]
            if record.route == e and was_accepted(record):
                _replay(state, late, workload, living, b, e, r)
            r += 1
        views.first_pending[b, e] = r
        _live(late, living.shown, workload, living, b, e, view_s)
        views.view_s[b, e] = view_s


@kernel
def _replay(state, late, workload, living, b, e, r):
    """Send request r to the replica of expert e when it was sent to the expert."""
    copy_sent(state, late, b, r)
    request = late.requests[b, r]
    request.output = workload.output[b, r, e]  # of one that has left since, the record has what it got
    late.records[b, r].status = ROUTED
    late.records[b, r].route = e
    _live(late, living.shown, workload, living, b, e, request.arrival_s)
    if living.shown[b, e].down == 0:
        push(late.engines[b, e], late.experts[b, e], work_of(late, b, e), r, request.arrival_s)
        life = living.shown[b, e]
        life.quit_s = min(life.quit_s, _quits_s(late, workload, living, b, r))
