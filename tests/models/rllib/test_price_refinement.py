"""The refinement of a price: it finds what parabolas say, spares worlds that would lose, and ignores what is noise."""

import numpy as np
import pytest

from models.price import Term
from models.rllib.avl.price_refinement import PriceRefinement

TERMS = {"level": Term(0.0, 0.25), "load": Term(1.0, 0.1), "idle": Term(0.0, 0.5)}
REFERENCE = {"level": -9.0}
START = np.array([0.4, 1.0, -0.2])


def responses(candidates, worlds):
    """(K, W) QoS of candidates in worlds, functions of a price."""
    return np.array([[world(candidate) for world in worlds] for candidate in candidates])


def peak(level, load, height=0.5, curve=0.4):
    """A world with its best price there, to which the third parameter means nothing."""
    return lambda x: height - curve * ((x[0] - level) ** 2 + (x[1] - load) ** 2)


def refined(worlds, start=START, reference=REFERENCE):
    refinement = PriceRefinement(TERMS, reference)
    refinement.tell(responses(refinement.ask(start), worlds))
    return start + refinement.step()


def test_it_asks_for_each_parameter_alone_and_for_the_reference():
    asked = PriceRefinement(TERMS, REFERENCE).ask(START)
    np.testing.assert_array_equal(asked[0], START)
    np.testing.assert_array_equal((asked[1:-1] != START).sum(axis=1), np.ones(6))
    np.testing.assert_allclose(asked[1:4] + asked[4:7], 2 * np.tile(START, (3, 1)))
    np.testing.assert_array_equal(asked[-1], [-9.0, 1.0, 0.0])
    assert len(PriceRefinement(TERMS).ask(START)) == 7


@pytest.mark.parametrize("reference", [REFERENCE, None])
def test_it_goes_to_the_best_price_nearby_and_leaves_what_means_nothing(reference):
    found = refined([peak(0.6, 0.9)] * 3, reference=reference)
    np.testing.assert_allclose(found, [0.6, 0.9, -0.2], atol=0.02)


def test_it_goes_no_further_than_it_has_seen():
    found = refined([peak(5.0, 1.0)])
    assert found[0] == pytest.approx(START[0] + 2 * TERMS["level"].spread)


def test_it_does_not_gain_much_in_many_worlds_by_losing_in_a_few():
    gain, loss = peak(0.9, 1.0), lambda x: 0.2 - 0.1 * x[0]  # the second is level with the reference at the start
    alone = refined([gain] * 4 + [loss], reference=None)

    def judged(x):
        return loss(x) if x[0] > -5 else loss(START)

    careful = refined([gain] * 4 + [judged])
    assert START[0] <= careful[0] < alone[0]


def test_it_does_not_move_for_less_than_noise():
    rng = np.random.default_rng(5)
    refinement = PriceRefinement(TERMS, REFERENCE)
    asked = refinement.ask(START)
    for _ in range(4):
        refinement.tell(0.5 + 0.002 * rng.standard_normal((len(asked), 24)))
    moves = refinement.step() / (2 * np.array([term.spread for term in TERMS.values()]))
    assert (np.abs(moves) < 0.5).all()
    assert not PriceRefinement(TERMS, REFERENCE).step().any()


def test_what_it_was_told_is_its_state():
    whole, stopped = PriceRefinement(TERMS, REFERENCE), PriceRefinement(TERMS, REFERENCE)
    first, second = (responses(whole.ask(START), worlds) for worlds in ([peak(0.6, 0.9)], [peak(0.2, 1.1), peak(0.0, 1.0)]))
    for qos in (first, second):
        whole.tell(qos)
    stopped.tell(first)
    resumed = PriceRefinement(TERMS, REFERENCE)
    resumed.set_state(stopped.get_state())
    resumed.tell(second)
    np.testing.assert_array_equal(resumed.step(), whole.step())
    assert resumed.generation == whole.generation == 2
