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


async def send_traffic(
    url: str, rate: float, seconds: float, prompt_tokens: tuple[int, int], output_tokens: tuple[int, int], seed: int = 0
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
        "ignore_eos": True,
    }
    start_s = time.monotonic()
    first_s, pieces, status, expert, decision_ms = 0.0, 0, 0, "", 0.0
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            expert = response.headers.get("x-edgeroute-expert", "")
            decision_ms = float(response.headers.get("x-edgeroute-decision-ms", 0.0))
            async for line in response.content:
                if line.startswith(b"data: {") and "error" not in (event := json.loads(line[6:])) and event.get("choices"):
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
        tokens=pieces and min(pieces, tokens),
        decision_ms=decision_ms,
    )
