"""Options of a training run: what wins over what, and what is refused."""

import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import tyro

from benchmarks.paper_arms import DEPARTURE
from models.rllib.avl.settings import AVLSettings
from models.rllib.sac.algorithm import PAPER
from models.rllib.sac.settings import SACSettings
from models.rllib.scenario import MARGINAL
from models.router import RouterSpec
from rllib_envs.errors import InputError
from rllib_envs.yaml_files import dump_yaml, parse_yaml
from tuning.specs.command_line import parse_arguments
from tuning.training.algorithms import learning_rate
from tuning.training.options import (
    DEFAULT_STEPS,
    HELP,
    AlgorithmName,
    TrainOptions,
    complete,
    defaults,
    definition,
    parse_options,
    preset,
    resumed,
    to_mapping,
)


def read(*arguments):
    """Options as the command reads them."""
    return tyro.cli(TrainOptions, args=arguments, default=defaults(arguments))


@pytest.fixture
def config(tmp_path):
    def write(**options):
        path = tmp_path / "options.yaml"
        path.write_text(dump_yaml(options))
        return path

    return write


def test_without_arguments_they_are_the_defaults():
    assert read() == TrainOptions()


def test_a_file_changes_what_it_names_and_the_command_line_wins(config):
    path = config(lr=0.02, hidden=40, fleets=["edge4"], calibrate=False, **{"envs-per-runner": 7})
    options = read("--config", str(path), "--lr", "0.001", "--calibrate")
    assert options == replace(
        TrainOptions(), config=path, lr=0.001, router=RouterSpec(hidden=40, bounded=True), fleets=("edge4",), envs_per_runner=7
    )


def test_a_value_given_as_the_usual_default_wins_over_a_file_too(config):
    path = config(temperature=0.5)
    assert read("--config", str(path), "--temperature", str(TrainOptions().temperature)).temperature == TrainOptions().temperature


def test_the_paper_preset_is_a_set_of_defaults(config):
    assert read("--preset", "paper") == preset("paper")
    assert (preset("paper").algo, preset("paper").scenario, preset("paper").variation) == ("sac", "paper3", False)
    assert read("--preset", "paper", "--scenario", "edge6").scenario == "edge6"
    assert read("--config", str(config(preset="paper", seed=4))) == replace(
        preset("paper"), seed=4, config=config(preset="paper", seed=4)
    )


def test_the_paper_preset_is_the_published_one_with_the_departures_that_are_measured():
    departures = [option for options in DEPARTURE.values() for option in options]
    assert replace(read("--preset", "paper-published", *departures), preset="paper") == preset("paper")


def test_the_mended_paper_begins_from_nothing():
    options = preset("paper-mended")
    assert (options.algo, options.scenario, options.reward) == ("sac", "paper3", MARGINAL)
    assert not any((options.spec.impact, options.spec.future, options.calibrate, options.variation))
    assert read("--preset", "paper-mended", "--gamma", "0.5").sac == replace(options.sac, gamma=0.5)


def test_settings_of_sac_are_given_by_name(config):
    assert read("--config", str(config(algo="sac", critic_warmup=7))).sac == SACSettings(critic_warmup=7)
    assert SACSettings().training() == {}
    assert SACSettings(gamma=0.9, impact_estimator=False).training() == {"gamma": 0.9, "beta": 0.0}


@pytest.mark.parametrize("flag", ["impact", "future", "drop"])
def test_parts_of_the_router_are_switched_off_by_flags(flag):
    assert not getattr(read(f"--no-{flag}").spec, flag)
    assert getattr(read().spec, flag)


def test_without_correction_none_is_learned():
    assert read("--no-correction").spec == RouterSpec(impact_hidden=0, bounded=True)
    assert read("--no-correction", "--encoder", "aggregates").spec.encoder == "aggregates"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lrr: 1", r"unknown option 'lrr'; did you mean 'lr'"),
        ("lr: fast", r"lr: .*valid number \(got 'fast'\)"),
        ("algo: a2c", r"algo: .*'avl', 'sac', 'ppo' or 'dqn' \(got 'a2c'\)"),
        ("hidden: -3", r"hidden = -3: must be from 0 to"),
        ("- lr", r"must be a mapping"),
        ("lr: [", r"not YAML"),
    ],
)
def test_a_file_that_is_none_of_options_is_one_error_that_names_it(tmp_path, content, message):
    path = tmp_path / "options.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        defaults(["--config", str(path)])
    assert content.startswith("hidden") or str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        defaults(["--config", str(tmp_path / "none.yaml")])


def test_what_defines_a_run_survives_yaml():
    options = replace(TrainOptions(), lr=0.3, fleets=("edge4", "edge5"), router=RouterSpec(layers=2), variation=False)
    assert parse_options(parse_yaml(dump_yaml(definition(options)), "file"), "file") == options
    assert set(definition(options)) < set(to_mapping(options))


def test_the_former_name_of_an_option_is_read_and_its_new_one_said(capsys):
    options = parse_options({"search-worlds": 7}, "old.yaml")
    assert options == replace(TrainOptions(), avl=AVLSettings(search_variants=7))
    assert capsys.readouterr().err == "old.yaml: search_worlds is called search_variants now\n"
    assert resumed(TrainOptions(), definition(TrainOptions()) | {"search_variants": 7}, "file").avl.search_variants == 7
    assert capsys.readouterr().err == ""


