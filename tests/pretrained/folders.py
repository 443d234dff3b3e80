"""A small tokenizer and checkpoint folder to test on, without torch."""

import json

import jax
import tokenizers
from tokenizers import models, pre_tokenizers

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params
from offload_jax.pretrained.huggingface import save_huggingface
from offload_jax.vocabulary import Vocabulary

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    *["to", "be", "or", "not", "that", "is", "the", "question"],
]


def tokenizer():
    """A few words, each a token."""
    made = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(WORDS[:4])
    return made


def vocabulary():
    """Its vocabulary, with a chat template."""
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return Vocabulary(tokenizer(), (2,), 0, TEMPLATE, special)


def write_tokenizer(folder):
    """The tokenizer's files beside a model's."""
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE,
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "lstrip": False},
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_checkpoint(folder, **changes):
    """A random model of ours as a folder; returns its config and weights."""
    shape = {"rope_base": 1e5, "context": 128, **changes}
    config = DeviceConfig(64, 32, 2, 4, 2, 8, 24, **shape)
    params = init_params(config, jax.random.key(7))
    save_huggingface(folder, params, config, vocabulary())
    return config, params
