import numpy as np
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_jax.tasks.countdown.tokenizer import make_tokenizer, number_tokens
from offload_jax.tasks.parsing import CALL_MARKER

_TOKENIZER = make_tokenizer()
_SIZE = _TOKENIZER.get_vocab_size()


@settings(deadline=None)
@given(st.lists(st.integers(0, _SIZE - 1)))
def test_encoding_what_was_decoded_gives_the_same_ids(ids):
    text = _TOKENIZER.decode(ids, skip_special_tokens=False)
    assert _TOKENIZER.encode(text).ids == ids


def test_specials_have_the_first_ids_and_tags_survive_decoding():
    ids = [_TOKENIZER.token_to_id(word) for word in ("<pad>", "<bos>", "<eos>", "<unk>")]
    assert ids == [0, 1, 2, 3]
    text = (
        f"<bos> 3 * 7 = 21 , 25 + 21 = 46 off 0 </think> <answer> 3 </answer> {CALL_MARKER} <eos>"
    )
    decoded = _TOKENIZER.decode(_TOKENIZER.encode(text).ids)
    assert decoded == text.removeprefix("<bos> ").removesuffix(" <eos>")


def test_a_word_outside_the_vocabulary_is_unknown():
    assert _TOKENIZER.encode("120 hello").tokens == ["<unk>", "<unk>"]


def test_number_tokens_are_the_integers_up_to_the_bound():
    ids, values = number_tokens(_TOKENIZER)
    np.testing.assert_array_equal(values, np.arange(120))
    assert [_TOKENIZER.id_to_token(i) for i in ids] == [str(value) for value in values]


def test_the_tokenizer_survives_being_saved():
    restored = tokenizers.Tokenizer.from_str(_TOKENIZER.to_str())
    text = f"<bos> 3 7 25 = 46 <think> {CALL_MARKER} <eos>"
    assert restored.encode(text).ids == _TOKENIZER.encode(text).ids
