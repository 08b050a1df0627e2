"""Notes on where predictions come from, where that is not the default of the synthetic catalogue."""

from __future__ import annotations

from rllib_envs.scenario import PredictionLaw, Scenario
from rllib_envs.workload.catalogue import read_catalogue
from rllib_envs.workload.predictions import Law, law_of


def predicted_by(scenario: Scenario) -> Law:
    """The law of a scenario's predictions; ``auto`` as it turns out.

    Raises:
        InputError: the law does not go with the catalogue, or the file of prompts cannot be read.
    """
    given = scenario.predictions.predictors is not None or bool(_keys(scenario))
    return law_of(scenario.predictions.law, synthetic=scenario.workload.catalogue.path is None, given=given)


def notes_on_predictions(scenario: Scenario) -> list[str]:
    """Say where predictions come from, for a file of prompts and for a law that was asked for.

    Raises:
        InputError: as ``predicted_by``.
    """
    law = predicted_by(scenario)
    if scenario.predictions.law == "auto" and law == "measured":
        return []
    return [f"Predictions: {_source(law, scenario)}."]


def _source(law: Law, scenario: Scenario) -> str:
    if scenario.predictions.predictors is not None:
        return f"those of the predictors {scenario.predictions.predictors}, each by predictors that have not seen its prompt"
    if law == "given":
        return f"those of the file itself ({', '.join(_keys(scenario))})"
    if law == "measured":
        return "drawn around the truth, with the errors of predictors that learned from prompts (measured)"
    if law == "oracle-noise":
        return "the truth with Gaussian noise, which no predictor has (oracle-noise)"
    if law == "task-means":
        return "each expert's mean score and mean length on the prompt's task (task-means)"
    asked: PredictionLaw = scenario.predictions.law
    why = (
        ""
        if asked == "means"
        else "; the file has none of its own (docs/data.md), and --predictions oracle-noise predicts the truth"
    )
    return f"each expert's mean score and mean length, the same for every request (means){why}"


def _keys(scenario: Scenario) -> tuple[str, ...]:
    path = scenario.workload.catalogue.path
    return () if path is None else tuple(read_catalogue(path).predicted)
