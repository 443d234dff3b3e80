"""Tokenizer of a small arithmetic device LLM that is trained from nothing: a token per digit."""

import re
from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from offload_jax.tasks import parsing
from offload_jax.vocabulary import Vocabulary

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
# The words of a call keep the space before them, so that decoding only has to join.
_CALL = tuple(re.findall(r" ?[^ ]+", parsing.CALL_MARKER))
_WORDS = (parsing.ANSWER_OPEN, parsing.ANSWER_CLOSE, *_CALL)
_CHARACTERS = "0123456789+-*()=,"


def make_vocabulary(names: Sequence[str] = ()) -> Vocabulary:
    """29 tokens, `<pad>` is id 0; decoding and encoding are inverse. There is no chat template.

    Args:
        names: further tokens, which come last.
    """
    specials = (PAD, BOS, EOS, UNK)
    known = (*specials, *_WORDS, *_CHARACTERS, *names)
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(known)}, unk_token=UNK)
    )
    pattern = "|".join(map(re.escape, (*specials, *_WORDS, *names))) + r"|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(specials))
    return Vocabulary(tokenizer, (tokenizer.token_to_id(EOS),), tokenizer.token_to_id(PAD))
