"""A response's text in pieces, while its tokens come."""

from collections.abc import Sequence

import tokenizers

from offload_jax.sampling.text import decode_response


class Pieces:
    """Cuts a text where it cannot change any more; the pieces laid end to end are the whole text.

    A character may take several tokens: until the last of them it reads as U+FFFD, and is held
    back. Only the last tokens are decoded again, so that the work does not grow with the text.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self._before: list[int] = []  # given already; shows what the next ones look like behind it
        self._recent: list[int] = []  # of which something may be held back
        self._shown = 0  # characters of these two that are given
        self._given = 0  # characters in all

    def push(self, tokens: Sequence[int]) -> str:
        """What is certain now, with some more tokens."""
        self._recent.extend(tokens)
        text = self._decode(self._before + self._recent)
        certain = text.rstrip("\ufffd")
        piece = certain[self._shown :]
        self._given += len(piece)
        self._shown += len(piece)
        if certain == text and self._recent:
            self._before, self._recent = self._recent, []
            self._shown = len(self._decode(self._before))
        return piece

    def rest(self, text: str) -> str:
        """What is missing of the whole text."""
        return text[self._given :]

    def _decode(self, tokens: list[int]) -> str:
        return decode_response(self._tokenizer, tokens)
