"""From texts to a judgement: parse and verify every response, ask the cloud for those that call."""

from collections.abc import Sequence

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Int

from offload_jax.cloud.protocol import Cloud
from offload_jax.tasks.task import Kind, Parsed, Prompt, Task


@flax.struct.dataclass
class Judgement:
    """What the reward and the filter need to know of P prompts with G responses each (numpy, bool).

    `device_correct` and `called` exclude each other.
    """

    device_correct: Bool[Array, "P G"]  # the device's own answer is right
    called: Bool[Array, "P G"]  # the response asks for the cloud
    formatted: Bool[Array, "P G"]  # the response follows the template exactly
    cloud_correct: Bool[Array, " P"]  # the cloud was asked, and its answer was right
    cloud_tokens: Int[Array, " P"] | None = None  # of the cloud's answer, 0 where it was not asked


def judge(
    task: Task,
    cloud: Cloud,
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
    ask_all: bool = False,
) -> Judgement:
    """Judges the response texts [P, G] of prompts [P].

    The cloud is asked once for each prompt that has a call (with `ask_all` for every prompt), all
    in one batch: every calling response of a group shares that answer (GAPG, step 2).

    Raises:
        ValueError: when the texts are not P groups of one size, or the cloud does not give one
            response per prompt.
    """
    sizes = {len(group) for group in texts}
    if len(texts) != len(prompts) or len(sizes) > 1:
        raise ValueError(
            f"{len(prompts)} prompts need as many groups of one size, "
            f"got {len(texts)} groups of sizes {sorted(sizes)}"
        )
    shape = (len(prompts), sizes.pop() if sizes else 0)
    parsed = [[task.parse(text) for text in group] for group in texts]
    device_correct = [
        [_is_right(task, response, prompt) for response in group]
        for prompt, group in zip(prompts, parsed, strict=True)
    ]
    called = [[response.kind == Kind.CALL for response in group] for group in parsed]
    formatted = [[response.formatted for response in group] for group in parsed]
    called = np.array(called, bool).reshape(shape)
    cloud_correct, cloud_tokens = _ask(task, cloud, prompts, called.any(axis=1) | ask_all)
    return Judgement(
        device_correct=np.array(device_correct, bool).reshape(shape),
        called=called,
        formatted=np.array(formatted, bool).reshape(shape),
        cloud_correct=cloud_correct,
        cloud_tokens=cloud_tokens,
    )


def _is_right(task: Task, response: Parsed, prompt: Prompt) -> bool:
    return response.kind == Kind.ANSWER and task.verify(response.answer, prompt)


def _ask(
    task: Task, cloud: Cloud, prompts: Sequence[Prompt], wanted: Bool[np.ndarray, " P"]
) -> tuple[Bool[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """Whether the cloud is right, and the tokens of its answer (by the device's tokenizer).

    For wanted prompts; a prompt that occurs twice is one query.
    """
    asked = {prompt.id: prompt for prompt, want in zip(prompts, wanted, strict=True) if want}
    responses = cloud.answer(list(asked.values())) if asked else []
    if len(responses) != len(asked):
        raise ValueError(f"the cloud gave {len(responses)} responses for {len(asked)} prompts")
    # A lone surrogate, which a hostile answer may hold, cannot be encoded.
    texts = [response.encode("utf-8", "replace").decode("utf-8") for response in responses]
    encoded = task.vocabulary.tokenizer.encode_batch(texts, add_special_tokens=False)
    found = {
        prompt.id: (_is_right(task, task.parse(response), prompt), len(encoding.ids))
        for prompt, response, encoding in zip(asked.values(), responses, encoded, strict=True)
    }
    rows = [
        found[prompt.id] if want else (False, 0)
        for prompt, want in zip(prompts, wanted, strict=True)
    ]
    return np.array([right for right, _ in rows], bool), np.array([n for _, n in rows], np.int32)
