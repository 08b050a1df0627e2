"""The prompts and the predictions that a command line asks for, instead of the scenario's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from models.predictors.served import Predictors
from rllib_envs.errors import InputError
from rllib_envs.scenario import Catalogue, PredictionLaw, Scenario, with_workload
from rllib_envs.workload.prediction_table import TABLE, read_table


def with_prompts(scenario: Scenario, path: Path | str) -> Scenario:
    """Replace the scenario's catalogue by the prompts of a file (``rllib_envs.workload.catalogue``), those of its train split.

    A stated capacity is for other prompts, so it is measured again.
    """
    catalogue = Catalogue(kind="file", path=str(path))
    return replace(with_workload(scenario, catalogue=catalogue), capacity_rps=None)


def with_predictions(scenario: Scenario, law: PredictionLaw | None, predictors: Path | str | None = None) -> Scenario:
    """Replace the law of the scenario's predictions, and the predictors that they come from; None leaves each.

    A law without predictors of its own (measured, oracle-noise, means) ends the use of the scenario's predictors.

    Raises:
        InputError: the folder holds no predictors or damaged ones, or they go neither with the law nor with the catalogue.
    """
    changes: dict[str, object] = {} if law is None else {"law": law}
    if predictors is not None:
        folder = Path(predictors)
        if Predictors.load(folder).models != read_table(folder).models:
            raise InputError(f"{folder / TABLE}: does not fit: it has other models than the predictors")
        changes["predictors"] = str(predictors)
    elif law not in (None, "auto", "given"):
        changes["predictors"] = None
    try:
        return replace(scenario, predictions=replace(scenario.predictions, **changes)) if changes else scenario
    except ValidationError as error:
        said = "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())
        raise InputError(f"predictors {str(predictors)!r}: {said}") from None


def with_information(
    scenario: Scenario, catalogue: Path | str | None, law: PredictionLaw | None, predictors: Path | str | None
) -> Scenario:
    """The scenario with the prompts and predictions asked for; None leaves each as it is.

    Raises:
        InputError: as ``with_predictions``.
    """
    return with_predictions(scenario if catalogue is None else with_prompts(scenario, catalogue), law, predictors)
