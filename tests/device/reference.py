"""The decoder once more, in plain numpy over one row laid end to end: slow, simple, independent."""

import numpy as np


def reference_logits(params, config, tokens):
    """Logits [n, V] after each of the n tokens of one unpadded row, in float64."""
    params = _float64(params)
    x = params["embedding"][np.array(tokens)]
    for i in range(config.layers):
        layer = {name: weight[i] for name, weight in params["layers"].items()}
        x = x + _attention(layer, config, _norm(x, layer["attention_norm"], config))
        h = _norm(x, layer["mlp_norm"], config)
        gate = h @ layer["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["up"])) @ layer["down"]
    head = params["embedding"].T if config.tied_embeddings else params["head"]
    return _norm(x, params["final_norm"], config) @ head


def _attention(layer, config, h):
    n, share = len(h), config.heads // config.kv_heads
    out = np.zeros((n, config.width))
    for head in range(config.heads):
        q = _rotate(h @ layer["query"][:, head], config.rope_base)
        k = _rotate(h @ layer["key"][:, head // share], config.rope_base)
        v = h @ layer["value"][:, head // share]
        for i in range(n):
            scores = k[: i + 1] @ q[i] / np.sqrt(config.head_size)
            weights = np.exp(scores - scores.max())
            out[i] += (weights / weights.sum()) @ v[: i + 1] @ layer["output"][head]
    return out


def _rotate(x, base):
    """Each pair (x[j], x[j + N/2]) as a complex number turned by position * base^(-2j/N)."""
    half = x.shape[1] // 2
    z = x[:, :half] + 1j * x[:, half:]
    angle = np.arange(len(x))[:, None] * base ** (-np.arange(half) / half)
    turned = z * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], axis=1)


def _norm(x, scale, config):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + config.norm_epsilon) * scale


def _float64(tree):
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.array(tree, np.float64)
