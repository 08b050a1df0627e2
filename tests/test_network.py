"""The network between users and experts: its time counts in every latency, in closed form, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.network import Link, Network, Site
from rllib_envs.scenario import Observation, Scenario
from rllib_envs.scenarios.load import parse_scenario
from rllib_envs.sim.rows import PLACE_FEATURES, PLACE_TABLE
from rllib_envs.simulation import Records, Simulation
from rllib_envs.workload.devices import draw_jitter, draw_sites
from tests.draws import examples
from tests.worlds import REQUESTS, play, random_world, seeds, simulation_of, small

SITES = (Site(name="a", share=3), Site(name="b", share=1))


def network(*, jitter_log_sd: float = 0.0, devices: int = 50, stay_s: float | None = None) -> Network:
    """Two sites of users, experts at the first of them and in a cloud."""
    links = [("a", "a", 0.002), ("b", "a", 0.02), ("a", "cloud", 0.06), ("b", "cloud", 0.12)]
    return Network(
        sites=SITES,
        links=tuple(Link(users=u, experts=e, rtt_s=rtt, mbit_per_s=10.0 if e == "cloud" else None) for u, e, rtt in links),
        jitter_log_sd=jitter_log_sd,
        devices=devices,
        stay_s=stay_s,
    )


def linked(scenario: Scenario, between: Network) -> Scenario:
    """The scenario with that network; its last expert is in the cloud."""
    sites = ["a"] * (scenario.n_experts - 1) + ["cloud"]
    experts = tuple(replace(e, site=site) for e, site in zip(scenario.experts, sites, strict=True))
    return replace(scenario, experts=experts, network=between)


def run(scenario: Scenario, actions: NDArray[np.int64], seed: int = 3) -> tuple[Simulation, Records]:
    simulation = Simulation(scenario, 1)
    simulation.start(0, seed)
    play(simulation, actions)
    return simulation, simulation.records(0)


def test_every_latency_has_the_networks_time_and_engines_know_nothing_of_it() -> None:
    plain = small("edge6")
    actions = np.arange(REQUESTS) % 6
    _, without = run(plain, actions)
    simulation, with_it = run(linked(plain, network(jitter_log_sd=0.3)), actions)
    for name in ("arrival_s", "first_scheduled_s", "first_token_s", "finish_s", "score", "output_tokens", "prompt_tokens"):
        np.testing.assert_array_equal(getattr(with_it, name), getattr(without, name))
    w = simulation.workload
    cloud, at_b = actions == 5, w.user["site"][0] == 1
    rtt_s = np.select([~cloud & ~at_b, ~cloud & at_b, cloud & ~at_b], [0.002, 0.02, 0.06], 0.12)
    expected_s = rtt_s * w.user["jitter"][0] + np.where(cloud, 36 * with_it.prompt_tokens / 10e6, 0)
    np.testing.assert_allclose(with_it.network_s, expected_s)
    np.testing.assert_allclose(with_it.ttft_s - without.ttft_s, expected_s)
    np.testing.assert_allclose(with_it.latency_per_token_s - without.latency_per_token_s, expected_s / without.output_tokens)
    np.testing.assert_array_equal(with_it.tpot_s, without.tpot_s)


def test_a_network_that_takes_no_time_changes_nothing_to_the_last_bit() -> None:
    links = tuple(Link(users=site.name, experts=to, rtt_s=0.0) for site in SITES for to in ("a", "cloud"))
    views = []
    for scenario in (small("edge6"), linked(small("edge6"), Network(sites=SITES, links=links))):
        observed = replace(scenario, observation=replace(scenario.observation, whatif=True, calibrate=True))
        simulation, records = run(observed, np.arange(REQUESTS) % 6)
        views.append([x.tobytes() for x in simulation.view] + [records.qos.tobytes(), records.late.tobytes()])
    assert views[0] == views[1]


@examples(100)
@given(seeds)
def test_an_observation_says_how_far_each_expert_is_from_the_user(seed: int) -> None:
    rng = np.random.default_rng(seed)
    calibrated = bool(rng.integers(2))
    seen = Observation(running_slots=1, waiting_slots=1, places=True, calibrate=calibrated)
    scenario, episode, actions = random_world(rng, several=True, observation=seen)
    assert scenario.network is not None
    simulation = simulation_of(scenario, episode)
    links = {(link.users, link.experts): link for link in scenario.network.links}
    for r, action in enumerate(actions):
        told = dict(zip(PLACE_FEATURES, simulation.view.places[0].T, strict=True))
        user = episode.user[r]
        site, entry = scenario.network.sites[user["site"]].name, scenario.classes[user["service"]]
        own = (entry.per_token_s, entry.ttft_s, entry.tpot_s, entry.e2e_s)
        per_token_s = scenario.slo_s_per_token if own == (None,) * 4 else entry.per_token_s
        for e, expert in enumerate(scenario.experts):
            link = links[site, expert.site or ""]
            took_s = link.rtt_s + (36 * episode.prompt[r] / (1e6 * link.mbit_per_s) if link.mbit_per_s else 0)
            length = max(episode.predicted_tokens[r, e] * float(simulation.world.nominal[0, e]["length_factor"]), 1)
            has_s = [length * per_token_s] if per_token_s else []
            has_s += [bound_s for bound_s in (entry.ttft_s, entry.e2e_s) if bound_s]
            share = min(took_s / min(has_s), 1) if has_s else 0
            assert told["distance"][e] * PLACE_TABLE["distance"].scale == pytest.approx(share, rel=1e-5, abs=1e-9)
            assert told["at_site"][e] == (expert.site == site)
        simulation.step(np.array([action]))
    assert not simulation.view.places.any()  # nobody has arrived


@pytest.mark.parametrize("networked", [False, True])
def test_to_see_places_changes_nothing_else_and_they_are_zero_without_a_network(networked: bool) -> None:
    scenario = linked(small("edge6"), network()) if networked else small("edge6")
    seen = Observation(whatif=True, information=True, demand=True, calibrate=True)
    one, other = (Simulation(replace(scenario, observation=replace(seen, places=places)), 1) for places in (False, True))
    for simulation in (one, other):
        simulation.start(0, 5)
    assert one.view.places.shape == (1, 6, 0)
    for action in np.arange(REQUESTS) % 7:
        assert other.view.places.any() == networked
        for name, shown in one.view._asdict().items():
            if name != "places":
                np.testing.assert_array_equal(getattr(other.view, name), shown, err_msg=name)
        np.testing.assert_array_equal(one.step(np.array([action])), other.step(np.array([action])))


def test_devices_are_where_the_shares_say_and_move_as_often_as_they_should() -> None:
    rng = np.random.default_rng(1)
    arrival_s = np.cumsum(rng.exponential(0.1, 20_000))
    sites = draw_sites(network(devices=1, stay_s=5.0), arrival_s, rng)
    changes = np.count_nonzero(np.diff(sites)) / arrival_s[-1]
    # A move goes to another site with probability 2 * 3/4 * 1/4; some moves there and back are not seen.
    assert changes == pytest.approx(2 * 3 / 16 / 5.0, rel=0.2)
    assert np.mean(sites == 0) == pytest.approx(0.75, abs=0.09)  # of some 400 stays: four standard errors
    still = draw_sites(network(devices=1), arrival_s, rng)
    assert np.unique(still).size == 1
    many = draw_sites(network(devices=10**6), arrival_s, rng)
    assert np.mean(many == 0) == pytest.approx(0.75, abs=0.013)  # four standard errors


@examples(100)
@given(seeds)
def test_a_device_stays_where_it_was_or_comes_to_where_it_was_drawn(seed: int) -> None:
    """Device by device, in plain Python, with the same draws."""
    rng = np.random.default_rng(seed)
    between = network(devices=int(rng.integers(1, 20)), stay_s=None if rng.random() < 0.3 else float(rng.uniform(0.1, 9)))
    arrival_s = np.cumsum(rng.exponential(0.5, int(rng.integers(80))) * (rng.random() < 0.8))
    found = draw_sites(between, arrival_s, np.random.default_rng(seed))
    again = np.random.default_rng(seed)
    device, fresh = again.integers(between.devices, size=arrival_s.size), again.choice(2, arrival_s.size, p=[0.75, 0.25])
    moved = again.random(arrival_s.size)
    latest: dict[int, int] = {}
    for r, d in enumerate(device.tolist()):
        before = latest.get(d)
        stays = before is not None and (
            between.stay_s is None or moved[r] < np.exp(-(arrival_s[r] - arrival_s[before]) / between.stay_s)
        )
        assert found[r] == (found[before] if stays else fresh[r])
        latest[d] = r


def test_jitter_keeps_the_mean() -> None:
    jitter = draw_jitter(network(jitter_log_sd=0.5), 100_000, np.random.default_rng(2))
    assert jitter.mean() == pytest.approx(1, abs=4 * jitter.std() / np.sqrt(jitter.size))
    assert np.log(jitter).std() == pytest.approx(0.5, rel=0.02)


def test_a_network_is_read_as_it_is_written() -> None:
    scenario = linked(small("edge6"), network(stay_s=60.0))
    assert parse_scenario(scenario.to_dict(), "here.yaml") == scenario
    assert not {"network", "site"} & small("edge6").to_dict().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"links": []}, "none from users at 'a' to experts at 'a'"),
        ({"sites": [{"name": "a"}, {"name": "a"}]}, "name 'a' is used more than once"),
        ({"sites": [{"name": "a", "share": 0}, {"name": "b", "share": 0}]}, "share is 0 in all of them"),
        ({"links": [{"users": "c", "experts": "a", "rtt_s": 0.1}]}, "users = 'c': no such site"),
        ({"links": [{"users": "a", "experts": "a", "rtt_s": -0.1}]}, "network.links.0.rtt_s"),
        ({"devices": 0}, "network.devices"),
    ],
)
def test_what_is_wrong_with_a_network_is_named(changes: dict[str, object], message: str) -> None:
    data = linked(small("edge6"), network()).to_dict()
    data["network"] |= changes
    with pytest.raises(InputError, match=message):
        parse_scenario(data, "here.yaml")


def test_with_a_network_each_expert_has_a_site() -> None:
    data = linked(small("edge6"), network()).to_dict()
    del data["experts"][2]["site"]
    with pytest.raises(InputError, match=r"experts\.2\.site: .* each expert must have one"):
        parse_scenario(data, "here.yaml")
