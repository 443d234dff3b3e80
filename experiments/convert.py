"""Between formats: `python -m experiments.convert --from=PATH --to=FOLDER [--dtype=bfloat16]`.

From a Hugging Face folder, a GGUF file or a stage's checkpoints (workdir/checkpoints/gapg) to a
Hugging Face folder with tokenizer and chat template; adapters are merged.
"""

import sys
from pathlib import Path

import jax
from absl import app, flags, logging

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params, count_params
from offload_jax.pretrained.checkpoint import Pretrained
from offload_jax.pretrained.huggingface import check_new, save_huggingface
from offload_jax.settings import parse
from offload_jax.training.checkpoints import load_policy
from offload_jax.vocabulary import Vocabulary

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
        params, config, vocabulary = read(FROM.value)
        save_huggingface(TO.value, params, config, vocabulary, DTYPE.value)
        print(f"{TO.value}: {count_params(config):,} parameters in {DTYPE.value}")
    except ValueError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def read(path: str) -> tuple[Params, DeviceConfig, Vocabulary]:
    """What lies at the path, whichever of the three it is."""
    folder = Path(path)
    if folder.is_dir() and not (folder / "config.json").exists():
        return load_policy(folder)
    pretrained = Pretrained(folder)
    config = parse(DeviceConfig, pretrained.shape())
    return pretrained.params(config, jax.random.key(0)), config, pretrained.vocabulary()


if __name__ == "__main__":
    flags.mark_flags_as_required(["from", "to"])
    app.run(main)
