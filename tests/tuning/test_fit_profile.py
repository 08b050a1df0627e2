"""The command fit-profile: from measurements to an expert that a scenario takes."""

import json
from dataclasses import asdict, fields

import numpy as np
import pytest

import edgeroute
from rllib_envs.profiles.fit import fit_profile, held_out
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from rllib_envs.yaml_files import parse_yaml
from tests.test_profile_fit import LAYERS, make

pytestmark = pytest.mark.slow

EXPERT = ["--name", "mine", "--gpu", "A 1", "--params-b", "8", "--mean-score", "0.6", "--mean-output-tokens", "300"]
ENGINE = ["--layers", LAYERS, "--kv-tokens", 1_000_000, "--kv-bytes-per-token", 131_072]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("made"))


def fit(folder, *options):
    return edgeroute.main([str(x) for x in ("fit-profile", "--measurements", folder, *ENGINE, *EXPERT, *options)])


def test_what_is_written_is_an_expert_of_a_scenario(made, tmp_path, capsys):
    assert fit(made, "--max-num-seqs", 64, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    text = (tmp_path / "expert.yaml").read_text()
    assert text in printed
    (expert,) = parse_yaml(text, "expert.yaml")
    data = load_scenario("edge6").to_dict()
    scenario = parse_scenario(data | {"experts": [*data["experts"], expert]}, "with mine")
    fitted = fit_profile(made, layers=LAYERS, kv_tokens=1_000_000, kv_bytes_per_token=131_072, max_num_seqs=64)
    assert scenario.experts[-1].engine == fitted.profile
    made_of, engine = scenario.experts[-1], scenario.experts[-1].engine
    for value, told in ((made_of, expert), (engine, expert["engine"])):
        assert told.keys() == {f.name for f in fields(value) if getattr(value, f.name) != f.default}  # no defaults
    whole = json.loads(json.dumps(asdict(made_of)))
    assert {**whole, **expert, "engine": {**whole["engine"], **expert["engine"]}} == whole
    assert (scenario.experts[-1].name, scenario.experts[-1].model) == ("mine", "mine")
    assert (tmp_path / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_an_engine_that_follows_the_model_is_known_from_other_batches(made):
    unseen = held_out(made, layers=LAYERS, kv_tokens=1_000_000)
    np.testing.assert_allclose(unseen.fitted_ms, unseen.measured_ms, rtol=1e-6)
    assert list(unseen.by_chunk) == [0, 64, 192, 512, 1920]


def test_a_batch_that_errs_counts_more_where_it_is_held_out(made, tmp_path):
    """What one batch pulls the fit towards itself by is not seen on that batch."""
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    header, *rows = (made / "attention.csv").read_text().splitlines()
    cells = [row.split(",") for row in rows]
    largest = max(range(len(cells)), key=lambda i: (cells[i][0] == "0", float(cells[i][4])))
    cells[largest][4] = str(3 * float(cells[largest][4]))
    (tmp_path / "attention.csv").write_text("\n".join([header, *map(",".join, cells)]) + "\n")
    fitted = fit_profile(tmp_path, layers=LAYERS, kv_tokens=1_000_000, kv_bytes_per_token=1, server_mixed_ms=0.0)
    unseen = held_out(tmp_path, layers=LAYERS, kv_tokens=1_000_000)
    assert unseen.by_chunk[0].mape != fitted.by_chunk[0].mape
    worst = np.abs(unseen.fitted_ms - unseen.measured_ms).argmax()
    assert unseen.chunk[worst] == 0
    price = fitted.profile.iteration_s(100, 100 * 4096) * 1e3
    assert unseen.fitted_ms[worst] < price < unseen.measured_ms[worst]


def test_real_measurements_are_priced_nearly_as_well_unseen(data_dir):
    folder = data_dir / "llmservingsim" / "RTX4090_Llama-3.1-8B"
    fitted = fit_profile(folder, layers=32, kv_tokens=41_408, kv_bytes_per_token=131_072)
    unseen = held_out(folder, layers=32, kv_tokens=41_408)
    for chunk, error in unseen.by_chunk.items():
        assert error.mape < fitted.by_chunk[chunk].mape + 0.01


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("attention.csv", "0,0,1,16,", "0,0,one,16,", "attention.csv, line 2, column n_decode: 'one': must be a finite number"),
        ("attention.csv", "0,0,1,16,", "0,0,-1,16,", "attention.csv, line 2, column n_decode: '-1': must be a finite number"),
        ("attention.csv", "n_decode", "decodes", "attention.csv, line 1: columns prefill_chunk, kv_prefill, decodes"),
        ("dense.csv", "embedding,1,", "embedding,,", "dense.csv, line 2, column tokens: '': must be a finite number"),
        ("dense.csv", "act_fn", "act", "dense.csv: layer = "),
        ("per_sequence.csv", "lm_head,1,0", "lm_head,1", "per_sequence.csv, line 2, column time_us: None: must be"),
    ],
)
def test_a_malformed_row_is_named(made, tmp_path, capsys, file, old, new, message):
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    assert fit(tmp_path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean-score", "1.5"], "options: mean-score: Input should be less than or equal to 0.999999 (got 1.5)"),
        (["--name", ""], "options: name: "),
        (["--layers", "0"], "layers = 0: must be >= 1"),
        (["--max-model-len", "2000000"], "kv_tokens = 1000000: must hold the largest request"),
        (["--server-mixed-ms", "-1"], "server-mixed-ms = -1.0: must be from 0 to 1,000,000"),
        (["--measurements", "nowhere"], "nowhere: none of dense.csv, per_sequence.csv, attention.csv is there"),
    ],
)
def test_impossible_options_are_named(made, tmp_path, capsys, options, message):
    assert fit(made, "--out", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
