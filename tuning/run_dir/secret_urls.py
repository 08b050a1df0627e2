"""Remove secrets from URLs and error messages before anything is shown, written or tracked."""

from __future__ import annotations

import os
import re
from itertools import takewhile
from typing import cast

HIDDEN = "***"
"""What stands for a secret."""

_CHAIN = "::"  # between the parts of a URL of fsspec's
_LOCAL = re.compile(r"(file|local)://|\.{0,2}/(?!.*://)")  # no place of these has a password
_WORD, _SCHEME = re.compile(r"[a-z0-9_+-]+"), re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|")


def without_secrets(url: str) -> str:
    """The URL for display: without user names, passwords, queries and fragments, in each part of a chain.

    A password may hold any character, also ``/ # ? @`` and ``::``. If its end is ambiguous, more is hidden than necessary.
    """
    if _LOCAL.match(url):
        return url
    before, at, after = url.rpartition("@")
    kept, *rest = re.split("([?#])", after, maxsplit=1)
    query = f"{rest[0]}{HIDDEN}" if rest else ""
    if not at:
        return kept + query
    parts = before.split(_CHAIN)
    words = list(takewhile(_WORD.fullmatch, parts[:-1]))  # protocols without a place, such as simplecache
    shown = words + [cast(re.Match[str], _SCHEME.match(part))[0] + HIDDEN for part in parts[len(words) :]]
    if re.search("[?#]", before):  # the sign may end a password or be part of a query
        return _CHAIN.join(shown)
    return f"{_CHAIN.join(shown)}@{kept}{query}"


def has_secret(url: str) -> bool:
    """Whether a part of the URL must be hidden."""
    return without_secrets(url) != url


def told(error: BaseException, url: str) -> str:
    """Describe an error from using a URL, in one line without secrets.

    Drivers put the URL, or changed parts of it, into their messages. If it holds a secret, the line has only the kind of the
    error and the operating system's name for it.
    """
    if has_secret(url):
        number = error.errno if isinstance(error, OSError) else None
        return type(error).__name__ + (f": {os.strerror(number)}" if number else "")
    return (str(error).strip() or type(error).__name__).splitlines()[0]
