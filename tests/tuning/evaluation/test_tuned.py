"""Files of tuned parameters, and the grids they come from."""

import dataclasses
import json
import math
from importlib import resources

import pytest

from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.scenario import Catalogue, Faults, Observation, Predictions, Reward, Variation, with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.tuned import read_tuned, shipped_tuned, tuning_fingerprint
from tuning.specs.prompts import with_prompts
from tuning.specs.workloads import TraceOptions, make_workloads
from tuning.tune_heuristics import COARSE, _around, _combinations

EDGE6 = load_scenario("edge6")


def entry(parameters, arrivals="poisson", share=1.0):
    return {"arrivals": arrivals, "share_of_capacity": share, "parameters": parameters}


def workload(load, arrivals="poisson"):
    return make_workloads(EDGE6, [load], [arrivals], TraceOptions(), None)[0]


def write(folder, **changes):
    file = folder / "tuned.json"
    workloads = {"poisson at heavy": entry({"quality-greedy": {"cap": 8.0}})}
    file.write_text(json.dumps({"format": 1, "fingerprint": tuning_fingerprint(EDGE6), "workloads": workloads} | changes))
    return file


def test_parameters_are_those_of_the_nearest_workload(tmp_path):
    shares = {"poisson at light": 0.3, "poisson at heavy": 1.0, "mmpp at heavy": 1.0}
    workloads = {
        name: entry({"quality-greedy": {"cap": float(i)}}, name.split()[0], share)
        for i, (name, share) in enumerate(shares.items(), 1)
    }
    tuned = read_tuned(write(tmp_path, workloads=workloads), EDGE6)
    nearest = {
        ("light", "poisson"): "poisson at light",
        ("9", "poisson"): "poisson at light",
        ("99", "poisson"): "poisson at heavy",
        ("light", "mmpp"): "mmpp at heavy",
        ("heavy", "gamma:cv=1.1"): "poisson at heavy",
        ("light", "mmpp:burst_ratio=5"): "mmpp at heavy",
        ("mixed", "gamma:cv=1.1"): "poisson at heavy",  # counts as moderate: 0.7
        ("30%", "azure-conversation"): None,  # longer prompts
        ("heavy", "gamma:cv=6"): None,
    }
    for (load, arrivals), name in nearest.items():
        choice = tuned.choose(workload(load, arrivals))
        assert (choice.entry, choice.parameters) == (name, workloads[name]["parameters"] if name else {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 1"),
        ({"fingerprint": "0"}, "tuned for another scenario"),
        ({"workloads": {"w": entry({"quality-gredy": {}})}}, "w: router 'quality-gredy': unknown; did you mean 'quality-greedy'"),
        ({"workloads": {"w": entry({"quality-greedy": {"cup": 1}})}}, "no parameter 'cup'"),
        ({"workloads": {"w": entry({"quality-greedy": {"cap": 0}})}}, "cap = 0: must be from 1"),
        ({"workloads": {"w": entry({"quality-greedy": {"cap": "many"}})}}, "must hold fingerprint and workloads"),
        ({"workloads": {"w": {}}}, "must hold fingerprint and workloads"),
        ({"workloads": {}}, "workloads is empty"),
        ({"workloads": ["w"]}, "must hold fingerprint and workloads"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(InputError) as error:
        read_tuned(write(tmp_path, **changes), EDGE6)
    assert message in str(error.value)
    assert "tuned.json" in str(error.value)


def test_the_fingerprint_is_of_the_world_alone():
    stated = dataclasses.replace(EDGE6, capacity_rps=capacity_rps(EDGE6))  # or each variant would be measured
    same = [
        stated,
        dataclasses.replace(stated, name="mine", reward=Reward(drop=1.0), observation=Observation(whatif=True)),
        with_workload(stated, load="heavy", requests=5),
        dataclasses.replace(stated, predictions=Predictions(score_sd=0.3), faults=Faults(telemetry_delay_s=1.0)),
        dataclasses.replace(stated, variation=Variation()),
    ]
    other = [
        dataclasses.replace(stated, slo_s_per_token=0.05),
        dataclasses.replace(stated, experts=EDGE6.experts[:-1]),
        with_workload(stated, catalogue=Catalogue(scores="binary")),
        dataclasses.replace(stated, capacity_rps=1.0),
    ]
    assert {tuning_fingerprint(scenario) for scenario in same} == {tuning_fingerprint(EDGE6)}
    assert len({tuning_fingerprint(scenario) for scenario in [EDGE6, *other]}) == 1 + len(other)


def test_a_file_of_prompts_counts_by_its_content_alone(tmp_path):
    fingerprints = []
    for name, tokens in (("a", 100), ("b", 100), ("c", 101)):
        file = tmp_path / name
        models = [expert.model for expert in EDGE6.experts]
        prompt = {"id": "1", "task": "t", "prompt_tokens": tokens, "correct": [1] * 6, "out_tokens": [9] * 6}
        file.write_text(json.dumps({"header": True, "models": models}) + "\n" + json.dumps(prompt))
        world = with_prompts(EDGE6, file)
        assert world.workload.catalogue.split == "train"
        fingerprints.append(tuning_fingerprint(dataclasses.replace(world, capacity_rps=20.0)))
        all_of_it = dataclasses.replace(world.workload.catalogue, split="all")
        other_split = dataclasses.replace(with_workload(world, catalogue=all_of_it), capacity_rps=20.0)
        assert tuning_fingerprint(other_split) == fingerprints[-1]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_with_a_fault_parameters_are_those_without(tmp_path):
    workloads = {f"poisson at {load}": entry({"quality-greedy": {"cap": cap}}) for load, cap in (("light", 1), ("heavy", 2))}
    tuned = read_tuned(write(tmp_path, workloads=workloads), EDGE6)
    for load in ("light", "heavy"):
        (faulty,) = make_workloads(EDGE6, [load], [], TraceOptions(), None, ["engine-slow"])
        assert tuned.choose(faulty).entry == f"poisson at {load}"


def test_every_shipped_file_fits_the_scenario_that_it_names():
    files = [entry for entry in (resources.files("tuning") / "presets").iterdir() if entry.name.endswith(".json")]
    assert files
    for file in files:
        scenario = load_scenario(json.loads(file.read_text())["scenario"])
        tuned = shipped_tuned(scenario)
        assert tuned is not None, f"{file.name} was tuned before the scenario changed: run edgeroute tune-heuristics again"
        assert tuned.source == f"presets/{file.name}"


def test_nothing_is_shipped_for_a_world_of_ones_own():
    assert shipped_tuned(dataclasses.replace(EDGE6, slo_s_per_token=0.0512)) is None


@pytest.mark.parametrize("router", COARSE)
def test_the_finer_grid_lies_between_the_neighbours_and_is_new(router):
    grid = COARSE[router]
    tried = _combinations(grid)
    assert len(tried) == math.prod(map(len, grid.values()))
    for best in tried:
        for point in _around(best, grid, router):
            assert point != best
            for name, values in grid.items():
                i = list(values).index(best[name])
                neighbours = values[max(i - 1, 0) : i + 2]
                assert min(neighbours) <= point[name] <= max(neighbours)
                if name == "cap":
                    assert point[name] == int(point[name])
