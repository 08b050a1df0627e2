"""Measure an engine with the designed load, into a file of records that an interrupted run goes on from."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gateway.calibration.client import EngineClient
from gateway.calibration.design import NEEDED, Wave, designed_load, probe_waves
from gateway.calibration.facts import ServerFacts
from rllib_envs.errors import InputError
from rllib_envs.json_files import parse_json
from rllib_envs.profiles.estimate import ServerSettings, first_guess
from rllib_envs.profiles.records import MOST_BYTES, RequestRecord, as_run
from rllib_envs.text_files import read_text

_BETWEEN_S = 1.0  # in the records, between two waves

Tell = Callable[[str], None]
Settle = Callable[[ServerFacts], ServerSettings]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBounds:
    """How much load the engine is given at most."""

    seconds: float
    tokens: int


class RecordsFile:
    """The records of one engine by wave, each line with the wave's name; waves that are complete are not sent again."""

    def __init__(self, path: Path, url: str, model: str) -> None:
        """Read what an earlier run left there.

        Raises:
            InputError: the file is of another engine, or not a file of records.
        """
        self.path = path
        self.done: set[str] = set()
        self._engine = {"url": url, "model": model}
        self._end_s = 0.0
        if not path.exists():
            return
        for number, line in enumerate(read_text(path, MOST_BYTES).splitlines(), start=1):
            row = parse_json(line, str(path), number)
            if not isinstance(row, dict) or {name: row.get(name) for name in self._engine} != self._engine:
                raise InputError(f"{path}:{number}: not of {model} at {url}: name another file with --records, or remove it")
            self.done.add(str(row.get("wave")))
            if isinstance(row.get("last_token_s"), float):
                self._end_s = max(self._end_s, row["last_token_s"])

    def add(self, wave: str, records: list[RequestRecord]) -> None:
        """Append the records of a wave, on the clock of the file.

        Raises:
            InputError: the file cannot be written.
        """
        if not records:
            return
        shift_s = self._end_s + _BETWEEN_S - min(record.arrival_s for record in records)
        lines: list[str] = []
        for record in records:
            names = ("arrival_s", "first_token_s", "last_token_s")
            moved = record._replace(**{name: round(getattr(record, name) + shift_s, 6) for name in names})
            lines.append(json.dumps(moved._asdict() | {"wave": wave} | self._engine))
            self._end_s = max(self._end_s, moved.last_token_s)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written: {error.strerror or error}") from None
        self.done.add(wave)


async def measure_engine(
    url: str, model: str | None, token: str | None, records: Path, bounds: LoadBounds, settle: Settle, tell: Tell
) -> tuple[ServerFacts, ServerSettings, str]:
    """Send the designed load to an engine; the records are in the file ``records`` afterwards, or when this is cancelled.

    Args:
        url: base of its API, without /v1.
        model: its name there; None where the server has one only.
        token: bearer token, or None.
        records: file to write, or to go on with.
        bounds: on the load.
        settle: makes the engine's settings of what the server says.
        tell: shows a line of progress.

    Returns:
        What the server says, the settings, and the name of the model.

    Raises:
        InputError: the engine does not serve, or the file is of another engine.
    """
    end_s = time.monotonic() + bounds.seconds
    async with EngineClient(url, model, token) as client:
        facts = await client.facts()
        settings = settle(facts)
        assert client.model is not None
        file = RecordsFile(records, url, client.model)
        await client.prepare()
        probes = [record for wave in probe_waves() for record in await client.measure(wave)]
        if len(probes) < 2:
            raise InputError(f"{url}: of {len(probe_waves())} requests {len(probes)} show tokens and times: at least 2 must")
        guess = first_guess(as_run(probes[1:], max_num_seqs=1, max_num_batched_tokens=1), settings)
        waves = designed_load(
            replace(guess, max_model_len=settings.max_model_len), seconds=end_s - time.monotonic(), tokens=bounds.tokens
        )
        left = [wave for wave in waves if wave.name not in file.done]
        if len(left) < len(waves):
            tell(f"{len(waves) - len(left)} of {len(waves)} waves were measured before")
        await _send(client, left, file, end_s, tell)
    return facts, settings, client.model


async def _send(client: EngineClient, waves: list[Wave], file: RecordsFile, end_s: float, tell: Tell) -> None:
    slower = 1.0  # than the first guess, so far
    for i, wave in enumerate(waves):
        begun_s = time.monotonic()
        if begun_s + slower * wave.expected_s > end_s and wave.name not in NEEDED:
            tell(f"{wave.name}: left out, there is not enough time for it")
            continue
        served = await client.measure(wave)
        took_s = time.monotonic() - begun_s
        slower = max(slower, took_s / wave.expected_s / 2)
        file.add(wave.name, served)
        tell(f"{i + 1} of {len(waves)}: {wave.name}: {len(served)} of {len(wave.requests)} requests, {took_s:.1f} s")
