"""Small files in place of checkpoints and data sets, so that the paper's configs can be rehearsed.

`<folder>/qwen2` and `<folder>/llama` are Hugging Face folders with random weights of tiny widths, a
tokenizer and a chat template; `<folder>/math` holds sums of digits in the form of MATH-lighteval.
"""

from pathlib import Path

import jax
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from offload_jax.device.config import DeviceConfig, RopeScaling
from offload_jax.device.params import init_params
from offload_jax.evaluation.jsonl import write_lines
from offload_jax.pretrained.huggingface import save_huggingface
from offload_jax.tasks import parsing, prompts
from offload_jax.vocabulary import Vocabulary

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = 768  # of the tokenizer; digits and whatever the prompts do not hold are single bytes
FAMILIES = {
    "qwen2": {"query_key_value_bias": True, "rope_base": 1_000_000.0},
    "llama": {"rope_base": 500_000.0, "rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8192)},
}


def write_rehearsal(folder: str | Path) -> None:
    """Writes checkpoints and problems; the same each time.

    Raises:
        ValueError: a checkpoint is there already.
    """
    folder = Path(folder)
    made = vocabulary()
    for i, (family, shape) in enumerate(FAMILIES.items()):
        config = DeviceConfig(WORDS, 32, 2, 4, 2, 8, 64, context=4096, **shape)
        save_huggingface(folder / family, init_params(config, jax.random.key(i)), config, made)
    sums = [problem(a, b) for a in range(10) for b in range(10)]
    splits = {"train": sums[::2] + sums[1::4], "test": sums[3::4]}
    (folder / "math" / "math_lighteval").mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        write_lines(folder / "math" / "math_lighteval" / f"{split}.jsonl", rows)


def problem(a: int, b: int) -> dict[str, str]:
    """A sum in the columns of MATH-lighteval."""
    solution = f"Step 1: ${a} + {b} = {a + b}$. The answer is $\\boxed{{{a + b}}}$."
    return {"problem": f"What is ${a} + {b}$?", "solution": solution}


def vocabulary() -> Vocabulary:
    """Byte pairs learnt from the prompts, and the chat template of Qwen's kind."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [prompts.COUNTDOWN_SYSTEM, prompts.MATH_SYSTEM + prompts.MATH_HELP, prompts.MATH_CLOUD]
    texts += [prompts.COUNTDOWN_LEAD, parsing.CALL_MARKER, *problem(1, 2).values()]
    tokenizer.train_from_iterator(3 * texts, trainer)
    special = {"eos_token": END, "pad_token": PAD}
    stop, pad = (tokenizer.token_to_id(token) for token in (END, PAD))
    return Vocabulary(tokenizer, (stop,), pad, TEMPLATE, special)
