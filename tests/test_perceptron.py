"""The perceptron: what it can learn, and that it repeats."""

import numpy as np
import pytest

from rllib_envs.perceptron import Perceptron


def curve(inputs):
    """A function that no line comes near."""
    return np.abs(inputs[:, 0]) - inputs[:, 1] * (inputs[:, 1] > 0)


@pytest.fixture(scope="module")
def samples():
    inputs = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    return inputs, curve(inputs).astype(np.float32)


def fitted(inputs, targets, seed=1, steps=600):
    rng = np.random.default_rng(seed)
    network = Perceptron(inputs.shape[1], (32, 32), rng)
    network.fit(inputs, targets, steps, 64, rng)
    return network


def test_it_is_zero_until_it_is_fitted(samples):
    assert not Perceptron(3, (8, 8), np.random.default_rng(0)).predict(samples[0]).any()


def test_it_learns_what_no_line_can_follow(samples):
    inputs, targets = samples
    train, rest = slice(0, 1500), slice(1500, None)
    design = np.column_stack([inputs, np.ones(len(inputs))])
    line = design @ np.linalg.lstsq(design[train], targets[train], rcond=None)[0]
    error = fitted(inputs[train], targets[train]).predict(inputs[rest]) - targets[rest]
    assert np.mean(error**2) < 0.25 * np.mean((line[rest] - targets[rest]) ** 2)


def test_more_steps_fit_better(samples):
    errors = [np.mean((fitted(*samples, steps=steps).predict(samples[0]) - samples[1]) ** 2) for steps in (20, 600)]
    assert errors[1] < errors[0]


def test_units_of_the_inputs_do_not_matter(samples):
    inputs, targets = samples
    scaled = inputs * np.float32(8) + np.float32(2)
    np.testing.assert_allclose(
        fitted(scaled, targets, steps=50).predict(scaled), fitted(inputs, targets, steps=50).predict(inputs), atol=1e-2
    )


def test_the_generator_fixes_it(samples):
    first, again, other = (fitted(*samples, seed=seed, steps=20).predict(samples[0]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_far_inputs_count_as_the_farthest_it_knows(samples):
    network = fitted(*samples, steps=50)
    far, farther = (np.full((1, 3), size, np.float32) for size in (1e2, 1e6))
    np.testing.assert_array_equal(network.predict(far), network.predict(farther))
