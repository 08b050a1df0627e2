"""The how-to pages, followed: what they say to write is written, what they say to run runs, and does what they say."""

import dataclasses
import re
import runpy
import shlex
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest

import edgeroute
from rllib_envs import ENV_ID, baselines, reward, scenario
from rllib_envs.heuristic import Heuristic
from rllib_envs.scenario import Arrivals, with_workload
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from rllib_envs.sim.cluster import STEP
from rllib_envs.simulation import STATUS_NAMES, Simulation
from rllib_envs.workload import arrival_processes
from rllib_envs.workload.arrivals import draw_arrivals
from rllib_envs.yaml_files import parse_yaml
from tests.presets import short_edge6
from tuning.evaluation.matrix import start_simulation
from tuning.specs.routers import parse_router

pytestmark = pytest.mark.slow

PAGES = Path(__file__).resolve().parents[2] / "docs" / "how-to"


def blocks(page, language):
    """Text of each block of a page by the file that its first line names; commands by number."""
    found = re.findall(rf"^```{language}\n(.*?)^```", (PAGES / page).read_text(), re.DOTALL | re.MULTILINE)
    return {block.splitlines()[0].removeprefix("# "): block for block in found}


def follow(page):
    """Write the files that a page writes here, and run the commands that it runs, in their small form."""
    for language in ("python", "yaml"):
        for name, block in blocks(page, language).items():
            if not name.startswith("rllib_envs/"):
                Path(name).write_text(block)


def run_commands(page):
    commands = [shlex.split(line) for block in blocks(page, "sh").values() for line in block.splitlines()]
    assert commands
    for program, name, *options in commands:
        assert program == "edgeroute"
        small_form = {"evaluate": ["--smoke", "--jobs", "1", "--out", "results"], "simulate": ["--smoke"]}.get(name, [])
        assert edgeroute.main([name, *options, *small_form]) == 0, (page, name, options)


def changed(module, page, file, *, before=None, after=None):
    """A module of ours with the lines that a page has for it, before or after the one line that begins so."""
    source = Path(module.__file__).read_text().splitlines()
    added = blocks(page, "python")[file].splitlines()[1:]
    (at,) = (i for i, line in enumerate(source) if line.startswith(before or after))
    at += after is not None
    new = ModuleType(module.__name__)
    new.__file__ = module.__file__
    exec(compile("\n".join([*source[:at], *added, *source[at:]]), module.__file__, "exec"), vars(new))
    return new


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_add_a_heuristic(monkeypatch):
    page = "add-a-heuristic.md"
    follow(page)
    run_commands(page)
    new = changed(baselines, page, "rllib_envs/baselines.py", before="HEURISTICS: ")
    assert new.HEURISTICS.keys() == {*baselines.HEURISTICS, "score-for-load"}
    added = new.HEURISTICS["score-for-load"]
    assert isinstance(added, Heuristic)
    assert added.grid == {"charge": (0.005, 0.01, 0.02, 0.04)}
    monkeypatch.setitem(baselines.HEURISTICS, "score-for-load", added)
    own = start_simulation(parse_router("python:mine.py:score_for_load:charge=0.05"), short_edge6(), [1])
    ours = start_simulation(parse_router("score-for-load:charge=0.05"), short_edge6(), [1])
    np.testing.assert_array_equal(own.records(0).route, ours.records(0).route)


def test_add_an_arrival_process(monkeypatch):
    page = "add-an-arrival-process.md"
    follow(page)
    run_commands(page)
    own = runpy.run_path("from_python.py")["scenario"]
    new = changed(arrival_processes, page, "rllib_envs/workload/arrival_processes.py", before="PROCESSES: ")
    assert list(new.PROCESSES) == [*arrival_processes.PROCESSES, "waves"]
    monkeypatch.setitem(arrival_processes.PROCESSES, "waves", new.PROCESSES["waves"])
    data = short_edge6().to_dict()
    data["workload"]["arrivals"] |= parse_yaml(Path("arrivals.yaml").read_text(), "arrivals.yaml")
    ours = parse_scenario(data, "with waves")
    assert ours.workload.arrivals == Arrivals(kind="waves", parameters={"share": 0.8})
    times = [draw_arrivals(w.workload.arrivals, 5.0, 100, np.random.default_rng(1)).arrival_s for w in (own, ours)]
    np.testing.assert_array_equal(*times)
    assert start_simulation(parse_router("random"), own, [1]).over.all()


