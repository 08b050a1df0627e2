"""Rollout workers that die, hang or raise, for real: training goes on, and what it learns from is right."""

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import ray
import torch

from models.rllib.avl import algorithm as avl
from models.rllib.errors import WorkersFailed
from models.rllib.rollout import workers
from models.rllib.rollout.collect import collect, steps_sampled, with_processes
from models.rllib.rollout.runner import VectorEnvRunner
from tests.models.rllib.avl_learner import COUNTS, config, learner_of, module_of

pytestmark = pytest.mark.cluster

ROWS, PATIENCE_S = 20, 4.0
STEPS = ROWS * sum(COUNTS)  # of a worker in an iteration
LIMIT_S = 600  # of what a busy machine may take long for


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """RLlib's algorithms want one."""
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def built(scenario, env_runners=2, on_environment=None, **settings):
    made = config(scenario, **{"router": "aggregates", "rows": ROWS} | settings)
    made = with_processes(made, env_runners=env_runners, learners=0, gpus_per_learner=0)
    made.env_runners(sample_timeout_s=PATIENCE_S)
    if on_environment is not None:
        made.callbacks(on_environment_created=on_environment)
    return made.build_algo()


@pytest.fixture
def build(small_scenario):
    """Builds algorithms and stops them."""
    made = []
    yield lambda **settings: made.append(built(small_scenario, **settings)) or made[-1]
    for algorithm in made:
        algorithm.stop()


@pytest.fixture(scope="module")
def shared(small_scenario, one_ray):
    algorithm = built(small_scenario, router="han")
    yield algorithm
    algorithm.stop()


@pytest.fixture
def pair(shared):
    """An algorithm with two workers, both well."""
    until_whole(shared)
    return shared


