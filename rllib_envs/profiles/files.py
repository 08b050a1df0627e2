"""The file of one expert, a list of one as the field ``experts`` of a scenario takes it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rllib_envs.errors import InputError
from rllib_envs.scenario import Expert
from rllib_envs.scenarios.load import explain
from rllib_envs.text_files import read_text
from rllib_envs.yaml_files import MOST_BYTES, dump_yaml, parse_yaml

_ADAPTER: TypeAdapter[Expert] = TypeAdapter(Expert)


def expert_yaml(expert: Expert) -> str:
    """The expert as a list of one, in YAML."""
    return dump_yaml([asdict(expert)])


def read_expert(path: Path) -> Expert:
    """Read the file of one expert.

    Raises:
        InputError: it cannot be read, is not a list of one expert, or a field is wrong; a line for each.
    """
    data = parse_yaml(read_text(path, MOST_BYTES), str(path))
    if not isinstance(data, list) or len(data) != 1:
        found = f"{len(data)} experts" if isinstance(data, list) else type(data).__name__
        raise InputError(f"{path}: {found}: must be a list of one expert, as edgeroute calibrate and fit-profile write it")
    try:
        return _ADAPTER.validate_json(json.dumps(data[0], default=str))  # as in a scenario: lists are tuples
    except ValidationError as error:
        raise InputError("\n".join(explain(error, str(path), "expert"))) from None
