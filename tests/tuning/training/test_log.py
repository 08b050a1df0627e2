"""What a run reports, and how it begins and ends, with an algorithm that takes no time."""

import json
import os
import signal
import time
from dataclasses import asdict, replace

import pytest

from rllib_envs.errors import InputError
from tuning.training import loop as training_loop
from tuning.training.curve import draw_curve
from tuning.training.log import EVENTS, LOG, RunLog, describe, read_log, summarise, to_line
from tuning.training.loop import Diverged, StopLimits, Trainer
from tuning.training.validation import Difference


def result(steps=100, **learned):
    sampled = {
        "finished": 90.0,
        "dropped": 6.0,
        "rejected": 4.0,
        "too_long": 50.0,  # decisions on what no expert can hold: they earn nothing and do not count
        "late": 20.0,
        "reward": 60.0,
        "num_env_steps_sampled": 150.0,
    }
    return {
        "env_runners": sampled | {"num_env_steps_sampled_lifetime": steps},
        "learners": {"default_policy": {"loss": 0.5, "bad": float("nan"), "name": "x", **learned}},
    }


def record(number=1, **changes):
    return replace(summarise(result(100 * number), number, 10.0 * number, 10.0, None), **changes)


class Instant:
    """An algorithm whose learner's state is the number of its iterations."""

    def __init__(self, fail_at=None, sleep_s=0.0):
        self.iterations, self.fail_at, self.sleep_s = 0, fail_at, sleep_s
        self.learner_group = self

    def train(self):
        self.iterations += 1
        time.sleep(self.sleep_s)
        if self.iterations == self.fail_at:
            raise FloatingPointError("value loss is nan")
        return result(100 * self.iterations)

    def get_state(self):
        return self.iterations

    def set_state(self, state):
        self.iterations = state


@pytest.fixture
def train(tmp_path):
    """Train with an algorithm; what asked it to stop, and (iterations, state of the learner) of each checkpoint."""

    def go(algorithm, **limits):
        saved = []

        def save(iteration, steps):
            saved.append((iteration, algorithm.iterations))
            return tmp_path

        with RunLog(tmp_path, []) as log:
            trainer = Trainer(
                algorithm, log, StopLimits(**limits), steps_per_iteration=100, validator=None, validate_every=0, save=save
            )
            try:
                return trainer.train(), saved
            except Diverged as error:
                return str(error), saved

    return go


def test_a_record_says_what_happened():
    made = summarise(result(steps=300), 3, 30.0, 9.0, {"light": Difference(mean=0.01, error=0.002)})
    assert (made.iteration, made.steps, made.qos, made.late_share, made.drop_share) == (3, 300, 0.6, 0.2, 0.1)
    assert made.learner == {"loss": 0.5}
    assert made.validation == {"light": {"mean": 0.01, "error": 0.002}}


def test_a_line_is_for_a_person():
    line = describe(record(12, validation={"heavy": {"mean": 0.0123, "error": 0.004}}), 1234.5, 185.0)
    for piece in ("iteration   12", "1,200", "QoS 0.600", "late 20.0%", "drop 10.0%", "1,234 steps/s", "left 3:05"):
        assert piece in line
    assert "heavy +0.0123 ±0.0040" in line.splitlines()[1]
    assert len(describe(record(), 1.0, 1.0).splitlines()) == 1
    searching = record(learner={"search_generation": 7.0})
    assert describe(searching, 1.0, 1.0).endswith("price search, generation 7")
    assert "price search" not in line


def test_a_log_is_read_back_and_goes_on(tmp_path):
    rows = [record(i) for i in (1, 2, 3)]
    with RunLog(tmp_path, rows[:2]) as log:
        log.add(rows[2], result(300))
    assert read_log(tmp_path / LOG, 99) == rows
    assert read_log(tmp_path / LOG, 2) == rows[:2]
    with RunLog(tmp_path, rows[:1]) as log:  # what came after the checkpoint is dropped
        assert log.records == rows[:1]
    assert read_log(tmp_path / LOG, 99) == rows[:1]
    assert list((tmp_path / EVENTS).iterdir())


def test_a_line_that_is_none_is_named_unless_it_is_the_last_and_beyond_the_checkpoint(tmp_path):
    path = tmp_path / LOG
    path.write_text(to_line(record()) + '{"iteration": 2, "st')
    assert read_log(path, 1) == [record()]
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: not the record of an iteration"):
        read_log(path, 2)
    path.write_text('{"iteration": 1}\n' + to_line(record()))
    with pytest.raises(InputError, match=r"metrics\.jsonl:1"):
        read_log(path, 1)
    with pytest.raises(InputError, match="cannot be read"):
        read_log(tmp_path / "none.jsonl", 1)


def test_records_hold_no_nan():
    assert json.loads(to_line(record())) == asdict(record())


@pytest.mark.parametrize(
    ("limits", "iterations"), [({"iterations": 4}, 4), ({"steps": 250}, 3), ({"steps": 900, "iterations": 2}, 2)]
)
def test_a_run_ends_at_the_first_of_its_limits_with_a_checkpoint(train, limits, iterations):
    assert train(Instant(), **limits) == (None, [(iterations, iterations)])


def test_minutes_are_counted_from_the_start(train):
    began = time.monotonic()
    asked, saved = train(Instant(sleep_s=0.05), minutes=0.005)
    assert asked is None
    assert time.monotonic() - began >= 0.3
    assert 1 <= saved[-1][0] <= 6  # the machine may be slow, but no iteration is shorter


def test_a_loss_that_is_not_finite_leaves_the_state_before_it(train):
    message, saved = train(Instant(fail_at=3), iterations=9)
    assert message == "iteration 3: value loss is nan"
    assert saved == [(2, 2)]


class Asked(Instant):
    """Gets a signal in its second iteration."""

    def __init__(self, number, **more):
        super().__init__(**more)
        self.number = number

    def train(self):
        if self.iterations == 1:
            os.kill(os.getpid(), self.number)
            self.sleep_s *= 100
        return super().train()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_iteration_end_and_saves(train, number):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)]
    assert train(Asked(number), iterations=9) == (number, [(2, 2)])
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)] == before


@pytest.mark.slow
def test_sigterm_does_not_wait_for_ever(train, monkeypatch):
    monkeypatch.setattr(training_loop, "_PATIENCE_S", 1)
    asked = Asked(signal.SIGTERM, sleep_s=3.0)  # its iteration would take 300 s
    assert train(asked, iterations=9) == (signal.SIGTERM, [(1, 1)])


def test_the_curve_shows_what_the_records_say(tmp_path):
    rows = [record(i, qos=0.5 + i / 100) for i in range(1, 12)]
    compared = [replace(rows[-1], validation={"light": {"mean": 0.1, "error": 0.01}})]
    for name, shown in (("few", rows[:2]), ("many", rows), ("again", rows), ("compared", rows[:-1] + compared)):
        draw_curve(tmp_path / f"{name}.png", shown, "a run")
    few, many, again, more = ((tmp_path / f"{name}.png").read_bytes() for name in ("few", "many", "again", "compared"))
    assert many == again
    assert len({few, many, more}) == 3
