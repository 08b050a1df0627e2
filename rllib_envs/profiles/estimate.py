"""Estimate an engine's cost coefficients from records of requests alone: when each came, its tokens, its first and last token.

No view into the server is needed, so a log of production traffic serves as it is. The simulated engine is the forward model.
It serves the same arrivals, and the coefficients are those whose times agree best: least squares on the logarithms of TTFT and
of the whole time, with a robust loss, as machines have hiccups. A weak prior keeps coefficients that a load leaves open near the
ratios that measured GPUs have. Coefficients trade off one against another where latencies do not. So judge a profile by the
latencies that it predicts: the errors on requests that the fit has not seen, and the intervals of ``latency_interval``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from rllib_envs.errors import InputError
from rllib_envs.profiles.fit import RunErrors, compare_run
from rllib_envs.profiles.measurements import Floats, Ints, MeasuredRun
from rllib_envs.profiles.replay import replay_requests
from rllib_envs.sim.profile import EngineProfile, within_limits

LEAST_REQUESTS = 20
"""Fewest records that are fitted."""

MOST_REQUESTS = 5_000
"""Most records that are fitted, the last ones: a fit takes seconds."""

LEAST_PERIODS = 10
"""Fewest busy periods that can be held out. With fewer it is stretches of time, which hang together."""

COEFFICIENTS = ("c0_ms", "b_ms", "c_ms", "a_ms", "q_ms", "c0_mixed_ms", "handoff_s")
"""The fields of a profile that are estimated, beside the hinge ``n0_tokens``."""

_FOLDS = 5
_NOISE = 0.05  # standard deviation of a log latency about the model: what a residual is measured in
_PRIOR_SD = 2.0  # of a log ratio of two coefficients: a factor of seven either way
_STEP = 0.02  # of a log coefficient, for derivatives: small steps meet no change of batch, large ones see curvature
_GAP_S = 1e5  # between two busy periods: no simulated one lasts so long
_SOFT = 2.0  # residual beyond which the loss grows in proportion
_GENERATIONS, _DRAWS, _ELITE = 8, 100, 14  # of the cross-entropy method
_SPREAD = np.array([0.3, 2.0, 2.0, 0.5, 2.0, 1.0, 1.0, 1.5])  # of the logs of COEFFICIENTS and of the hinge, as it begins
_TURNS, _REACH = 12, (10.0, 3.0, 1.0)  # turns about what was found, and how many standard deviations far
_HINGE_SPREAD, _MOST_HINGE = 0.2, math.log(1024)
_FLOOR = 1.0  # of the Hessian: no direction is searched further than some units of a log
_WIDEST = 12.0  # furthest that a log coefficient goes from its first guess
_BOOT = 100  # draws of the coefficients' posterior for an interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What a server is set to, as far as it is known: the fields of a profile that no latency shows."""

    kv_tokens: int
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 4096
    kv_bytes_per_token: int = 1
    async_scheduling: bool | None = None  # None: not known, and the better of both is taken


