"""Where a run learns: on GPUs where there are some, and never on one that is not there."""

import pytest
import ray
import torch

from rllib_envs.errors import InputError
from tuning.training.algorithms import gpus_per_learner
from tuning.training.options import TrainOptions, complete

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def three_gpus():
    """A Ray that says it has them."""
    ray.init("local", num_cpus=1, num_gpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.mark.parametrize(("learners", "asked", "given"), [(1, None, 1), (3, None, 1), (4, None, 0), (3, 1, 1), (3, 0, 0)])
def test_each_learner_has_a_gpu_of_the_cluster_if_there_are_enough(three_gpus, learners, asked, given):
    assert gpus_per_learner(TrainOptions(num_learners=learners, gpus_per_learner=asked)) == given


def test_a_gpu_that_is_asked_for_and_not_there_is_an_error(three_gpus):
    with pytest.raises(InputError, match=r"gpus-per-learner = 1: 4 needed, 3 free in Ray's cluster"):
        gpus_per_learner(TrainOptions(num_learners=4, gpus_per_learner=1))


@pytest.mark.parametrize("there", [False, True])
def test_the_process_that_directs_learns_on_its_own_gpu_if_it_has_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert gpus_per_learner(TrainOptions()) == there
    assert gpus_per_learner(TrainOptions(gpus_per_learner=0)) == 0
    if not there:
        with pytest.raises(InputError, match="1 needed, 0 free for this process"):
            gpus_per_learner(TrainOptions(gpus_per_learner=1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_learners": -1}, "num-learners = -1: must be from 0 to"),
        ({"gpus_per_learner": 2}, "gpus-per-learner = 2: must be 0 or 1"),
    ],
)
def test_numbers_that_cannot_be_are_named(given, message):
    with pytest.raises(InputError, match=message):
        complete(TrainOptions(**given))