def test_add_an_expert():
    page = "add-an-expert.md"
    follow(page)
    runpy.run_path("build.py")
    built = load_scenario("./my-scenario.yaml")
    assert [expert.name for expert in built.experts] == [*(e.name for e in load_scenario("edge6").experts), "mine"]
    assert gym.make(ENV_ID, scenario=built).action_space.n == 8
    run_commands(page)


def test_add_a_reward_term_by_a_wrapper():
    page = "add-a-reward-term.md"
    follow(page)
    make = runpy.run_path("priced.py")["make"]
    plain, priced = (make(price=price, scenario=short_edge6()) for price in (0.0, 0.5))
    for env in (plain, priced):
        observation, _ = env.reset(seed=1)
    best = float(observation["arrived"][:, 2].max())
    drop = plain.action_space.n - 1
    (_, free, *_), (_, charged, *_) = plain.step(drop), priced.step(drop)
    assert free - charged == pytest.approx(0.5 * best)
    assert best > 0
    assert plain.step(0)[1] == priced.step(0)[1]


def test_add_a_reward_term_by_a_field():
    page = "add-a-reward-term.md"
    weights = changed(scenario, page, "rllib_envs/scenario.py", after="    marginal_qos: Weight").Reward
    combine = changed(reward, page, "rllib_envs/reward.py", after="        + weights.marginal_qos").combine
    steps = np.zeros(3, STEP)
    steps["finished"] = (0, 1, 4)
    steps["qos"] = (0.0, 0.5, 1.5)
    paid = combine(weights(throughput=0.25), steps, np.zeros(3))
    np.testing.assert_allclose(paid - reward.combine(scenario.Reward(), steps, np.zeros(3)), [0, 0.25, 1.0])
    np.testing.assert_array_equal(combine(weights(), steps, np.zeros(3)), reward.combine(scenario.Reward(), steps, np.zeros(3)))


def test_describe_your_own_edge():
    page = "describe-your-own-edge.md"
    follow(page)
    run_commands(page)
    scenario = load_scenario("my-edge.yaml")
    records = start_simulation(parse_router("impact-greedy"), scenario, [1]).records(0)
    cloud = [expert.name for expert in scenario.experts].index("large-cloud")
    patients = records.tenant == 1
    assert not (records.route[patients] == cloud).any()
    assert (records.route[~patients] == cloud).any()
    results = Path("results/results.md").read_text()
    for title in ("Class chat", "Class alarm", "Class batch", "Tenant public", "Tenant patients"):
        assert f"**{title}**" in results
    for title in ("energy per request, J", "QoS per kJ", "cost per 1,000 requests"):
        assert results.count(title) == (6 if title.startswith("cost") else 1)  # cost is of classes and tenants too
    metered = replace(scenario, reward=replace(scenario.reward, **parse_yaml(Path("reward.yaml").read_text(), "")["reward"]))
    paid, free = (Simulation(s, 1) for s in (metered, scenario))
    for simulation in (paid, free):
        simulation.start(0, 1)
    price = metered.reward.energy * 1e-3, metered.reward.cost
    difference = free.step(np.array([cloud])) - paid.step(np.array([cloud]))
    np.testing.assert_allclose(difference, price[0] * paid.steps["energy_j"] + price[1] * paid.steps["cost"])
    assert difference > 0
    data = scenario.to_dict() | parse_yaml(Path("my-dynamics.yaml").read_text(), "")
    changing = with_workload(parse_scenario(data, "both files"), requests=200)
    parts = dataclasses.asdict(changing.dynamics)
    assert all(parts.values()), parts
    records = start_simulation(parse_router("impact-greedy"), changing, [1]).records(0)
    assert {STATUS_NAMES[status] for status in records.status} >= {"finished", "cancelled"}
