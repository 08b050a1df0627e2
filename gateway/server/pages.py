"""Metrics of several workers on one page: a scrape reaches any of them, and gets those of all.

Each worker writes its own to a file once a second. All read these files, so that no counter ever goes back from one scrape to the
next. Every series gets the label ``worker``, and nothing is summed.
"""

from __future__ import annotations

import os
from pathlib import Path

from gateway.server.state import WorkerPlace


def write_page(place: WorkerPlace, text: bytes) -> None:
    """Write the metrics of a worker, for the others to read.

    Raises:
        OSError: they cannot be written.
    """
    path = page_path(place.ledgers, place.number)
    new = path.with_suffix(".new")
    new.write_bytes(text)
    os.replace(new, path)


def page_of_all(place: WorkerPlace) -> bytes:
    """The metrics of all workers that have any."""
    families: dict[str, tuple[list[str], list[str]]] = {}  # head and samples, which have to stand together
    for number in range(place.workers):
        head: list[str] = []
        samples: list[str] = []
        for line in _read(page_path(place.ledgers, number)).decode().splitlines():
            if line.startswith("# HELP "):
                head, samples = families.setdefault(line.split(" ", 3)[2], ([], []))
                head[:] = [line]
            elif line.startswith("#"):
                head.append(line)
            else:
                samples.append(_labelled(line, number))
    return "".join(f"{line}\n" for head, samples in families.values() for line in (*head, *samples)).encode()


def page_path(ledgers: Path, number: int) -> Path:
    """File of a worker's metrics, beside that of the ledgers."""
    return ledgers.with_name(f"metrics-{number}")


def _labelled(sample: str, number: int) -> str:
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{worker="{number}",{rest}'
    name, value = sample.split(" ", 1)
    return f'{name}{{worker="{number}"}} {value}'


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # it starts, or has died
        return b""
