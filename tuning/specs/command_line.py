"""Parse the options of a command, and print its help: the basic options by default, all of them with ``--help-all``.

The module of a command may hold ``HELP``: title of a group -> (basic options, advanced options), each a string of names as in
its ``Options``. A record of options counts as one name (``track``); ``trace.trace`` is one option of a record. ``--help`` leaves
the advanced ones out. Without ``HELP`` all options are basic and in one group.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import tyro

Groups = Mapping[str, tuple[str, str]]

_BRIEF, _ALL = ("-h", "--help"), "--help-all"
_ARGUMENTS, _OPTIONS, _OTHER = "arguments", "options", "other options"
_NO_DEFAULT = re.compile(r"\s*\(default: (?:None|False)?\)$|\s*\(required\)$")


def parse_arguments(module: ModuleType, prog: str, arguments: Sequence[str]) -> Any:
    """The options of a command from its command line.

    Args:
        module: of the command, with ``Options`` and perhaps ``defaults``, ``own_arguments`` and ``HELP``.
        prog: the command as the user types it.
        arguments: what follows it.

    Raises:
        InputError: from ``defaults``.
        SystemExit: after ``--help`` or ``--help-all`` (0) or a wrong option (2).
    """
    default = {"default": module.defaults(arguments)} if hasattr(module, "defaults") else {}
    own = module.own_arguments(arguments) if hasattr(module, "own_arguments") else arguments
    if _ALL in own or any(flag in own for flag in _BRIEF):
        print(_help(module, prog, default, _ALL in own), end="")
        sys.exit(0)
    return tyro.cli(module.Options, prog=prog, args=own, **default)


class _Page(argparse.RawDescriptionHelpFormatter):
    """Breaks no name at its hyphens."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _help(module: ModuleType, prog: str, default: dict[str, Any], everything: bool) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tyro has no other way to its argparse actions
        found = tyro.extras.get_parser(module.Options, **default)  # pyright: ignore[reportDeprecated]
    page = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [options]{''.join(f' {a.metavar}' for a in found._get_positional_actions())}",  # pyright: ignore[reportPrivateUsage]
        description=_description(module.__doc__ or ""),
        epilog="--help shows the basic options." if everything else f"{prog} --help-all shows every option.",
        formatter_class=_Page,
        add_help=False,
    )
    declared: Groups = getattr(module, "HELP", {})
    groups = {title: page.add_argument_group(title) for title in (_ARGUMENTS, *(declared or (_OPTIONS,)), _OTHER)}
    for action in found._actions:  # pyright: ignore[reportPrivateUsage]
        if "--help" in action.option_strings or action.help == argparse.SUPPRESS:
            continue
        title, basic = _place(action, declared)
        _add(groups[title], action, everything or basic)
    return page.format_help()


def _place(action: argparse.Action, declared: Groups) -> tuple[str, bool]:
    """Title of an option's group, and whether the option is basic."""
    if not action.option_strings:
        return _ARGUMENTS, True
    if not declared:
        return _OPTIONS, True
    name = action.dest.replace("-", "_")
    for wanted in (name, name.split(".", maxsplit=1)[0]):
        for title, (basic, advanced) in declared.items():
            if wanted in basic.split() or wanted in advanced.split():
                return title, wanted in basic.split()
    return _OTHER, False


def _add(group: Any, action: argparse.Action, shown: bool) -> None:
    """An option with tyro's names and text, without ``None`` where it can only mean "not given"."""
    text = _NO_DEFAULT.sub("", action.help or "") if shown else argparse.SUPPRESS
    metavar = str(action.metavar).replace("{None}|", "").replace("{None,", "{")
    metavar = re.sub(r"\[(\S+) \[\1 \.\.\.\]\]", r"\1 ...", metavar)
    if action.metavar is None:
        group.add_argument(*action.option_strings, action="store_true", help=text)
    else:
        group.add_argument(*(action.option_strings or [action.dest]), metavar=metavar, help=text)


def _description(text: str) -> str:
    """Paragraphs filled to the width of the terminal; those that are indented stay as they are."""
    width = shutil.get_terminal_size().columns - 2
    paragraphs = [paragraph.rstrip() for paragraph in text.split("\n\n")]
    return "\n\n".join(p if p.startswith("    ") else textwrap.fill(" ".join(p.split()), width) for p in paragraphs)
