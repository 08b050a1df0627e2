"""The protocols of other routers, answered by this one: vLLM Semantic Router's question for a model, llm-d's for latencies."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, cast

from gateway.request import Budgets
from gateway.server.asked import Inquiry, Prompt, parse_object, wrong
from gateway.server.replies import Refused
from gateway.server.routed import Routes
from gateway.server.traffic import Traffic
from rllib_envs.sim.profile import EngineProfile

LLM_D = "/llm-d/"
"""What paths of llm-d's protocol begin with; the name of an expert follows."""

_ENDS = ("/predict/bulk/strict", "/predict/bulk")
_MOST = 1000  # predictions at once
_QUANTILE = 0.5  # a profile predicts what is usual
_FIELDS = {
    "kv_cache_percentage": (0.0, 1.0),
    "input_token_length": (0.0, 1e9),
    "num_request_waiting": (0.0, 1e6),
    "num_request_running": (0.0, 1e6),
    "prefix_cache_score": (0.0, 1.0),
}


async def select_model(routes: Routes, headers: dict[bytes, bytes], body: bytes, tenant: int | None) -> dict[str, Any]:
    """Answer ``POST /route`` of vLLM Semantic Router: which model should get this query.

    Nobody tells the end of such a request: it counts as under way for as long as it is predicted to take.

    Args:
        routes: requests that somebody else sends.
        headers: of the request.
        body: JSON with ``query``.
        tenant: who asks.

    Raises:
        Refused: 400, no query; 503, no expert.
    """
    query = parse_object(body).get("query")
    if not isinstance(query, str) or not query:
        raise wrong("query", "must be a text")
    prompt = Prompt(text=query, tokens=None, messages=1)
    inquiry = Inquiry(model="auto", max_tokens=None, prompt=prompt, candidates=None, budgets=Budgets())
    found = await routes.decide(headers, inquiry, tenant, told=False)
    if found["expert"] is None:
        raise Refused(503, "unavailable", f"no expert: {found['refused']}")
    return {"selected_model": found["expert"], "thinking": found["reasons"], "full_response": found["reasons"]}


async def predict_latency(
    traffic: Traffic, path: str, headers: dict[bytes, bytes], body: bytes, tenant: int | None
) -> dict[str, Any]:
    """Answer ``POST /llm-d/EXPERT/predict/bulk`` of llm-d: latencies of requests, by the profile of an expert.

    Args:
        traffic: what requests share.
        path: of the request.
        headers: of the request.
        body: JSON with ``requests``, a list of what is under way at an endpoint and the prompt's length.
        tenant: who asks.

    Raises:
        Refused: 400, a wrong field; 404, no such path or expert.
    """
    started_s = time.perf_counter()
    end = next((end for end in _ENDS if path.endswith(end)), None)
    name = "" if end is None else path.removeprefix(LLM_D).removesuffix(end)
    experts = {expert.name: expert for expert in traffic.gateway.scenario.experts}
    if name not in experts:
        raise Refused(404, "not_found", f"there is no {path}: must be {LLM_D}EXPERT{_ENDS[1]}"[:200])
    asked = parse_object(body).get("requests")
    if not isinstance(asked, list) or not 1 <= len(cast(list[Any], asked)) <= _MOST:
        raise wrong("requests", f"must be a list of 1 to {_MOST} objects")
    now = datetime.now(UTC).isoformat()
    predictions: list[dict[str, Any]] = []
    for i, given in enumerate(cast(list[Any], asked)):
        ttft_s, tpot_s = _latency_s(experts[name].engine, given, f"requests.{i}")
        predictions.append(
            {
                "ttft_ms": 1e3 * ttft_s,
                "tpot_ms": 1e3 * tpot_s,
                "predicted_at": now,
                "model_type": "edgeroute-profile",
                "quantile": _QUANTILE,
                "last_model_load": None,
            }
        )
    return {
        "predictions": predictions,
        "errors": [],
        "total_requests": len(predictions),
        "successful_predictions": len(predictions),
        "failed_predictions": 0,
        "processing_time_ms": 1e3 * (time.perf_counter() - started_s),
    }


def _latency_s(engine: EngineProfile, given: Any, where: str) -> tuple[float, float]:
    """Time to the first token and per token after it, of a request behind others of its kind.

    Prompts are computed in the order of arrival, as many tokens in an iteration as its budget leaves, while the running requests
    decode. A request comes in the middle of an iteration.
    """
    if not isinstance(given, dict):
        raise wrong(where, "must be an object")
    data = cast(dict[str, Any], given)
    values = {name: _number(data, name, where) for name in _FIELDS}
    running, waiting = int(values["num_request_running"]), int(values["num_request_waiting"])
    context = round(values["kv_cache_percentage"] * engine.kv_tokens)
    cached = min(round(values["prefix_cache_score"] * values["input_token_length"]), int(values["input_token_length"]))
    new = max(int(values["input_token_length"]) - cached, 1)
    decode_s = engine.iteration_s(running, context)
    budget = max(engine.max_num_batched_tokens - running, 1)
    left = (waiting + 1) * new
    whole = left // budget
    ttft_s = engine.handoff_s + (decode_s / 2 if running else 0.0)
    ttft_s += whole * engine.iteration_s(running, context, ((budget, cached),))
    if rest := left - whole * budget:
        ttft_s += engine.iteration_s(running, context, ((rest, cached),))
    here = min(running + waiting + 1, engine.max_num_seqs)
    return ttft_s, engine.iteration_s(here, context + (waiting + 1) * (new + cached))


def _number(data: dict[str, Any], name: str, where: str) -> float:
    low, high = _FIELDS[name]
    value = data.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise wrong(f"{where}.{name}", f"must be a number from {low:g} to {high:g}")
    return float(value)
