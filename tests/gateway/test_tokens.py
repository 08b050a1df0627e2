"""Counting prompt tokens before the engine does: an estimate that usage sets right."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.server.asked import Prompt
from gateway.server.tokens import TokenCounter
from rllib_envs.errors import InputError

WORDS = {"[UNK]": 0, "one": 1, "two": 2}
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
}


def prompt(text, messages=1, tokens=None):
    return Prompt(text=text, tokens=tokens, messages=messages)


def count(counter, asked):
    return asyncio.run(counter.count(asked))


@pytest.mark.parametrize("per_token", [1.5, 3.0, 6.0])
@pytest.mark.parametrize("messages", [0, 2])
def test_an_estimate_learns_the_characters_of_a_token(per_token, messages):
    counter = TokenCounter(None)
    asked = prompt("x" * 3000, messages)
    for _ in range(200):
        counter.learn(asked, count(counter, asked), round(3000 / per_token))
    assert count(counter, asked) == pytest.approx(3000 / per_token, rel=0.02)
    assert count(counter, prompt("x" * 1500, messages)) == pytest.approx(1500 / per_token, rel=0.05)


def test_no_usage_makes_an_estimate_absurd():
    counter = TokenCounter(None)
    asked = prompt("x" * 1000)
    for told in (None, 0, -5, 1, 10**9) * 100:
        counter.learn(asked, count(counter, asked), told)
        assert 125 <= count(counter, asked) <= 1010
    assert count(counter, prompt("", 0)) == 1
    assert count(counter, prompt("x" * 99, 0, tokens=12)) == 12


def test_a_tokenizer_counts_and_learns_the_template(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    counter = TokenCounter(tmp_path / "tokenizer.json")
    assert count(counter, prompt("one two two", 0)) == 3
    asked = prompt("one two two")
    for _ in range(300):
        counter.learn(asked, count(counter, asked), 3 + 11)
    assert count(counter, asked) == pytest.approx(3 + 11, abs=1)
    assert count(counter, prompt("one " * 9000, 0)) == 9000  # in a thread
    assert count(counter, prompt("\ud800 one", 0)) == 2  # half a character, as JSON can hold it


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "wrong.json").write_text("{}")
    for name in ("wrong.json", "missing.json"):
        with pytest.raises(InputError, match=rf"tokenizer .*{name}: cannot be read"):
            TokenCounter(tmp_path / name)
