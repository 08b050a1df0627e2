"""Rollout workers that die, hang or raise, for real: training goes on, and what it learns from is right."""

import logging
import os
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import ray
import torch

from models.rllib.avl import algorithm as avl
from models.rllib.errors import WorkersFailed
from models.rllib.rollout.collect import collect, steps_sampled, with_processes
from models.rllib.rollout.runner import ColumnRunner
from tests.models.test_avl import COUNTS, config, learner_of, module_of

pytestmark = pytest.mark.cluster

ROWS, PATIENCE_S = 20, 4.0
STEPS = ROWS * sum(COUNTS)  # of a worker in an iteration
ALL_GONE_S = 20 * PATIENCE_S  # until nobody is waited for any more


@pytest.fixture(scope="module", autouse=True)
def one_ray():
    """RLlib's algorithms want one."""
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def built(scenario, env_runners=2, on_environment=None, **settings):
    made = config(scenario, router="aggregates", rows=ROWS, **settings)
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
    algorithm = built(small_scenario)
    yield algorithm
    algorithm.stop()


@pytest.fixture
def pair(shared):
    """An algorithm with two workers, both well."""
    until_whole(shared)
    return shared


def process_ids(algorithm):
    return dict(algorithm.rollout_workers.ask(lambda runner: (runner.worker_index, os.getpid()), steps=0))


def timed(algorithm):
    begin_s = time.monotonic()
    result = algorithm.train()
    return time.monotonic() - begin_s, result["num_env_steps_sampled_lifetime"]


def until_whole(algorithm, limit_s=60):
    """Iterate until both workers sample again."""
    end_s, steps = time.monotonic() + limit_s, timed(algorithm)[1]
    while time.monotonic() < end_s:
        _, now = timed(algorithm)
        if now - steps > 1.5 * STEPS:
            return
        steps = now
    raise AssertionError("the worker has not come back")


def until(answers, limit_s=60):
    """Wait until there is an answer instead of an error of Ray."""
    end_s = time.monotonic() + limit_s
    while time.monotonic() < end_s:
        with suppress(ray.exceptions.RayError):
            return answers()
        time.sleep(0.1)
    raise AssertionError("no answer")


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "models.rllib.rollout.workers"]


def test_a_killed_worker_costs_its_sample_and_little_time_and_comes_back(pair, caplog):
    algorithm, before = pair, process_ids(pair)
    usual_s = min(timed(algorithm)[0] for _ in range(3))
    steps = steps_sampled(algorithm)
    os.kill(before[2], signal.SIGKILL)
    lost_s, now = timed(algorithm)
    assert 0.5 * STEPS < now - steps < 1.5 * STEPS
    assert lost_s - usual_s < 10
    until_whole(algorithm)
    after = process_ids(algorithm)
    assert after[1] == before[1]
    assert after[2] != before[2]
    assert lines(caplog) == ["rollout worker 2 failed, its sample is lost: its process died", "rollout worker 2 is back"]


def test_a_worker_started_anew_unnoticed_acts_as_the_learner_does_and_meets_other_episodes(build):
    algorithm = build()
    first = {fragment.worker: fragment for fragment in collect(algorithm) if not fragment.group}
    algorithm.train()
    os.kill(process_ids(algorithm)[2], signal.SIGKILL)
    actor = algorithm.env_runner_group._worker_manager._actors[2]
    until(lambda: ray.get(actor.ping.remote()))
    fragments = {fragment.worker: fragment for fragment in collect(algorithm) if not fragment.group}
    assert not np.array_equal(first[2].obs["arrived"][0], fragments[2].obs["arrived"][0])
    weights = module_of(learner_of(algorithm)).router.state_dict()

    def theirs(runner):
        return runner.module.router.state_dict()

    held = algorithm.rollout_workers.ask(theirs, steps=0)
    assert len(held) == 2
    assert all(torch.equal(weights[key], own[key]) for own in held for key in weights)


def test_where_all_are_killed_training_waits_for_the_first_to_come_back(pair):
    algorithm, steps = pair, steps_sampled(pair)
    for number in process_ids(algorithm).values():
        os.kill(number, signal.SIGKILL)
    _, now = timed(algorithm)
    assert now - steps > 0.5 * STEPS