class LatencyInterval(NamedTuple):
    """A predicted latency and its 95 % interval, s."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimate:
    """An estimated profile and how far to trust it."""

    profile: EngineProfile
    fitted: RunErrors  # errors of the requests that were fitted
    unseen: RunErrors  # of each request by a fit to others, in the same order
    run: MeasuredRun  # the requests that were fitted, in order of arrival
    unseen_s: tuple[Floats, Floats]  # first and last token by that fit, (R,) s from arrival
    log_covariance: Floats  # (7, 7) of the logs of COEFFICIENTS

    def latency_interval(
        self, prompt_tokens: int, output_tokens: int, together: int = 1
    ) -> tuple[LatencyInterval, LatencyInterval]:
        """TTFT and whole time of the last of ``together`` equal requests that come at once to an idle engine."""
        rng = np.random.default_rng(0)
        draws = rng.multivariate_normal(np.zeros(len(COEFFICIENTS)), self.log_covariance, _BOOT, method="eigh")
        theta = _theta(self.profile)
        profiles = [self.profile, *(_profile(self.profile, theta + draw) for draw in draws.clip(-3, 3))]
        sizes = [np.full(together, tokens, np.int64) for tokens in (prompt_tokens, output_tokens)]
        times = replay_requests(profiles, np.zeros(together), *sizes)
        first_s, last_s = (_interval(part.max(axis=1)) for part in times)
        return first_s, last_s


def estimate_profile(run: MeasuredRun, settings: ServerSettings) -> Estimate:
    """Estimate the coefficients from a run's records.

    Args:
        run: its requests; each has been served, and at least 20 of them.
        settings: the server's limits.

    Raises:
        InputError: too few records, records that no server could have, or limits that no engine could have.
    """
    run = last_requests(run, MOST_REQUESTS)
    if run.arrival_s.size < LEAST_REQUESTS:
        raise InputError(f"{run.arrival_s.size} records of requests: at least {LEAST_REQUESTS} are needed")
    load = _Load(run)
    tried = [settings.async_scheduling] if settings.async_scheduling is not None else [True, False]
    best = _search(load, [first_guess(run, settings, ahead) for ahead in tried])
    unseen_s = _held_out(load, best)
    return Estimate(
        profile=best.profile,
        fitted=compare_run(run, *(run.arrival_s + part[0] for part in load.latencies([best.profile]))),
        unseen=compare_run(run, *(run.arrival_s + part for part in unseen_s)),
        run=run,
        unseen_s=unseen_s,
        log_covariance=_covariance(load, best),
    )


def predicted_run(run: MeasuredRun, profile: EngineProfile) -> tuple[Floats, Floats]:
    """Times of the first and the last token of a run's requests at an engine, (R,) s from arrival.

    Each busy period begins with an idle engine. What is wrong in one is not passed on to the next.
    """
    first_s, last_s = _Load(run).latencies([profile])
    return first_s[0], last_s[0]


def last_requests(run: MeasuredRun, most: int) -> MeasuredRun:
    """The last ``most`` requests of a run; the run itself if it has no more."""
    if run.arrival_s.size <= most:
        return run
    columns = ("prompt_tokens", "output_tokens", "arrival_s", "first_token_s", "last_token_s")
    return replace(run, **{name: getattr(run, name)[-most:] for name in columns})


def busy_periods(run: MeasuredRun) -> Ints:
    """(R,) number of the busy period of each request; between two of them the server had nothing to do."""
    busy_until_s = np.maximum.accumulate(run.last_token_s)
    idle = run.arrival_s[1:] > busy_until_s[:-1]
    return np.concatenate([[0], np.cumsum(idle)]).astype(np.int64)


class _Load:
    """The arrivals of a run, as the forward model serves them. Busy periods are far apart, so errors do not pass on."""

    def __init__(self, run: MeasuredRun) -> None:
        self.run = run
        self.period = busy_periods(run)
        starts = run.arrival_s[np.searchsorted(self.period, np.arange(self.period[-1] + 1))]
        self._arrival_s = run.arrival_s - starts[self.period] + _GAP_S * self.period
        self.log_measured = np.log(np.stack([run.first_token_s - run.arrival_s, run.last_token_s - run.arrival_s]))

    def latencies(self, profiles: Sequence[EngineProfile]) -> tuple[Floats, Floats]:
        """Time to the first and to the last token, (K, R) s."""
        times = replay_requests(profiles, self._arrival_s, self.run.prompt_tokens, self.run.output_tokens)
        return times.first_token_s - self._arrival_s, times.finish_s - self._arrival_s

    def misfits(self, profiles: Sequence[EngineProfile]) -> Floats:
        """Residuals of the log latencies in units of the noise, (K, 2, R); a request that was rejected there has a large one."""
        log_simulated = np.log(np.stack(self.latencies(profiles), axis=1))
        return np.nan_to_num((log_simulated - self.log_measured) / _NOISE, nan=100.0)


class _Found(NamedTuple):
    """A point of the search."""

    profile: EngineProfile
    cost: float


def first_guess(run: MeasuredRun, settings: ServerSettings, ahead: bool = True) -> EngineProfile:
    """A guess from a few records: the fastest tenth of the requests were nearly alone.

    Raises:
        InputError: limits that no engine could have.
    """
    long = run.output_tokens > 1
    tpot_s = (run.last_token_s - run.first_token_s)[long] / (run.output_tokens[long] - 1)
    tpot_ms = 1e3 * float(np.quantile(tpot_s, 0.1)) if long.any() else 10.0
    token_ms = 1e3 * float(np.quantile((run.first_token_s - run.arrival_s) / run.prompt_tokens, 0.1))
    c0_ms, a_ms = max(0.9 * tpot_ms, 1e-2), max(0.8 * token_ms, 1e-4)
    try:
        return EngineProfile(
            c0_ms=c0_ms,
            b_ms=0.01 * c0_ms,
            c_ms=1e-5 * c0_ms,
            a_ms=a_ms,
            n0_tokens=_HINGE,
            q_ms=_Q_TO_A * a_ms,
            c0_mixed_ms=_MIXED_TO_C0 * c0_ms,
            kv_tokens=settings.kv_tokens,
            kv_bytes_per_token=settings.kv_bytes_per_token,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_model_len=max(settings.max_model_len, int((run.prompt_tokens + run.output_tokens).max())),
            max_waiting=min(2**16, max(run.arrival_s.size, 256)),
            async_scheduling=ahead,
            handoff_s=_HANDOFF_S,
        )
    except ValueError as error:
        raise InputError(f"limits of the server: {error}") from None


# Ratios of measured pairs of a GPU and a model (RTX 4090 and PRO 6000, A30): b / c0 .0017 to .0026, c / c0 4e-6 to 8e-6,
# q / a 6e-5 to 9e-5. The other two: an iteration with prefill takes 5 ms of server time beside 17 ms; an HTTP server some ms.
_B_TO_C0, _C_TO_C0, _Q_TO_A, _MIXED_TO_C0, _HANDOFF_S = 2e-3, 6e-6, 7e-5, 0.1, 4e-3
_HINGE = 64


def _misfit_to_ratios(theta: Floats) -> Floats:
    """How far the log coefficients are from the typical ratios, in units of the prior's spread."""
    c0, b, c, a, q, mixed, handoff = theta
    ratios = np.array([b - c0, c - c0, q - a, mixed - c0, handoff])
    return (ratios - np.log([_B_TO_C0, _C_TO_C0, _Q_TO_A, _MIXED_TO_C0, _HANDOFF_S])) / _PRIOR_SD


