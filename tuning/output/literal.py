"""Escape names for Markdown and terminals: those of scenarios, experts, routers and folders may hold control characters."""

from __future__ import annotations

import re

_MARKUP = re.compile(r"[\\`*|$<]|(?<!\w)_|_(?!\w)|\[(?=[^\]]*\]\()|&(?=#?\w+;)|(?<=~)~")
_LONGEST_SLUG = 120


def printable(text: str) -> str:
    """The text on one line, with control characters and line ends escaped."""
    return "".join(x if x.isprintable() else x.encode("unicode_escape", "backslashreplace").decode("ascii") for x in text)


def markdown(text: str) -> str:
    """Escape the text for Markdown, on one line."""
    return _MARKUP.sub(r"\\\g<0>", printable(text))


def code(text: str) -> str:
    """A code span of Markdown that holds the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence, space = "`" * (longest + 1), " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{printable(text)}{space}{fence}"


def slug(name: str) -> str:
    """Turn the text into part of a file name."""
    return re.sub(r"[^\w.=%]+", "-", name)[:_LONGEST_SLUG]