def test_a_worker_killed_in_the_search_for_the_price_leaves_the_worlds_of_the_others(build, tmp_path, monkeypatch):
    whole, told = avl.try_candidates, []

    def dying(runner, *arguments):
        if runner.worker_index == 2 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(runner, *arguments)

    monkeypatch.setattr(avl, "try_candidates", dying)
    algorithm = build(generations=3, population=4, search_worlds=12, search_requests=20)
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
    _, steps = timed(algorithm)
    before = process_ids(algorithm)
    assert 0.5 * STEPS < steps < 1.5 * STEPS
    _, now = timed(algorithm)
    assert now - steps > 1.5 * STEPS
    assert process_ids(algorithm) == before
    assert lines(caplog) == ["rollout worker 2 failed, its sample is lost: ZeroDivisionError: no such expert"]


def test_environments_that_always_raise_end_the_run_with_what_they_raise(build):
    algorithm = build(on_environment=failing(None))
    with pytest.raises(WorkersFailed, match=r"3 times in a row.*worker 1: ZeroDivisionError: no such expert"):
        algorithm.train()


def test_training_goes_on_with_the_worker_whose_environments_do_not_raise(build):
    algorithm = build(on_environment=failing(None, numbers=(1,)))
    assert [timed(algorithm)[1] // STEPS for _ in range(3)] == [1, 2, 3]


def test_without_worker_processes_the_first_error_ends_the_run(build):
    algorithm = build(env_runners=0, on_environment=failing(None))
    logging.getLogger("ray.rllib").setLevel(logging.CRITICAL)
    with pytest.raises(WorkersFailed, match="sampling failed: ZeroDivisionError: no such expert"):
        algorithm.train()


def test_a_worker_that_hangs_is_left_out_until_it_goes_on(pair, caplog):
    algorithm, hung = pair, process_ids(pair)[2]
    os.kill(hung, signal.SIGSTOP)
    try:
        first_s, _ = timed(algorithm)
        for _ in range(3):
            timed(algorithm)
    finally:
        os.kill(hung, signal.SIGCONT)
    assert first_s < ALL_GONE_S / 2
    until_whole(algorithm)
    assert process_ids(algorithm)[2] == hung
    # A busy machine may make worker 1 late as well.
    assert [line.split(" for ")[0] for line in lines(caplog) if "worker 2" in line] == [
        "rollout worker 2 has not answered",
        "rollout worker 2 answers again",
    ]


def test_where_those_asked_hang_a_worker_that_goes_on_stands_in_for_them(pair, caplog):
    algorithm, numbers = pair, process_ids(pair)
    os.kill(numbers[1], signal.SIGSTOP)
    waking = threading.Timer(PATIENCE_S, os.kill, (numbers[1], signal.SIGCONT))
    try:
        timed(algorithm)
        os.kill(numbers[2], signal.SIGSTOP)
        steps = steps_sampled(algorithm)
        waking.start()
        took_s, now = timed(algorithm)
    finally:
        waking.cancel()
        for number in numbers.values():
            os.kill(number, signal.SIGCONT)
    assert 0.5 * STEPS < now - steps < 1.5 * STEPS
    assert took_s < ALL_GONE_S / 2
    assert "rollout worker 1 answers again" in lines(caplog)
    until_whole(algorithm)


def test_a_worker_that_hangs_does_not_keep_a_run_from_ending(build):
    algorithm = build()
    algorithm.train()
    os.kill(process_ids(algorithm)[1], signal.SIGSTOP)
    algorithm.train()
    begin_s = time.monotonic()
    algorithm.stop()
    assert time.monotonic() - begin_s < 10


def test_a_runner_takes_up_older_weights_than_its_own(small_scenario):
    runner = ColumnRunner(config=config(small_scenario, router="aggregates"))
    before = runner.get_state()
    runner.set_state({**before, "weights_seq_no": 7})
    for parameter in runner.module.parameters():
        torch.nn.init.zeros_(parameter)
    runner.set_state({**before, "weights_seq_no": 3})
    assert any(parameter.any() for parameter in runner.module.parameters())
