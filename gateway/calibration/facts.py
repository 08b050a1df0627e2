"""What an engine's server says of itself: its model, KV capacity and limits.

vLLM: ``/v1/models`` has the longest request, ``/metrics`` the KV blocks. llama.cpp: ``/props`` has the slots and the context of
each. Neither says how many tokens an iteration takes, and vLLM not how many requests run at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from rllib_envs.sim.profile import BLOCK_TOKENS

_BLOCKS = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """What is known of a server; None where it does not say."""

    kind: str  # vllm, llama.cpp or unknown
    models: tuple[str, ...]
    kv_tokens: int | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    async_scheduling: bool | None = None
    params_b: float | None = None  # billions of parameters of the model


def server_facts(models: str, metrics: str, props: str, model: str | None = None) -> ServerFacts:
    """Read the answers of ``/v1/models``, ``/metrics`` and ``/props``; an empty text stands for one that failed.

    ``model``: the one asked for, if the server has several.
    """
    listed = [entry for entry in _list(_object(models).get("data")) if isinstance(entry.get("id"), str)]
    names = tuple(str(entry["id"]) for entry in listed)
    entry = next((entry for entry in listed if model in (None, entry["id"])), {})
    if found := _BLOCKS.search(metrics):
        return _vllm(names, entry, dict(_LABEL.findall(found[1])))
    slots = _integer(_object(props).get("total_slots"))
    if slots is not None or entry.get("owned_by") == "llamacpp":
        return _llama(names, entry, _object(props), slots)
    return ServerFacts(kind="unknown", models=names, max_model_len=_integer(entry.get("max_model_len")))


def _vllm(names: tuple[str, ...], entry: Json, labels: Mapping[str, str]) -> ServerFacts:
    blocks, size = (_integer(labels.get(name)) for name in ("num_gpu_blocks", "block_size"))
    return ServerFacts(
        kind="vllm",
        models=names,
        kv_tokens=blocks * size if blocks and size else None,
        max_model_len=_integer(entry.get("max_model_len")),
    )


def _llama(names: tuple[str, ...], entry: Json, props: Json, slots: int | None) -> ServerFacts:
    """Each slot has KV room of its own, so none is ever short of it. Iterations are composed one after the other."""
    context = _integer(_mapping(props.get("default_generation_settings")).get("n_ctx"))
    params = _mapping(entry.get("meta")).get("n_params")
    return ServerFacts(
        kind="llama.cpp",
        models=names,
        kv_tokens=(slots * context // BLOCK_TOKENS + 1 + slots) * BLOCK_TOKENS if slots and context else None,
        max_num_seqs=slots,
        max_model_len=context,
        async_scheduling=False,
        params_b=params / 1e9 if isinstance(params, int) and params > 0 else None,
    )


def _object(text: str) -> Json:
    try:
        return _mapping(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> Json:
    return cast(Json, value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Json]:
    return [_mapping(entry) for entry in cast(list[Any], value)] if isinstance(value, list) else []


def _integer(value: Any) -> int | None:
    """A positive integer, perhaps as text."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) < 13 and int(text) > 0 else None
