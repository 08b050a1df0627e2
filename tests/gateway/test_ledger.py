"""The ledger keeps account of what is under way, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from gateway.ledger import BASE_ROWS, NOWHERE, Ledger
from tests.draws import examples
from tests.worlds import seeds

EXPERTS, CAPACITY = 3, 2 * BASE_ROWS


def ledger() -> Ledger:
    return Ledger(EXPERTS, CAPACITY, np.full(EXPERTS, 0.02))


@examples(30)
@given(seeds)
def test_loads_are_those_of_a_plain_list(seed: int) -> None:
    """Whatever opens, streams and ends, in any order, and however often the rows move together."""
    rng = np.random.default_rng(seed)
    kept, now_s = ledger(), 0.0
    plain: dict[str, list[float]] = {}  # expert, prompt, predicted, tokens
    for i in range(3 * CAPACITY):
        now_s += rng.exponential(0.01)
        if kept.rows == CAPACITY:
            kept.compact(np.zeros(CAPACITY, np.bool_))
        key, expert, prompt = f"r{i}", int(rng.integers(EXPERTS)), int(rng.integers(1, 99))
        kept.opened(key, kept.take_row(), expert, now_s, prompt, 50.0)
        plain[key] = [expert, prompt, 50.0, 0]
        for other in rng.choice(list(plain), 3):
            tokens = int(rng.integers(1, 5))
            kept.streamed(other, tokens, now_s)
            plain[other][3] += tokens
        if len(plain) > rng.integers(1, 40):
            gone = str(rng.choice(list(plain)))
            rng.choice([kept.finished, kept.cancelled, kept.failed])(gone, now_s)
            del plain[gone]
    assert len(kept) == len(plain)
    assert all(key in kept for key in plain)
    for e, load in enumerate(kept.loads()):
        mine = [x for x in plain.values() if x[0] == e]
        waiting = [x for x in mine if x[3] == 0]
        assert (load.waiting, load.running) == (len(waiting), len(mine) - len(waiting))
        assert load.prompt_tokens == sum(x[1] for x in waiting)
        assert load.tokens_left == pytest.approx(sum(max(x[2] - x[3], 1) for x in mine))


def test_every_request_ends_once_with_what_it_got() -> None:
    kept = ledger()
    for i in range(4):
        kept.opened(f"r{i}", kept.take_row(), 0, float(i), 10, 20.0)
    kept.streamed("r0", 3, 5.0)
    kept.finished("r0", 6.0, output_tokens=7)
    kept.finished("r1", 7.0, prompt_tokens=12, output_tokens=2, cut=True)
    kept.cancelled("r2", 8.0)
    kept.failed("r3", 9.0)
    for end in (kept.finished, kept.cancelled, kept.failed):
        end("r0", 10.0)
        end("nobody", 10.0)
    kept.streamed("r0", 1, 11.0)
    ended = kept.take_ended()
    assert [(x.row, x.how, x.tokens, x.ended_s) for x in ended] == [
        (0, 1, 7, 6.0),
        (1, 2, 2, 7.0),
        (2, 0, 0, 8.0),
        (3, 0, 0, 9.0),
    ]
    assert ended[0].first_s == 5.0
    assert ended[1].first_s == 7.0  # its tokens were seen at the end alone
    assert np.isnan(ended[2].first_s)
    assert len(kept) == 0
    assert kept.take_ended() == []
    assert (kept.seen.expert == NOWHERE).all()


def test_tokens_that_come_together_are_of_one_iteration() -> None:
    kept = ledger()
    for i in range(2):
        kept.opened(f"r{i}", kept.take_row(), 1, 0.0, 10, 20.0)
    for time_s in (1.0, 1.001, 1.02, 1.021):
        kept.streamed("r0" if time_s in (1.0, 1.02) else "r1", 1, time_s)
    assert kept.seen.began_s[0, 1] == 1.021
    assert kept.seen.before_s[0, 1] == 1.001
    assert kept.seen.began_s[0, 0] == -np.inf


def test_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="capacity = 10: must be >= 512"):
        Ledger(1, 10, np.ones(1))
