"""A bundle gives back what went in, or says what is wrong with it."""

import json
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from models.envelope import Envelope
from models.export.bundle import bundle_router, load_bundle, save_bundle
from models.export.onnx import export_onnx
from models.export.onnx_scores import load_onnx
from models.export.traced import random_observation
from models.paper.networks import PaperPolicy, PaperSpec
from models.relative_price import EARLIER_TERMS
from models.router import Router, RouterSpec
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation
from tests.models.export.bundles import edit
from tests.models.observed import any_action, busy, seen, world

pytestmark = pytest.mark.slow

OBSERVATION = Observation(whatif=True, calibrate=True, whatif_tau=0.035, running_slots=3, waiting_slots=2)
ABOUT = {"scenario": "edge6", "steps": 12}
SPECS = {name: RouterSpec(encoder=name, hidden=8, impact_hidden=8, graph_hidden=8) for name in ("han", "aggregates", "pooled")}


def stirred(spec, seed=0):
    """A router none of whose weights is 0."""
    torch.manual_seed(seed)
    router = Router(spec)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return router.eval()


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "bundle"
    save_bundle(folder, stirred(SPECS["han"]), replace(OBSERVATION, counterfactual=True), ABOUT)
    return folder


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_what_went_in_comes_out(spec, tmp_path):
    router = stirred(spec)
    save_bundle(tmp_path / "b", router, replace(OBSERVATION, counterfactual=True), ABOUT)
    loaded = load_bundle(tmp_path / "b")
    seen = random_observation(OBSERVATION, batch=4, experts=5, seed=2)
    with torch.inference_mode():
        assert torch.equal(loaded.router(seen), router(seen))
    assert loaded.router.spec == spec
    assert loaded.observation == OBSERVATION
    assert loaded.about == ABOUT


@pytest.mark.parametrize("part", ["information", "places"])
def test_a_router_that_reads_a_part_comes_back_and_wants_to_see_it(part, tmp_path):
    told = replace(OBSERVATION, **{part: True})
    router = stirred(replace(SPECS["aggregates"], **{part: True}))
    save_bundle(tmp_path / "b", router, told, ABOUT, onnx=True)
    loaded = load_bundle(tmp_path / "b")
    assert loaded.observation == told
    seen = random_observation(told, batch=4, experts=5, seed=2)
    with torch.inference_mode():
        scores = loaded.router(seen)
        assert torch.equal(scores, router(seen))
        onnx = load_onnx(tmp_path / "b")({name: x.numpy() for name, x in seen.items()})
        np.testing.assert_allclose(onnx, scores.numpy(), atol=1e-4)
        assert not torch.equal(scores, router({**seen, part: seen[part] + 1}))
    without = random_observation(OBSERVATION, batch=4, experts=5, seed=2)
    with pytest.raises(InputError, match=rf"observation\.{part} = False: .* whose {part} = True"):
        router(without)
    with pytest.raises(InputError, match=rf"observation\.{part} = True: .* whose {part} = False"):
        stirred(SPECS["aggregates"])(seen)


def test_a_shipped_bundle_of_an_earlier_format_decides_as_it_does_in_this_one(tmp_path):
    """Its columns are as they were, and what came later it does not see, whether a scenario has it or not."""
    folder = Path(str(resources.files("tuning") / "presets" / "edge6-router"))
    old = load_bundle(folder)
    assert json.loads((folder / "router.json").read_text())["format"] == "edgeroute-bundle-1"
    assert not old.observation.places
    save_bundle(tmp_path / "new", old.router, old.observation, old.about, trained_on=old.trained_on)
    contents = json.loads((tmp_path / "new" / "router.json").read_text())
    assert (contents["format"], contents["observation_version"]) == ("edgeroute-bundle-2", 2)
    decided = []
    for bundle, places in ((folder, False), (folder, True), (tmp_path / "new", False)):
        route, needs = bundle_router(bundle)
        scenario = with_workload(replace(load_scenario("edge6"), observation=replace(needs, places=places)), requests=40)
        simulation = Simulation(scenario, 2)
        simulation.start_all([1, 2])
        actions = []
        while not simulation.over.all():
            actions.append(route(simulation, np.random.default_rng(0)))
            simulation.step(actions[-1])
        decided.append(np.array(actions))
    for other in decided[1:]:
        np.testing.assert_array_equal(other, decided[0])


