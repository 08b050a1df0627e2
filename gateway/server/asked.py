"""What a client asks: the body and the headers of a completion, checked as far as routing needs them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from gateway.config import AUTO, GatewayConfig
from gateway.request import Budgets
from gateway.server.replies import Refused

TTFT_HEADER, TPOT_HEADER, E2E_HEADER = b"x-slo-ttft-ms", b"x-slo-tpot-ms", b"x-slo-e2e-ms"
CLASS_HEADER, PRIVACY_HEADER = b"x-edgeroute-class", b"x-edgeroute-privacy"

_LONGEST_MS = 86_400_000.0
_MOST_TOKENS = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The prompt of a request, for counting and for predictors."""

    text: str  # all its texts, one after the other
    tokens: int | None  # its exact number of tokens, where it was given as tokens
    messages: int  # number of messages of a chat; 0: no chat


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The body of a completion request."""

    body: dict[str, Any]  # as it came
    model: str
    streams: bool
    wants_usage: bool  # whether the client asked for the event that tells the usage of a stream
    max_tokens: int | None
    prompt: Prompt

    def for_engine(self, model: str) -> bytes:
        """The body for an engine, which calls its model so; a stream is asked to tell its usage."""
        changed = self.body | {"model": model}
        if self.streams:
            options = cast(dict[str, Any], self.body.get("stream_options") or {})
            changed["stream_options"] = options | {"include_usage": True}
        return json.dumps(changed).encode()


def parse_completion(body: bytes, chat: bool) -> Asked:
    """Check what routing reads of a body; all else is the engine's to judge.

    Args:
        body: JSON in UTF-8.
        chat: whether it has messages, else a prompt.

    Raises:
        Refused: 400, with the field that is wrong.
    """
    data = parse_object(body)
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise wrong("model", "must be the name of an expert, or auto")
    stream = data.get("stream")
    if not (stream is None or isinstance(stream, bool)):
        raise wrong("stream", "must be true or false")
    options = data.get("stream_options")
    if not (options is None or isinstance(options, dict)):
        raise wrong("stream_options", "must be an object")
    usage = cast(dict[str, Any], options or {}).get("include_usage")
    return Asked(
        body=data,
        model=model,
        streams=bool(stream),
        wants_usage=bool(usage),
        max_tokens=_max_tokens(data),
        prompt=_messages(data.get("messages")) if chat else _plain_prompt(data.get("prompt")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inquiry:
    """The body of a question where to send a request, which somebody else sends."""

    model: str
    max_tokens: int | None
    prompt: Prompt
    candidates: tuple[str, ...] | None  # names of experts, or of their models; others are nothing to us; None: all
    budgets: Budgets


_PROMPTS = ("messages", "prompt", "prompt_tokens")
_BOUNDS = ("ttft_ms", "tpot_ms", "e2e_ms")


def parse_inquiry(body: bytes) -> Inquiry:
    """Check a question where to send a request.

    Args:
        body: JSON in UTF-8, with exactly one of ``messages``, ``prompt`` and ``prompt_tokens``.

    Raises:
        Refused: 400, with the field that is wrong.
    """
    data = parse_object(body)
    model = data.get("model", AUTO)
    if not isinstance(model, str) or not model:
        raise wrong("model", "must be the name of an expert, or auto")
    given = [name for name in _PROMPTS if data.get(name) is not None]
    if len(given) != 1:
        raise wrong("messages", "exactly one of messages, prompt and prompt_tokens must be given")
    if given == ["prompt_tokens"]:
        prompt = Prompt(text="", tokens=_count(data, "prompt_tokens"), messages=0)
    else:
        prompt = _messages(data["messages"]) if given == ["messages"] else _plain_prompt(data["prompt"])
    return Inquiry(
        model=model,
        max_tokens=_max_tokens(data),
        prompt=prompt,
        candidates=_names(data, "candidates"),
        budgets=_slo(data.get("slo")),
    )


def _names(data: dict[str, Any], field: str) -> tuple[str, ...] | None:
    given = data.get(field)
    if given is None:
        return None
    names = cast(list[Any], given) if isinstance(given, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise wrong(field, "must be a list of at least one name")
    return tuple(names)


def _slo(given: Any) -> Budgets:
    bounds = cast(dict[str, Any], {} if given is None else given)
    if not isinstance(given, dict | None) or not set(bounds) <= set(_BOUNDS):
        raise wrong("slo", f"must be an object with {', '.join(_BOUNDS)}")
    for name, value in bounds.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST_MS:
            raise wrong(f"slo.{name}", "must be milliseconds above 0, up to a day")
    ttft_s, tpot_s, e2e_s = (None if bounds.get(name) is None else bounds[name] / 1e3 for name in _BOUNDS)
    return Budgets(ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=e2e_s)


def count_of(data: dict[str, Any], field: str) -> int | None:
    """A number of tokens in a body; None: it is not given.

    Raises:
        Refused: 400, it is none.
    """
    return None if data.get(field) is None else _count(data, field)


def _count(data: dict[str, Any], field: str) -> int:
    value = data[field]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_TOKENS:
        raise wrong(field, "must be an integer of at least 1")
    return value


def budgets_of(headers: dict[bytes, bytes]) -> Budgets:
    """The bounds that headers give a single request.

    Raises:
        Refused: 400, no number of milliseconds above 0 and up to a day.
    """
    return Budgets(
        ttft_s=_seconds(headers, TTFT_HEADER), tpot_s=_seconds(headers, TPOT_HEADER), e2e_s=_seconds(headers, E2E_HEADER)
    )


def class_of(headers: dict[bytes, bytes], config: GatewayConfig, tenant: int | None) -> int:
    """Index of the service class: the header's, else the tenant's, else the first.

    Raises:
        Refused: 400, no such class.
    """
    names = [entry.name for entry in config.classes]
    own = None if tenant is None else config.tenants[tenant].service_class
    if (given := headers.get(CLASS_HEADER)) is None:
        return 0 if own is None else names.index(own)
    return _index(names, given, CLASS_HEADER)


def allowed_of(headers: dict[bytes, bytes], config: GatewayConfig, sets: Sequence[tuple[bool, ...]]) -> tuple[bool, ...] | None:
    """(N,) experts of the privacy set that a header names, of each of several; None: it names none.

    Args:
        headers: of the request.
        config: with the names of the privacy sets.
        sets: (N,) experts of each privacy set.

    Raises:
        Refused: 400, no such set. An empty name is none.
    """
    given = headers.get(PRIVACY_HEADER)
    if given is None:
        return None
    names = [entry.name for entry in config.privacy_sets]
    chosen = [sets[_index(names, name.strip(), PRIVACY_HEADER)] for name in given.split(b",")]
    return tuple(map(all, zip(*chosen, strict=True)))


def pinned_of(model: str, config: GatewayConfig) -> int | None:
    """Index of the expert that a model's name asks for; None: the gateway decides.

    Raises:
        Refused: 404, no such expert.
    """
    if model == AUTO:
        return None
    for index, entry in enumerate(config.experts):
        if entry.name == model:
            return index
    raise Refused(404, "model_not_found", f"model {_short(model)}: must be {AUTO} or an expert of /v1/models", param="model")


def _index(names: list[str], given: bytes, header: bytes) -> int:
    text = given.decode("latin-1")
    if text not in names:
        allowed = ", ".join(names) if names else "none is configured"
        raise Refused(400, "invalid_header", f"{header.decode()}: {_short(text)}: must be one of: {allowed}")
    return names.index(text)


def _seconds(headers: dict[bytes, bytes], name: bytes) -> float | None:
    given = headers.get(name)
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value <= _LONGEST_MS:
        text = _short(given.decode("latin-1"))
        raise Refused(400, "invalid_header", f"{name.decode()}: {text}: must be milliseconds above 0, up to a day")
    return value / 1e3


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        Refused: 400, it is none.
    """
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Refused(400, "invalid_json", f"the body is not JSON: {why}") from None
    if not isinstance(data, dict):
        raise Refused(400, "invalid_json", "the body must be a JSON object")
    return cast(dict[str, Any], data)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _max_tokens(data: dict[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = data.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MOST_TOKENS:
            raise wrong(name, "must be an integer of at least 1")
        return value
    return None


def _messages(given: Any) -> Prompt:
    if not isinstance(given, list) or not given:
        raise wrong("messages", "must be a list of at least one message")
    texts: list[str] = []
    for message in cast(list[Any], given):
        if not isinstance(message, dict):
            raise wrong("messages", "each must be an object")
        content = cast(dict[str, Any], message).get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list):
            parts = [cast(dict[str, Any], part) for part in cast(list[Any], content) if isinstance(part, dict)]
            texts += [part["text"] for part in parts if isinstance(part.get("text"), str)]
        elif content is not None:
            raise wrong("messages", "content must be text, a list of parts, or null")
    return Prompt(text="\n".join(texts), tokens=None, messages=len(cast(list[Any], given)))


def _plain_prompt(given: Any) -> Prompt:
    if isinstance(given, str):
        return Prompt(text=given, tokens=None, messages=0)
    if isinstance(given, list) and given:
        items = cast(list[Any], given)
        if all(isinstance(item, str) for item in items):
            return Prompt(text="\n".join(items), tokens=None, messages=0)
        if _are_tokens(items):
            return Prompt(text="", tokens=len(items), messages=0)
        if all(isinstance(item, list) and item and _are_tokens(item) for item in items):
            return Prompt(text="", tokens=sum(map(len, items)), messages=0)
    raise wrong("prompt", "must be text, a list of texts, or a list of token ids")


def _are_tokens(items: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in items)


def wrong(field: str, what: str) -> Refused:
    """The refusal of a body for one of its fields."""
    return Refused(400, "invalid_value", f"{field}: {what}", param=field)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 80 else repr(text[:77]) + "..."
