"""What a sweep varies: files that are spaces, files that are not, and the experiments that settings stand for."""

import numpy as np
import pytest
import yaml

from models.rllib.scenario import MARGINAL
from rllib_envs.errors import InputError
from tuning.sweeps.space import Domain, check_space, default_settings, experiment, load_space, parse_space, space_names
from tuning.training.options import TrainOptions, complete, to_mapping

USUAL = TrainOptions()


def space(base=None, **parameters):
    contents = {"parameters": {path.replace("__", "."): domain for path, domain in parameters.items()}}
    return parse_space(contents | ({"base": base} if base else {}), "mine", "mine.yaml")


@pytest.mark.parametrize("name", space_names())
def test_spaces_that_come_with_the_project_can_be_built(name):
    found = load_space(name)
    check_space(found, USUAL, name)
    assert found.about


@pytest.mark.parametrize("name", space_names())
def test_the_usual_settings_are_in_them_and_change_nothing(name):
    found = load_space(name)
    settings = default_settings(USUAL, found)
    assert settings is not None
    assert settings.keys() == found.parameters.keys()
    with_settings, without = (to_mapping(experiment(USUAL, found, one)[0]) for one in (settings, {}))
    if name == "learner":  # there the rate that None stands for is said
        with_settings["lr"] = without["lr"]
    assert with_settings == without


def test_a_space_reads_back_from_its_file(tmp_path):
    first = space({"generations": 0}, lr={"log_uniform": [1e-4, 1e-2]}, layers={"integer": [1, 2]}, edges={"choice": ["all"]})
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(first.to_dict()))
    assert load_space(str(file)) == first


def test_settings_reach_options_reward_and_scenario():
    mine = space(
        {"generations": 3},
        lr={"uniform": [0.1, 0.2]},
        reward__drop={"uniform": [0, 1]},
        graph_hidden={"choice": [64]},
        scenario__experts__0__engine__max_num_seqs={"choice": [5]},
    )
    settings = {"lr": 0.15, "reward.drop": 0.5, "graph_hidden": 64, "scenario.experts.0.engine.max_num_seqs": 5}
    options, scenario = experiment(USUAL, mine, settings)
    assert (options.lr, options.router.graph_hidden, options.avl.generations) == (0.15, 64, 3)
    assert options.reward.drop == 0.5
    assert options.reward.marginal_qos == MARGINAL.marginal_qos
    assert scenario.experts[0].engine.max_num_seqs == 5
    assert scenario.experts[1] == experiment(USUAL, space(lr={"choice": [0.1]}), {})[1].experts[1]


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        ({"parameters": {}}, "empty"),
        ({}, "empty"),
        ([], "mapping"),
        ({"parametres": {}}, "'parametres'"),
        ({"parameters": {"graph_hiden": {"choice": [1]}}}, "'graph_hidden'"),
        ({"parameters": {"reward.violations": {"uniform": [0, 1]}}}, "'reward.violation'"),
        ({"parameters": {"run_dir": {"choice": ["a"]}}}, "'run_dir'"),
        ({"parameters": {"wandb_project": {"choice": ["a"]}}}, "'wandb_project'"),
        ({"parameters": {"scenario.reward.drop": {"uniform": [0, 1]}}}, "reward.drop"),
        ({"parameters": {"lr": {"uniform": [0.2, 0.1]}}}, "[0.2, 0.1]"),
        ({"parameters": {"lr": {"uniform": [0.2]}}}, "least and the greatest"),
        ({"parameters": {"lr": {"log_uniform": [0, 0.1]}}}, "> 0"),
        ({"parameters": {"layers": {"integer": [1, 1.5]}}}, "integers"),
        ({"parameters": {"lr": {"lognormal": [0, 1]}}}, "'lognormal'"),
        ({"parameters": {"lr": {"choice": []}}}, "not empty"),
        ({"parameters": {"lr": {"choice": [0.1, 0.1]}}}, "twice"),
        ({"parameters": {"lr": 0.1}}, "0.1"),
        ({"parameters": {"lr": {"choice": [0.1]}}, "base": {"lr": 0.2}}, "in base and in parameters"),
    ],
)
def test_what_is_no_space_is_refused_with_what_is_allowed(contents, said):
    with pytest.raises(InputError, match=r"mine\.yaml") as error:
        parse_space(contents, "mine", "mine.yaml")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"layers": {"integer": [1, 3]}}, "layers = 3"),
        ({"lr": {"uniform": [-1.0, 0.1]}}, "lr = -1.0"),
        ({"encoder": {"choice": ["han", "gat"]}}, "gat"),
        ({"graph_hidden": {"choice": [32]}, "heads": {"choice": [4, 5]}}, "heads = 5"),
        ({"reward.drop": {"uniform": [-1.0, 0.0]}}, "reward.drop = -1.0"),
        ({"scenario.experts.9.name": {"choice": ["x"]}}, "position from 0 to 5"),
        ({"scenario.slo_s_per_tok": {"choice": [1.0]}}, "'slo_s_per_token'"),
    ],
)
def test_values_that_cannot_be_or_do_not_go_together_are_refused_before_anything_starts(parameters, said):
    with pytest.raises(InputError, match="impossible with") as error:
        check_space(parse_space({"parameters": parameters}, "mine", "mine.yaml"), USUAL, "mine.yaml")
    assert said in str(error.value)


def test_unknown_space_names_the_nearest():
    with pytest.raises(InputError, match="'reward-weights'"):
        load_space("reward-weigths")


@pytest.mark.parametrize(
    "domain",
    [
        Domain(kind="choice", values=("a", "b", "c")),
        Domain(kind="uniform", values=(0.0, 2.0)),
        Domain(kind="log_uniform", values=(0.01, 1.0)),
        Domain(kind="integer", values=(1, 9)),
    ],
    ids=lambda domain: domain.kind,
)
def test_a_spread_is_within_the_domain_and_reaches_its_ends(domain):
    found = domain.spread(3)
    assert len(found) == 3
    assert all(domain.contains(value) for value in found)
    assert found[0] == pytest.approx(domain.values[0]) if domain.kind != "choice" else found == list(domain.values)
    if domain.kind != "choice":
        assert found[-1] == pytest.approx(domain.values[-1])
        assert not domain.contains(domain.values[-1] + 1)
        assert np.diff(found).min() > 0


def test_settings_that_are_usual_are_none_where_a_space_does_not_hold_them():
    assert default_settings(USUAL, space(graph_hidden={"choice": [64, 128]})) is None


def test_a_completed_experiment_is_one_that_train_accepts():
    assert complete(experiment(USUAL, load_space("graph"), {"heads": 8})[0]).router.heads == 8
