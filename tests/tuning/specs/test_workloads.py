"""Loads, arrival processes and traces, as typed."""

import numpy as np
import pytest

from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.scenario import LOAD_FRACTIONS, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.episode import draw_episode
from tuning.specs.workloads import TraceOptions, make_workloads

EDGE6 = load_scenario("edge6")
NO_TRACE = TraceOptions()


def make(loads=(), arrivals=(), trace=NO_TRACE, requests=None, scenario=EDGE6):
    return make_workloads(scenario, loads, arrivals, trace, requests)


def test_without_options_it_is_the_scenarios_own():
    (workload,) = make()
    assert workload.scenario.workload == EDGE6.workload
    assert workload.name == "poisson at moderate"


def test_every_process_at_every_load():
    names = [w.name for w in make(["light", "9.5"], ["poisson", "gamma:cv=3", "poisson"])]
    assert names == ["poisson at light", "poisson at 9.5", "gamma:cv=3 at light", "gamma:cv=3 at 9.5"]


@pytest.mark.parametrize("load", LOAD_FRACTIONS)
def test_a_percentage_is_a_share_of_the_capacity(load):
    named, share = make([load, f"{100 * LOAD_FRACTIONS[load]:g}%"])
    assert share.rate_rps == pytest.approx(named.rate_rps)
    assert share.rate_rps == pytest.approx(LOAD_FRACTIONS[load] * capacity_rps(EDGE6))


def test_a_process_with_longer_prompts_has_a_capacity_of_its_own():
    plain, long = make(["50%"], ["poisson", "azure-conversation"])
    assert plain.share_of_capacity == pytest.approx(0.5)
    assert long.share_of_capacity == pytest.approx(0.5)
    assert long.rate_rps < plain.rate_rps


def test_arrivals_come_at_the_nominal_rate():
    (workload,) = make(["5"], ["gamma:cv=0.5"], requests=4000)
    arrival_s = draw_episode(workload.scenario, 1.0, 3).arrival_s
    assert arrival_s.size == 4000
    assert arrival_s.size / arrival_s[-1] == pytest.approx(workload.rate_rps, rel=4 * 0.5 / np.sqrt(4000))


def test_parameters_that_are_not_given_are_the_scenarios():
    (first,) = make((), ["mmpp:burst_ratio=6"])
    assert first.scenario.workload.arrivals.burst_ratio == 6
    (second,) = make((), ["mmpp:cycle_s=10"], scenario=first.scenario)
    assert second.arrivals == "mmpp:burst_ratio=6,cycle_s=10"


def test_a_trace_comes_at_its_own_rate_unless_a_load_is_given(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("when,n\n" + "".join(f"{0.5 * i},{10 + i}\n" for i in range(41)))
    trace = TraceOptions(trace=file, trace_format="csv", trace_time_column="when", trace_prompt_column="n", trace_start_s=10.0)
    own, scaled = make((), (), trace)[0], make(["20"], (), trace)[0]
    assert (own.name, own.rate_rps) == ("trace t.csv from 10 s at native", None)
    assert scaled.rate_rps == 20
    native = draw_episode(own.scenario, 1.0, 0)
    faster = draw_episode(scaled.scenario, 1.0, 0)
    assert np.diff(native.arrival_s) == pytest.approx(0.5)
    assert native.prompt.tolist() == faster.prompt.tolist() == list(range(30, 51))
    assert np.ptp(np.diff(faster.arrival_s)) == pytest.approx(0, abs=1e-9)
    assert faster.arrival_s[-1] < native.arrival_s[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loads": ["heavvy"]}, "load 'heavvy': allowed are requests/s"),
        ({"loads": ["-3"]}, "load '-3': must be positive"),
        ({"loads": ["nan%"]}, "must be positive"),
        ({"loads": ["native"]}, "only a trace has a rate of its own"),
        ({"arrivals": ["posson"]}, "did you mean 'poisson'"),
        ({"arrivals": ["gamma:cycle_s=3"]}, "gamma has no parameter 'cycle_s'"),
        ({"arrivals": ["mmpp:burst_share=2"]}, "burst_share"),
        ({"arrivals": ["trace"]}, "there is no 'trace'"),
        ({"requests": 0}, "requests = 0"),
    ],
)
def test_bad_workloads_are_explained(options, message):
    with pytest.raises(InputError) as error:
        make(**options)
    assert message in str(error.value)


def test_a_bad_window_is_explained(tmp_path):
    with pytest.raises(InputError, match="duration_s"):
        make(trace=TraceOptions(trace=tmp_path / "t.csv", trace_duration_s=-1.0))


def test_workloads_of_one_world_differ_in_the_workload_alone():
    light, bursty = make(["light"], ["poisson", "mmpp"])
    assert with_workload(bursty.scenario, arrivals=light.scenario.workload.arrivals) == light.scenario