def until(holds):
    """Wait until something holds, whatever errors of Ray come before; what it is."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        with suppress(ray.exceptions.RayError):
            if found := holds():
                return found
        time.sleep(0.1)
    raise AssertionError("it has not come to be")


def answers(algorithm, function):
    """What both workers answer: on a busy machine one may be late."""
    return until(lambda: len(found := algorithm.rollout_workers.ask(function, steps=0)) == 2 and found)


def process_ids(algorithm):
    return dict(answers(algorithm, lambda runner: (runner.worker_index, os.getpid())))


def sampled(algorithm):
    """The number of workers whose samples an iteration has; in each the environments step together, to STEPS or a few more."""
    before = steps_sampled(algorithm)
    return round((algorithm.train()["num_env_steps_sampled_lifetime"] - before) / STEPS)


def until_whole(algorithm):
    """Iterate until both workers sample again."""
    until(lambda: sampled(algorithm) == 2)


def lines(caplog):
    """What is said of workers, without times."""
    said = [record.getMessage() for record in caplog.records if record.name == "models.rllib.rollout.workers"]
    return [line.split(" for ")[0].removeprefix("rollout ") for line in said]


def incidents(caplog):
    """What is said of workers but that they are late, as on a busy machine they may be."""
    return [line for line in lines(caplog) if "answer" not in line]


@pytest.fixture
def patient(monkeypatch):
    """Where no worker answers, one is waited for until a test that waits for none has failed."""
    monkeypatch.setattr(workers, "_ALL_GONE", LIMIT_S / PATIENCE_S)


def test_a_killed_worker_costs_its_sample_and_comes_back(pair, patient, caplog):
    algorithm, before = pair, process_ids(pair)
    os.kill(before[2], signal.SIGKILL)
    begin_s = time.monotonic()
    assert sampled(algorithm) == 1
    assert time.monotonic() - begin_s < LIMIT_S
    until_whole(algorithm)
    after = process_ids(algorithm)
    assert after[1] == before[1]
    assert after[2] != before[2]
    assert incidents(caplog) == ["worker 2 failed, its sample is lost: its process died", "worker 2 is back"]


@pytest.mark.nightly
def test_a_worker_started_anew_unnoticed_acts_as_the_learner_does_and_meets_other_episodes(build):
    algorithm = build()
    first = {fragment.worker: fragment for fragment in collect(algorithm) if not fragment.group}
    algorithm.train()
    os.kill(process_ids(algorithm)[2], signal.SIGKILL)
    actor = algorithm.env_runner_group._worker_manager._actors[2]
    assert until(lambda: ray.get(actor.ping.remote())) == "pong"
    fragments = {fragment.worker: fragment for fragment in collect(algorithm) if not fragment.group}
    assert not np.array_equal(first[2].obs["arrived"][0], fragments[2].obs["arrived"][0])
    weights = module_of(learner_of(algorithm)).router.state_dict()

    def theirs(runner):
        return runner.module.router.state_dict()

    assert all(torch.equal(weights[key], own[key]) for own in answers(algorithm, theirs) for key in weights)


def test_where_all_are_killed_training_waits_for_the_first_to_come_back(pair):
    for number in process_ids(pair).values():
        os.kill(number, signal.SIGKILL)
    assert sampled(pair) >= 1


def test_a_worker_killed_in_the_search_for_the_price_leaves_the_worlds_of_the_others(build, tmp_path, monkeypatch):
    whole, told = avl.try_candidates, []

    def dying(runner, *arguments):
        if runner.worker_index == 2 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(runner, *arguments)

    monkeypatch.setattr(avl, "try_candidates", dying)
    algorithm = build(generations=3, population=4, search_variants=12, search_requests=20)
    learner = learner_of(algorithm)
    tell = learner.search.tell
    monkeypatch.setattr(learner.search, "tell", lambda qos: told.append(qos.shape) or tell(qos))
    algorithm.train()
    assert told[0][0] == 4
    algorithm.train()
    until_whole(algorithm)
    assert learner.search.generation == 3
    assert all(candidates == 4 and worlds > 0 for candidates, worlds in told)
    assert told[0][1] < max(worlds for _, worlds in told)


def failing(marker, numbers=(0, 1, 2)):
    """Makes the environments of some workers raise in the third step, as long as there is no such file; which they write then."""

    def broken(*, env_runner, env, **_):
        if env_runner.worker_index not in numbers:
            return
        step, count = env.step, [0]

        def stepped(actions):
            count[0] += 1
            if count[0] == 3 and not (marker and marker.exists()):
                if marker:
                    marker.touch()
                raise ZeroDivisionError("no such expert")
            return step(actions)

        env.step = stepped

    return broken


def test_an_environment_that_raises_once_costs_the_sample_of_its_worker(build, tmp_path, caplog):
    algorithm = build(on_environment=failing(tmp_path / "raised", numbers=(2,)))
    assert sampled(algorithm) == 1
    before = process_ids(algorithm)
    until_whole(algorithm)
    assert process_ids(algorithm) == before
    assert incidents(caplog) == ["worker 2 failed, its sample is lost: ZeroDivisionError: no such expert"]


def test_environments_that_always_raise_end_the_run_with_what_they_raise(build):
    algorithm = build(on_environment=failing(None))
    with pytest.raises(WorkersFailed, match=r"3 times in a row.*worker 1: ZeroDivisionError: no such expert"):
        algorithm.train()


def test_training_goes_on_with_the_worker_whose_environments_do_not_raise(build):
    algorithm = build(on_environment=failing(None, numbers=(1,)))
    assert [sampled(algorithm) for _ in range(3)] == [1, 1, 1]


def test_without_worker_processes_the_first_error_ends_the_run(build):
    algorithm = build(env_runners=0, on_environment=failing(None))
    logging.getLogger("ray.rllib").setLevel(logging.CRITICAL)
    with pytest.raises(WorkersFailed, match="sampling failed: ZeroDivisionError: no such expert"):
        algorithm.train()


def test_a_worker_that_hangs_is_left_out_until_it_goes_on(pair, patient, caplog):
    algorithm, hung = pair, process_ids(pair)[2]
    os.kill(hung, signal.SIGSTOP)
    try:
        begin_s = time.monotonic()
        assert [sampled(algorithm) for _ in range(4)] == [1, 1, 1, 1]
        assert time.monotonic() - begin_s < LIMIT_S
    finally:
        os.kill(hung, signal.SIGCONT)
    until_whole(algorithm)
    assert process_ids(algorithm)[2] == hung
    assert [line for line in lines(caplog) if "2" in line][:2] == ["worker 2 has not answered", "worker 2 answers again"]


def test_where_those_asked_hang_a_worker_that_goes_on_stands_in_for_them(pair, patient, caplog):
    algorithm, numbers = pair, process_ids(pair)
    caplog.clear()
    os.kill(numbers[1], signal.SIGSTOP)
    waking = threading.Timer(PATIENCE_S, os.kill, (numbers[1], signal.SIGCONT))
    try:
        assert sampled(algorithm) == 1
        os.kill(numbers[2], signal.SIGSTOP)
        waking.start()
        begin_s = time.monotonic()
        assert sampled(algorithm) == 1
        assert time.monotonic() - begin_s < LIMIT_S
    finally:
        waking.cancel()
        for number in numbers.values():
            os.kill(number, signal.SIGCONT)
    assert lines(caplog)[:3] == ["worker 1 has not answered", "worker 1 answers again", "worker 2 has not answered"]
    until_whole(algorithm)


@pytest.mark.nightly
def test_a_worker_that_hangs_does_not_keep_a_run_from_ending(build):
    algorithm = build()
    os.kill(process_ids(algorithm)[1], signal.SIGSTOP)
    algorithm.train()
    algorithm.stop()  # RLlib alone would wait for ever


def test_a_worker_starts_without_what_takes_seconds_to_import(pair):
    """PyTorch's compiler and PyG, which only learning needs."""
    slow = ("torch._dynamo", "torch._inductor", "torch_geometric")
    assert answers(pair, lambda runner: [name for name in slow if name in sys.modules]) == [[], []]


def test_a_runner_takes_up_older_weights_than_its_own(small_scenario):
    runner = VectorEnvRunner(config=config(small_scenario, router="aggregates"))
    before = runner.get_state()
    runner.set_state({**before, "weights_seq_no": 7})
    for parameter in runner.module.parameters():
        torch.nn.init.zeros_(parameter)
    runner.set_state({**before, "weights_seq_no": 3})
    assert any(parameter.any() for parameter in runner.module.parameters())
