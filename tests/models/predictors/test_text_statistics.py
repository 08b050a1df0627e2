"""The fast statistics of texts against plain definitions of the same, character by character and by regular expressions."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.predictors.text import _SIGNS, _WORDS_OF, MAX_CHARS, STATISTICS, text_statistics
from tests.draws import examples

STRANGE = [
    "",
    "\n A) x\nB) y\n(C). z",
    "A)\nB)\u2028C)",
    "It costs 1,234.5 or .5 or 007. Right?\n",
    "“Quote” – 5° × 3 − 2",
    "\ud800 1\ud8002 a\ud800b",
    "مرحبا ١٢٣٫٤ ١٢,٣ ٠٠٧",
    "İstanbul ß K ǅ ½ ² Ⅷ Ⓐ",
    "\x1c\x1d\x85\u3000.\u3000A. B!\u2028",
    "_ __ ___ a(b( (c (( é(",
    "\\frac\\a\\ \\1",
    "😀? what is 😀",
    "9" * 40 + " 12",
    "9" * 31 + " 1" + "0" * 40 + " 12",
    "1,000 999 0100 .5 1..2 3.,4 5,.6 7.8.9 ...1... 2024-11-27 a1,b2.c,3",
    "00 0.99 0,000.5",
    "ΟΔΟΣ. ΟΔΟΣ! aΣ.Σ b\u00a0Ünder.\u2003“End.” 1٢ 3",
    "\u0e50",
]


def magnitude(number):
    whole = number.partition(".")[0].replace(",", "").lstrip("0")
    return min(len(whole) - 1, 30) + math.log10(int(whole[:3]) / 10 ** (min(len(whole), 3) - 1) + 1e-9) if whole else 0.0


def plain_statistics(text):
    """What each statistic is by definition."""
    shown = text[:MAX_CHARS]
    chars = max(len(shown), 1)
    words = re.findall(r"[^\W\d_]+|\d+(?:[.,]\d+)*", shown.lower())
    numbers = [word for word in words if word[0].isdecimal()]
    counts, total = Counter(words), max(len(words), 1)
    sentences = len(re.findall(r"[.!?](?:\s|$)", shown)) or 1
    options = len(re.findall(r"^[ \t]*\(?[A-J][).:]\s", shown, re.MULTILINE))
    stripped = shown.strip()
    return {
        "log characters": math.log1p(len(text)),
        "log words": math.log1p(len(words)),
        "log lines": math.log1p(shown.count("\n")),
        "log sentences": math.log1p(sentences),
        "mean length of a word": sum(map(len, words)) / total,
        "longest word": math.log1p(max(map(len, words), default=0)),
        "words a sentence": math.log1p(len(words) / sentences),
        "share of different words": len(counts) / total,
        "share of digits": sum(map(len, numbers)) / chars,
        "share of capitals": sum(map(str.isupper, shown)) / chars,
        "share of space": sum(map(str.isspace, shown)) / chars,
        "share of other scripts": 1 - (len(shown) - sum(ord(char) > 127 for char in shown)) / chars if shown else 0.0,
        "log numbers": math.log1p(len(numbers)),
        "log different numbers": math.log1p(len(set(numbers))),
        "log largest number": max(map(magnitude, numbers), default=0.0),
        "share of numbers with a point": sum("." in number or "," in number for number in numbers) / max(len(numbers), 1),
        "share of numbers of one digit": sum(len(number) == 1 for number in numbers) / max(len(numbers), 1),
        "log options": math.log1p(options),
        "log characters an option": math.log1p(len(shown) / options) if options else 0.0,
        "log LaTeX commands": math.log1p(len(re.findall(r"\\[a-zA-Z]+", shown))),
        "log calls": math.log1p(len(re.findall(r"\w\(", shown))),
        "log blanks": math.log1p(len(re.findall(r"_{2,}", shown))),
        "ends with a question mark": float(stripped.endswith("?")),
        "begins with a question word": float(bool(words) and words[0] in _WORDS_OF["question words"].split()),
        "begins with a capital": float(stripped[:1].isupper()),
        **{f"log count of {sign!r}": math.log1p(shown.count(sign)) for sign in _SIGNS},
        **{
            f"share of words: {name}": sum(counts[word] for word in set(group.split())) / total
            for name, group in _WORDS_OF.items()
        },
    }


def agrees(text):
    plain = plain_statistics(text)
    assert tuple(plain) == STATISTICS
    assert dict(zip(STATISTICS, text_statistics(text).tolist(), strict=True)) == plain


@pytest.mark.parametrize("text", STRANGE)
def test_strange_texts_have_the_statistics_of_the_definitions(text):
    agrees(text)
    agrees(text * 500)


@examples(300)
@given(st.lists(st.sampled_from([*"aA1 .,\n?!()_\\BJ:\t=é“\ud800٣İ\x1c\u3000", "what ", "find ", "1.5", "\nC) "]), max_size=40))
def test_short_texts_have_the_statistics_of_the_definitions(parts):
    agrees("".join(parts))


@examples(200)
@given(st.text(st.characters(), max_size=60))
def test_every_text_has_the_statistics_of_the_definitions(text):
    agrees(text)


def test_only_the_length_of_a_text_tells_what_is_behind_its_beginning():
    begin = ("What is 12 + 30? " * MAX_CHARS)[:MAX_CHARS]
    longer = text_statistics(begin + "\\frac{名}" * MAX_CHARS)
    assert (longer[1:] == text_statistics(begin)[1:]).all()
    assert longer[0] == math.log1p(9 * MAX_CHARS)
    assert np.isfinite(longer).all()
