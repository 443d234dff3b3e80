"""Tokenizer of the small Countdown device LLM: one token per word, number, operator and tag."""

import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, pre_tokenizers

from offload_jax.tasks.countdown.solver import MAX_RESULT
from offload_jax.vocabulary import Vocabulary

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
_TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<unknown>", "</unknown>")
_CALL_WORDS = ("I", "need", "external", "assistance")
_SYMBOLS = ("+", "-", "*", "/", "(", ")", "=", ",", "off")


def make_tokenizer() -> tokenizers.Tokenizer:
    """A word-level tokenizer over words parted by spaces: 143 tokens, `<pad>` is id 0.

    Decoding joins words by one space, so encoding what was decoded gives the same ids back.
    """
    specials = (PAD, BOS, EOS, UNK)
    numbers = tuple(str(number) for number in range(MAX_RESULT + 1))
    words = specials + _TAGS + _CALL_WORDS + _SYMBOLS + numbers
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNK)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(specials))
    return tokenizer


def make_vocabulary() -> Vocabulary:
    """The tokenizer with its end of a response; prompts need no chat template."""
    tokenizer = make_tokenizer()
    return Vocabulary(tokenizer, (tokenizer.token_to_id(EOS),), tokenizer.token_to_id(PAD))


def number_tokens(
    tokenizer: tokenizers.Tokenizer,
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Ids and values of all tokens that are a decimal integer, by increasing value."""
    pairs = sorted(
        (int(word), i)
        for word, i in tokenizer.get_vocab().items()
        if word.isascii() and word.isdecimal()
    )
    values, ids = np.array(pairs, np.int32).reshape(-1, 2).T
    return ids, values
