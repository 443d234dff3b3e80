"""Between text and tokens: prompts in, responses out. A sampled response is never re-tokenised."""

import itertools
from collections.abc import Sequence

import numpy as np
import tokenizers

from offload_jax.sampling.rollout import PromptBatch, Rollout
from offload_jax.vocabulary import Vocabulary


def encode_prompts(
    vocabulary: Vocabulary, ids: Sequence[int], texts: Sequence[str], S: int
) -> PromptBatch:
    """P prompts as host arrays, padded on the right to S tokens.

    Raises:
        ValueError: a prompt is empty or longer than S tokens; nothing is cut off.
    """
    encoded = vocabulary.tokenizer.encode_batch(list(texts), add_special_tokens=False)
    rows = [encoding.ids for encoding in encoded]
    for row, text in zip(rows, texts, strict=True):
        if not 1 <= len(row) <= S:
            raise ValueError(
                f"A prompt has {len(row)} tokens; config.sampling.prompt_tokens allows 1 to {S}:"
                f" {text[:80]!r}."
            )
    tokens = np.full((len(rows), S), vocabulary.pad, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    lengths = np.array([len(row) for row in rows], np.int32)
    return PromptBatch(np.array(ids, np.int32), tokens, lengths)


def extend_prompts(
    batch: PromptBatch, works: Sequence[Sequence[int]], room: int, pad: int
) -> PromptBatch:
    """P prompts with the beginnings of their responses, as host arrays [P, S + room].

    Args:
        batch: the prompts.
        works: per prompt the token ids that follow it, at most `room`.
        room: by how much the rows get wider.
        pad: what stands after the end of a row.
    """
    prompts, lengths = np.asarray(batch.tokens), np.asarray(batch.lengths)
    tokens = np.full((len(prompts), prompts.shape[1] + room), pad, np.int32)
    for row, prompt, length, work in zip(tokens, prompts, lengths, works, strict=True):
        row[:length] = prompt[:length]
        row[length : length + len(work)] = work
    grown = lengths + np.array([len(work) for work in works], np.int32)
    return PromptBatch(np.asarray(batch.ids), tokens, grown)


def decode_responses(tokenizer: tokenizers.Tokenizer, rollout: Rollout) -> list[list[str]]:
    """The responses' texts [P][G], without padding and stop token (see `decode_response`)."""
    P, G, T = rollout.tokens.shape
    ends = np.asarray(rollout.lengths) - np.asarray(rollout.stopped)
    tokens, ends = np.asarray(rollout.tokens).reshape(P * G, T), ends.reshape(P * G)
    rows = [row[:end].tolist() for row, end in zip(tokens, ends, strict=True)]
    texts = tokenizer.decode_batch(rows, skip_special_tokens=False)
    size = tokenizer.get_vocab_size()
    for i in np.flatnonzero([max(row, default=0) >= size for row in rows]):
        texts[i] = decode_response(tokenizer, rows[i])
    return [texts[p * G : (p + 1) * G] for p in range(P)]


def decode_response(tokenizer: tokenizers.Tokenizer, tokens: Sequence[int]) -> str:
    """The text of one response.

    An id that the tokenizer does not know (a model's vocabulary may be padded) becomes U+FFFD:
    leaving it out would join what stood on its two sides.
    """
    size = tokenizer.get_vocab_size()
    runs = itertools.groupby(tokens, lambda token: token < size)
    return " ".join(
        tokenizer.decode(list(run), skip_special_tokens=False)
        if known
        else " ".join("\ufffd" for _ in run)
        for known, run in runs
    )
