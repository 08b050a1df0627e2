"""The compiled engine: vLLM V1's scheduler on the iteration-time model, stepped from event to event.

Events are arrival, completion, block exhaustion and admission. Between two events a decode-only batch repeats one iteration, and
its context grows by B tokens each time. So k iterations take ``k*T + c*B*k*(k-1)/2``. The plan of an expert is such a leap, or
one iteration with prefill. A plan is cut short when an arrival could change it. The rules are those of ``reference.py``, which
steps every iteration and must give the same times.

Modelled: KV blocks, chunked prefill under a token budget, preemption by recomputation (own blocks are reused until another
request takes them), full-prompt gate, head-of-line blocking, max_num_seqs, max_model_len, a bounded waiting queue, overhead,
asynchronous scheduling, the time from the router to the engine's queue, scheduling by priority. Other speeds, failures and
clients that give up act between calls (``living.py``).
Not modelled: prefix caching between requests, tensor or pipeline parallelism, speculative decoding, swapping to host memory.

Optional parts cost nothing where a scenario has none of them: kernels are compiled apart for it. What tells them is the type of
``extras``, an argument that is None there. numba then leaves out the branches of ``if extras is not None``. It does so only for
an argument of the function itself, so ``extras`` is passed on beside ``work``, which has it too.
"""

# Values of ``state.experts[b, e]`` are numba records: assigning to their fields writes the array.
# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math

import numpy as np

from rllib_envs.sim.jit import items_of, kernel
from rllib_envs.sim.profile import BLOCK_TOKENS
from rllib_envs.sim.state import FINISHED, NEVER, Work
from rllib_envs.sim.terms import extras_of, in_time, worth_of

_BLOCK = BLOCK_TOKENS
_MASK = BLOCK_TOKENS - 1


@kernel
def work_of(state, b, e):
    """The lists of expert e of cluster b."""
    requests, records, extras = items_of(state.requests[b]), items_of(state.records[b]), items_of(extras_of(state.extras, b))
    running, finish_at = items_of(state.running[b, e]), items_of(state.finish_at[b, e])
    return Work(requests, records, extras, running, finish_at, items_of(state.waiting[b, e]), state.waiting.shape[2] - 1)


@kernel
def blocks_of(tokens):
    """KV blocks that hold ``tokens`` tokens."""
    return (tokens + _MASK) // _BLOCK


@kernel
def leap_s(expert, steps):
    """Seconds that the first ``steps`` iterations of the plan take."""
    return steps * expert.step_s + expert.growth_s * (0.5 * steps * (steps - 1))


@kernel
def steps_begun(expert, time_s):
    """Smallest j >= 1 such that the plan's first j iterations end at or after ``time_s``; at most the whole plan.

    At ``time_s`` iterations 1 to j-1 are complete and the j-th is under way.
    """
    if expert.plan_steps <= 1:
        return expert.plan_steps
    span = time_s - expert.clock_s
    half = 0.5 * expert.growth_s
    linear = expert.step_s - half  # leap_s = half*j^2 + linear*j, inverted in a form that is stable for half -> 0
    j = math.ceil(2.0 * span / (linear + math.sqrt(linear * linear + 4.0 * half * span)))
    j = max(1, min(j, expert.plan_steps))
    while j > 1 and expert.clock_s + leap_s(expert, j - 1) >= time_s:
        j -= 1
    while j < expert.plan_steps and expert.clock_s + leap_s(expert, j) < time_s:
        j += 1
    return j


@kernel
def blocks_crossed(expert, first, last):
    """KV blocks that the decoding requests take in iterations first..last-1 of the plan (0 is its first)."""
    crossed = 0
    rounds = (last - first) // _BLOCK
    if rounds > 0:
        crossed = rounds * expert.n_dec
        first += rounds * _BLOCK
    for r in range(first, last):
        crossed += expert.phase[-(expert.iteration + r) & _MASK]
    return crossed


@kernel
def _cut(expert, steps):
    """End the plan after ``steps`` of its iterations."""
    expert.plan_steps = steps
    expert.plan_end_s = expert.clock_s + leap_s(expert, steps)


@kernel
def cut_at(expert, time_s):
    """End the plan with the iteration that is under way at ``time_s``."""
    if expert.plan_steps > 1:
        _cut(expert, steps_begun(expert, time_s))


