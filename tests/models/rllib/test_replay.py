"""The ring of past steps: whatever is drawn is a step that was taken, with what came after it."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.rllib.core.columns import Columns

from models.rllib.learning.replay import DT_S, MARGINAL, Replay, Ring
from models.rllib.rollout.fragments import Fragment
from tests.draws import examples

pytestmark = pytest.mark.slow  # RLlib takes longer to import than these to run

B = 3


class Stream:
    """A worker whose observations say which worker, environment and moment they are of; time jumps where it is reset."""

    def __init__(self, worker):
        self.worker, self.moment = worker, 1

    def fragment(self, rows, rng, group=0, reset=False):
        self.moment += 100 if reset else 0
        moments = self.moment + np.arange(rows + 1)
        code = (1e6 * self.worker + moments)[:, None] + 1e4 * np.arange(B)
        self.moment += rows
        valid = rng.random((rows, B)) < 0.8
        return Fragment(
            obs={"code": code.astype(np.float32)[..., None], "mask": (code % 2).astype(np.float32)},
            actions=code[:-1].astype(np.int64) % 7,
            rewards=np.sin(code[:-1]).astype(np.float32),
            dt_s=np.cos(code[:-1]).astype(np.float32),
            terminated=code[:-1] % 5 == 0,
            valid=valid,
            marginal=None,
            sums={},
            worker=self.worker,
            group=group,
        )


def check(sample, allowed):
    """Every row of the sample is a step of ``allowed``, with its own columns and the observation that followed."""
    code = sample[Columns.OBS]["code"][:, 0].astype(np.float64)
    assert set(code) <= allowed
    assert np.array_equal(sample[Columns.NEXT_OBS]["code"][:, 0], code + 1)
    assert np.array_equal(sample[Columns.OBS]["mask"], code % 2)
    assert np.array_equal(sample[Columns.NEXT_OBS]["mask"], (code + 1) % 2)
    assert np.array_equal(sample[Columns.ACTIONS], code % 7)
    np.testing.assert_allclose(sample[Columns.REWARDS], np.sin(code), atol=1e-6)
    np.testing.assert_allclose(sample[DT_S], np.cos(code), atol=1e-6)
    assert np.array_equal(sample[Columns.TERMINATEDS], code % 5 == 0)


def codes(fragment):
    """Codes of the valid steps."""
    return set(fragment.obs["code"][:-1, :, 0][fragment.valid].astype(np.float64))


def stored(ring):
    return set(ring._columns["obs.code"].reshape(-1)[ring._cells].astype(np.float64))


visits = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.booleans()), min_size=1, max_size=25)


@examples(150)
@given(visits=visits, rows=st.integers(2, 20), seed=st.integers(0, 99))
def test_a_step_is_drawn_with_its_own_successor(visits, rows, seed):
    ring, rng, allowed = Ring(rows * B), np.random.default_rng(seed), set()
    streams = [Stream(worker) for worker in range(3)]
    for worker, count, reset in visits:
        fragment = streams[worker].fragment(count, rng, reset=reset)
        ring.add(fragment)
        allowed |= codes(fragment)
        newest = set(fragment.obs["code"][:-1, :, 0][-(rows - 1) :].ravel().astype(np.float64))
        assert codes(fragment) & newest <= stored(ring)
        assert len(stored(ring)) == len(ring) <= (rows - 1) * B
        if len(ring):
            check(ring.sample(50, rng), allowed)


def test_a_stream_that_goes_on_is_stored_once():
    ring, rng, stream = Ring(20 * B), np.random.default_rng(0), Stream(1)
    kept: list[set[float]] = []
    for _ in range(9):
        fragment = stream.fragment(4, rng)
        ring.add(fragment)
        kept.append(codes(fragment))
    assert set().union(*kept[-4:]) <= stored(ring)  # 16 steps and a row for the observation after them
    assert len(stored(ring) & kept[-5]) > 0  # as would not be, had each fragment a row of its own for its last observation


def test_every_step_is_as_likely_as_another():
    ring, rng = Ring(30), np.random.default_rng(1)
    ring.add(Stream(0).fragment(9, rng))
    drawn = ring.sample(len(ring) * 4000, rng)[Columns.OBS]["code"][:, 0]
    counts = np.unique(drawn, return_counts=True)[1]
    assert counts.size == len(ring)
    np.testing.assert_allclose(counts, 4000, atol=5 * 4000**0.5)


def test_centred_rewards_are_those_less_the_mean_of_their_environment():
    rng, ring = np.random.default_rng(0), Ring(60)
    fragment = Stream(1).fragment(15, rng)
    ring.add(fragment)
    plain, centred = (ring.sample(4000, np.random.default_rng(1), centred=on) for on in (False, True))
    environment = (plain[Columns.OBS]["code"][:, 0] // 1e4 % 10).astype(int)
    for b in range(B):
        means = fragment.rewards[fragment.valid[:, b], b].mean()
        rows = environment == b
        np.testing.assert_allclose(centred[Columns.REWARDS][rows], plain[Columns.REWARDS][rows] - means, atol=1e-6)


def test_the_true_marginals_of_all_actions_come_with_their_step():
    fragment = Stream(1).fragment(15, np.random.default_rng(0))
    known = replace(fragment, marginal=np.repeat(fragment.rewards[..., None], 4, axis=-1))
    ring = Ring(60)
    ring.add(known)
    sample = ring.sample(50, np.random.default_rng(1))
    assert np.array_equal(sample[MARGINAL], np.repeat(sample[Columns.REWARDS][:, None], 4, axis=-1))


def test_memory_is_taken_once_and_bounded():
    ring, rng, stream = Ring(10 * B), np.random.default_rng(0), Stream(0)
    ring.add(stream.fragment(2, rng))
    before = ring.nbytes
    for count in (7, 60, 3):
        ring.add(stream.fragment(count, rng))
    assert ring.nbytes == before
    assert len(ring) <= 9 * B


def test_each_scenario_has_its_ring_and_its_share():
    replay, rng = Replay(200, 3), np.random.default_rng(0)
    replay.add(Stream(0).fragment(12, rng, group=0))
    replay.add(Stream(1).fragment(3, rng, group=2))
    assert len(replay) == sum(len(ring) for ring in replay.rings)
    shares = np.mean([replay.shares(100, rng) for _ in range(200)], axis=0)
    np.testing.assert_allclose(shares, [100 * len(ring) / len(replay) for ring in replay.rings], atol=3)
    assert shares[1] == 0


def test_a_restored_buffer_draws_the_same_and_goes_on_by_itself():
    replay, stream = Replay(60, 1), Stream(0)
    replay.add(stream.fragment(9, np.random.default_rng(0)))
    state = replay.get_state()
    other = Replay(*replay.get_ctor_args_and_kwargs()[0], **replay.get_ctor_args_and_kwargs()[1])
    other.set_state(state)
    assert pickle.dumps(other.get_state()) == pickle.dumps(state)
    following = stream.fragment(15, np.random.default_rng(2))
    other.add(following)
    draws = [r.rings[0].sample(20, np.random.default_rng(3))[Columns.OBS]["code"] for r in (replay, other)]
    assert not np.array_equal(*draws)  # what one stores does not reach the other
    replay.add(following)
    draws = [r.rings[0].sample(20, np.random.default_rng(3))[Columns.OBS]["code"] for r in (replay, other)]
    assert np.array_equal(*draws)


def test_nothing_can_be_drawn_from_nothing():
    with pytest.raises(ValueError, match="empty"):
        Ring(10).sample(1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="empty"):
        Replay(10, 2).shares(1, np.random.default_rng(0))


def test_a_ring_without_room_for_two_steps_is_refused():
    with pytest.raises(ValueError, match="capacity = 5 for 3 environments"):
        Ring(5).add(Stream(0).fragment(1, np.random.default_rng(0)))