def test_a_resumed_run_keeps_its_own_and_takes_the_limits_of_this_start():
    own = definition(replace(TrainOptions(), lr=0.3, router=RouterSpec(hidden=40)))
    given = TrainOptions(run_dir=Path("there"), minutes=3.0, resume=True)
    assert resumed(given, own, "file") == replace(given, lr=0.3, router=RouterSpec(hidden=40))
    assert resumed(replace(given, lr=0.3), own, "file").lr == 0.3
    with pytest.raises(InputError, match=r"lr = 0\.2: a resumed run keeps its own, which is 0\.3"):
        resumed(replace(given, lr=0.2), own, "file")
    with pytest.raises(InputError, match="hidden = 50: a resumed run keeps its own, which is 40"):
        resumed(replace(given, router=RouterSpec(hidden=50)), own, "file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, r"lr = -1\.0: must be from 1e-09 to 10$"),
        ({"lr": float("nan")}, "lr = nan: must be from"),
        ({"minutes": 0.0}, r"minutes = 0\.0: must be from"),
        ({"iterations": 0}, "iterations = 0: must be from 1 to"),
        ({"iterations": 0, "smoke": True}, "iterations = 0: must be from 1 to"),
        ({"steps": -5}, "steps = -5: must be from 1 to"),
        ({"steps_per_iteration": 0}, "steps-per-iteration = 0: must be from 1 to"),
        ({"requests": 0}, "requests = 0: must be from 1 to"),
        ({"seed": -1}, "seed = -1: must be from 0 to"),
        ({"seed": 2**31}, "seed = 2147483648: must be from 0 to"),
        ({"num_env_runners": -1}, "num-env-runners = -1: must be from 0 to"),
        ({"storage": ""}, "storage = '': must not be empty"),
        ({"guide": "impact"}, "guide = 'impact': must be a built-in heuristic; did you mean 'impact-greedy'"),
        ({"guide": "python:mine.py:route"}, "guide = 'python:mine.py:route': must be a built-in heuristic"),
        ({"guide": "impact-greedy:price=-1"}, "price = -1: must be from 0"),
        ({"preset": "paper"}, "algo = avl: the preset paper trains with sac"),
        ({"preset": "paper-published"}, "algo = avl: the preset paper-published trains with sac"),
        ({"preset": "paper-mended"}, "algo = avl: the preset paper-mended trains with sac"),
    ],
)
def test_what_is_out_of_range_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        complete(TrainOptions(**changes))


def test_there_is_always_a_limit():
    assert complete(TrainOptions()).steps == DEFAULT_STEPS
    assert complete(TrainOptions(minutes=1.0)).steps is None
    assert complete(TrainOptions(iterations=3)).total_steps == 3 * TrainOptions().steps_in_iteration
    assert complete(TrainOptions(minutes=1.0)).total_steps is None
    assert complete(TrainOptions(steps=100, iterations=1)).total_steps == 100


NUMBERS = {
    (part, field.name): field
    for part, kind in (("", TrainOptions), ("router", RouterSpec), ("avl", AVLSettings), ("sac", SACSettings))
    for field in fields(kind)
    if str(field.type).startswith(("int", "float", "Annotated[int", "Annotated[float"))
}


@pytest.mark.parametrize(("part", "name"), NUMBERS)
def test_every_number_has_bounds(part, name):
    assert len(NUMBERS) > 25
    whole = "int" in str(NUMBERS[part, name].type)
    for value in (-1, 10**19, float("nan"), float("inf"), 1e308):
        with pytest.raises(InputError, match=rf"{name.replace('_', '[-_]')} = {re.escape(str(value))}: must be"):
            complete(
                replace(
                    TrainOptions(), **({part: replace(getattr(TrainOptions(), part), **{name: value})} if part else {name: value})
                )
            )
    for value in (True, "1", "yes", [], *([1.5, 2.0, 1e999] if whole else [])):
        with pytest.raises(InputError, match=rf"^file: {name}"):
            parse_options({name: value}, "file")


@pytest.mark.parametrize("name", [f.name for f in fields(TrainOptions) if str(f.type) == "bool"])
def test_a_switch_is_true_or_false_and_nothing_else(name):
    for value in ("yes", "true", 1, 0, None):
        with pytest.raises(InputError, match=rf"^file: {name}: .*true or false"):
            parse_options({name: value}, "file")


def test_help_says_the_defaults_that_there_are(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(SimpleNamespace(Options=TrainOptions, HELP=HELP), "edgeroute train", ["--help-all"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"if no limit is given: {DEFAULT_STEPS:,}." in text
    for algo in get_args(AlgorithmName):
        assert f"{algo} {TrainOptions(algo=algo).steps_in_iteration:,}" in text
    stated = dict(re.findall(r"(avl and ppo|sac and dqn|paper's) (\de-\d)", text))
    rates = {algo: learning_rate(TrainOptions(algo=algo)) for algo in get_args(AlgorithmName)}
    assert {float(stated["avl and ppo"])} == {rates["avl"], rates["ppo"]}
    assert {float(stated["sac and dqn"])} == {rates["sac"], rates["dqn"]}
    assert float(stated["paper's"]) == PAPER["lr"]
