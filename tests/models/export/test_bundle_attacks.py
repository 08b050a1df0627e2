"""A bundle may come from anybody: it is served as it was saved, or refused in one line, at once and in little memory."""

import json
import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.export.bundle import load_bundle, save_bundle
from models.export.manifest import digest, manifest_of
from models.export.onnx_scores import load_onnx
from models.paper.networks import PaperPolicy, PaperSpec
from models.router import Router, RouterSpec
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation

OBSERVATION = Observation(whatif=True, calibrate=True, whatif_tau=0.035, running_slots=3, waiting_slots=2)
SPEC = RouterSpec(encoder="han", hidden=8, impact_hidden=8, graph_hidden=8)
WEIGHTS, ABOUT = "router.safetensors", "router.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "b"
    save_bundle(folder, Router(SPEC), OBSERVATION, {"scenario": "edge6", "steps": 12})
    return folder


@pytest.fixture
def bundle(saved, tmp_path):
    """A copy, to be attacked."""
    return Path(shutil.copytree(saved, tmp_path / "b"))


def refused(folder, match=None):
    with pytest.raises(InputError, match=match) as caught:
        load_bundle(folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 2000
    assert str(folder) in message


def described(folder, change):
    """Write a changed description, with the digests of the files that are there now: an attacker can do sums."""
    contents = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).unlink()
    contents |= manifest_of(folder).to_dict()
    change(contents)
    (folder / ABOUT).write_text(json.dumps(contents))


