"""Where users are when they ask: devices that stay at a site for a while and then move, and the jitter of their network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllib_envs.network import Network


def draw_sites(network: Network | None, arrival_s: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int32]:
    """(M,) site of the device that each request comes from.

    A device moves in a Markov chain in continuous time: it stays for an exponential time, then goes to a site drawn by share
    (perhaps the same). So at all times its site is distributed by the shares.

    Args:
        network: None for no network: all are at site 0.
        arrival_s: (M,) ascending.
        rng: source of the draws.
    """
    if network is None:
        return np.zeros(arrival_s.size, np.int32)
    share = np.array([site.share for site in network.sites])
    share = share / share.sum()
    device = rng.integers(network.devices, size=arrival_s.size)
    fresh = rng.choice(share.size, arrival_s.size, p=share)
    moved = rng.random(arrival_s.size)
    site = np.empty(arrival_s.size, np.int32)
    last: dict[int, int] = {}  # the device's latest request
    for r, d in enumerate(device.tolist()):
        before = last.get(d)
        stays = before is not None and moved[r] < _still_there(network, float(arrival_s[r] - arrival_s[before]))
        site[r] = site[before] if stays else fresh[r]
        last[d] = r
    return site


def _still_there(network: Network, time_s: float) -> float:
    """Probability that a device has not moved for that time."""
    return 1.0 if network.stay_s is None else float(np.exp(-time_s / network.stay_s))


def draw_jitter(network: Network | None, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(count,) round trip of each request over its mean: log-normal with mean 1."""
    if network is None or network.jitter_log_sd == 0:
        return np.ones(count)
    sd = network.jitter_log_sd
    return np.exp(sd * rng.standard_normal(count) - 0.5 * sd**2)
