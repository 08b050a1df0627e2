"""How requests leave an engine's batch before they are complete: preempted, taken out, or lost with the engine."""

# Values of ``state.experts[b, e]`` are numba records: assigning to their fields writes the array.
# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import numpy as np

from rllib_envs.sim.jit import kernel
from rllib_envs.sim.plan import BLOCK_MASK, blocks_of, earliest_queued_s, steps_begun
from rllib_envs.sim.profile import BLOCK_TOKENS
from rllib_envs.sim.state import NEVER


@kernel
def least_finish(finish_at, n):
    """First iteration at whose end one of the first n requests is complete."""
    least = np.int32(NEVER)
    for i in range(n):
        least = min(least, finish_at[i])
    return least


@kernel
def _goes_before(work, index, other):
    """Whether request ``index`` goes before ``other`` by priority, then arrival; neither does if they are equal in both."""
    priority, other_priority = work.extras[index].priority, work.extras[other].priority
    if priority != other_priority:
        return priority < other_priority
    return work.requests[index].arrival_s < work.requests[other].arrival_s


@kernel
def take_out(expert, work, place):
    """Remove the request at ``place`` of the queue."""
    waiting = work.waiting
    for i in range(place, 0, -1):
        waiting[(expert.wait_head + i) & work.last] = waiting[(expert.wait_head + i - 1) & work.last]
    expert.wait_head = (expert.wait_head + 1) & work.last
    expert.n_wait -= 1


@kernel
def release(expert):
    """Free the seats and blocks of requests that have left."""
    expert.freed += expert.leaving_blocks
    expert.leaving = 0
    expert.leaving_blocks = 0


@kernel
def remove_running(expert, work, place, granted):
    """Between two iterations: the request at ``place`` of the running list leaves, with its seat and blocks.

    ``generated`` of the request is then the number of tokens that it got. The first ``granted`` running requests already have
    their block for the step that is being composed. Returns the number of its cached tokens.
    """
    running, finish_at, finished = work.running, work.finish_at, work.finish_at[place]
    request = work.requests[running[place]]
    expert.n_run -= 1
    for i in range(place, expert.n_run):
        running[i] = running[i + 1]
        finish_at[i] = finish_at[i + 1]
    if place < expert.n_dec:
        expert.n_dec -= 1
        request.generated = expert.iteration - request.start
        cached = request.prompt + request.generated - 1
        expert.phase[(cached - expert.iteration) & BLOCK_MASK] -= 1
        expert.context -= cached
        if finished == expert.min_finish:
            expert.min_finish = least_finish(finish_at, expert.n_dec)
    else:
        cached = expert.pre_done
        expert.partial = 0
    expert.freed += blocks_of(cached + 1 if place < granted else cached)
    return cached


@kernel
def _preempt(expert, work, place, granted, queue_place):
    """Evict the request at ``place`` of the running list: it frees its blocks and keeps its tokens.

    It goes to ``queue_place`` of the queue (0 = front); ``granted``: as for ``remove_running``.
    """
    waiting, index = work.waiting, work.running[place]
    record = work.records[index]
    cached = remove_running(expert, work, place, granted)
    record.cache_end = expert.freed
    record.cache_blocks = cached // BLOCK_TOKENS
    record.preemptions += 1
    expert.preempted += 1
    expert.wait_head = (expert.wait_head - 1) & work.last
    for i in range(queue_place):
        waiting[(expert.wait_head + i) & work.last] = waiting[(expert.wait_head + i + 1) & work.last]
    waiting[(expert.wait_head + queue_place) & work.last] = index
    expert.n_wait += 1


@kernel
def preempt_last(expert, work):
    """Evict the request admitted last, to the front of the queue."""
    _preempt(expert, work, expert.n_run - 1, 0, 0)


@kernel
def preempt_lowest(expert, work, granted):
    """Evict the running request of the lowest priority, of equals the last one, to its place in the queue.

    ``granted``: as for ``_preempt``. Returns the place that it had in the running list.
    """
    running, waiting = work.running, work.waiting
    place = 0
    for i in range(1, expert.n_run):
        if not _goes_before(work, running[i], running[place]):
            place = i
    index = running[place]
    queue_place = 0  # in front of its equals, as it came before them
    while queue_place < expert.n_wait and _goes_before(work, waiting[(expert.wait_head + queue_place) & work.last], index):
        queue_place += 1
    _preempt(expert, work, place, granted, queue_place)
    return place


@kernel
def forget(expert, work, place):
    """Mark the request at ``place`` of the running list as one that will not finish by itself."""
    if place < expert.n_dec:
        work.finish_at[place] = NEVER - 1  # if it stands idle in this iteration, one more is added at its end
        expert.min_finish = least_finish(work.finish_at, expert.n_dec)
    else:  # its prompt may be complete at the end of the iteration under way, and yield a token
        request = work.requests[work.running[place]]
        request.output = request.generated + 2


@kernel
def settle(engine, expert, work):
    """After requests have left between two iterations: free what complete ones hold, or wait for the next one on its way."""
    if expert.n_run == 0:
        if expert.n_wait == 0:
            release(expert)
        else:
            first = expert.n_wait if engine.by_priority == 1 else 1
            expert.clock_s = max(expert.clock_s, earliest_queued_s(engine, expert, work, first))


@kernel
def empty(engine, expert):
    """Nothing is inside, and nothing is planned. The clock and all totals stay."""
    expert.plan_steps = 0
    expert.n_run = 0
    expert.n_dec = 0
    expert.n_wait = 0
    expert.partial = 0
    expert.context = 0
    expert.cached = 0
    expert.iteration = 0
    expert.min_finish = NEVER
    expert.freed = engine.blocks
    expert.taken = 0
    expert.leaving = 0
    expert.leaving_blocks = 0
    expert.idle = 0
    for i in range(BLOCK_TOKENS):
        expert.phase[i] = 0


@kernel
def fail(engine, expert, work, time_s):
    """The engine fails at ``time_s``, to which it has been advanced: it is empty, with no time to make up; totals stay.

    ``generated`` of each request inside is then the number of tokens that it got.
    """
    iteration = expert.iteration + max(steps_begun(expert, time_s) - 1, 0)
    if expert.plan_steps > 0:
        expert.busy_s += time_s - expert.clock_s
        expert.kv_token_s += (expert.context + expert.cached) * (time_s - expert.clock_s)
    for i in range(expert.n_dec):
        request = work.requests[work.running[i]]
        request.generated = iteration - request.start
    if expert.n_run + expert.n_wait > 0:
        expert.clock_s = time_s
        expert.known_s = time_s
    empty(engine, expert)
