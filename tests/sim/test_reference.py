"""The plain stepper against cases worked out by hand, and against laws that hold for any engine of its kind."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_envs.sim.profile import BLOCK_TOKENS, EngineProfile
from rllib_envs.sim.reference import Arrival, Engine, Result, simulate
from tests.draws import examples

PROFILE = EngineProfile(
    c0_ms=10,
    b_ms=1,
    c_ms=0.01,
    a_ms=0.5,
    n0_tokens=8,
    q_ms=0.001,
    kv_tokens=16 * 101,
    kv_bytes_per_token=1000,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    max_model_len=256,
    max_waiting=50,
    async_scheduling=False,
)
FOUR_BLOCKS = replace(PROFILE, kv_tokens=16 * 5, max_model_len=64, max_num_batched_tokens=256)


def arrivals(*rows: tuple[float, int, int]) -> list[Arrival]:
    return [Arrival(arrival_s=at, prompt_tokens=prompt, output_tokens=output) for at, prompt, output in rows]


def ranked(*rows: tuple[float, int, int, int]) -> list[Arrival]:
    """Arrivals with priorities, which come last."""
    return [replace(arrival, priority=row[3]) for arrival, row in zip(arrivals(*(row[:3] for row in rows)), rows, strict=True)]


def times(result: Result) -> list[tuple[float, float, float]]:
    return [(outcome.first_scheduled_s, outcome.first_token_s, outcome.finish_s) for outcome in result.outcomes]


def clock(profile: EngineProfile, *steps: tuple[int, int, tuple[tuple[int, int], ...]]) -> list[float]:
    """Ends of back-to-back iterations from time 0, each given as (decodes, context, prompts)."""
    return np.cumsum([profile.iteration_s(*step) for step in steps]).tolist()


def test_a_lone_request_takes_its_prefill_and_one_iteration_per_further_token() -> None:
    result = simulate(PROFILE, arrivals((2.0, 20, 3)))
    prefill_s = 0.010 + 0.0005 * 12 + 0.000001 * 20 * 10
    decode_s = [0.010 + 0.001 + 0.00001 * context for context in (20, 21)]
    (outcome,) = result.outcomes
    assert outcome.first_scheduled_s == 2.0
    assert outcome.first_token_s == pytest.approx(2.0 + prefill_s)
    assert outcome.finish_s == pytest.approx(2.0 + prefill_s + sum(decode_s))
    assert (outcome.preemptions, outcome.rejected, result.iterations) == (0, False, 3)
    assert result.busy_s == pytest.approx(prefill_s + sum(decode_s))
    assert result.kv_token_s == pytest.approx(20 * decode_s[0] + 21 * decode_s[1])


def test_an_arrival_joins_the_running_batch_at_the_next_iteration() -> None:
    result = simulate(PROFILE, arrivals((0.0, 20, 3), (0.001, 10, 2)))
    ends = clock(PROFILE, (0, 0, ((20, 0),)), (1, 20, ((10, 0),)), (2, 21 + 10, ()))
    first, second = result.outcomes
    assert (first.first_token_s, second.first_scheduled_s) == pytest.approx((ends[0], ends[0]))
    assert second.first_token_s == pytest.approx(ends[1])
    assert (first.finish_s, second.finish_s) == pytest.approx((ends[2], ends[2]))


def test_a_long_prompt_is_computed_in_chunks_of_what_the_budget_leaves() -> None:
    result = simulate(PROFILE, arrivals((0.0, 10, 3), (0.0, 150, 1)))
    ends = clock(PROFILE, (0, 0, ((10, 0), (54, 0))), (1, 10, ((63, 54),)), (1, 11, ((33, 117),)))
    short, long = result.outcomes
    assert short.first_token_s == pytest.approx(ends[0])
    assert long.first_scheduled_s == 0.0
    assert long.first_token_s == long.finish_s == pytest.approx(ends[2])
    assert short.finish_s == pytest.approx(ends[2])


def test_the_last_token_of_a_chunked_prompt_counts_as_prefill() -> None:
    result = simulate(PROFILE, arrivals((0.0, 65, 1)))
    assert result.outcomes[0].finish_s == pytest.approx(clock(PROFILE, (0, 0, ((64, 0),)), (0, 0, ((1, 64),)))[-1])


AHEAD = replace(PROFILE, async_scheduling=True)


def test_composed_ahead_an_arrival_joins_the_iteration_after_the_next() -> None:
    result = simulate(AHEAD, arrivals((0.0, 20, 4), (0.001, 10, 2), (0.002, 5, 1)))
    ends = clock(PROFILE, (0, 0, ((20, 0),)), (1, 20, ()), (1, 21, ((10, 0), (5, 0))), (2, 22 + 10, ()))
    first, second, third = result.outcomes
    assert (first.first_token_s, first.finish_s) == pytest.approx((ends[0], ends[3]))
    assert second.first_scheduled_s == third.first_scheduled_s == pytest.approx(ends[1])
    assert second.first_token_s == third.finish_s == pytest.approx(ends[2])
    assert second.finish_s == pytest.approx(ends[3])


def test_composed_ahead_an_idle_engine_still_begins_at_once() -> None:
    late_s = clock(PROFILE, (0, 0, ((20, 0),)), (1, 20, ()))[-1] + 1.0
    result = simulate(AHEAD, arrivals((0.0, 20, 2), (late_s, 10, 2)))
    assert result.outcomes[1].first_scheduled_s == late_s


def test_composed_ahead_an_arrival_in_the_last_iteration_begins_at_its_end() -> None:
    """What would be composed ahead is empty, and takes no time."""
    ends = clock(PROFILE, (0, 0, ((20, 0),)), (1, 20, ()))
    within_s = (ends[0] + ends[1]) / 2
    result = simulate(AHEAD, arrivals((0.0, 20, 2), (within_s, 10, 2)))
    assert result.outcomes[1].first_scheduled_s == pytest.approx(ends[1])


def test_composed_ahead_an_arrival_at_the_very_start_of_an_iteration_joins_the_next() -> None:
    profile = replace(AHEAD, c0_ms=8.0, b_ms=0.0, c_ms=0.0, a_ms=0.0, q_ms=0.0)  # iterations begin at 0, 1/125 s ..
    ends = clock(profile, *[(1, 0, ())] * 5)
    result = simulate(profile, arrivals((0.0, 20, 5), (ends[1], 10, 1)))
    assert result.outcomes[1].first_scheduled_s == pytest.approx(ends[2])


@pytest.mark.parametrize("short_of", ["seats", "blocks"])
def test_composed_ahead_a_seat_and_blocks_are_free_one_iteration_later(short_of: str) -> None:
    # The second leaves after its first token; the third waits for its seat, or for its two blocks.
    profile = replace(AHEAD, max_num_seqs=2) if short_of == "seats" else replace(FOUR_BLOCKS, async_scheduling=True)
    prompts = (20, 20, 20) if short_of == "seats" else (17, 17, 17)
    rows = arrivals(*[(0.0, prompt, output) for prompt, output in zip(prompts, (6, 1, 1), strict=True)])
    at_once = simulate(replace(profile, async_scheduling=False), rows)
    later = simulate(profile, rows)
    prompt = prompts[0]
    ends = clock(profile, (0, 0, ((prompt, 0), (prompt, 0))), (1, prompt, ()))
    assert at_once.outcomes[2].first_scheduled_s == at_once.outcomes[1].finish_s == pytest.approx(ends[0])
    assert later.outcomes[1].finish_s == pytest.approx(ends[0])
    assert later.outcomes[2].first_scheduled_s == pytest.approx(ends[1])


@pytest.mark.parametrize("ahead", [True, False])
def test_a_request_reaches_the_queue_after_its_hand_off(ahead: bool) -> None:
    profile = replace(PROFILE, async_scheduling=ahead, handoff_s=0.05)
    alone, at_once = simulate(profile, arrivals((2.0, 20, 3))), simulate(PROFILE, arrivals((2.05, 20, 3)))
    assert times(alone) == times(at_once)
    # The second is handed over while the first is on its way, and joins it when it arrives there.
    together = simulate(profile, arrivals((2.0, 20, 9), (2.02, 10, 1)))
    assert together.outcomes[0].first_scheduled_s == 2.05
    apart = simulate(replace(profile, handoff_s=0.0), arrivals((2.05, 20, 9), (2.07, 10, 1)))
    np.testing.assert_allclose(times(together), times(apart))


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(1, 60)), min_size=1, max_size=8))
def test_without_pressure_it_makes_no_difference_to_those_who_come_together(rows: list[tuple[int, int]]) -> None:
    """Nobody waits for anybody's seat or blocks, and nobody comes later: what is known earlier or later is the same."""
    roomy = replace(PROFILE, kv_tokens=16 * 201, max_num_batched_tokens=800)
    requests = arrivals(*[(0.0, prompt, output) for prompt, output in rows])
    assert times(simulate(roomy, requests)) == times(simulate(replace(roomy, async_scheduling=True), requests))