def _theta(profile: EngineProfile) -> Floats:
    return np.log([getattr(profile, name) for name in COEFFICIENTS])


def _profile(like: EngineProfile, theta: Floats) -> EngineProfile:
    pairs = zip(COEFFICIENTS, np.exp(theta).tolist(), strict=True)
    values: dict[str, Any] = {name: within_limits(name, value) for name, value in pairs}
    return replace(like, **values)


def _residuals(load: _Load, like: EngineProfile, counted: NDArray[np.bool_], theta: Floats) -> Floats:
    return _stacked(load, like, counted, theta[None])[0]


def _stacked(load: _Load, like: EngineProfile, counted: NDArray[np.bool_], thetas: Floats) -> Floats:
    """(K, 2 * requests counted + 5) residuals of K vectors of log coefficients."""
    misfits = load.misfits([_profile(like, theta) for theta in thetas])[:, :, counted]
    return np.concatenate([misfits.reshape(len(thetas), -1), [_misfit_to_ratios(theta) for theta in thetas]], axis=1)


def _jacobian(load: _Load, like: EngineProfile, counted: NDArray[np.bool_], theta: Floats) -> Floats:
    """Central differences of the residuals, (residuals, 7)."""
    steps = _STEP * np.eye(theta.size)
    up, down = np.split(_stacked(load, like, counted, np.concatenate([theta + steps, theta - steps])), 2)
    return (up - down).T / (2 * _STEP)


def _downhill(load: _Load, start: EngineProfile, counted: NDArray[np.bool_], steps: int) -> _Found:
    theta = _theta(start)
    jacobian: Any = partial(_jacobian, load, start, counted)
    found = least_squares(
        partial(_residuals, load, start, counted),
        theta,
        jacobian,
        bounds=(theta - _WIDEST, theta + _WIDEST),
        loss="soft_l1",
        f_scale=_SOFT,
        max_nfev=steps,
        x_scale=1.0,
    )
    return _Found(_profile(start, found.x), float(found.cost))


def _search(load: _Load, starts: Sequence[EngineProfile]) -> _Found:
    """By the cross-entropy method from each start; from the best of them downhill and about what was found, until neither helps.

    Batches form one way or another by a hair. So the residuals jump, and descent alone ends in one of many local minima.
    """
    every = np.ones(load.run.arrival_s.size, np.bool_)
    rng = np.random.default_rng(0)
    begun = [_downhill(load, _among_draws(load, start, rng).profile, every, 10) for start in starts]
    here = min(begun, key=lambda found: found.cost)
    idle = 0
    for turn in range(_TURNS):
        near = _near_draws(load, here, _REACH[turn % len(_REACH)], rng)
        lower = min(near, _downhill(load, near.profile, every, 6), key=lambda found: found.cost)
        idle = 0 if lower.cost < 0.995 * here.cost else idle + 1
        here = min(here, lower, key=lambda found: found.cost)
        if idle == len(_REACH):
            break
    return here


