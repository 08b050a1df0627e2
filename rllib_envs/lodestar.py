"""Lodestar (arXiv 2606.00946): a router that learns within an episode what each expert would be worth to a request.

It is a class, as it keeps what it has learned. ``rllib_envs.published_baselines`` makes it a heuristic.
"""

from __future__ import annotations

import numpy as np

from rllib_envs.heuristic import Actions, Values, arrived_feature, available, best_expert, whatif_feature
from rllib_envs.perceptron import Floats, Perceptron
from rllib_envs.sim.rows import ARRIVED_FEATURES, EXPERT_FEATURES
from rllib_envs.simulation import Simulation
from rllib_envs.view import View

SAMPLES = 2048
"""Requests that a cluster's memory holds: the last ones, whether answered or not."""

INPUTS = len(ARRIVED_FEATURES) + len(EXPERT_FEATURES) + 1

_HIDDEN = (32, 32, 32)
_STEPS, _BATCH = 50, 64  # of a round of training
_FEWEST = 64  # answers before the first round
_FARTHEST = 3.0  # cut of corrections, logs


class Lodestar:
    """Predicts the reward at each expert with a network that it trains on the episode's own answers; takes the best.

    The reward is QoS: predicted score times P(in time), the soft deadline of the predicted latency. The latency is the what-if's
    times a correction. The network learns the log of the correction, log(actual / predicted latency), from finished answers.
    Before the first round of training it is 0, so that the router trusts the what-if results.

    As in the paper: one network for all experts, whose input is no expert's index but the features of request and expert; three
    hidden layers; a new round of training every ``every`` requests; optional exploration, a random expert with probability
    ``explore``. Other than there:

    - The reward is QoS instead of the time to the first token, since a deadline is for the whole answer.
    - The network has 32 units a layer for 128, and rounds are more frequent than each thousand requests: episodes are short.
    - Training goes on from the last weights, with weight decay instead of dropout.
    - The pool of old, diverse samples is left out, since ``SAMPLES`` recent ones are most of an episode.
    - So is the filter for shared prefixes, of which there are none, and the fallback for inputs outside the samples' range. That
      fallback trusts the what-if results just where an expert is fuller than ever, and fills it further.

    Each cluster has its own network, memory and generator. They begin anew with each episode, so no cluster depends on another.
    """

    def __init__(self, *, every: float = 250, explore: float = 0.0) -> None:
        """Keep the numbers; the memory comes with the first request of each cluster."""
        self._every, self._explore = int(every), explore
        self._simulation: Simulation | None = None
        self._learners: dict[int, Learner] = {}

    def __call__(self, simulation: Simulation, rng: np.random.Generator) -> Actions:
        """(B,) actions for the arrived requests."""
        if simulation is not self._simulation:
            self._simulation, self._learners = simulation, {}
        view, cursor = simulation.view, simulation.cursor
        features, mask, score = _features(view), available(view), arrived_feature(view, "predicted_score")
        reward = np.zeros(mask.shape)
        for b in np.flatnonzero(mask.any(axis=1)).tolist():
            if cursor[b] == 0 or b not in self._learners:
                self._learners[b] = Learner(rng, simulation.scenario.observation.whatif_tau)
            learner = self._learners[b]
            if cursor[b] > 0 and cursor[b] % self._every == 0:
                learner.learn(simulation, b)
            reward[b] = learner.explore(self._explore, mask.shape[1])
            reward[b] += learner.reward(features[b], score[b])
        actions = best_expert(reward, mask)
        for b in np.flatnonzero(actions < mask.shape[1]).tolist():
            self._learners[b].note(int(cursor[b]), features[b, actions[b]])
        return actions


class Learner:
    """What the router knows of one cluster: samples of the last requests, and the network."""

    def __init__(self, rng: np.random.Generator, tau: float) -> None:
        """Empty memory, with a generator of its own.

        Args:
            rng: seeds that generator.
            tau: scale of the soft deadline.
        """
        self._rng = np.random.default_rng(rng.integers(2**63))
        self._tau = tau
        self._network = Perceptron(INPUTS, _HIDDEN, self._rng)
        self._features = np.zeros((SAMPLES, INPUTS), np.float32)
        self._requests = np.full(SAMPLES, -1)  # number of the request in each place; -1: none

    @property
    def requests(self) -> list[int]:
        """Numbers of the requests in memory, in order."""
        return sorted(self._requests[self._requests >= 0].tolist())

    def note(self, request: int, features: Floats) -> None:
        """Remember the features (INPUTS,) that a request was sent with, in the place of the oldest."""
        place = request % SAMPLES
        self._features[place], self._requests[place] = features, request

    def explore(self, probability: float, n_experts: int) -> Values:
        """(N,) extra rewards: with the given probability random ones that outweigh all others, else 0."""
        if probability > 0 and self._rng.random() < probability:
            return 1e3 * self._rng.random(n_experts)
        return np.zeros(n_experts)

    def reward(self, features: Floats, score: Floats) -> Values:
        """(N,) predicted QoS from (N, INPUTS) features and (N,) predicted scores."""
        correction = np.clip(self._network.predict(features), -_FARTHEST, _FARTHEST)
        latency = np.exp(features[:, -1].astype(float) + correction)
        return score / (1 + np.exp(np.minimum((latency - 1) / self._tau, 50.0)))

    def learn(self, simulation: Simulation, cluster: int) -> None:
        """A round of training on the requests in memory that have been answered."""
        latency = simulation.decisions(cluster).latency_per_token_s / simulation.scenario.slo_s_per_token
        answered = (self._requests >= 0) & ~np.isnan(latency[self._requests])
        if answered.sum() < _FEWEST:
            return
        features = self._features[answered]
        correction = np.log(latency[self._requests[answered]]) - features[:, -1]
        targets = np.clip(correction, -_FARTHEST, _FARTHEST).astype(np.float32)
        self._network.fit(features, targets, _STEPS, _BATCH, self._rng)


def _features(view: View) -> Floats:
    """(B, N, INPUTS) what the view shows of request and expert, and last the log of the predicted latency."""
    log_latency = np.log(np.maximum(whatif_feature(view, "own_latency"), 1e-3))
    return np.concatenate([view.arrived, view.experts, log_latency[..., None]], axis=-1)