@pytest.mark.parametrize("reuse", [True, False])
def test_a_preempted_request_recomputes_what_others_took(reuse: bool) -> None:
    profile = replace(FOUR_BLOCKS, reuse_preempted_blocks=reuse)
    # Both hold 2 blocks. At 32 cached tokens the first needs a third: the second loses its blocks, and the first takes the tail.
    result = simulate(profile, arrivals((0.0, 31, 4), (0.0, 31, 4)))
    ends = clock(profile, (0, 0, ((31, 0), (31, 0))), (2, 62, ()), (1, 32, ()), (1, 33, ()))
    first, second = result.outcomes
    assert (first.finish_s, first.preemptions) == (pytest.approx(ends[3]), 0)
    assert second.preemptions == 1
    assert second.first_token_s == pytest.approx(ends[0])  # a token once given stays given
    again = (33 - BLOCK_TOKENS, BLOCK_TOKENS) if reuse else (33, 0)  # its first block is still there
    assert second.finish_s == pytest.approx(ends[3] + profile.iteration_s(0, 0, (again,)) + profile.iteration_s(1, 33))


def test_an_asker_admitted_last_preempts_itself_and_the_others_run_on() -> None:
    # The first has room for its 17..20 tokens; the second is at 32 of 32 and finds no third block.
    result = simulate(FOUR_BLOCKS, arrivals((0.0, 17, 3), (0.0, 32, 2)))
    ends = clock(FOUR_BLOCKS, (0, 0, ((17, 0), (32, 0))), (1, 17, ()), (1, 18, ()), (0, 0, ((1, 32),)))
    first, second = result.outcomes
    assert (first.preemptions, second.preemptions) == (0, 1)
    assert first.finish_s == pytest.approx(ends[2])
    assert second.finish_s == pytest.approx(ends[3])  # both its blocks were still there


