"""README, changelog and documentation are plain English: short sentences, few commas, lines that fit a window.

Measured is running text alone. Code blocks, tables, headings, pictures, comments and the addresses of links are left out. A code
span counts as one word. An item of a list is a sentence of its own.
"""

import re
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [page for folder in ("how-to", "adr") for page in sorted((ROOT / "docs" / folder).glob("*.md"))]
MEAN_WORDS, MEAN_COMMAS, MOST_WORDS, WIDTH = 17, 1.0, 20, 100

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"(?:\A|\n)\n+(?: {4}.*(?:\n|\Z)+)+")  # four spaces after an empty line; lists here are indented by less
SPAN = re.compile(r"`[^`]+`")
PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
ADDRESS = re.compile(r"https?://\S+")
ITEM = re.compile(r"^ *(?:[-*+]|\d+\.) ")
ENDS = re.compile(r"(?<!\.)[.!?][\"')\]*_]*\s+")
ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|al|approx|resp|incl|Fig|Eq|No|Sec|Dr|[A-Z])$")


def paragraphs(text):
    """Running text: paragraphs and the items of lists, each in one line."""
    text = INDENTED.sub("\n\n", FENCED.sub("\n", COMMENT.sub("", text)))
    text = ADDRESS.sub("Address", LINK.sub(r"\1", PICTURE.sub("", SPAN.sub("Code", text))))
    found = [[]]
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "|")):
            found.append([])
        elif ITEM.match(line):
            found.append([ITEM.sub("", line)])
        else:
            found[-1].append(line)
    return [" ".join(" ".join(lines).split()) for lines in found if lines]


def sentences(text):
    """The sentences of the running text of a page."""
    found = []
    for paragraph in paragraphs(text):
        start = 0
        for end in ENDS.finditer(f"{paragraph} "):
            if not ABBREVIATION.search(paragraph[: end.start()]) or end.end() > len(paragraph):
                found.append(paragraph[start : end.end()].strip())
                start = end.end()
        found.append(paragraph[start:].strip())
    return [sentence for sentence in found if words(sentence)]


def words(sentence):
    """Number of words: what has a letter or a digit."""
    return sum(any(map(str.isalnum, word)) for word in sentence.split())


def commas(sentence):
    """Number of commas, those within a number aside."""
    return len(re.findall(r",(?!\d)", sentence))


def wide_lines(text):
    """Lines of running text above the width, the addresses of links aside."""
    text = INDENTED.sub("\n\n", FENCED.sub("\n", COMMENT.sub("", text)))
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("|"))
    return [line for line in lines if len(ADDRESS.sub("", re.sub(r"\]\([^)]*\)", "]", line))) > WIDTH]


def listed(found):
    return "\n  ".join(["", *found])


def test_sentences_are_told_apart():
    text = "It takes 1.5 s, e.g. on edge6. Is that much? `train` writes it.\n"
    text += "The fit of J. Doe et al. is .5 % off (see\nbelow.) Then..."
    assert sentences(text) == [
        "It takes 1.5 s, e.g. on edge6.",
        "Is that much?",
        "Code writes it.",
        "The fit of J. Doe et al. is .5 % off (see below.)",
        "Then...",
    ]
    assert sentences("Costs, e.g.") == ["Costs, e.g."]


def test_items_of_a_list_are_sentences_and_what_is_not_text_is_left_out():
    text = (
        "# Title\n\n![A, picture](a.png)\n\n- one\n  more\n- two. three\n1. four\n\n"
        "| a | b, c |\n|---|---|\n\n    code, code. Code\n\n```sh\nx, y. Z\n```\n<!-- a. b -->\nSee [the, page](docs/a.md) and https://a.b/c,d."
    )
    assert sentences(text) == ["one more", "two.", "three", "four", "See the, page and Address"]


def test_words_and_commas_are_counted():
    assert words("A mean of 1,000 ± 2.5 % - **twice** `a b c`".replace("`a b c`", "Code")) == 7
    assert commas("1,000 requests, or 2,000, as told") == 2


def test_wide_lines_are_found_outside_tables_code_and_addresses():
    long = "word " * 25
    assert wide_lines(f"{long}\n\n    {long}\n\n| {long} |\n") == [long]
    assert not wide_lines(f"[page](https://{'x' * 100})\n```\n{long}\n```\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_plain_english(page):
    text = page.read_text(encoding="utf-8")
    found = sentences(text)
    longest = sorted(found, key=words, reverse=True)
    too_long = [f"{words(sentence)} words: {sentence}" for sentence in longest if words(sentence) > MOST_WORDS]
    assert not too_long, listed(too_long)
    assert fmean(map(words, found)) <= MEAN_WORDS, listed(longest[:10])
    assert fmean(map(commas, found)) <= MEAN_COMMAS, listed(sorted(found, key=commas, reverse=True)[:10])
    assert not wide_lines(text), listed(wide_lines(text))