def test_a_relative_price_from_before_its_last_parameters_decides_as_it_did(bundle):
    torch.manual_seed(1)
    router = Router(RouterSpec(encoder="aggregates", price="relative", hidden=0, impact_hidden=0)).eval()
    router.price.terms.normal_(std=0.3)
    earlier = router.price.terms[:EARLIER_TERMS].clone()
    router.price.terms[EARLIER_TERMS:] = 0.0
    observation = replace(OBSERVATION, demand=True)
    save_bundle(bundle, router, observation, ABOUT)
    weights = bundle / "router.safetensors"
    safetensors.torch.save_file(router.state_dict() | {"price.terms": earlier}, weights)
    contents = json.loads((bundle / "router.json").read_text())
    contents["sha256"][weights.name] = sha256(weights.read_bytes()).hexdigest()
    contents["bytes"][weights.name] = weights.stat().st_size
    (bundle / "router.json").write_text(json.dumps(contents))
    seen = random_observation(observation, batch=4, experts=5, seed=2)
    with torch.inference_mode():
        assert torch.equal(load_bundle(bundle).router(seen), router(seen))


def test_a_bundle_is_replaced_whole(bundle):
    save_bundle(bundle, stirred(SPECS["aggregates"]), OBSERVATION, ABOUT | {"steps": 13})
    assert load_bundle(bundle).about["steps"] == 13
    assert sorted(path.name for path in bundle.parent.iterdir()) == [bundle.name]  # nothing is left beside it


