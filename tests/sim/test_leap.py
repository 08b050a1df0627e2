"""The compiled engine leaps from event to event; it must end every request when the stepper of single iterations does."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rllib_envs.sim.profile import EngineProfile
from rllib_envs.sim.reference import Arrival, simulate
from rllib_envs.sim.state import REJECTED, TOO_LONG
from tests.draws import examples
from tests.sim.engine_runs import PRIORITIES, compiled_run, runs


@examples(400)
@given(runs())
def test_leaping_equals_stepping_every_iteration(run: tuple[EngineProfile, list[Arrival]]) -> None:
    profile, arrivals = run
    expected = simulate(profile, arrivals)
    state = compiled_run(profile, arrivals)
    got = state.records[0]
    assert np.isin(got["status"], (REJECTED, TOO_LONG)).tolist() == [o.rejected for o in expected.outcomes]
    assert got["preemptions"].tolist() == [o.preemptions for o in expected.outcomes]
    for name in ("first_scheduled_s", "first_token_s", "finish_s"):
        np.testing.assert_allclose(got[name], [getattr(o, name) for o in expected.outcomes], rtol=1e-9, atol=1e-12)
    expert = state.experts[0, 0]
    np.testing.assert_allclose(expert["busy_s"], expected.busy_s, rtol=1e-9)
    np.testing.assert_allclose(expert["kv_token_s"], expected.kv_token_s, rtol=1e-9, atol=1e-12)
    assert expert["iteration"] == expected.iterations
    assert expert["freed"] - expert["taken"] == profile.usable_blocks
    assert (expert["context"], expert["n_run"], expert["n_wait"]) == (0, 0, 0)
    assert not expert["phase"].any()


@examples(200)
@given(runs(), st.sampled_from(PRIORITIES))
def test_kernels_without_optional_parts_do_what_those_with_them_do(
    run: tuple[EngineProfile, list[Arrival]], priority: int
) -> None:
    profile, arrivals = run
    alike = [replace(arrival, priority=priority) for arrival in arrivals]
    plain, whole = (compiled_run(profile, alike, plain=plain) for plain in (True, False))
    assert plain.extras is None
    assert whole.extras is not None
    for name in ("experts", "requests", "records", "running", "finish_at", "waiting"):
        assert getattr(plain, name).tobytes() == getattr(whole, name).tobytes(), name
