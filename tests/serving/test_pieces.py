"""Pieces of a text whose characters take several tokens."""

import random

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from offload_jax.sampling.rollout import Rollout
from offload_jax.sampling.text import decode_response, decode_responses
from offload_jax.serving.pieces import Pieces
from offload_jax.tasks.countdown.tokenizer import make_tokenizer

TEXT = "3 × 7 = 21, 数学 👩‍👩‍👧 é"


def bytewise():
    """Every byte a token."""
    made = tokenizers.Tokenizer(
        models.BPE(
            {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []
        )
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def cut(tokenizer, tokens, size):
    pieces = Pieces(tokenizer)
    given = [pieces.push(tokens[i : i + size]) for i in range(0, len(tokens), size)]
    return [*given, pieces.rest(decode_response(tokenizer, tokens))]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_character_comes_whole_or_not_yet(size):
    tokenizer = bytewise()
    tokens = tokenizer.encode(TEXT).ids
    given = cut(tokenizer, tokens, size)
    assert "".join(given) == TEXT
    assert "\ufffd" not in "".join(given)
    whole = [TEXT[:i].encode() for i in range(len(TEXT) + 1)]
    known = b"".join(piece.encode() for piece in given[:-1])
    assert known in whole and given[-1] == ""


@pytest.mark.parametrize("size", [1, 3, 8])
def test_broken_bytes_and_unknown_ids_come_as_in_the_whole_text(size):
    rng = random.Random(0)
    for tokenizer in (bytewise(), make_tokenizer()):
        unknown = tokenizer.get_vocab_size() + 3
        for _ in range(50):
            tokens = [rng.choice([rng.randrange(unknown), unknown]) for _ in range(20)]
            assert "".join(cut(tokenizer, tokens, size)) == decode_response(tokenizer, tokens)


def test_a_text_ends_with_what_was_held_back():
    tokenizer = bytewise()
    tokens = tokenizer.encode("7 €").ids[:-1]
    assert cut(tokenizer, tokens, 1)[-1] == decode_response(tokenizer, tokens)[2:] != ""


def test_one_response_reads_as_in_a_batch():
    tokenizer = make_tokenizer()
    rows = np.array([[[10, 159, 12], [159, 159, 9]], [[9, 10, 11], [9, 9, 159]]])
    rolled = Rollout(rows, np.zeros(rows.shape), np.full((2, 2), 3), np.zeros((2, 2), bool))
    batch = decode_responses(tokenizer, rolled)
    assert batch == [[decode_response(tokenizer, row.tolist()) for row in group] for group in rows]
