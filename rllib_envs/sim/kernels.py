"""The compiled engine: vLLM V1's scheduler on the iteration-time model, stepped from event to event.

Events are arrival, completion, block exhaustion and admission. Between two events a decode-only batch repeats one iteration: the
expert's plan (``plan.py``). It is cut short when an arrival could change it. Requests that leave before they are complete are in
``leaving.py``. The rules are those of ``reference.py``, which steps every iteration and must give the same times.

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
from rllib_envs.sim.leaving import least_finish, preempt_last, preempt_lowest, release, take_out
from rllib_envs.sim.plan import BLOCK_MASK, blocks_crossed, blocks_of, cut_after, cut_for, earliest_queued_s, leap_s, queued_s
from rllib_envs.sim.profile import BLOCK_TOKENS
from rllib_envs.sim.state import FINISHED, NEVER, Work
from rllib_envs.sim.terms import extras_of, in_time, worth_of


@kernel
def work_of(state, b, e):
    """The lists of expert e of cluster b."""
    requests, records, extras = items_of(state.requests[b]), items_of(state.records[b]), items_of(extras_of(state.extras, b))
    running, finish_at = items_of(state.running[b, e]), items_of(state.finish_at[b, e])
    return Work(requests, records, extras, running, finish_at, items_of(state.waiting[b, e]), state.waiting.shape[2] - 1)


@kernel
def _run_under_pressure(expert, work, chunk):
    """The RUNNING loop when blocks run out: in order of admission, each takes its block; the last requests are preempted."""
    asking = expert.phase[-expert.iteration & BLOCK_MASK]  # number of requests that need a block, less the preempted ones
    i = 0
    while i < expert.n_dec and asking > 0:
        request = work.requests[work.running[i]]
        if (request.prompt + expert.iteration - request.start - 1) & BLOCK_MASK == 0:
            while expert.freed == expert.taken:
                preempt_last(expert, work)
                if expert.n_run == i:  # it preempted itself: the loop ends
                    return
            expert.taken += 1
            asking -= 1
        i += 1
    if expert.n_run > expert.n_dec:
        blocks = blocks_of(expert.pre_done + chunk) - blocks_of(expert.pre_done)
        if blocks > expert.freed - expert.taken:
            preempt_last(expert, work)
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
        if (request.prompt + expert.iteration - request.start - 1) & BLOCK_MASK == 0:
            while expert.freed == expert.taken:
                place = preempt_lowest(expert, work, i)
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
        preempt_lowest(expert, work, expert.n_dec)
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
        expert.phase[phase & BLOCK_MASK] -= 1
        expert.phase[(phase - 1) & BLOCK_MASK] += 1
        request.start += 1
        work.finish_at[i] += 1
    expert.context -= expert.idle
    expert.min_finish = least_finish(work.finish_at, expert.n_dec)
    expert.idle = 0


@kernel
def _reusable_blocks(expert, work, record, tokens):
    """Take a preempted request's surviving blocks out of the middle of the free queue; returns their number.

    Its tail block was freed first, so the longest prefix remains. At least one token must remain to be computed.
    """
    waiting = work.waiting
    blocks = min(record.cache_blocks, record.cache_end - expert.taken, (tokens - 1) // BLOCK_TOKENS)
    if blocks <= 0:
        return 0
    expert.freed -= blocks
    for i in range(expert.n_wait):  # requests behind it in the free queue move up
        other = work.records[waiting[(expert.wait_head + i) & work.last]]
        if other.cache_end > record.cache_end:
            other.cache_end -= blocks
    return blocks


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
    crossing = expert.phase[-expert.iteration & BLOCK_MASK]
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
            done = hit * BLOCK_TOKENS
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
    release(expert)
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
        if (steps // BLOCK_TOKENS + 1) * expert.n_dec > free and blocks_crossed(expert, 1, steps) > free:
            steps = 1  # repeat while the blocks last
            free -= expert.phase[-(expert.iteration + 1) & BLOCK_MASK]
            while free >= 0:
                steps += 1
                free -= expert.phase[-(expert.iteration + steps) & BLOCK_MASK]
    cut_after(expert, steps)
    # The first that is known lacks blocks, and no block becomes free within a leap: it and all behind it wait for the end. Those
    # before it, whom this step does not know yet, may be admitted as soon as they are known: the first of them ends the leap. In
    # the order of arrival that is the head, unless it is known.
    if steps > 1 and expert.n_wait > 0 and expert.n_run < engine.max_seqs:
        if extras is not None and engine.by_priority == 1:
            unknown = _first_known(engine, expert, work)
            if unknown > 0:
                cut_for(engine, expert, earliest_queued_s(engine, expert, work, unknown))
        else:
            head_s = queued_s(engine, requests[waiting[expert.wait_head]])
            if head_s > expert.known_s:
                cut_for(engine, expert, head_s)


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
        expert.phase[(cached - expert.iteration) & BLOCK_MASK] += 1
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
    expert.phase[(cached - expert.iteration) & BLOCK_MASK] -= 1
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
            release(expert)
    if expert.n_run == 0 and expert.n_wait > 0:
        if extras is not None and engine.by_priority == 1:
            earliest_s = earliest_queued_s(engine, expert, work, expert.n_wait)
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
        cut_for(engine, expert, time_s + engine.handoff_s)
    request.output = min(request.output, engine.max_model_len - request.prompt)
    work.waiting[(expert.wait_head + place) & work.last] = index
    expert.n_wait += 1
    expert.routed += 1
    return True