@kernel
def queued_s(engine, request):
    """Time at which the request reaches the engine's queue."""
    return request.arrival_s + engine.handoff_s


@kernel
def _cut_for(engine, expert, time_s):
    """End the plan so that the next composed step includes a request queued at ``time_s``.

    That is the end of the iteration under way then, or, if steps are composed ahead, of the one after it.
    """
    if engine.ahead == 0:
        cut_at(expert, time_s)
    elif expert.plan_steps > 1:
        steps = 1 if time_s <= expert.clock_s else 1 + steps_begun(expert, time_s)
        if steps < expert.plan_steps:
            _cut(expert, steps)


@kernel
def _least(finish_at, n):
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
def _preempt(expert, work, place, granted, queue_place):
    """Evict the request at ``place`` of the running list: it frees its blocks and keeps its tokens.

    It goes to ``queue_place`` of the queue (0 = front). The first ``granted`` running requests already have their block for the
    step that is being composed.
    """
    requests, running, finish_at, waiting = work.requests, work.running, work.finish_at, work.waiting
    index, finished = running[place], finish_at[place]
    request, record = requests[index], work.records[index]
    expert.n_run -= 1
    for i in range(place, expert.n_run):
        running[i] = running[i + 1]
        finish_at[i] = finish_at[i + 1]
    if place < expert.n_dec:
        expert.n_dec -= 1
        request.generated = expert.iteration - request.start
        cached = request.prompt + request.generated - 1
        expert.phase[(cached - expert.iteration) & _MASK] -= 1
        expert.context -= cached
        if finished == expert.min_finish:
            expert.min_finish = _least(finish_at, expert.n_dec)
        expert.freed += blocks_of(cached + 1 if place < granted else cached)
    else:
        cached = expert.pre_done
        expert.partial = 0
        expert.freed += blocks_of(cached)
    record.cache_end = expert.freed
    record.cache_blocks = cached // _BLOCK
    record.preemptions += 1
    expert.preempted += 1
    expert.wait_head = (expert.wait_head - 1) & work.last
    for i in range(queue_place):
        waiting[(expert.wait_head + i) & work.last] = waiting[(expert.wait_head + i + 1) & work.last]
    waiting[(expert.wait_head + queue_place) & work.last] = index
    expert.n_wait += 1


@kernel
def _preempt_last(expert, work):
    """Evict the request admitted last, to the front of the queue."""
    _preempt(expert, work, expert.n_run - 1, 0, 0)


@kernel
def _preempt_lowest(expert, work, granted):
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
def _run_under_pressure(expert, work, chunk):
    """The RUNNING loop when blocks run out: in order of admission, each takes its block; the last requests are preempted."""
    asking = expert.phase[-expert.iteration & _MASK]  # number of requests that need a block, less the preempted ones
    i = 0
    while i < expert.n_dec and asking > 0:
        request = work.requests[work.running[i]]
        if (request.prompt + expert.iteration - request.start - 1) & _MASK == 0:
            while expert.freed == expert.taken:
                _preempt_last(expert, work)
                if expert.n_run == i:  # it preempted itself: the loop ends
                    return
            expert.taken += 1
            asking -= 1
        i += 1
    if expert.n_run > expert.n_dec:
        blocks = blocks_of(expert.pre_done + chunk) - blocks_of(expert.pre_done)
        if blocks > expert.freed - expert.taken:
            _preempt_last(expert, work)
        else:
            expert.taken += blocks


@kernel
def _run_by_priority(engine, expert, work):
    """The RUNNING loop when blocks run out, where engines preempt by priority; returns the tokens computed of the prompt.

    Whoever is preempted gives back what this step had granted it. If the one that asks is itself the lowest, the loop ends: those
    admitted after it stand idle in this step (``expert.idle``, and a prompt of which no token is computed).
    """
    i = 0
    while i < expert.n_dec:
        request = work.requests[work.running[i]]
        if (request.prompt + expert.iteration - request.start - 1) & _MASK == 0:
            while expert.freed == expert.taken:
                place = _preempt_lowest(expert, work, i)
                if place == i:
                    expert.idle = expert.n_dec - i
                    return 0
                if place < i:
                    i -= 1
            expert.taken += 1
        i += 1
    if expert.n_run == expert.n_dec:
        return 0
    request = work.requests[work.running[expert.n_dec]]
    chunk = min(request.prompt + request.generated - expert.pre_done, engine.max_tokens - expert.n_dec)
    blocks = blocks_of(expert.pre_done + chunk) - blocks_of(expert.pre_done)
    while blocks > expert.freed - expert.taken:
        _preempt_lowest(expert, work, expert.n_dec)
        if expert.n_run == expert.n_dec:  # it preempted itself
            return 0
    expert.taken += blocks
    return chunk


