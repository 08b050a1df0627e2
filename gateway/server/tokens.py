"""Prompt tokens before the engine has counted them: a tokenizer where there is one, else characters, both set right by usage."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from gateway.server.asked import Prompt
from rllib_envs.errors import InputError

_CHARACTERS_PER_TOKEN = 4.0  # of English text, to begin with
_MESSAGE_TOKENS = 4.0  # of a chat template, a message, to begin with
_SHARE = 0.05  # of a new observation in the running means
_RATIOS = (1.0, 8.0)  # of characters per token, whatever is observed: an engine may count cached or hidden tokens
_AT_ONCE = 20_000  # characters that are tokenised in the event loop, about 2 ms; more in a thread


class TokenCounter:
    """Counts the prompt tokens of one model. ``learn`` is told what engines counted."""

    def __init__(self, tokenizer: Path | None) -> None:
        """Raises InputError: the file is no tokenizer, or the extra is missing that reads it."""
        self._tokenizer: Any = None if tokenizer is None else _load(tokenizer)
        self._characters_per_token = _CHARACTERS_PER_TOKEN
        self._message_tokens = _MESSAGE_TOKENS

    async def count(self, prompt: Prompt) -> int:
        """Prompt tokens, at least 1."""
        if prompt.tokens is not None:
            return max(1, prompt.tokens)
        return max(1, round(await self._text_tokens(prompt) + self._message_tokens * prompt.messages))

    async def _text_tokens(self, prompt: Prompt) -> float:
        if self._tokenizer is None:
            return len(prompt.text) / self._characters_per_token
        if len(prompt.text) <= _AT_ONCE:
            return self._encode(prompt.text)
        return await asyncio.to_thread(self._encode, prompt.text)

    def _encode(self, text: str) -> int:
        clean = text.encode("utf-8", "replace").decode()  # JSON can hold halves of characters
        return len(self._tokenizer.encode(clean, add_special_tokens=False))

    def learn(self, prompt: Prompt, counted: int, told: int | None) -> None:
        """Correct by one observation.

        Args:
            prompt: that was counted.
            counted: what ``count`` said.
            told: prompt tokens by the engine's usage; None: it did not say.
        """
        if prompt.tokens is not None or told is None or told < 1 or not prompt.text:
            return
        if self._tokenizer is not None:
            if prompt.messages:
                self._message_tokens += _SHARE * (told - counted) / prompt.messages
                self._message_tokens = min(max(self._message_tokens, 0.0), 1000.0)
            return
        of_text = told - self._message_tokens * prompt.messages
        if of_text > 0:
            low, high = _RATIOS
            ratio = min(max(len(prompt.text) / of_text, low), high)
            weight = _SHARE * min(1.0, len(prompt.text) / 400)  # a short prompt says little
            self._characters_per_token += weight * (ratio - self._characters_per_token)


def _load(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer  # here: who gives no file needs no library
    except ImportError:
        raise InputError(f"tokenizer {path}: needs the extra: pip install 'edgeroute[serve]'") from None
    try:
        tokenizer: Any = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"tokenizer {path}: cannot be read: {' '.join(str(error).split())}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
