"""Statistics of a prompt's text: the input of predictors. Pure Python, as they are served request by request."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STATISTICS_VERSION = 1
"""Changes with the meaning of any statistic: weights fit to one version alone."""

MAX_CHARS = 32_768
"""Only the beginning of longer texts is looked at, apart from their length."""

_WORD = re.compile(r"[^\W\d_]+|\d+(?:[.,]\d+)*")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)")
_OPTION = re.compile(r"^[ \t]*\(?[A-J][).:]\s", re.MULTILINE)
_LATEX = re.compile(r"\\[a-zA-Z]+")
_CALL = re.compile(r"\w\(")
_BLANK = re.compile(r"_{2,}")

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
_GROUPS = {name: frozenset(words.split()) for name, words in _WORDS_OF.items()}

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
    *(f"share of words: {name}" for name in _GROUPS),
)


def text_statistics(text: str) -> NDArray[np.float64]:
    """(S,) the statistics of a text, in the order of ``STATISTICS``; finite for every text, also an empty one."""
    shown = text[:MAX_CHARS]
    chars = max(len(shown), 1)
    words = _WORD.findall(shown.lower())
    numbers = [word for word in words if word[0].isdecimal()]
    counts = Counter(words)
    total = max(len(words), 1)
    sentences = len(_SENTENCE_END.findall(shown)) or 1
    options = len(_OPTION.findall(shown))
    longest = max(map(len, words), default=0)
    digits = sum(map(len, numbers))
    largest = max(map(_magnitude, numbers), default=0.0)
    stripped = shown.strip()
    ascii_chars = len(shown.encode("ascii", "ignore"))
    values = [
        math.log1p(len(text)),
        math.log1p(len(words)),
        math.log1p(shown.count("\n")),
        math.log1p(sentences),
        sum(map(len, words)) / total,
        math.log1p(longest),
        math.log1p(len(words) / sentences),
        len(counts) / total,
        digits / chars,
        sum(map(str.isupper, shown)) / chars,
        (len(shown) - len("".join(shown.split()))) / chars,
        1 - ascii_chars / chars if shown else 0.0,
        math.log1p(len(numbers)),
        math.log1p(len(set(numbers))),
        largest,
        sum("." in number or "," in number for number in numbers) / max(len(numbers), 1),
        sum(len(number) == 1 for number in numbers) / max(len(numbers), 1),
        math.log1p(options),
        math.log1p(len(shown) / options) if options else 0.0,
        math.log1p(len(_LATEX.findall(shown))),
        math.log1p(len(_CALL.findall(shown))),
        math.log1p(len(_BLANK.findall(shown))),
        float(stripped.endswith("?")),
        float(bool(words) and words[0] in _GROUPS["question words"]),
        float(stripped[:1].isupper()),
        *(math.log1p(shown.count(sign)) for sign in _SIGNS),
        *(sum(counts[word] for word in counts.keys() & group) / total for group in _GROUPS.values()),
    ]
    return np.array(values)


def statistics_of(texts: Sequence[str]) -> NDArray[np.float64]:
    """(B, S) the statistics of B texts."""
    return np.stack([text_statistics(text) for text in texts]) if texts else np.zeros((0, len(STATISTICS)))


def _magnitude(number: str) -> float:
    """log10 of a number of 1 or more, else 0; from its digits before the point alone, of which there may be thousands."""
    whole = number.partition(".")[0].replace(",", "").lstrip("0")
    return 0.0 if not whole else min(len(whole) - 1, 30) + math.log10(int(whole[:3]) / 10 ** (min(len(whole), 3) - 1) + 1e-9)