@kernel
def _first_known(engine, expert, work):
    """Place in the queue of the first request that the step to compose knows; ``n_wait`` if there is none.

    In the order of arrival it is the head or none. By priority, some that are on their way yet may stand before it.
    """
    place = 0
    while place < expert.n_wait:
        index = work.waiting[(expert.wait_head + place) & work.last]
        if queued_s(engine, work.requests[index]) <= expert.known_s:
            break
        place += 1
    return place


@kernel
def _earliest_queued_s(engine, expert, work, first):
    """Earliest time at which one of the first ``first`` (>= 1) requests of the waiting list reaches the engine's queue."""
    earliest_s = np.inf
    for i in range(first):
        index = work.waiting[(expert.wait_head + i) & work.last]
        earliest_s = min(earliest_s, queued_s(engine, work.requests[index]))
    return earliest_s


@kernel
def take_out(expert, work, place):
    """Remove the request at ``place`` of the queue."""
    waiting = work.waiting
    for i in range(place, 0, -1):
        waiting[(expert.wait_head + i) & work.last] = waiting[(expert.wait_head + i - 1) & work.last]
    expert.wait_head = (expert.wait_head + 1) & work.last
    expert.n_wait -= 1


@kernel
def _idle_context(expert, work):
    """Cached tokens of the decoding requests that stand idle."""
    context = 0
    for i in range(expert.n_dec - expert.idle, expert.n_dec):
        request = work.requests[work.running[i]]
        context += request.prompt + expert.iteration - request.start - 1
    return context


@kernel
def _stand_idle(expert, work):
    """Before a step is committed: those that stand idle in it neither get a token nor come closer to their end."""
    for i in range(expert.n_dec - expert.idle, expert.n_dec):
        request = work.requests[work.running[i]]
        phase = request.prompt - request.start - 1
        expert.phase[phase & _MASK] -= 1
        expert.phase[(phase - 1) & _MASK] += 1
        request.start += 1
        work.finish_at[i] += 1
    expert.context -= expert.idle
    expert.min_finish = _least(work.finish_at, expert.n_dec)
    expert.idle = 0