DAMAGES = {
    "gone": (lambda b: (b / "router.json").unlink(), "router.json is missing"),
    "cut": (lambda b: (b / "router.json").write_text((b / "router.json").read_text()[:99]), "damaged"),
    "format": (
        lambda b: edit(b, lambda c: c.update(format="edgeroute-bundle-9")),
        "format is not 'edgeroute-bundle-2' or 'edgeroute-bundle-1'",
    ),
    "version": (
        lambda b: edit(b, lambda c: c.update(observation_version=3)),
        "observation_version = 3: this version reads 1 to 2",
    ),
    "no version": (lambda b: edit(b, lambda c: c.pop("observation_version")), "observation_version = None"),
    "layout": (lambda b: edit(b, lambda c: c["layout"]["cluster"].pop()), "layout.cluster"),
    "spec": (lambda b: edit(b, lambda c: c["router"].update(layers=7)), "layers = 7"),
    "unknown": (lambda b: edit(b, lambda c: c["router"].update(wings=2)), "wings"),
    "observation": (lambda b: edit(b, lambda c: c["observation"].update(whatif_tau=-1)), "whatif_tau"),
    "width": (lambda b: edit(b, lambda c: c["router"].update(hidden=9)), "does not fit"),
    "flipped": (lambda b: flip(b / "router.safetensors"), "SHA-256"),
    "no weights": (lambda b: (b / "router.safetensors").unlink(), "missing"),
    "unsigned": (lambda b: edit(b, lambda c: (c["sha256"].clear(), c["bytes"].clear())), "no entry for router.safetensors"),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_one_clear_error(bundle, damage, message):
    damage(bundle)
    with pytest.raises(InputError, match=message) as error:
        load_bundle(bundle)
    assert str(bundle) in str(error.value)


def test_loading_needs_no_ray_and_no_pickle(bundle):
    code = (
        f"from pathlib import Path; import pickle, sys, models.han; from models.export.bundle import load_bundle;"
        f"pickle.load = pickle.loads = pickle.Unpickler = None; load_bundle(Path({str(bundle)!r})); print('ray' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_it_routes_where_it_sees_what_it_needs(bundle):
    route, observation = bundle_router(bundle)
    assert observation == OBSERVATION
    world = replace(load_scenario("edge3"), observation=observation, capacity_rps=10.0)
    simulation = Simulation(world, 2)
    simulation.start_all([1, 2])
    actions = route(simulation, np.random.default_rng(0))
    assert actions.shape == (2,)
    assert (simulation.view.action_mask[np.arange(2), actions] > 0).all()
    blind = Simulation(replace(world, observation=replace(observation, calibrate=False)), 1)
    blind.start(0, 1)
    with pytest.raises(InputError, match="calibrate"):
        route(blind, np.random.default_rng(0))


def test_its_actions_are_those_of_the_best_scores_and_the_same_every_time(bundle):
    route, observation = bundle_router(bundle)
    router = load_bundle(bundle).router
    simulation = busy(replace(world(3), observation=observation), clusters=5, decisions=0)
    rng, taken = np.random.default_rng(0), set()
    for _ in range(20):
        actions = route(simulation, rng)
        with torch.inference_mode():
            assert (actions == router(seen(simulation)).argmax(dim=-1).numpy()).all()
        assert (route(simulation, rng) == actions).all()
        taken |= set(actions)
        simulation.step(any_action(simulation, rng))
    assert len(taken) > 1


@pytest.mark.parametrize("name", ["han", "aggregates"])
def test_onnx_gives_the_same_scores(name, tmp_path):
    worst = export_onnx(tmp_path, stirred(SPECS[name]), OBSERVATION)  # looks at two sizes itself
    assert 0 < worst < 1e-4
    assert (tmp_path / "router.onnx").stat().st_size > 1000


def test_an_onnx_graph_is_part_of_its_bundle(tmp_path):
    router = stirred(SPECS["han"])
    assert save_bundle(tmp_path / "b", router, OBSERVATION, ABOUT, onnx=True) < 1e-4
    observed = random_observation(OBSERVATION, batch=3, experts=4, seed=5)
    scores = load_onnx(tmp_path / "b")({name: x.numpy() for name, x in observed.items()})
    with torch.inference_mode():
        np.testing.assert_allclose(scores, router(observed).numpy(), atol=1e-4)
    flip(tmp_path / "b" / "router.onnx")
    with pytest.raises(InputError, match=r"router\.onnx: damaged"):
        load_bundle(tmp_path / "b")


def test_a_bundle_without_an_onnx_graph_says_so(bundle):
    with pytest.raises(InputError, match=r"router\.onnx is missing"):
        load_onnx(bundle)


@pytest.mark.parametrize(
    ("network", "message"),
    [(stirred(SPECS["pooled"]), "pooled"), (PaperPolicy(PaperSpec(experts=3, hidden=8)), "the paper's policy")],
    ids=["pooled", "paper"],
)
def test_what_onnx_cannot_express_is_refused_and_leaves_what_was_there(network, message, bundle):
    with pytest.raises(InputError, match=message):
        save_bundle(bundle, network, OBSERVATION, ABOUT, onnx=True)
    assert load_bundle(bundle).router.spec == SPECS["han"]
    assert sorted(path.name for path in bundle.parent.iterdir()) == [bundle.name]


def test_one_with_the_names_of_earlier_versions_is_read(bundle):
    """Columns had other names then, in the layout and in what the router was trained on."""
    save_bundle(bundle, stirred(SPECS["han"]), OBSERVATION, ABOUT, trained_on=Envelope(ranges={"predicted_length": (0.4, 1.2)}))
    new = (bundle / "router.json").read_text()
    former = {"predicted_score": "told_score", "predicted_length": "told_length", "own_success_softened": "own_success_loose"}
    old = new
    for name, was in former.items():
        assert f'"{name}"' in old
        old = old.replace(f'"{name}"', f'"{was}"')
    expected = load_bundle(bundle)
    (bundle / "router.json").write_text(old)
    read = load_bundle(bundle)
    assert read.trained_on == expected.trained_on
    seen = random_observation(OBSERVATION, batch=4, experts=5, seed=2)
    with torch.inference_mode():
        assert torch.equal(read.router(seen), expected.router(seen))