def _among_draws(load: _Load, start: EngineProfile, rng: np.random.Generator) -> _Found:
    """The best of some generations of draws; each is drawn about the best of the one before it. The hinge takes part."""
    mean, scale = np.append(_theta(start), math.log1p(start.n0_tokens)), _SPREAD
    best, lowest = mean, math.inf
    for _ in range(_GENERATIONS):
        draws = mean + scale * rng.standard_normal((_DRAWS, mean.size))
        draws[0] = best
        profiles = [_with_hinge(start, draw) for draw in draws]
        costs = _costs(load, profiles)
        order = np.argsort(costs)[:_ELITE]
        if costs[order[0]] < lowest:
            best, lowest = draws[order[0]], float(costs[order[0]])
        mean, scale = draws[order].mean(axis=0), 0.7 * draws[order].std(axis=0) + 0.3 * scale
    return _Found(_with_hinge(start, best), lowest)


def _near_draws(load: _Load, found: _Found, reach: float, rng: np.random.Generator) -> _Found:
    """The best of draws about what was found, far in the directions that change the latencies little."""
    theta = _theta(found.profile)
    jacobian = _jacobian(load, found.profile, np.ones(load.run.arrival_s.size, np.bool_), theta)
    covariance = np.linalg.inv(jacobian.T @ jacobian + _FLOOR * np.eye(theta.size))
    moves = rng.multivariate_normal(np.zeros(theta.size), reach**2 * covariance, _DRAWS, method="eigh").clip(-2, 2)
    hinges = math.log1p(found.profile.n0_tokens) + _HINGE_SPREAD * rng.standard_normal(_DRAWS)
    hinges[: _DRAWS // 2] = math.log1p(found.profile.n0_tokens)
    profiles = [_with_hinge(found.profile, np.append(theta + move, hinge)) for move, hinge in zip(moves, hinges, strict=True)]
    costs = _costs(load, profiles)
    least = int(costs.argmin())
    return _Found(profiles[least], float(costs[least])) if costs[least] < found.cost else found


def _with_hinge(like: EngineProfile, draw: Floats) -> EngineProfile:
    return replace(_profile(like, draw[:-1]), n0_tokens=round(math.expm1(min(max(draw[-1], 0.0), _MOST_HINGE))))


def _costs(load: _Load, profiles: Sequence[EngineProfile]) -> Floats:
    """The robust loss of each profile, (K,), as ``least_squares`` defines it."""
    misfits = load.misfits(profiles).reshape(len(profiles), -1)
    residuals = np.concatenate([misfits, [_misfit_to_ratios(_theta(profile)) for profile in profiles]], axis=1)
    costs: Floats = _SOFT**2 * (np.sqrt(1 + (residuals / _SOFT) ** 2) - 1).sum(axis=1)
    return costs


def _held_out(load: _Load, best: _Found) -> tuple[Floats, Floats]:
    """Times to the first and the last token of each request by a fit to the other busy periods; by time, if these are few."""
    periods = int(load.period[-1]) + 1
    size = load.run.arrival_s.size
    if periods >= LEAST_PERIODS:
        fold = np.random.default_rng(0).permutation(periods)[load.period] % _FOLDS
    else:
        fold = np.arange(size) * _FOLDS // size
    first_s, last_s = np.empty(size), np.empty(size)
    for k in range(_FOLDS):
        out = fold == k
        times = load.latencies([_downhill(load, best.profile, ~out, 6).profile])
        first_s[out], last_s[out] = (part[0, out] for part in times)
    return first_s, last_s


def _covariance(load: _Load, best: _Found) -> Floats:
    """Of the log coefficients: the inverse of the Hessian, scaled with the spread of what the fit leaves over."""
    theta, every = _theta(best.profile), np.ones(load.run.arrival_s.size, np.bool_)
    jacobian = _jacobian(load, best.profile, every, theta)
    left = _residuals(load, best.profile, every, theta)[: 2 * every.size]
    spread = (1.4826 * float(np.median(np.abs(left)))) ** 2
    return np.asarray(np.linalg.pinv(jacobian.T @ jacobian) * max(spread, 1e-6), np.float64)


def _interval(values: Floats) -> LatencyInterval:
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return LatencyInterval(float(values[0]), float(min(low, values[0])), float(max(high, values[0])))
