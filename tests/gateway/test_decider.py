"""Decisions without HTTP: where requests go, and where they never go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gateway.decider import Decider
from gateway.policies import LivePolicy, Verdict, load_policy
from gateway.request import Budgets, RouteRequest
from gateway.slowness import MOST_S
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.service import ServiceClass, Tenant
from tests.gateway.clocks import Stopwatch, steady_decider
from tuning.specs.routers import SHIPPED_ROUTER

ALL = [True] * 6


def policy_of(act: Callable[[], Verdict]) -> LivePolicy:
    """A policy that does what it is told."""
    observation = load_policy("impact-greedy", load_scenario("edge6").observation).observation
    return LivePolicy(name="told", version="1", observation=observation, decide=lambda live, rng: act())


def confined() -> Scenario:
    """edge6 with classes and tenants that may go to some of its experts."""
    base = load_scenario("edge6")
    names = [expert.name for expert in base.experts]
    return replace(
        base,
        classes=(
            ServiceClass(name="open"),
            ServiceClass(name="inside", confined_to=tuple(names[:3]), ttft_s=0.5),
            ServiceClass(name="one", confined_to=(names[4],), tpot_s=0.05, weight=2.0),
        ),
        tenants=(
            Tenant(name="anyone"),
            Tenant(name="ours", confined_to=tuple(names[2:5])),
            Tenant(name="last", confined_to=(names[5],)),
        ),
    )


def test_answers_that_are_always_cut_are_not_expected_beyond_their_limits() -> None:
    """Clients may ask for so many tokens and more than a model would say. Each answer is alone, with right engine figures."""
    rng = np.random.default_rng(3)
    decider = steady_decider(load_scenario("edge6"), f"bundle:{SHIPPED_ROUTER}")
    usual = RouteRequest(prompt_tokens=100, pinned=0)
    first = decider.decide(usual, 0.0, ALL)
    decider.ledger.cancelled(first.id, 0.0)
    mean, step_s = first.predicted_tokens[0], first.predicted_tpot_s[0]
    now_s = 0.0
    for _ in range(300):
        now_s += 100.0
        most = int(rng.integers(2, round(3 * mean)))
        decision = decider.decide(replace(usual, max_tokens=most), now_s, ALL)
        assert decision.predicted_tokens[0] <= most
        assert decision.predicted_tpot_s[0] == pytest.approx(step_s, rel=0.2)  # whatever is believed of lengths
        for token in range(most):
            decider.ledger.streamed(decision.id, 1, now_s + 0.2 + token * step_s)
        looked = decider.decide(usual, now_s + 0.2 + most * step_s, ALL)  # while it is under way, with all its tokens
        decider.ledger.cancelled(looked.id, now_s + 0.2 + most * step_s)
        decider.ledger.finished(decision.id, now_s + 0.2 + most * step_s, output_tokens=most, cut=True)
    learned = decider.decide(usual, now_s + 100.0, ALL)
    assert mean < learned.predicted_tokens[0] < 3.3 * mean  # no limit is above three times the mean
    bound = decider.decide(replace(usual, max_tokens=round(2 * mean)), now_s + 200.0, ALL)
    assert bound.predicted_tokens[0] == pytest.approx(round(2 * mean), rel=1e-3)


def test_equal_experts_share_the_requests() -> None:
    """Also while nothing is under way anywhere, and whoever decides: no expert is the first of those that tie."""
    one = load_scenario("edge6").experts[0]
    twins = replace(load_scenario("edge6"), experts=tuple(replace(one, name=name) for name in "abcd"))
    for policy in ("least-work", "impact-greedy", "join-shortest-queue"):
        decider = steady_decider(twins, policy)
        counts = np.zeros(4)
        for i in range(400):
            decision = decider.decide(RouteRequest(prompt_tokens=10), float(i), [True] * 4)
            assert decision.expert is not None
            assert sorted((decision.expert, *decision.ranking)) == [0, 1, 2, 3]
            decider.ledger.finished(decision.id, i + 0.5, output_tokens=10)
            counts[decision.expert] += 1
        assert counts.min() > 56  # of 100 expected: five standard deviations


def test_a_confined_request_never_leaves_its_set() -> None:
    """Whatever the policy does: 12,000 drawn requests, their retries, and engines and policies that fail."""
    rng = np.random.default_rng(7)
    scenario = confined()
    clock = Stopwatch(1e-4)
    good = load_policy("impact-greedy", scenario.observation)

    def act(live, generator) -> Verdict:
        whim = rng.random()
        if whim < 0.1:
            raise RuntimeError("no")
        if whim < 0.3:  # anything, also what does not exist
            return Verdict(int(rng.integers(-2, 9)), 1.0, None)
        clock.step_s = 0.01 if whim < 0.4 else 1e-4
        return good.decide(live, generator)

    wild = LivePolicy(name="wild", version="1", observation=good.observation, decide=act)
    decider = Decider(scenario, wild, capacity=300, clock=clock, may_drop=(True, False, False))
    names = [expert.name for expert in scenario.experts]
    under_way: list[str] = []
    went = np.zeros((3, 4, 6), np.int64)
    now_s = 0.0
    for _ in range(12_000):
        now_s += rng.exponential(0.05)
        service, who = int(rng.integers(3)), int(rng.integers(4))
        tenant = ("", *(entry.name for entry in scenario.tenants))[who]
        own = tuple(bool(x) for x in rng.random(6) < 0.7) if rng.random() < 0.3 else None
        pinned = int(rng.integers(6)) if rng.random() < 0.1 else None
        ready = [bool(x) for x in rng.random(6) < 0.9]
        request = RouteRequest(
            prompt_tokens=int(rng.integers(1, 5000)) if rng.random() < 0.9 else tuple(int(x) for x in rng.integers(1, 5000, 6)),
            max_tokens=None if rng.random() < 0.5 else int(rng.integers(1, 600)),
            service=service,
            tenant=tenant,
            allowed=own,
            pinned=pinned,
            budgets=Budgets(ttft_s=float(rng.integers(1, 400))) if rng.random() < 0.1 else Budgets(),
            streams=bool(rng.random() < 0.8),
        )
        allowed = set(range(6)) if own is None else {e for e in range(6) if own[e]}
        for entry in (scenario.classes[service], *([scenario.tenants[who - 1]] if who else [])):
            if entry.confined_to:
                allowed &= {names.index(name) for name in entry.confined_to}
        allowed &= allowed if pinned is None else {pinned}
        decision = decider.decide(request, now_s, ready)
        tried = [x for x in (decision.expert, *decision.ranking) if x is not None]
        assert set(tried) <= allowed
        assert all(ready[e] for e in tried)
        assert len(tried) == len(set(tried))
        assert (decision.expert is None) == (decision.reason is not None)
        assert (decision.id in decider.ledger) == (decision.expert is not None)
        if decision.reason == "dropped":
            assert service == 0
        if decision.expert is None:
            continue
        went[service, who, decision.expert] += 1
        for e in range(6):
            if e not in allowed:
                with pytest.raises(ValueError, match="may not go to expert"):
                    decider.moved(decision.id, e, now_s)
        if decision.ranking and rng.random() < 0.2:
            decider.moved(decision.id, decision.ranking[0], now_s)
        under_way.append(decision.id)
        for _ in range(2):
            decider.ledger.streamed(str(rng.choice(under_way)), int(rng.integers(1, 4)), now_s)
        if len(under_way) > rng.integers(200):
            key = under_way.pop(int(rng.integers(len(under_way))))
            ledger = decider.ledger
            rng.choice([ledger.cancelled, ledger.failed, ledger.finished])(key, now_s)
    assert (went.sum(axis=(0, 1)) > 100).all()  # each expert was used
    assert went[1, 0, 3:].sum() == went[2, 0, :4].sum() == went[:, 3, :5].sum() == 0
    assert set(decider.fallbacks) == {"error", "slow"}
    assert set(decider.refusals) >= {"confined", "unavailable", "too_long", "dropped"}
    assert decider.slowness.slow > 0


def test_a_policy_that_fails_is_replaced_and_counted() -> None:
    decider = steady_decider(load_scenario("edge6"), policy_of(lambda: Verdict(17, 1.0, None)))
    for count in range(1, 4):
        decision = decider.decide(RouteRequest(prompt_tokens=10), float(count), ALL)
        assert (decision.policy, decision.fallback) == ("impact-greedy", "error")
        assert decision.expert is not None
        assert decider.fallbacks["error"] == count


def test_a_slow_policy_rests_and_comes_back() -> None:
    clock = Stopwatch(2 * MOST_S)
    decider = Decider(load_scenario("edge6"), policy_of(lambda: Verdict(0, 1.0, None)), clock=clock)
    for i in range(3):
        assert decider.decide(RouteRequest(prompt_tokens=10), 0.01 * i, ALL).policy == "told"
    clock.step_s = MOST_S / 100
    resting = decider.decide(RouteRequest(prompt_tokens=10), 0.5, ALL)
    assert (resting.policy, resting.fallback) == ("impact-greedy", "slow")
    assert decider.fallbacks == {"slow": 1}
    assert decider.decide(RouteRequest(prompt_tokens=10), 1.5, ALL).policy == "told"


def test_a_drop_goes_to_the_best_expert_where_none_is_allowed() -> None:
    scores = np.array([0.1, 0.5, 0.2, 0.0, 0.3, 0.4, 0.9])
    drop = policy_of(lambda: Verdict(6, 1.0, scores))
    strict, lenient = (steady_decider(load_scenario("edge6"), drop, may_drop=(may,)) for may in (False, True))
    kept = strict.decide(RouteRequest(prompt_tokens=10), 0.0, ALL)
    assert (kept.expert, kept.ranking) == (1, (5, 4, 2, 0, 3))
    gone = lenient.decide(RouteRequest(prompt_tokens=10), 0.0, ALL)
    assert (gone.expert, gone.reason) == (None, "dropped")
    assert lenient.refusals == {"dropped": 1}


def test_nothing_is_entered_beyond_the_capacity() -> None:
    decider = steady_decider(load_scenario("edge6"), "round-robin", capacity=256)
    decisions = [decider.decide(RouteRequest(prompt_tokens=10), 1e-3 * i, ALL) for i in range(400)]
    assert [x.reason for x in decisions] == [None] * 256 + ["full"] * 144
    decider.ledger.finished(decisions[0].id, 1.0, output_tokens=5)
    assert decider.decide(RouteRequest(prompt_tokens=10), 1.1, ALL).reason is None


def test_warming_up_leaves_no_trace() -> None:
    one, other = (steady_decider(load_scenario("edge6"), "impact-greedy") for _ in range(2))
    one.warm_up()
    assert len(one.ledger) == 0
    for i in range(20):
        request = RouteRequest(prompt_tokens=10 * i + 1)
        mine, others = one.decide(request, float(i), ALL), other.decide(request, float(i), ALL)
        assert (mine.expert, mine.scores, mine.predicted_ttft_s) == (others.expert, others.scores, others.predicted_ttft_s)


def test_a_new_decider_goes_on_where_the_old_one_was() -> None:
    """With what is under way and what was learned: it predicts and decides as the old one."""
    scenario = load_scenario("edge6")
    old, new = (
        steady_decider(scenario, "calibrated-impact-greedy"),
        steady_decider(scenario, "calibrated-impact-greedy", capacity=999),
    )
    rng, keys, now_s = np.random.default_rng(4), [], 0.0
    for _ in range(600):
        now_s += rng.exponential(0.05)
        keys.append(old.decide(RouteRequest(prompt_tokens=int(rng.integers(1, 900))), now_s, ALL).id)
        for key in rng.choice(keys, 6):
            old.ledger.streamed(str(key), 2, now_s)
        if len(keys) > 30:
            old.ledger.finished(keys.pop(int(rng.integers(30))), now_s)
    keys.append(old.decide(RouteRequest(prompt_tokens=9), now_s, ALL).id)  # it has learned from all that has come back
    new.take_over(old, now_s)
    assert new.ledger.loads() == old.ledger.loads()
    assert new.ledger.keys() == keys
    for i in range(20):
        now_s += 0.01
        request = RouteRequest(prompt_tokens=50 + i)
        mine, its = (decider.decide(request, now_s, ALL) for decider in (new, old))
        assert mine.expert == its.expert
        np.testing.assert_allclose(mine.predicted_ttft_s, its.predicted_ttft_s, rtol=1e-6)
        np.testing.assert_allclose(mine.scores, its.scores, rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="must be those of before"):
        steady_decider(load_scenario("edge5")).take_over(old, now_s)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("impact-greedy-true", "no gateway can follow it"),
        ("nonsense", "unknown"),
        ("bundle:/nowhere", "no such file or folder"),
    ],
)
def test_policies_that_no_gateway_can_follow_are_refused(policy: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        steady_decider(load_scenario("edge6"), policy)
