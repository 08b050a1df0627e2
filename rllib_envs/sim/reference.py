"""The engine model in plain Python, one iteration at a time: the readable specification and the oracle of the compiled kernel.

It follows the scheduler of vLLM V1 (``vllm/v1/core/sched/scheduler.py`` and ``kv_cache_manager.py``): a token budget per
iteration, running requests first, paged KV, recomputation after preemption. It has real block numbers in a real free queue, and
no leaps.

Two rules are set here. An arrival at the very moment an iteration starts is queued before that iteration admits. A prompt that
lacks only its last token counts as prefill, not as decode.

With asynchronous scheduling (V1's default; ``vllm/v1/engine/core.py``, ``step_with_batch_queue``) an iteration is composed when
the one before it begins. A request that is queued while an iteration runs joins the one after the next. A complete request keeps
its seat and its blocks for one more composition, though no token is computed for it. A server with a fixed output length knows
which token is the last. A server that waits for an end-of-sequence token computes one more in vain; this is not modelled. Nor is
the preemption of a request after its last token.

With ``scheduling = "priority"`` the queue is in the order of priority, then arrival (vLLM's ``PriorityRequestQueue``). A lower
number goes first. When blocks run out, the running request that is last in this order is preempted, and it goes back to its place
in the queue. If it was scheduled in this iteration already, it gives back its tokens. If it is the one that asks for blocks, the
loop over the running requests ends, as in vLLM: those admitted after it wait for the next iteration. Priorities preempt nobody
for a seat. Of requests that are equal in both, the one admitted last is preempted, and the preempted one waits in front.

An engine may change while it serves (``Change``). A new speed holds for iterations that begin from then on. An engine that fails
loses the iteration under way, all requests inside, and its caches. A client that gives up is gone at once. Its request leaves the
engine at the end of the iteration under way, as vLLM's engine takes up messages between iterations. Until then it computes. All
that happens at the very end of an iteration comes after it, and before the next one.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rllib_envs.sim.profile import BLOCK_TOKENS, EngineProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request at its arrival at the engine."""

    arrival_s: float  # finite
    prompt_tokens: int  # >= 1
    output_tokens: int  # >= 1: tokens that it would generate without the limit max_model_len
    priority: int = 0  # a lower number goes first, if the engine schedules by priority
    first_token_patience_s: float = math.inf  # from arrival: a client without a token by then gives up
    patience_s: float = math.inf  # from arrival: a client without the whole answer by then gives up


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What happens to an engine at a time: another speed, a failure or its end."""

    at_s: float
    slowness: float | None = None  # iteration time over the profile's from now on
    down: bool | None = None  # whether it is down from now on


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttle:
    """How an engine slows down with its heat; ``living.py`` has the formula."""

    every_s: float
    kept: float  # share of the distance to the steady heat that is left after every_s
    slowest: float
    from_heat: float
    to_heat: float

    def heat(self, heat: float, busy_share: float) -> float:
        """The heat after another ``every_s``, of which the engine was busy for a share."""
        return busy_share + (heat - busy_share) * self.kept

    def slowness(self, heat: float) -> float:
        """Iteration time over that of a cool engine."""
        return 1 + (self.slowest - 1) * min(max((heat - self.from_heat) / (self.to_heat - self.from_heat), 0.0), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Outcome of a request; the times of a rejected one, and of what never happened, are NaN."""

    first_scheduled_s: float  # start of the iteration that first admitted it
    first_token_s: float  # end of the iteration that generated its first token
    finish_s: float  # end of the iteration that generated its last token
    preemptions: int
    rejected: bool
    cancelled: bool  # its client gave up
    lost: bool  # its engine failed, or was down when it came
    output_tokens: int  # generated; of a cancelled one until it left the engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Outcomes in the order of the arrivals, and the engine's totals."""

    outcomes: list[Outcome]
    busy_s: float  # time spent in iterations
    kv_token_s: float  # cached tokens held by running requests at the start of each iteration, integrated over time
    iterations: int


