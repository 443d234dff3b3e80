"""A pretrained device LLM, whatever its format: shape, weights, vocabulary."""

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.pretrained import huggingface
from offload_jax.pretrained.gguf import GgufFile
from offload_jax.pretrained.huggingface import Folder, check_size
from offload_jax.pretrained.weights import load_params
from offload_jax.settings import require
from offload_jax.vocabulary import Vocabulary


class Pretrained:
    """A Hugging Face folder or a GGUF file; what it lacks or holds wrongly is a ValueError."""

    def __init__(self, path: str | Path):
        """Looks at the path alone; raises ValueError where there is nothing of either kind."""
        self.path = Path(path)
        require(self.path.exists(), f"{self.path} does not exist; a checkpoint is expected there.")
        self._gguf = None if self.path.is_dir() else GgufFile(self.path)

    def shape(self) -> dict[str, Any]:
        """The fields of `DeviceConfig` that the checkpoint decides."""
        if self._gguf is not None:
            return self._gguf.device_config()
        return huggingface.device_config(self.path)

    def vocabulary(self) -> Vocabulary:
        """Tokenizer, chat template and stop tokens."""
        size = self.shape()["vocabulary"]
        if self._gguf is None:
            return huggingface.read_vocabulary(self.path, size)
        vocabulary = self._gguf.vocabulary()
        check_size(self.path, vocabulary.tokenizer, size)
        return vocabulary

    def params(self, config: DeviceConfig, key: jax.Array, mesh: Mesh | None = None) -> Params:
        """The weights in the dtype of `config`, which must have this checkpoint's shape."""
        source = self._gguf if self._gguf is not None else Folder(self.path)
        return load_params(source, config, key, mesh)