def test_preempted_requests_go_before_those_that_never_ran_in_their_old_order() -> None:
    # 5 blocks hold two prompts of 2 and a short one; when both long ones grow, the later two make room.
    rows = arrivals((0.0, 31, 4), (0.0, 31, 4), (0.001, 16, 2), (0.02, 1, 1))
    queues: list[list[tuple[int, int]]] = []

    def watch(engine: Engine) -> None:
        queues.append([(request.preemptions, request.prompt) for request in engine.waiting])

    result = simulate(replace(FOUR_BLOCKS, kv_tokens=16 * 6), rows, after_step=watch)
    assert [outcome.preemptions for outcome in result.outcomes] == [0, 1, 1, 0]
    assert [(1, 31), (1, 16), (0, 1)] in queues


def by_priority(profile: EngineProfile) -> EngineProfile:
    return replace(profile, scheduling="priority")


def test_by_priority_a_late_urgent_request_overtakes_those_who_wait_but_nobody_who_runs() -> None:
    one_seat = replace(PROFILE, max_num_seqs=1)
    rows = ranked((0.0, 20, 5, 9), (0.001, 20, 5, 1), (0.002, 20, 5, 1), (0.003, 20, 5, 0))
    first, second, third, urgent = simulate(by_priority(one_seat), rows).outcomes
    assert urgent.first_scheduled_s == first.finish_s
    assert second.first_scheduled_s == urgent.finish_s
    assert third.first_scheduled_s == second.finish_s
    starts = [outcome.first_scheduled_s for outcome in simulate(one_seat, rows).outcomes]
    assert starts == sorted(starts)  # first come, first served knows no priorities


