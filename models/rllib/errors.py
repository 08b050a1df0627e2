"""Errors of training that has lost processes for good; importable without Ray."""

from __future__ import annotations


class TrainingFailed(Exception):
    """Training cannot go on; what has been saved is whole."""


class WorkersFailed(TrainingFailed):
    """No rollout worker samples any more: an environment raises each time, or the processes die or hang."""


class LearnerFailed(TrainingFailed):
    """A learner process is gone, and what it had learned since the last checkpoint with it."""
