"""Statistics of a prompt's text: the input of predictors, served request by request.

They are quick for ASCII and for signs beyond it: no category of Unicode is asked for there. Plain definitions are in
``tests/models/predictors/test_text_statistics.py``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import filterfalse
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

STATISTICS_VERSION = 1
"""Changes with the meaning of any statistic: weights fit to one version alone."""

MAX_CHARS = 32_768
"""Only the beginning of longer texts is looked at, apart from their length."""

_MOST_MAGNITUDE = 30  # of a number

_WORD = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_FIRST_OPTION = re.compile(r"[ \t]*\(?[A-J][).:]\s")
_LATER_OPTION = re.compile(r"\n[ \t]*\(?[A-J][).:](?=\s)")
_LATEX = re.compile(r"\\[a-zA-Z]+")
_CALL = re.compile(r"\((?<=\w\()")  # begins with a plain character, which a search finds fast
_BLANK = re.compile(r"__+")
_FRACTION = re.compile(r"\.[^ ]*")  # of a number
_IN_WORDS_OR_BETWEEN = re.compile(r"[\w\s]")

_SIGNS = ("=", "+", "-", "*", "/", "^", "%", "$", "<", "{", "[", "(", "_", ":", ";", ",", "?", "!", '"', "'", "`", "\\", "\n")
_WORDS_OF = {
    "question words": "what which who whom whose when where why how",
    "how many": "many much total altogether left each per every",
    "mathematics": (
        "find compute solve prove integer integers real positive number numbers sum product equation polynomial value values "
        "probability triangle circle angle function sequence root roots divisor prime digits ratio area length degree"
    ),
    "code": "def return for if elif else while in not and or len range print assert import class lambda none true false",
    "instructions": "write explain describe list give show tell summarize translate create make provide please",
    "negations": "not no never except neither nor cannot without incorrect false least",
    "comparisons": "more less most least greater fewer than best largest smallest highest lowest",
    "time and money": (
        "day days week weeks month months year years hour hours minute minutes dollars dollar cents cost costs price pays"
    ),
    "people": "he she his her they their him them i you my your we our",
    "science": (
        "energy mass force velocity temperature pressure cell cells gene protein acid reaction molecule atom electron circuit "
        "voltage current wave gas heat"
    ),
    "society": "law court state government rights act contract market price demand theory psychology history war moral legal",
    "hedges": "following statement statements true correct option options answer according suggest best likely",
    "small words": "the a an of to is are was were be that this with as by on at from it",
    "conditions": "if then suppose assume given let when unless until such where",
}
_GROUPS_OF = {
    word: tuple(i for i, words in enumerate(_WORDS_OF.values()) if word in words.split())
    for word in " ".join(_WORDS_OF.values()).split()
}
_QUESTION_WORDS = frozenset(_WORDS_OF["question words"].split())

_CODES = range(128)
_ASCII = bytes(_CODES)
_LETTERS = bytes(code | 32 if chr(code).isalpha() else 32 for code in _CODES).ljust(256, b" ")
_DIGITS = bytes(code if chr(code) in "0123456789.," else 32 for code in _CODES).ljust(256, b" ")
_ENDS = bytes(46 if chr(code) in ".!?" else 32 if chr(code).isspace() else 97 for code in _CODES).ljust(256, b"a")
"""Tables for ``bytes.translate`` of UTF-8, each with space for the rest: letters in lower case; digits, points and commas. And
ends of sentences as points, space, and "a" for the rest."""

_NOT_BETWEEN_DIGITS = ("..", ",,", ".,", ",.", " .", " ,", ". ", ", ")
"""The neighbours of a point or comma that is in no number; those of two such signs come first."""

_CAPITALS, _SMALL, _DECIMALS = slice(65, 91), slice(97, 123), slice(48, 58)
_SPACE = itemgetter(*[code for code in _CODES if chr(code).isspace()])
_EACH_SIGN = itemgetter(*[ord(sign) for sign in _SIGNS])
"""Which of the counts of all characters."""

STATISTICS: tuple[str, ...] = (
    "log characters",
    "log words",
    "log lines",
    "log sentences",
    "mean length of a word",
    "longest word",
    "words a sentence",
    "share of different words",
    "share of digits",
    "share of capitals",
    "share of space",
    "share of other scripts",
    "log numbers",
    "log different numbers",
    "log largest number",
    "share of numbers with a point",
    "share of numbers of one digit",
    "log options",
    "log characters an option",
    "log LaTeX commands",
    "log calls",
    "log blanks",
    "ends with a question mark",
    "begins with a question word",
    "begins with a capital",
    *(f"log count of {sign!r}" for sign in _SIGNS),
    *(f"share of words: {name}" for name in _WORDS_OF),
)


def text_statistics(text: str) -> NDArray[np.float64]:
    """(S,) the statistics of a text, in the order of ``STATISTICS``; finite for every text, also an empty one."""
    return np.array(_values(text))


def statistics_of(texts: Sequence[str]) -> NDArray[np.float64]:
    """(B, S) the statistics of B texts."""
    return np.array([_values(text) for text in texts]).reshape(-1, len(STATISTICS))


def _values(text: str) -> list[float]:
    """The same as a list."""
    shown = text[:MAX_CHARS]
    chars = max(len(shown), 1)
    data = shown.encode("utf-8", "surrogatepass")
    others = "" if shown.isascii() else data.translate(None, _ASCII).decode("utf-8", "surrogatepass")
    seen: list[int] = np.bincount(np.frombuffer(data, np.uint8), minlength=len(_CODES)).tolist()
    words, numbers, letters, sentences = _words(shown, data, others, seen)
    times = Counter(words)
    first = _WORD.search(shown)
    counted = len(words) + len(numbers)
    total = max(counted, 1)
    different_numbers = set(numbers)
    lengths_of_numbers = list(map(len, numbers))
    digits = sum(lengths_of_numbers)
    options = bool(_FIRST_OPTION.match(shown)) + _count(_LATER_OPTION, shown, seen[10])
    stripped = shown.strip()
    in_groups = [0] * len(_WORDS_OF)
    capitals = sum(seen[_CAPITALS]) + sum(map(str.isupper, others))
    space = sum(_SPACE(seen)) + sum(map(str.isspace, others))
    for word in times.keys() & _GROUPS_OF.keys():
        for group in _GROUPS_OF[word]:
            in_groups[group] += times[word]
    log1p = math.log1p
    return [
        log1p(len(text)),
        log1p(counted),
        log1p(seen[10]),
        log1p(sentences),
        (letters + digits) / total,
        log1p(max(max(map(len, times), default=0), max(lengths_of_numbers, default=0))),
        log1p(counted / sentences),
        (len(times) + len(different_numbers)) / total,
        digits / chars,
        capitals / chars,
        space / chars,
        1 - (chars - len(others)) / chars if shown else 0.0,
        log1p(len(numbers)),
        log1p(len(different_numbers)),
        _largest_magnitude(different_numbers),
        (len(numbers) - sum(map(str.isdecimal, numbers))) / max(len(numbers), 1),
        lengths_of_numbers.count(1) / max(len(numbers), 1),
        log1p(options),
        log1p(len(shown) / options) if options else 0.0,
        log1p(_count(_LATEX, shown, seen[92])),
        log1p(_count(_CALL, shown, seen[40])),
        log1p(_count(_BLANK, shown, seen[95])),
        float(stripped.endswith("?")),
        float(first is not None and first.group().lower() in _QUESTION_WORDS),
        float(stripped[:1].isupper()),
        *map(log1p, _EACH_SIGN(seen)),
        *[count / total for count in in_groups],
    ]


def _count(pattern: re.Pattern[str], shown: str, there: int) -> int:
    """How often the pattern is there, which holds a character that is ``there`` so often."""
    return len(pattern.findall(shown)) if there else 0


def _words(shown: str, data: bytes, others: str, seen: list[int]) -> tuple[list[str], list[str], int, int]:
    """The words in lower case, the numbers, how many letters the words have, and how many sentences there are.

    ``others`` are the characters beyond ASCII, ``seen`` has how often each byte is there.
    """
    if not _IN_WORDS_OR_BETWEEN.search(others):
        words, numbers, sentences = _quick_words(data, any(seen[_DECIMALS]))
        return words, numbers, sum(seen[_CAPITALS]) + sum(seen[_SMALL]), sentences or 1
    parts = shown.split()  # no word, number or end of a sentence is in two of them
    words, numbers, sentences = _quick_words(" ".join(filter(str.isascii, parts)).encode(), True)
    rest = " ".join(filterfalse(str.isascii, parts))
    for word in _WORD.findall(rest.lower()):
        (numbers if word[0].isdecimal() else words).append(word)
    return words, numbers, sum(map(len, words)), sentences + len(_SENTENCE_END.findall(rest)) or 1


def _quick_words(data: bytes, digits: bool) -> tuple[list[str], list[str], int]:
    """The same of UTF-8 whose characters beyond ASCII are neither in words or numbers nor space, and 0 if no sentence ends."""
    ends = data.translate(_ENDS)
    words = data.translate(_LETTERS).decode().split()
    return words, _quick_numbers(data) if digits else [], ends.count(b". ") + ends.endswith(b".")


def _quick_numbers(data: bytes) -> list[str]:
    """The numbers: digits, with a point or comma between two of them. Regular expressions take twice as long."""
    shown = f" {' '.join(data.translate(_DIGITS).decode().split())} "
    for neighbours in _NOT_BETWEEN_DIGITS:
        shown = shown.replace(neighbours, "  ")
    return shown.split()


def _largest_magnitude(numbers: set[str]) -> float:
    """log10 of the largest number, from the digits before its point alone; 0 if there are none."""
    if not numbers:
        return 0.0
    together = " ".join(numbers)
    wholes = _FRACTION.sub("", together).replace(",", "").split()
    if together.isascii() and max(map(len, wholes)) <= _MOST_MAGNITUDE:  # then a larger number has no smaller magnitude
        return _magnitude(str(max(map(int, wholes))))
    return max(map(_magnitude, wholes))


def _magnitude(whole: str) -> float:
    """log10 of digits for 1 or more, else 0; there may be thousands of digits."""
    whole = whole.lstrip("0")
    digits = min(len(whole), 3)
    return 0.0 if not whole else min(len(whole) - 1, _MOST_MAGNITUDE) + math.log10(int(whole[:3]) / 10 ** (digits - 1) + 1e-9)
