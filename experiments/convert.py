"""Between formats: `python -m experiments.convert --from=PATH --to=FOLDER [--dtype=bfloat16]`.

From a Hugging Face folder, a GGUF file or a stage's checkpoints (workdir/checkpoints/gapg) to a
Hugging Face folder with tokenizer and chat template; adapters are merged.
"""

import sys

from absl import app, flags, logging

from offload_jax.device.params import count_params
from offload_jax.pretrained.huggingface import check_new, save_huggingface
from offload_jax.training.checkpoints import read_policy

FROM = flags.DEFINE_string("from", None, "A Hugging Face folder, a GGUF file or checkpoints.")
TO = flags.DEFINE_string("to", None, "The new folder.")
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16", "float16"], "Of the weights in the new folder."
)


def main(argv: list[str]) -> None:
    """Reads, writes, and says what it wrote; a mistake is one sentence on stderr, status 2."""
    logging.set_verbosity(logging.ERROR)
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        check_new(TO.value)
        params, config, vocabulary = read_policy(FROM.value)
        save_huggingface(TO.value, params, config, vocabulary, DTYPE.value)
        print(f"{TO.value}: {count_params(config):,} parameters in {DTYPE.value}")
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.mark_flags_as_required(["from", "to"])
    app.run(main)
