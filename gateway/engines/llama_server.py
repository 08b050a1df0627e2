"""The process of one llama.cpp server: ``python -m gateway.engines.llama_server MODEL ALIAS SLOTS CONTEXT THREADS``.

It writes ``listening URL`` when it takes connections, and ends when its standard input is closed: so it never outlives whoever
started it. While it loads the model it answers 503.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main(arguments: list[str]) -> None:
    """Serve until standard input ends."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # an optional dependency
    model, alias, slots, context, threads = arguments
    settings = xllamacpp.CommonParams()
    settings.model.path = model
    settings.model_alias = {alias}
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.n_parallel = int(slots)
    settings.n_ctx = int(slots) * int(context)
    settings.endpoint_metrics = settings.endpoint_slots = True
    for group in (settings.cpuparams, settings.cpuparams_batch):
        group.n_threads = int(threads)
    server = xllamacpp.Server(settings)
    print(f"listening {server.listening_address}", flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main(sys.argv[1:])
