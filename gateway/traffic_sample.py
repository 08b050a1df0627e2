"""A stretch of random traffic to a gateway, and a table of what it got."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

from rllib_envs.expert import Expert
from rllib_envs.profiles.replay import replay_requests
from tuning.output.tables import markdown_table

_WORDS = ("time", "river", "stone", "letter", "garden", "window", "market", "winter", "music", "paper", "light", "north")
_LONGEST_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAnswer:
    """What one request of the traffic got."""

    status: int  # of HTTP; 0: the answer broke off
    expert: str  # "": none
    ttft_s: float
    e2e_s: float
    tokens: int
    decision_ms: float


Sizes = tuple[int, int]
"""Fewest and most tokens."""


def slo_s_per_token(experts: Sequence[Expert], prompt_tokens: Sizes, output_tokens: Sizes, slack: float) -> float:
    """What an answer may take per token, to two figures: ``slack`` times what the slowest takes alone for a mean request."""
    prompt, output = (np.array([round(np.mean(sizes))]) for sizes in (prompt_tokens, output_tokens))
    alone_s = replay_requests([expert.engine for expert in experts], np.zeros(1), prompt, output).finish_s
    return float(np.format_float_positional(slack * alone_s.max() / output[0], 2, fractional=False))


def traffic_capacity_rps(expert: Expert, prompt_tokens: Sizes, output_tokens: Sizes) -> float:
    """Requests of the traffic that an engine finishes in a second, where it always has enough of them."""
    rng = np.random.default_rng(0)
    prompts, outputs = (rng.integers(*sizes, 64) for sizes in (prompt_tokens, output_tokens))
    return 64 / float(replay_requests([expert.engine], np.zeros(64), prompts, outputs).finish_s.max())


async def send_traffic(
    url: str, rate: float, seconds: float, prompt_tokens: Sizes, output_tokens: Sizes, seed: int = 0
) -> list[DemoAnswer]:
    """Send streams with model ``auto`` at Poisson times, and wait for their ends.

    Args:
        url: of the gateway.
        rate: requests per second.
        seconds: length of the stretch.
        prompt_tokens: fewest and most words of a prompt, about its tokens.
        output_tokens: fewest and most tokens of an answer.
        seed: of times, sizes and words.
    """
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(1 / rate, max(round(rate * seconds), 1)))
    timeout = aiohttp.ClientTimeout(total=_LONGEST_S)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session,
        asyncio.TaskGroup() as group,
    ):
        start_s = time.monotonic()
        tasks = [
            group.create_task(
                _send(
                    session,
                    url,
                    start_s + at_s,
                    " ".join(rng.choice(_WORDS, rng.integers(*prompt_tokens))),
                    int(rng.integers(*output_tokens)),
                )
            )
            for at_s in times.tolist()
        ]
    return [task.result() for task in tasks]


def traffic_table(answers: Sequence[DemoAnswer], experts: Sequence[Expert], slo_s: float) -> str:
    """What the requests got, by expert; ``slo_s``: bound on the latency per token."""
    rows: list[list[str]] = []
    for name, part in [(expert.name, [a for a in answers if a.expert == expert.name]) for expert in experts] + [
        ("all", list(answers))
    ]:
        good = [answer for answer in part if answer.status == 200 and answer.tokens > 0]
        in_time = sum(answer.e2e_s <= slo_s * answer.tokens for answer in good)
        ttft = f"{1e3 * np.median([answer.ttft_s for answer in good]):.0f}" if good else "–"
        pace = f"{1e3 * np.median([answer.e2e_s / answer.tokens for answer in good]):.0f}" if good else "–"
        rows.append(
            [name, str(len(part)), str(len(part) - len(good)), ttft, pace, f"{100 * in_time / len(part):.0f}" if part else "–"]
        )
    header = [
        "expert",
        "requests",
        "without answer",
        "TTFT, ms",
        "latency per token, ms",
        f"within {1e3 * slo_s:.0f} ms a token, %",
    ]
    decided = [answer.decision_ms for answer in answers if answer.expert]
    return f"{markdown_table(header, rows)}\n\nMedians. A decision took {np.median(decided) if decided else 0:.2f} ms."


async def _send(session: aiohttp.ClientSession, url: str, at_s: float, prompt: str, tokens: int) -> DemoAnswer:
    await asyncio.sleep(max(at_s - time.monotonic(), 0.0))
    body = {
        "model": "auto",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    start_s = time.monotonic()
    first_s, pieces, told, status, expert, decision_ms = 0.0, 0, 0, 0, "", 0.0
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            expert = response.headers.get("x-edgeroute-expert", "")
            decision_ms = float(response.headers.get("x-edgeroute-decision-ms", 0.0))
            async for line in response.content:
                if line.startswith(b"data: {") and "error" not in (event := json.loads(line[6:])):
                    told = int((event.get("usage") or {}).get("completion_tokens", told))
                    if event.get("choices"):
                        first_s = first_s or time.monotonic()
                        pieces += 1
            status = response.status
    except (aiohttp.ClientError, TimeoutError, OSError):
        status = 0
    end_s = time.monotonic()
    return DemoAnswer(
        status=status,
        expert=expert,
        ttft_s=(first_s or end_s) - start_s,
        e2e_s=end_s - start_s,
        tokens=told or min(pieces, tokens),  # a piece may hold several tokens, or none
        decision_ms=decision_ms,
    )
