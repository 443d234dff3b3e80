"""Other codebases on the workload: `python -m experiments.benchmark_others --which=torch|tunix`.

Needs `pip install torch transformers` or `pip install google-tunix`. Flags, shapes and numbers of
tokens are those of `experiments.benchmark`, with random weights and no stop token; the fastest of
three counts. torch: Hugging Face `generate`, and an update that repeats the prompt for every
response, at micro-batches of 8 rows. Tunix: its own sampler.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from absl import app, flags

from experiments.benchmark import CONFIG, QUICK, workload_of
from experiments.flags import parser
from offload_jax.benchmark import Workload

WHICH = flags.DEFINE_enum("which", "torch", ["torch", "tunix"], "Whose code is measured.")
ROWS = 8  # of a micro-batch of torch's update


def main(argv: list[str]) -> None:
    """Measures; a mistake, or a codebase that is not installed, is one sentence, status 2."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        _measure()
    except (ImportError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def _measure() -> None:
    """Prints one line per measurement."""
    workload = workload_of(CONFIG.value, QUICK.value)
    sampling = workload.sampling
    rng = np.random.default_rng(0)
    prompts = rng.integers(
        1, workload.device.vocabulary - 1, (workload.batch.prompts, sampling.prompt_tokens)
    ).repeat(sampling.group, 0)
    tokens = len(prompts) * sampling.response_tokens
    for name, call in {"torch": _torch, "tunix": _tunix}[WHICH.value](workload, prompts).items():
        seconds = min(_seconds(call) for _ in range(3))
        print(f"{WHICH.value} {name}: {seconds:.1f} s, {tokens / seconds:.0f} tokens/s", flush=True)


def _torch(workload: Workload, prompts: np.ndarray) -> dict[str, Callable]:
    """Hugging Face's sampler, and AdamW on sum of advantage * log-probability."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    device, sampling = workload.device, workload.sampling
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=device.vocabulary,
            hidden_size=device.width,
            intermediate_size=device.mlp,
            num_hidden_layers=device.layers,
            num_attention_heads=device.heads,
            num_key_value_heads=device.kv_heads,
            head_dim=device.head_size,
            tie_word_embeddings=device.tied_embeddings,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    prompts = torch.from_numpy(prompts)
    responses = torch.randint(1, device.vocabulary, (len(prompts), sampling.response_tokens))
    advantages = torch.randn(len(prompts))

    @torch.no_grad()
    def rollout() -> None:
        out = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=sampling.response_tokens,
            min_new_tokens=sampling.response_tokens,
            do_sample=True,
            top_k=0,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert out.shape[1] == sampling.prompt_tokens + sampling.response_tokens

    def update() -> None:
        optimizer.zero_grad()
        for low in range(0, len(prompts), ROWS):
            rows = slice(low, low + ROWS)
            ids = torch.cat([prompts[rows], responses[rows]], 1)
            hidden = model.model(input_ids=ids).last_hidden_state
            logits = model.lm_head(hidden[:, sampling.prompt_tokens - 1 : -1])
            logprobs = torch.log_softmax(logits, -1).gather(-1, responses[rows, :, None])
            (-(advantages[rows] * logprobs.sum((1, 2))).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return {"rollout": rollout, "update": update}


def _tunix(workload: Workload, prompts: np.ndarray) -> dict[str, Callable]:
    """Tunix's sampler, every prompt given once per response, as its trainer does."""
    from flax import nnx
    from tunix.generate.sampler import CacheConfig, Sampler
    from tunix.models.llama3.model import Llama3, ModelConfig

    device, sampling = workload.device, workload.sampling

    class Numbers:
        """A tokenizer of numbers: what a prompt costs should not depend on text."""

        encode = staticmethod(lambda text, **_: [int(word) for word in text.split()])
        decode = staticmethod(lambda ids, **_: " ".join(map(str, np.asarray(ids).tolist())))
        bos_id = staticmethod(lambda: 0)
        pad_id = staticmethod(lambda: 0)
        eos_id = staticmethod(lambda: device.vocabulary - 1)
        dedup_bos_ids = staticmethod(lambda ids: ids)

    model = Llama3(
        ModelConfig(
            num_layers=device.layers,
            vocab_size=device.vocabulary,
            embed_dim=device.width,
            hidden_dim=device.mlp,
            num_heads=device.heads,
            head_dim=device.head_size,
            num_kv_heads=device.kv_heads,
            rope_theta=int(device.rope_base),
            norm_eps=device.norm_epsilon,
            weight_tying=device.tied_embeddings,
        ),
        rngs=nnx.Rngs(0),
    )
    cache = CacheConfig(
        cache_size=sampling.prompt_tokens + sampling.response_tokens,
        num_layers=device.layers,
        num_kv_heads=device.kv_heads,
        head_dim=device.head_size,
    )
    sampler = Sampler(model, Numbers(), cache)
    texts = [" ".join(map(str, prompt)) for prompt in prompts]

    def rollout() -> None:
        out = sampler(
            texts,
            max_generation_steps=sampling.response_tokens,
            max_prompt_length=sampling.prompt_tokens,
            temperature=1.0,
            top_p=1.0,
            seed=0,
        )
        got = sum(len(tokens) for tokens in out.tokens)
        assert got >= 0.99 * len(texts) * sampling.response_tokens, f"{got} tokens only"

    return {"rollout": rollout}


def _seconds(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    app.run(main, flags_parser=parser(CONFIG))