def test_by_priority_an_urgent_request_on_its_way_holds_nobody_up() -> None:
    profile = by_priority(replace(PROFILE, max_num_seqs=1, handoff_s=0.05))
    first, second, urgent = simulate(profile, ranked((0.0, 20, 1, 0), (0.01, 20, 1, 1), (0.03, 20, 1, 0))).outcomes
    assert first.finish_s < 0.03 + 0.05
    assert second.first_scheduled_s == first.finish_s
    assert urgent.first_scheduled_s == second.finish_s


def test_by_priority_the_lowest_makes_room_though_it_was_admitted_first() -> None:
    # At 32 tokens the second needs a third block. The first has room for its next token, but gives it back with its blocks.
    rows = ranked((0.0, 20, 4, 1), (0.001, 31, 3, 0))
    steps = ((0, 0, ((20, 0),)), (1, 20, ((31, 0),)), (2, 21 + 31, ()), (1, 32, ()), (0, 0, ((23 - 16, 16),)))
    ends = clock(FOUR_BLOCKS, *steps)
    low, high = simulate(by_priority(FOUR_BLOCKS), rows).outcomes
    assert (low.preemptions, high.preemptions) == (1, 0)
    assert high.finish_s == pytest.approx(ends[3])
    assert low.finish_s == pytest.approx(ends[4])
    assert [outcome.preemptions for outcome in simulate(FOUR_BLOCKS, rows).outcomes] == [0, 1]


def test_by_priority_those_behind_one_that_preempts_itself_stand_idle_for_an_iteration() -> None:
    # 6 blocks. At 32 tokens the second, the lowest, asks for a third block: it leaves, and the third gets its own block later.
    six_blocks = by_priority(replace(FOUR_BLOCKS, kv_tokens=16 * 7))
    result = simulate(six_blocks, ranked((0.0, 17, 6, 0), (0.0, 30, 4, 2), (0.001, 31, 4, 1)))
    begin = ((0, 0, ((17, 0), (30, 0))), (2, 17 + 30, ((31, 0),)), (3, 18 + 31 + 31, ()))
    alone, together, again = (1, 19, ()), ((2, 20 + 32, ()), (2, 21 + 33, ())), (0, 0, ((33 - 16, 16),))
    ends = clock(six_blocks, *begin, alone, *together, again)
    assert [outcome.preemptions for outcome in result.outcomes] == [0, 1, 0]
    assert [outcome.finish_s for outcome in result.outcomes] == pytest.approx([ends[5], ends[6], ends[5]])


def test_by_priority_an_iteration_in_which_all_would_stand_idle_takes_no_time() -> None:
    # The first asks first, and is the lowest.
    result = simulate(by_priority(FOUR_BLOCKS), ranked((0.0, 30, 5, 1), (0.001, 31, 4, 0)))
    ends = clock(FOUR_BLOCKS, (0, 0, ((30, 0),)), (1, 30, ((31, 0),)), (2, 31 + 31, ()), (1, 32, ()), (1, 33, ()))
    low, high = result.outcomes
    assert (low.preemptions, high.preemptions) == (1, 0)
    assert high.finish_s == pytest.approx(ends[4])


def test_by_priority_a_preempted_request_goes_back_to_its_place() -> None:
    queues: list[list[int]] = []

    def watch(engine: Engine) -> None:
        queues.append([request.priority for request in engine.waiting])

    # The lowest of those who run makes room while a more urgent one waits, whose prompt does not fit, and one that is less so.
    rows = ranked((0.0, 31, 4, 0), (0.0, 31, 4, 5), (0.001, 60, 1, 3), (0.001, 60, 1, 7))
    simulate(by_priority(FOUR_BLOCKS), rows, after_step=watch)
    assert [3, 7] in queues
    assert [3, 5, 7] in queues


def test_a_request_that_does_not_fit_holds_up_those_behind_it() -> None:
    # 4 blocks: the first holds 2, the second needs 3, the third would fit.
    result = simulate(FOUR_BLOCKS, arrivals((0.0, 20, 5), (0.001, 40, 1), (0.002, 5, 1)))
    first, second, third = result.outcomes
    assert second.first_scheduled_s == first.finish_s
    assert third.first_scheduled_s >= second.first_scheduled_s