def rewritten(folder, change):
    """Change the weights, and the description with them."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    described(folder, lambda contents: None)


def some(tensors):
    """A tensor with more than one number."""
    return next(name for name, x in sorted(tensors.items()) if x.numel() > 1)


def fill(value):
    def change(tensors):
        tensors[some(tensors)].view(-1)[-1] = value

    return change


def every(act):
    def change(tensors):
        for name, x in list(tensors.items()):
            tensors[name] = act(x)

    return change


def renamed(tensors):
    tensors["evil"] = tensors.pop(some(tensors))


def more(tensors):
    tensors["evil"] = torch.zeros(3)


CHANGES = {
    "nan": (fill(float("nan")), "not finite"),
    "inf": (fill(float("inf")), "not finite"),
    "-inf": (fill(float("-inf")), "not finite"),
    "finite, but not its scores": (every(lambda x: torch.full_like(x, 1e30)), "scores that are not finite"),
    "double": (every(torch.Tensor.double), "float64"),
    "half": (every(torch.Tensor.half), "float16"),
    "brain": (every(torch.Tensor.bfloat16), "bfloat16"),
    "integers": (every(lambda x: x.to(torch.int64)), "int64"),
    "truth": (every(lambda x: x > 0), "bool"),
    "complex": (every(lambda x: x.to(torch.complex64)), "complex64"),
    "flat": (every(lambda x: x.reshape(-1)), "must be"),
    "one more axis": (every(lambda x: x[None].contiguous()), "must be"),
    "one is missing": (lambda tensors: tensors.pop(some(tensors)), "is missing"),
    "one more": (more, "none of the network's"),
    "another name": (renamed, "is missing"),
    "none": (dict.clear, "is missing"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_weights_that_no_network_saved_are_refused(change, said, bundle):
    rewritten(bundle, change)
    refused(bundle, said)


def header(text, length=None):
    data = text.encode() if isinstance(text, str) else text
    return (len(data) if length is None else length).to_bytes(8, "little") + data


FILES = {
    "empty": b"",
    "short": b"\0\0\0",
    "no header": header("", 2**60),
    "a header longer than the file": header("{}", 2**20),
    "no JSON": header("what"),
    "levels": header('{"a":' * 100_000),
    "a list": header("[]"),
    "shapes beyond memory": header('{"listening":{"dtype":"F32","shape":[999999999,999999999],"data_offsets":[0,4]}}') + b'1234',
    "shapes that overflow": header(
        '{"listening":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'
    ),
    "offsets beyond the file": header('{"listening":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
    "offsets below 0": header('{"listening":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'),
    "an unknown type": header('{"listening":{"dtype":"F7","shape":[1],"data_offsets":[0,4]}}') + b"\0" * 4,
    "a type without one of torch's": header('{"listening":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}') + b"\0",
}  # fmt: skip


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_files_that_are_no_weights_are_refused(data, bundle):
    (bundle / WEIGHTS).write_bytes(data)
    described(bundle, lambda contents: None)
    refused(bundle, WEIGHTS)


SPECS = {
    "hidden": 10**9, "layers": 10**6, "heads": 10**9, "graph_hidden": 10**12, "impact_hidden": 10**18, "encoder": "paper",
    "edges": "none", "semantic": 1, "future": "yes", "drop": None, "impact": 0.0,
}  # fmt: skip
TYPES = {"hidden": True, "layers": "1", "heads": 4.0, "graph_hidden": [8], "impact_hidden": None, "encoder": 7, "edges": ["all"]}


@pytest.mark.parametrize(("name", "value"), [*SPECS.items(), *TYPES.items(), ("hidden", 10**400), ("wings", 2)])
def test_a_spec_beyond_reason_is_refused_at_once_and_in_little_memory(name, value, bundle):
    described(bundle, lambda contents: contents["router"].update({name: value}))
    tracemalloc.start()
    refused(bundle, name)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_the_largest_spec_with_weights_of_the_smallest_takes_no_memory(bundle):
    described(bundle, lambda contents: contents["router"].update(hidden=4096, graph_hidden=4096, impact_hidden=4096))
    refused(bundle, "at most")
    described(bundle, lambda contents: contents["router"].update(hidden=4096, graph_hidden=8, impact_hidden=8))
    refused(bundle, "must be")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("running_slots", 10**9), ("waiting_slots", 10**9), ("running_slots", 0), ("running_slots", True), ("whatif", 1),
        ("running_slots", "3"), ("whatif_tau", 0), ("whatif_tau", "1"), ("whatif_tau", 10**400), ("wings", 2),
    ],
)  # fmt: skip
def test_an_observation_beyond_reason_is_refused(name, value, bundle):
    described(bundle, lambda contents: contents["observation"].update({name: value}))
    refused(bundle, name)


@pytest.mark.parametrize("part", ["router", "observation", "layout", "about", "sha256", "bytes"])
def test_a_part_of_another_kind_is_refused(part, saved, tmp_path):
    for number, value in enumerate([None, 7, "text", [], [[1, 2, 3]], True]):
        folder = Path(shutil.copytree(saved, tmp_path / f"{number}"))
        described(folder, lambda contents, value=value: contents.update({part: value}))
        refused(folder)


@pytest.mark.slow
@pytest.mark.parametrize("experts", [0, 10**9, True, "3", None])
def test_experts_of_the_papers_policy_are_bounded(experts, tmp_path):
    save_bundle(tmp_path / "b", PaperPolicy(PaperSpec(experts=3, hidden=8)), OBSERVATION, {})
    assert load_bundle(tmp_path / "b").router.spec.experts == 3
    described(tmp_path / "b", lambda contents: contents["paper"].update(experts=experts))
    refused(tmp_path / "b", "experts")


PLACES = {
    "one more file": lambda b: (b / "router.pkl").touch(),
    "one more folder": lambda b: (b / "more").mkdir(),
    "a link for the weights": lambda b: ((b / WEIGHTS).rename(b.parent / WEIGHTS), (b / WEIGHTS).symlink_to(b.parent / WEIGHTS)),
    "a link for the description": lambda b: ((b / ABOUT).rename(b.parent / ABOUT), (b / ABOUT).symlink_to(b.parent / ABOUT)),
    "a pipe for the weights": lambda b: ((b / WEIGHTS).unlink(), os.mkfifo(b / WEIGHTS)),
    "a pipe for the description": lambda b: ((b / ABOUT).unlink(), os.mkfifo(b / ABOUT)),
    "weights that are huge and sparse": lambda b: os.truncate(b / WEIGHTS, 2**40),
    "a description that is huge and sparse": lambda b: os.truncate(b / ABOUT, 2**40),
    "a graph that nobody wrote": lambda b: (b / "router.onnx").write_bytes(b"graph"),
}


@pytest.mark.parametrize("attack", PLACES.values(), ids=PLACES)
def test_what_is_put_into_the_folder_is_refused(attack, bundle):
    attack(bundle)
    refused(bundle)


def test_huge_weights_that_the_description_names_are_refused_unread(bundle, monkeypatch):
    os.truncate(bundle / WEIGHTS, 2**33)
    monkeypatch.setattr("models.export.description.check_folder", lambda *_: None)  # reads it to its end, in little memory
    contents = json.loads((bundle / ABOUT).read_text())
    contents["bytes"][WEIGHTS] = 2**33
    (bundle / ABOUT).write_text(json.dumps(contents))
    refused(bundle, "more than")


@pytest.mark.slow
def test_a_graph_is_loaded_only_as_it_was_written(bundle, tmp_path):
    save_bundle(bundle, Router(SPEC), OBSERVATION, {}, onnx=True)
    save_bundle(tmp_path / "other", Router(replace(SPEC, hidden=9)), OBSERVATION, {}, onnx=True)
    load_onnx(bundle)
    (bundle / "router.onnx").write_bytes((tmp_path / "other" / "router.onnx").read_bytes())
    assert digest(bundle / "router.onnx") == digest(tmp_path / "other" / "router.onnx")
    with pytest.raises(InputError, match="SHA-256"):
        load_onnx(bundle)