@dataclass(slots=True, eq=False, kw_only=True)
class Request:
    """A request inside the engine. ``computed`` tokens of it have their KV cached, in ``blocks``."""

    prompt: int
    output: int  # tokens that it will generate, after the cut at max_model_len
    queued_s: float  # time at which it reaches the engine's queue
    priority: int
    first_token_due_s: float = math.inf  # when its client gives up without a token
    due_s: float = math.inf  # when its client gives up in any case
    generated: int = 0
    computed: int = 0
    prefilling: bool = True
    blocks: list[int] = field(default_factory=list[int])
    left_behind: list[int] = field(default_factory=list[int])  # its full blocks at the last preemption
    preemptions: int = 0
    rejected: bool = False
    cancelled: bool = False
    lost: bool = False
    first_scheduled_s: float = math.nan
    first_token_s: float = math.nan
    finish_s: float = math.nan

    @property
    def gives_up_s(self) -> float:
        """When its client gives up, if nothing comes before."""
        return min(self.first_token_due_s, self.due_s) if math.isnan(self.first_token_s) else self.due_s

    @property
    def order(self) -> tuple[int, float]:
        """Priority, then arrival: whoever is lower goes first."""
        return self.priority, self.queued_s

    @property
    def tokens(self) -> int:
        """Tokens known so far: prompt and generated."""
        return self.prompt + self.generated

    def outcome(self) -> Outcome:
        """Its outcome."""
        return Outcome(
            first_scheduled_s=self.first_scheduled_s,
            first_token_s=self.first_token_s,
            finish_s=self.finish_s,
            preemptions=self.preemptions,
            rejected=self.rejected,
            cancelled=self.cancelled,
            lost=self.lost,
            output_tokens=self.generated,
        )


