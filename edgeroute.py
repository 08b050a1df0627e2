"""The one command of edgeroute: ``edgeroute COMMAND [options]``.

It is also what a cluster runs: ``ray submit cluster.yaml edgeroute.py train --help``. A command's module is imported only
when the command is chosen, so ``edgeroute --help`` answers at once. Each module gives ``Options``, a frozen dataclass whose
field docstrings are the command's help, and ``run(options)``, which returns an exit code (None counts as 0). With
``defaults(arguments)`` a module says what options are where the command line does not, with ``own_arguments(arguments)`` which
of them are options at all, and with ``HELP`` which options are basic (``tuning/specs/command_line.py``).
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path

__version__ = "0.1.0"

COMMANDS: dict[str, tuple[str, str]] = {
    "simulate": ("tuning.simulate", "run a cluster with a heuristic router and report what its requests got"),
    "evaluate": ("tuning.evaluate", "compare routers, heuristic and trained, on the same requests"),
    "tune-heuristics": ("tuning.tune_heuristics", "tune the parameters of the heuristic routers for a scenario"),
    "train": ("tuning.train", "train a router"),
    "sweep": ("tuning.sweep", "try many settings of a training run with Ray Tune"),
    "export": ("tuning.export", "write the router of a training run as a bundle, for evaluation and serving"),
    "demo": ("tuning.demo", "train a small router and compare it with the heuristics, in a few minutes on a laptop"),
    "generality": ("tuning.generality", "measure a router in many worlds that training never drew"),
    "capacity": ("tuning.capacity", "measure the load that a scenario's cluster can carry"),
    "fit-profile": ("tuning.fit_profile", "fit an expert's engine to measured layer times of your GPU and model"),
    "fit-predictors": ("tuning.fit_predictors", "fit predictors of quality and length to prompts with known outcomes"),
    "calibrate": ("gateway.calibrate", "calibrate an expert's engine with a running server, its log or records of its requests"),
    "serve": ("gateway.serve", "route requests between your LLM servers, behind one OpenAI-compatible address"),
    "replay": ("gateway.replay", "compare policies on a decision log of serve, and its predictions with what came"),
    "serve-demo": ("gateway.demo", "start two real engines, calibrate them, and route a minute of traffic between them"),
    "node": ("cluster.node", "start or stop a Ray node of one's own on this machine"),
    "preflight": ("cluster.preflight", "look at a cluster before anything is spent on it"),
    "submit": ("cluster.submit", "send a command to a cluster as a job, and follow it"),
    "job": ("cluster.job", "ask for a job's state or output, stop it, or fetch its results"),
    "report": ("tuning.report", "write a page on runs: tables, figures, and a minute of traffic explained"),
}
"""Command -> (module, one-line help)."""

_OWN_NAME, _COMMON_NAMES = "rllib_envs", ("models", "tuning", "cluster", "gateway")
_EXIT_BAD_INPUT = 2
_EXIT_INTERRUPTED = 130  # what a shell reports for SIGINT: 128 + 2
_EXIT_READER_GONE = 141  # what a shell reports for SIGPIPE: 128 + 13


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: the command and its options; None takes those of the process.

    Returns:
        0 or what the command returned; 2 for bad input; 130 when interrupted; 141 when whoever read the output went away.

    Raises:
        SystemExit: from the option parser, after ``--help`` (0) or a wrong option (2).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold what the locale cannot write
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _dispatch(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("edgeroute: interrupted", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _reader_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains as it flushes at exit
        return _EXIT_READER_GONE


def _intruder() -> str | None:
    """What Python finds in place of one of our packages, whose names others use too; None if all are ours.

    They lie beside ``rllib_envs``. This file need not: ``ray submit`` copies it elsewhere.
    """
    homes = [place.parent for place in _places(_OWN_NAME)]
    for name in _COMMON_NAMES:
        places = _places(name)
        for ours in [home / name for home in homes if home / name not in places]:
            found = ", ".join(map(str, places)) or "something else"
            return f"{name}: Python finds {found} before {ours}: run it from another folder, or rename what is there"
    return None


def _places(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [] if spec is None else [Path(place).resolve() for place in spec.submodule_search_locations or ()]


def _dispatch(arguments: list[str]) -> int:
    if intruder := _intruder():
        print(f"edgeroute: {intruder}", file=sys.stderr)
        return _EXIT_BAD_INPUT
    if not arguments:
        print(_usage(), file=sys.stderr)
        return _EXIT_BAD_INPUT
    name, *rest = arguments
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"edgeroute {__version__}")
        return 0
    if name not in COMMANDS:
        return _fail(f"unknown command {name!r}{_nearest(name)}; see edgeroute --help")
    return _run(name, rest)


def _run(name: str, arguments: list[str]) -> int:
    """Parse the options of a command and run it."""
    from rllib_envs.errors import InputError
    from tuning.specs.command_line import parse_arguments

    try:
        module = importlib.import_module(COMMANDS[name][0])
        return module.run(parse_arguments(module, f"edgeroute {name}", arguments)) or 0
    except InputError as error:
        return _fail(str(error))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: edgeroute COMMAND [options]",
            "",
            "Train and evaluate a router that sends LLM requests to the experts of an edge cluster.",
            "",
            "commands:",
            *rows,
            "",
            "edgeroute COMMAND --help shows the options of a command; edgeroute --version prints the version.",
        ]
    )


def _nearest(name: str) -> str:
    from difflib import get_close_matches

    matches = get_close_matches(name, COMMANDS, n=1)
    return f": did you mean {matches[0]!r}?" if matches else ""


def _fail(message: str) -> int:
    for line in message.splitlines():  # bad input with several faults has a line for each
        shown = "".join(x if x.isprintable() else x.encode("unicode_escape", "backslashreplace").decode("ascii") for x in line)
        print(f"edgeroute: error: {shown}", file=sys.stderr)  # nothing that a terminal would obey
    return _EXIT_BAD_INPUT


def _reader_gone() -> bool:
    """Whether stdout is what broke, rather than some connection of the command's own."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors and hang-ups are reported unasked
    return bool(poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
