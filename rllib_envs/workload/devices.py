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
    order = np.argsort(device, kind="stable")  # device by device, each one's requests in order
    first = np.diff(device[order], prepend=-1) != 0
    stays = np.zeros(arrival_s.size, np.bool_)
    stays[1:] = ~first[1:] & (moved[order[1:]] < _still_there(network, np.diff(arrival_s[order])))
    latest = np.maximum.accumulate(np.where(stays, 0, np.arange(arrival_s.size)))  # the request when it last came to its site
    site = np.empty(arrival_s.size, np.int32)
    site[order] = fresh[order][latest]
    return site


def _still_there(network: Network, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that a device has not moved for each of these times; those between two devices' requests do not count."""
    return np.ones_like(time_s) if network.stay_s is None else np.exp(-np.maximum(time_s, 0.0) / network.stay_s)


def draw_jitter(network: Network | None, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(count,) round trip of each request over its mean: log-normal with mean 1."""
    if network is None or network.jitter_log_sd == 0:
        return np.ones(count)
    sd = network.jitter_log_sd
    return np.exp(sd * rng.standard_normal(count) - 0.5 * sd**2)
