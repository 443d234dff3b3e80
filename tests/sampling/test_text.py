import numpy as np
import pytest

from offload_jax.sampling.rollout import Rollout
from offload_jax.sampling.text import decode_responses, encode_prompts
from offload_jax.tasks.countdown.tokenizer import make_vocabulary

VOCABULARY = make_vocabulary()
TOKENIZER = VOCABULARY.tokenizer


def test_prompts_are_padded_on_the_right_and_never_cut():
    batch = encode_prompts(VOCABULARY, [5, 6], ["<bos> 3 7 = 21 <think>", "<bos> 3"], S=7)
    assert batch.lengths.tolist() == [6, 2] and batch.ids.tolist() == [5, 6]
    assert batch.tokens[1].tolist()[2:] == [VOCABULARY.pad] * 5
    with pytest.raises(
        ValueError, match=r"6 tokens; config\.sampling\.prompt_tokens allows 1 to 5"
    ):
        encode_prompts(VOCABULARY, [5], ["<bos> 3 7 = 21 <think>"], S=5)


def test_responses_are_decoded_without_stop_and_padding_but_with_tags():
    text = "3 * 7 = 21 off 0 </think> <answer> 3 * 7 </answer>"
    ids = TOKENIZER.encode(text).ids
    tokens = np.zeros((1, 2, len(ids) + 3), np.int32)
    tokens[0, 0, : len(ids) + 1] = [*ids, *VOCABULARY.stops]
    tokens[0, 1] = 9
    lengths = np.array([[len(ids) + 1, len(ids) + 3]])
    stopped = np.array([[True, False]])
    rolled = Rollout(tokens, np.zeros(tokens.shape), lengths, stopped)
    texts = decode_responses(TOKENIZER, rolled)
    assert texts[0][0] == text
    assert len(texts[0][1].split()) == len(ids) + 3


def test_an_id_beyond_the_tokenizer_is_seen_in_the_text():
    ids = np.array([[[TOKENIZER.token_to_id("7"), 159, TOKENIZER.token_to_id("8")]]])
    rolled = Rollout(ids, np.zeros(ids.shape), np.array([[3]]), np.array([[False]]))
    assert decode_responses(TOKENIZER, rolled) == [["7 \ufffd 8"]]