class Engine:
    """One engine; the caller calls ``arrive`` and ``step`` in the order of time.

    Attributes:
        running: admitted requests in order of admission; only the last can be partly prefilled.
        waiting: requests to admit, the next one first.
        leaving: complete requests whose seats and blocks still count, since the next iteration is composed before their end.
        free: free KV blocks, the next one to take first.
        cached: free blocks whose content a preempted request can still use, and that request.
        slowness: iteration time over the profile's, by its changes.
        throttled: the same, by its heat.
        down: whether it has failed; what arrives is lost.
    """

    def __init__(self, profile: EngineProfile) -> None:
        """An idle engine with empty caches."""
        self.profile = profile
        self.running: list[Request] = []
        self.leaving: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.free: deque[int] = deque(range(profile.usable_blocks))
        self.cached: dict[int, Request] = {}
        self.busy_s = 0.0
        self.kv_token_s = 0.0
        self.iterations = 0
        self.slowness = 1.0
        self.throttled = 1.0
        self.down = False
        self._by_priority = profile.scheduling == "priority"
        self._begun_s = -math.inf  # when the last iteration began

    @property
    def idle(self) -> bool:
        """Whether it has nothing to compute."""
        return not self.running and not self.waiting

    def ready_s(self, now_s: float) -> float:
        """Earliest start of the next iteration, at ``now_s`` or later; inf if the engine is idle."""
        if self.running:
            return now_s
        return max(now_s, min(request.queued_s for request in self.waiting)) if self.waiting else math.inf

    def arrive(self, arrival: Arrival) -> Request:
        """Queue a request, or reject it: the queue is full, or not even one output token fits."""
        room = self.profile.max_model_len - arrival.prompt_tokens
        request = Request(
            prompt=arrival.prompt_tokens,
            output=min(arrival.output_tokens, room),
            queued_s=arrival.arrival_s + self.profile.handoff_s,
            priority=arrival.priority,
            first_token_due_s=arrival.arrival_s + arrival.first_token_patience_s,
            due_s=arrival.arrival_s + arrival.patience_s,
        )
        request.rejected = room <= 0 or len(self.waiting) >= self.profile.max_waiting
        request.lost = self.down and not request.rejected
        if not (request.rejected or request.lost):
            place = bisect_right(self.waiting, request.order, key=_order) if self._by_priority else len(self.waiting)
            self.waiting.insert(place, request)
        return request

    def step(self, start_s: float, fails_s: float = math.inf) -> float:
        """Run the iteration that starts at ``start_s``, not before ``ready_s``, and return its end, s.

        If the engine fails before that end, at ``fails_s``, the iteration yields nothing, and this is the time returned.
        """
        scheduled = self.compose(start_s)
        end_s = start_s + self._duration_s(scheduled)
        duration_s = min(end_s, fails_s) - start_s
        self.busy_s += duration_s
        self.kv_token_s += duration_s * sum(request.computed for request in self.running)
        if fails_s < end_s:
            self.cancel(fails_s)
            return fails_s
        self.iterations += 1
        self.cancel(end_s, sooner=True)
        self._produce(scheduled, end_s)
        return end_s

    def cancel(self, time_s: float, *, sooner: bool = False) -> None:
        """Mark the requests whose clients have given up by ``time_s``, or ``sooner``: before it."""
        for request in (*self.running, *self.waiting):
            if request.gives_up_s < time_s or (request.gives_up_s == time_s and not sooner):
                request.cancelled = True

    def leave(self) -> None:
        """Between two iterations: the requests whose clients have given up leave, with their seats and blocks."""
        for request in [request for request in (*self.running, *self.waiting) if request.cancelled]:
            (self.running if request in self.running else self.waiting).remove(request)
            self._free_blocks(request)
        if self.idle:
            self._release()

    def fail(self) -> None:
        """The engine is down: all requests inside are lost, but for those whose clients have given up before."""
        for request in (*self.running, *self.waiting):
            request.lost = not request.cancelled
        self.running, self.leaving, self.waiting = [], [], deque()
        self.free, self.cached = deque(range(self.profile.usable_blocks)), {}
        self.down = True

    def compose(self, start_s: float) -> dict[Request, int]:
        """New tokens of each request in the iteration that starts at ``start_s``.

        With asynchronous scheduling it is composed when the iteration before it begins, from the state known then. If no request
        has anything to compute, it takes no time, and the next one is composed with all that is known at ``start_s``.
        """
        scheduled = self._schedule(self._begun_s if self.profile.async_scheduling else start_s, start_s)
        while not scheduled:
            running = len(self.running)
            scheduled = self._schedule(start_s, start_s)
            if not scheduled and len(self.running) == running:
                raise AssertionError(f"livelock: {len(self.waiting)} waiting, none scheduled, {len(self.free)} blocks free")
        self._begun_s = start_s
        return scheduled

    def _schedule(self, known_s: float, start_s: float) -> dict[Request, int]:
        """New tokens of each request, from the state known at ``known_s``."""
        scheduled, preempted = self._schedule_running()
        if not preempted:
            self._admit(scheduled, known_s, start_s)
        self._release()
        return scheduled

    def _release(self) -> None:
        """Free the seats and blocks of requests that have left."""
        for request in self.leaving:
            self._free_blocks(request)
        self.leaving = []

    def _schedule_running(self) -> tuple[dict[Request, int], bool]:
        """New tokens of each running request, and whether any request was preempted to make room."""
        budget = self.profile.max_num_batched_tokens
        scheduled: dict[Request, int] = {}
        preempted = False
        index = 0
        while index < len(self.running):  # preemption shortens the list
            request = self.running[index]
            new = min(request.tokens - request.computed, budget)
            while not self._take_blocks(request, request.computed + new):
                preempted = True
                evicted = self._preempt()
                if evicted is request:
                    return scheduled, preempted
                if evicted in scheduled:
                    budget += scheduled.pop(evicted)
                    index -= 1
            scheduled[request] = new
            budget -= new
            index += 1
        return scheduled, preempted

    def _admit(self, scheduled: dict[Request, int], known_s: float, start_s: float) -> None:
        """Admit the first of those known in the queue. It must fit whole, though only this iteration's chunk takes blocks."""
        budget = self.profile.max_num_batched_tokens - sum(scheduled.values())
        while self.waiting and budget > 0 and len(self.running) + len(self.leaving) < self.profile.max_num_seqs:
            request = next((request for request in self.waiting if request.queued_s <= known_s), None)
            if request is None or _blocks(request.tokens) > len(self.free):
                break
            self.waiting.remove(request)
            self._reuse_blocks(request)
            new = min(request.tokens - request.computed, budget)
            self._take_blocks(request, request.computed + new)
            self.running.append(request)
            scheduled[request] = new
            budget -= new
            if math.isnan(request.first_scheduled_s):
                request.first_scheduled_s = start_s

    def _duration_s(self, scheduled: dict[Request, int]) -> float:
        decodes = [request for request in scheduled if not request.prefilling]
        prompts = tuple((new, request.computed) for request, new in scheduled.items() if request.prefilling)
        duration_s = self.profile.iteration_s(len(decodes), sum(request.computed for request in decodes), prompts)
        return self.slowness * self.throttled * duration_s

    def _produce(self, scheduled: dict[Request, int], end_s: float) -> None:
        """Account for the computed tokens; a request with nothing left to compute generates its next token."""
        for request, new in scheduled.items():
            request.computed += new
            if request.computed < request.tokens:
                continue
            request.prefilling = False
            request.generated += 1
            if request.generated == 1 and not request.cancelled:
                request.first_token_s = end_s
            if request.generated == request.output and not request.cancelled:
                request.finish_s = end_s
                self.running.remove(request)
                self.leaving.append(request)
        if self.idle or not self.profile.async_scheduling:
            self._release()

    def _take_blocks(self, request: Request, tokens: int) -> bool:
        """Give the request the blocks that it lacks for ``tokens``; none and False if too few are free."""
        lacking = _blocks(tokens) - len(request.blocks)
        if lacking > len(self.free):
            return False
        for _ in range(lacking):
            block = self.free.popleft()
            self.cached.pop(block, None)
            request.blocks.append(block)
        return True

    def _free_blocks(self, request: Request) -> None:
        """Return the blocks to the queue, tail first, so that the head of a sequence stays cached for longest."""
        self.free.extend(reversed(request.blocks))
        request.blocks = []

    def _preempt(self) -> Request:
        """Move a running request back to the queue; it keeps its tokens and loses their KV.

        It is the one admitted last, which goes to the front of the queue. By priority it is the last in order.
        """
        places = range(len(self.running))
        last = max(places, key=lambda i: (*self.running[i].order, i)) if self._by_priority else places[-1]
        request = self.running.pop(last)
        if self.profile.reuse_preempted_blocks:
            request.left_behind = request.blocks[: request.computed // BLOCK_TOKENS]
            self.cached.update(dict.fromkeys(request.left_behind, request))
        self._free_blocks(request)
        request.computed = 0
        request.prefilling = True
        request.preemptions += 1
        self.waiting.insert(bisect_left(self.waiting, request.order, key=_order) if self._by_priority else 0, request)
        return request

    def _reuse_blocks(self, request: Request) -> None:
        """Take back the longest prefix of its own blocks that no other has taken; it never covers all tokens of the request."""
        for block in request.left_behind:
            if self.cached.get(block) is not request:
                break
            del self.cached[block]
            self.free.remove(block)
            request.blocks.append(block)
        request.computed = len(request.blocks) * BLOCK_TOKENS
        request.left_behind = []


def simulate(
    profile: EngineProfile,
    arrivals: Sequence[Arrival],
    *,
    changes: Sequence[Change] = (),
    throttle: Throttle | None = None,
    engine: Engine | None = None,
    after_step: Callable[[Engine], None] | None = None,
) -> Result:
    """Serve ``arrivals``, ascending in time, to the end.

    Args:
        profile: cost and limits of the engine.
        arrivals: the requests; those of equal time enter in the order given.
        changes: of the engine, ascending in time; one at the time of an arrival comes before it.
        throttle: how it slows down with its heat.
        engine: an idle engine of this profile with other iteration times.
        after_step: called with the engine after each iteration, as an observer.

    Raises:
        ValueError: an arrival is earlier than the one before it, or has an impossible figure.
    """
    _check(arrivals)
    engine = engine or Engine(profile)
    requests: list[Request] = []
    coming = deque(changes)
    now_s = -math.inf
    heat, heat_s, busy_s = 0.0, throttle.every_s if throttle else math.inf, 0.0
    while len(requests) < len(arrivals) or not engine.idle:
        present = [request for request in (*engine.running, *engine.waiting) if not request.cancelled]
        change_s = coming[0].at_s if coming else math.inf
        quits_s = min((request.gives_up_s for request in present), default=math.inf)
        arrival_s = arrivals[len(requests)].arrival_s if len(requests) < len(arrivals) else math.inf
        first_s = min(change_s, heat_s, quits_s, arrival_s)
        if first_s >= now_s:  # the last iteration was over by then
            engine.leave()
        start_s = engine.ready_s(now_s)
        if first_s <= start_s and first_s < math.inf:
            if first_s == change_s:
                _change(engine, coming.popleft())
            elif throttle and first_s == heat_s:
                busy_then_s, busy_s = busy_s, engine.busy_s - max(now_s - heat_s, 0.0)
                heat = throttle.heat(heat, (busy_s - busy_then_s) / throttle.every_s)
                engine.throttled = throttle.slowness(heat)
                heat_s += throttle.every_s
            elif first_s == quits_s:
                engine.cancel(first_s)
            else:
                requests.append(engine.arrive(arrivals[len(requests)]))
            continue
        if engine.idle:
            continue
        fails_s = next((change.at_s for change in coming if change.down), math.inf)
        now_s = engine.step(start_s, fails_s)
        if after_step:
            after_step(engine)
    outcomes = [request.outcome() for request in requests]
    return Result(outcomes=outcomes, busy_s=engine.busy_s, kv_token_s=engine.kv_token_s, iterations=engine.iterations)


def _change(engine: Engine, change: Change) -> None:
    if change.slowness is not None:
        engine.slowness = change.slowness
    if change.down:
        engine.fail()
    elif change.down is not None:
        engine.down = False


def _order(request: Request) -> tuple[int, float]:
    return request.order


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def _check(arrivals: Sequence[Arrival]) -> None:
    before_s = -math.inf
    for index, arrival in enumerate(arrivals):
        if not (math.isfinite(arrival.arrival_s) and arrival.arrival_s >= before_s):
            raise ValueError(f"arrivals[{index}].arrival_s = {arrival.arrival_s}: must be finite and not before {before_s}")
        for name in ("prompt_tokens", "output_tokens"):
            if getattr(arrival, name) < 1:
                raise ValueError(f"arrivals[{index}].{name} = {getattr(arrival, name)}: must be >= 1")
        before_s = arrival.arrival_s
