"""What a trained router is: tokens in, out comes a logit that the device's answer is wrong.

Two bodies: a DeBERTa-v3 encoder, or the device LLM itself with a scalar head in place of its
vocabulary. The tokens may be those of the prompt, or of the prompt and the device's response.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax.device import model
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.routing import deberta
from offload_jax.routing.deberta import DebertaConfig

Body = DebertaConfig | DeviceConfig


def on_device(device: Params, config: DeviceConfig) -> Params:
    """A classifier that starts from the device LLM's weights; its head starts at zero."""
    head = {"kernel": jnp.zeros(config.width), "bias": jnp.zeros(())}
    return {"device": device, "head": head}


def classify(
    params: Params,
    body: Body,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    key: jax.Array | None = None,
) -> Float[Array, " B"]:
    """The logit of each row; what stands beyond a row's length does not count.

    Args:
        params: from `deberta.init_params`, `load_huggingface` or `on_device`.
        body: the shape of the weights.
        tokens: right-padded with any id of the vocabulary.
        lengths: real tokens of each row, at least 1.
        key: randomness of DeBERTa's dropout; without it nothing is dropped. The device LLM has
            none.
    """
    if isinstance(body, DebertaConfig):
        return deberta.classify(params, body, tokens, lengths, key)
    # The state that predicts the first token of a response is the final one of the last token.
    nothing = jnp.zeros((len(tokens), 1, 1), tokens.dtype)
    last = model.forward(params["device"], body, tokens, lengths, nothing)[:, 0, 0]
    return last.astype(jnp.float32) @ params["head"]["kernel"] + params["head"]["bias"]