@kernel
def _reusable_blocks(expert, work, record, tokens):
    """Take a preempted request's surviving blocks out of the middle of the free queue; returns their number.

    Its tail block was freed first, so the longest prefix remains. At least one token must remain to be computed.
    """
    waiting = work.waiting
    blocks = min(record.cache_blocks, record.cache_end - expert.taken, (tokens - 1) // _BLOCK)
    if blocks <= 0:
        return 0
    expert.freed -= blocks
    for i in range(expert.n_wait):  # requests behind it in the free queue move up
        other = work.records[waiting[(expert.wait_head + i) & work.last]]
        if other.cache_end > record.cache_end:
            other.cache_end -= blocks
    return blocks


@kernel
def _release(expert):
    """Free the seats and blocks of requests that have left."""
    expert.freed += expert.leaving_blocks
    expert.leaving = 0
    expert.leaving_blocks = 0


@kernel
def schedule(engine, expert, work):
    """Compose the step that starts at ``clock``, if there is a request to serve, and plan how often it repeats."""
    held = expert.leaving
    if engine.ahead == 0:
        expert.known_s = expert.clock_s
    _compose(engine, expert, work, work.extras, held)
    while expert.plan_steps == 0:  # an empty iteration takes no time: the next one is composed with all requests known by now
        expert.known_s = expert.clock_s
        _compose(engine, expert, work, work.extras, 0)


@kernel
def _compose(engine, expert, work, extras, held):
    """Compose a step and plan how often it repeats, from the state at ``known_s``; ``held``: seats of leaving requests.

    Without a request to serve there is no plan, nor if all who run stand idle.
    """
    requests, running, waiting = work.requests, work.running, work.waiting
    preempted = expert.preempted
    chunk = 0
    if expert.n_run > expert.n_dec:  # one request in the middle of its prefill
        request = requests[running[expert.n_dec]]
        chunk = min(request.prompt + request.generated - expert.pre_done, engine.max_tokens - expert.n_dec)
        more = blocks_of(expert.pre_done + chunk) - blocks_of(expert.pre_done)
    else:
        more = 0
    crossing = expert.phase[-expert.iteration & _MASK]
    if crossing + more <= expert.freed - expert.taken:
        expert.taken += crossing + more
    elif extras is not None and engine.by_priority == 1:
        chunk = _run_by_priority(engine, expert, work)
    else:
        _run_under_pressure(expert, work, chunk)
    preempted = expert.preempted - preempted

    budget = engine.max_tokens - expert.n_dec
    prefill = 0
    attention = 0.0
    expert.cached = 0
    expert.partial = 0
    if expert.n_run > expert.n_dec:
        request = requests[running[expert.n_dec]]
        prefill = chunk
        attention = chunk * (expert.pre_done + 0.5 * chunk)
        budget -= chunk
        expert.cached = expert.pre_done
        expert.pre_chunk = chunk
        if expert.pre_done + chunk < request.prompt + request.generated:
            expert.partial = 1
    if preempted == 0:
        while expert.n_wait > 0 and budget > 0 and expert.n_run + held < engine.max_seqs:
            place = 0
            if extras is not None and engine.by_priority == 1:
                place = _first_known(engine, expert, work)
                if place == expert.n_wait:
                    break
            index = waiting[(expert.wait_head + place) & work.last]
            request, record = requests[index], work.records[index]
            tokens = request.prompt + request.generated
            if queued_s(engine, request) > expert.known_s or blocks_of(tokens) > expert.freed - expert.taken:
                break
            take_out(expert, work, place)
            hit = 0
            if record.preemptions > 0 and engine.reuse == 1:
                hit = _reusable_blocks(expert, work, record, tokens)
            done = hit * _BLOCK
            chunk = min(tokens - done, budget)
            expert.taken += blocks_of(done + chunk) - hit
            budget -= chunk
            prefill += chunk
            attention += chunk * (done + 0.5 * chunk)
            expert.cached += done
            if done + chunk < tokens:
                expert.partial = 1
                expert.pre_done = done
                expert.pre_chunk = chunk
            running[expert.n_run] = index
            work.finish_at[expert.n_run] = NEVER
            expert.n_run += 1
            if math.isnan(record.first_scheduled_s):
                record.first_scheduled_s = expert.clock_s
    _release(expert)
    decodes, context = expert.n_dec, expert.context
    if extras is not None and expert.idle > 0:
        decodes -= expert.idle
        context -= _idle_context(expert, work)
        if decodes + prefill == 0:
            expert.idle = 0
    if decodes + prefill == 0:
        return

    expert.step_s = engine.c0_s + engine.b_s * decodes + engine.c_s * context
    expert.growth_s = 0.0
    steps = 1
    if prefill > 0:
        expert.step_s += (
            engine.c0_mixed_s
            + engine.a_s * max(0, prefill + expert.n_dec - engine.n0)
            + engine.q_s * attention
            + engine.c_mixed_s * expert.context
        )
    elif preempted == 0 and (held == 0 or expert.n_wait == 0):
        expert.growth_s = engine.c_s * expert.n_dec
        steps = expert.min_finish - expert.iteration
        free = expert.freed - expert.taken
        if (steps // _BLOCK + 1) * expert.n_dec > free and blocks_crossed(expert, 1, steps) > free:
            steps = 1  # repeat while the blocks last
            free -= expert.phase[-(expert.iteration + 1) & _MASK]
            while free >= 0:
                steps += 1
                free -= expert.phase[-(expert.iteration + steps) & _MASK]
    _cut(expert, steps)
    # The first that is known lacks blocks, and no block becomes free within a leap: it and all behind it wait for the end. Those
    # before it, whom this step does not know yet, may be admitted as soon as they are known: the first of them ends the leap. In
    # the order of arrival that is the head, unless it is known.
    if steps > 1 and expert.n_wait > 0 and expert.n_run < engine.max_seqs:
        if extras is not None and engine.by_priority == 1:
            unknown = _first_known(engine, expert, work)
            if unknown > 0:
                _cut_for(engine, expert, _earliest_queued_s(engine, expert, work, unknown))
        else:
            head_s = queued_s(engine, requests[waiting[expert.wait_head]])
            if head_s > expert.known_s:
                _cut_for(engine, expert, head_s)


@kernel
def _start_decoding(expert, work):
    """At the end of an iteration with prefill: each completed prompt has generated a token and decodes from now on."""
    completed = expert.n_run - expert.partial
    for i in range(expert.n_dec, completed):
        index = work.running[i]
        request = work.requests[index]
        if request.generated == 0:
            work.records[index].first_token_s = expert.clock_s
        cached = request.prompt + request.generated
        request.start = expert.iteration - request.generated - 1
        work.finish_at[i] = request.start + request.output
        expert.min_finish = min(expert.min_finish, work.finish_at[i])
        expert.phase[(cached - expert.iteration) & _MASK] += 1
        expert.context += cached
    expert.n_dec = completed
    if expert.partial == 1:
        expert.pre_done += expert.pre_chunk


@kernel
def _account(expert, work, index):
    """Account for request ``index``, which is complete at ``clock``."""
    request, record = work.requests[index], work.records[index]
    record.finish_s = expert.clock_s
    record.status = FINISHED
    cached = request.prompt + request.output - 1
    expert.leaving += 1
    expert.leaving_blocks += blocks_of(cached)
    expert.phase[(cached - expert.iteration) & _MASK] -= 1
    expert.context -= cached
    expert.n_dec -= 1
    expert.done += 1
    if in_time(record, work.extras, index, request.arrival_s, record.finish_s):
        expert.qos += worth_of(record, work.extras, index)
    else:
        expert.late += 1


@kernel
def _retire(expert, work):
    """Remove the requests that are complete at ``clock``, in order, and account for them."""
    running, finish_at = work.running, work.finish_at
    n, iteration = expert.n_run, np.int32(expert.iteration)
    least, first, gone = np.int32(NEVER), np.int32(n), np.int32(0)
    for i in range(np.int32(n)):  # without a branch, so that it is done for many at once
        complete = finish_at[i] == iteration
        least = min(least, np.int32(NEVER) if complete else finish_at[i])  # who is in prefill never finishes
        first = min(first, np.int32(i) if complete else np.int32(n))
        gone += np.int32(complete)
    kept = first
    if gone == 1:  # as a rule
        _account(expert, work, running[first])
        for i in range(first, n - 1):
            running[i] = running[i + 1]
        for i in range(first, n - 1):
            finish_at[i] = finish_at[i + 1]
        kept = n - 1
    else:
        for i in range(first, n):
            if finish_at[i] == iteration:
                _account(expert, work, running[i])
            else:
                running[kept] = running[i]
                finish_at[kept] = finish_at[i]
                kept += 1
    expert.n_run = kept
    expert.min_finish = least


@kernel
def commit(engine, expert, work, extras):
    """Carry out the plan: time, tokens, blocks, then the completions at its end."""
    steps = expert.plan_steps
    if engine.ahead == 1:
        expert.known_s = expert.clock_s if steps == 1 else expert.clock_s + leap_s(expert, steps - 1)
    expert.busy_s += expert.plan_end_s - expert.clock_s
    tokens = expert.context + expert.cached
    pairs = 0.5 * steps * (steps - 1)  # sum of r, then of r^2, for r < steps
    squares = pairs * (2 * steps - 1) * (1.0 / 3.0)
    expert.kv_token_s += (
        steps * tokens * expert.step_s
        + (expert.n_dec * expert.step_s + tokens * expert.growth_s) * pairs
        + expert.n_dec * expert.growth_s * squares
    )
    if steps > 1:
        expert.taken += blocks_crossed(expert, 1, steps)
    elif extras is not None and expert.idle > 0:
        _stand_idle(expert, work)
    expert.context += expert.n_dec * steps
    expert.iteration += steps
    expert.clock_s = expert.plan_end_s
    expert.plan_steps = 0
    if expert.n_run > expert.n_dec:
        _start_decoding(expert, work)
    if expert.iteration == expert.min_finish:
        _retire(expert, work)
        if engine.ahead == 0 or expert.n_run + expert.n_wait == 0:
            _release(expert)
    if expert.n_run == 0 and expert.n_wait > 0:
        if extras is not None and engine.by_priority == 1:
            earliest_s = _earliest_queued_s(engine, expert, work, expert.n_wait)
        else:
            earliest_s = queued_s(engine, work.requests[work.waiting[expert.wait_head]])
        expert.clock_s = max(expert.clock_s, earliest_s)


@kernel
def next_event(engine, expert, work):
    """Run an expert with requests to serve to the end of its plan; composes a plan first if there is none."""
    if expert.plan_steps == 0:
        schedule(engine, expert, work)
    commit(engine, expert, work, work.extras)


@kernel
def advance(engine, expert, work, time_s):
    """Advance one expert to ``time_s``: every iteration that ends by then is complete, the one under way is planned.

    A step that would start exactly at ``time_s`` stays open, so that an arrival at that instant is part of it.
    ``time_s`` = inf drains the expert.
    """
    while True:
        if expert.plan_steps == 0:
            if expert.n_run + expert.n_wait == 0 or expert.clock_s >= time_s:
                return
            schedule(engine, expert, work)
        if expert.plan_end_s > time_s:
            return
        commit(engine, expert, work, work.extras)


@kernel
def _make_place(engine, expert, work, extras, index):
    """The place in the queue of request ``index``, which nobody has there: at the end, or by priority behind its equals."""
    waiting = work.waiting
    place = expert.n_wait
    if extras is not None and engine.by_priority == 1:
        priority = extras[index].priority
        while place > 0:
            other = waiting[(expert.wait_head + place - 1) & work.last]
            if extras[other].priority <= priority:
                break
            waiting[(expert.wait_head + place) & work.last] = other
            place -= 1
    return place


@kernel
def push(engine, expert, work, index, time_s):
    """Send request ``index`` to the expert at ``time_s``, to which it has been advanced. False: its queue is full."""
    request = work.requests[index]
    if expert.n_wait >= engine.max_waiting or request.prompt >= engine.max_model_len:
        return False
    if expert.n_run + expert.n_wait == 0:
        expert.clock_s = time_s + engine.handoff_s
        expert.known_s = expert.clock_s
    place = _make_place(engine, expert, work, work.extras, index)
    # Else it waits for a seat, or for the one before it: that one lacks blocks, which a leap never frees, or is on its way, and
    # the leap has been cut for it or for another.
    if place == 0 and expert.n_run < engine.max_seqs:
        _cut_for(engine, expert, time_s + engine.handoff_s)
    request.output = min(request.output, engine.max_model_len - request.prompt)
    work.waiting[(expert.wait_head + place) & work.last] = index
    expert.n_wait += 1
    expert.routed += 1
    return True


@kernel
def busy_until(expert, time_s):
    """Seconds that the expert has spent in iterations by ``time_s``, to which it has been advanced."""
    return expert.busy_s + (time_s - expert.clock_s if expert.plan_steps > 0 else 0.0)


@kernel
def forget(expert, work, place):
    """Mark the request at ``place`` of the running list as one that will not finish by itself."""
    if place < expert.n_dec:
        work.finish_at[place] = NEVER - 1  # if it stands idle in this iteration, one more is added at its end
        expert.min_finish = _least(work.finish_at, expert.n_dec)
    else:  # its prompt may be complete at the end of the iteration under way, and yield a token
        request = work.requests[work.running[place]]
        request.output = request.generated + 2


@kernel
def remove_running(expert, work, place):
    """Between two iterations: the request at ``place`` of the running list leaves, with its seat and blocks.

    ``generated`` of the request is then the number of tokens that it got.
    """
    request, running, finish_at = work.requests[work.running[place]], work.running, work.finish_at
    expert.n_run -= 1
    for i in range(place, expert.n_run):
        running[i] = running[i + 1]
        finish_at[i] = finish_at[i + 1]
    if place < expert.n_dec:
        expert.n_dec -= 1
        request.generated = expert.iteration - request.start
        cached = request.prompt + request.generated - 1
        expert.phase[(cached - expert.iteration) & _MASK] -= 1
        expert.context -= cached
        expert.min_finish = _least(finish_at, expert.n_dec)
    else:
        cached = expert.pre_done
        expert.partial = 0
    expert.freed += blocks_of(cached)


@kernel
def settle(engine, expert, work):
    """After requests have left between two iterations: free what complete ones hold, or wait for the next one on its way."""
    if expert.n_run == 0:
        if expert.n_wait == 0:
            _release(expert)
        else:
            first = expert.n_wait if engine.by_priority == 1 else 1
            expert.clock_s = max(expert.clock_s, _earliest_queued_s(engine, expert, work, first))


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
    for i in range(_BLOCK):
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