def test_the_gate_asks_for_room_for_the_whole_prompt() -> None:
    profile = replace(FOUR_BLOCKS, max_num_batched_tokens=16)  # a first chunk of 14 tokens would fit beside the first request
    result = simulate(profile, arrivals((0.0, 16, 10), (0.001, 60, 1)))
    assert result.outcomes[1].first_scheduled_s == result.outcomes[0].finish_s


def test_requests_that_cannot_be_held_are_rejected_and_long_answers_are_cut() -> None:
    result = simulate(PROFILE, arrivals((0.0, 256, 1), (0.0, 255, 50), (5.0, 300, 1)))
    assert [outcome.rejected for outcome in result.outcomes] == [True, False, True]
    assert math.isnan(result.outcomes[0].finish_s)
    assert result.outcomes[1].finish_s == result.outcomes[1].first_token_s  # room for one token


def test_an_arrival_at_the_start_of_an_iteration_finds_the_queue_before_its_admissions() -> None:
    profile = replace(PROFILE, max_num_seqs=1, max_waiting=1)
    done_s = simulate(profile, arrivals((0.0, 10, 1))).outcomes[0].finish_s
    together = simulate(profile, arrivals((0.0, 10, 1), (0.0, 10, 1)))
    assert [outcome.rejected for outcome in together.outcomes] == [False, True]
    for late_s, rejected in ((done_s, True), (np.nextafter(done_s, 1), False)):
        result = simulate(profile, arrivals((0.0, 10, 1), (0.001, 10, 1), (late_s, 10, 1)))
        assert [outcome.rejected for outcome in result.outcomes] == [False, False, rejected]


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        (((1.0, 1, 1), (0.5, 1, 1)), r"arrivals\[1\].arrival_s = 0.5"),
        (((math.nan, 1, 1),), r"arrivals\[0\].arrival_s = nan"),
        (((0.0, 0, 1),), r"arrivals\[0\].prompt_tokens = 0"),
        (((0.0, 1, 0),), r"arrivals\[0\].output_tokens = 0"),
    ],
)
def test_impossible_arrivals_are_refused(rows: tuple[tuple[float, int, int], ...], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        simulate(PROFILE, arrivals(*rows))


def check_invariants(engine: Engine) -> None:
    """What must hold after every iteration where first come is first served."""
    check_memory(engine)
    ran = [request.preemptions > 0 for request in engine.waiting]
    assert ran == sorted(ran, reverse=True)  # preempted requests wait in front


def check_memory(engine: Engine) -> None:
    """What must hold after every iteration."""
    profile = engine.profile
    held = [block for request in engine.running for block in request.blocks]
    assert sorted([*held, *engine.free]) == list(range(profile.usable_blocks))
    assert set(engine.cached) <= set(engine.free)
    assert len(engine.running) <= profile.max_num_seqs
    for request in engine.running:
        assert len(request.blocks) == -(-request.computed // BLOCK_TOKENS)
        assert request.computed < request.tokens <= profile.max_model_len
    assert not any(request.prefilling for request in engine.running[:-1])
    assert all(not request.blocks and request.computed == 0 for request in engine.waiting)


def random_case(seed: int) -> tuple[EngineProfile, list[Arrival]]:
    """A small engine, mostly short of KV, and up to 30 requests in bursts."""
    rng = np.random.default_rng(seed)
    seqs, max_len = int(rng.integers(1, 7)), int(rng.integers(8, 90))
    profile = replace(
        PROFILE,
        kv_tokens=BLOCK_TOKENS * (1 - (-max_len // BLOCK_TOKENS) + int(rng.integers(0, 6))),
        max_model_len=max_len,
        max_num_seqs=seqs,
        max_num_batched_tokens=int(rng.integers(seqs, 100)),
        max_waiting=int(rng.choice([1, 4, 30])),
        reuse_preempted_blocks=bool(rng.integers(2)),
    )
    count = int(rng.integers(1, 31))
    at_s = np.cumsum(rng.choice([0.0, 0.002, 0.015, 0.25], count))
    prompts = rng.integers(1, rng.integers(2, max_len + 3), count)
    outputs = rng.integers(1, 61, count)
    return profile, arrivals(*zip(at_s.tolist(), prompts.tolist(), outputs.tolist(), strict=True))


cases = st.integers(0, 2**32 - 1).map(random_case)


@examples(150)
@given(cases)
def test_laws_on_any_input(case: tuple[EngineProfile, list[Arrival]]) -> None:
    profile, requests = case
    result = simulate(profile, requests, after_step=check_invariants)
    served = [(arrival, outcome) for arrival, outcome in zip(requests, result.outcomes, strict=True) if not outcome.rejected]
    starts = [outcome.first_scheduled_s for _, outcome in served]
    assert starts == sorted(starts)  # first come, first admitted
    for arrival, outcome in served:
        assert arrival.arrival_s <= outcome.first_scheduled_s < outcome.first_token_s <= outcome.finish_s
        length = min(arrival.output_tokens, profile.max_model_len - arrival.prompt_tokens)
        shortest_s = (length - 1) * profile.iteration_s(1, arrival.prompt_tokens)
        assert outcome.finish_s - outcome.first_token_s >= shortest_s - 1e-9 or outcome.preemptions
        assert (outcome.finish_s == outcome.first_token_s) == (length == 1)
    for arrival, outcome in zip(requests, result.outcomes, strict=True):
        assert not outcome.rejected or arrival.prompt_tokens >= profile.max_model_len or len(requests) > profile.max_waiting
    if served:
        assert result.busy_s <= max(outcome.finish_s for _, outcome in served) - served[0][0].arrival_s + 1e-9
    assert result.kv_token_s <= result.busy_s * profile.usable_blocks * BLOCK_TOKENS
    np.testing.assert_array_equal(times(simulate(profile, requests)), times(result))


@examples(50)
@given(cases)
def test_twice_as_slow_and_fed_half_as_fast_it_does_the_same_in_twice_the_time(case: tuple[EngineProfile, list[Arrival]]) -> None:
    profile, requests = case
    slow = simulate(replace(profile, overhead=2.0), [replace(arrival, arrival_s=2 * arrival.arrival_s) for arrival in requests])
    result = simulate(profile, requests)
    np.testing.assert_array_equal(times(slow), 2 * np.array(times(result)))
    assert (slow.busy_s, slow.kv_token_s, slow.iterations) == (2 * result.busy_s, 2 * result.kv_token_s, result.iterations)


@examples(100)
@given(cases, st.integers(-2, 2))
def test_with_one_priority_for_all_first_come_is_first_served(case: tuple[EngineProfile, list[Arrival]], priority: int) -> None:
    profile, requests = case
    of_one_class = [replace(arrival, priority=priority) for arrival in requests]
    np.testing.assert_array_equal(times(simulate(by_priority(profile), of_one_class)), times(simulate(profile, requests)))


@examples(100)
@given(cases, st.integers(0, 2**32 - 1))
def test_by_priority_the_queue_is_always_in_order(case: tuple[EngineProfile, list[Arrival]], seed: int) -> None:
    profile, requests = case
    priorities = np.random.default_rng(seed).integers(0, 3, len(requests)).tolist()
    prioritised = [replace(arrival, priority=priority) for arrival, priority in zip(requests, priorities, strict=True)]

    def in_order(engine: Engine) -> None:
        check_memory(engine)
        assert [request.order for request in engine.waiting] == sorted(request.order for request in engine.waiting)

    result = simulate(by_priority(profile), prioritised, after_step=in_order)
    assert [outcome.rejected or outcome.finish_s >= outcome.first_token_s for outcome in result.outcomes] == [True] * len(
        requests
    )


def test_one_at_a_time_with_constant_service_is_a_single_server_queue() -> None:
    """Lindley's recursion: each request starts when it is there and the one before it has left."""
    profile = replace(PROFILE, max_num_seqs=1, max_waiting=1000)
    service_s = profile.iteration_s(0, 0, ((30, 0),))
    at_s = np.cumsum(np.random.default_rng(5).exponential(service_s / 0.8, 500))
    result = simulate(profile, arrivals(*((float(at), 30, 1) for at in at_s)))
    finish_s = 0.0
    for at, outcome in zip(at_s, result.outcomes, strict=True):
        finish_s = max(finish_s, at) + service_s
        assert outcome.finish_s == pytest.approx(finish_s, rel=1e-12)
    assert result.busy_s == pytest.approx(500 * service_s)
