"""From texts to a judgement: parse and verify every response, ask the cloud for those that call."""

from collections.abc import Sequence
from functools import partial

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Int

from offload_jax.cloud.protocol import Answer, Cloud
from offload_jax.processes import spread
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
    cloud_tokens: Int[Array, " P"] | None = None  # of the cloud's answer, 0 where there is none
    # Who was asked: the cloud's answers, None where it was not; on the host only.
    answers: tuple[Answer | None, ...] = flax.struct.field(pytree_node=False, default=())

    def for_device(self) -> "Judgement":
        """What the jitted part of a step reads."""
        return self.replace(answers=())


def judge(
    task: Task,
    cloud: Cloud,
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
    ask_all: bool = False,
) -> Judgement:
    """Judges the response texts [P, G] of prompts [P].

    The cloud is asked once for each prompt that has a call (with `ask_all` for every prompt), all
    in one batch: every calling response of a group shares that answer (GAPG, step 2). Where the
    cloud fails it counts as wrong: calls earn nothing, and the prompt is not one of D2.

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
    pairs = [(text, p) for p, group in zip(prompts, texts, strict=True) for text in group]
    verdicts = np.array(spread(partial(_verdicts, task), pairs), bool).reshape(*shape, 3)
    device_correct, called, formatted = (verdicts[..., i] for i in range(3))
    cloud_correct, cloud_tokens, answers = _ask(task, cloud, prompts, called.any(axis=1) | ask_all)
    return Judgement(
        device_correct=device_correct,
        called=called,
        formatted=formatted,
        cloud_correct=cloud_correct,
        cloud_tokens=cloud_tokens,
        answers=answers,
    )


def _verdicts(task: Task, pairs: Sequence[tuple[str, Prompt]]) -> list[tuple[bool, bool, bool]]:
    """Whether responses are right, call, and follow the template."""
    parsed = [task.parse(text) for text, _ in pairs]
    right = _are_right(task, parsed, [prompt for _, prompt in pairs])
    return [
        (correct, response.kind == Kind.CALL, bool(response.formatted))
        for correct, response in zip(right, parsed, strict=True)
    ]


def _are_right(
    task: Task, responses: Sequence[Parsed], prompts: Sequence[Prompt]
) -> Sequence[bool]:
    """Whether each response is a right answer to its prompt.

    A task whose answers are slow to verify has `verify_all`, which is given all of them at once.
    """
    answers = [
        (response.answer, prompt)
        for response, prompt in zip(responses, prompts, strict=True)
        if response.kind == Kind.ANSWER
    ]
    if hasattr(task, "verify_all"):
        verdicts = iter(task.verify_all(answers))
    else:
        verdicts = (task.verify(*pair) for pair in answers)
    return [response.kind == Kind.ANSWER and next(verdicts) for response in responses]


def _ask(
    task: Task, cloud: Cloud, prompts: Sequence[Prompt], wanted: Bool[np.ndarray, " P"]
) -> tuple[Bool[np.ndarray, " P"], Int[np.ndarray, " P"], tuple[Answer | None, ...]]:
    """Whether the cloud is right, the tokens of its answers, and the answers.

    For wanted prompts; a prompt that occurs twice is one query. Where the cloud does not tell the
    tokens, they are those of the device's tokenizer.
    """
    asked = {prompt.id: prompt for prompt, want in zip(prompts, wanted, strict=True) if want}
    answers = cloud.answer(list(asked.values())) if asked else []
    if len(answers) != len(asked):
        raise ValueError(f"the cloud gave {len(answers)} responses for {len(asked)} prompts")
    said = list(zip(answers, asked.values(), strict=True))
    verdicts = spread(partial(_cloud_verdicts, task), said)
    found = {
        id: (*verdict, answer) for id, verdict, answer in zip(asked, verdicts, answers, strict=True)
    }
    rows = [
        found[prompt.id] if want else (False, 0, None)
        for prompt, want in zip(prompts, wanted, strict=True)
    ]
    right, tokens, answers = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(right, bool), np.array(tokens, np.int32), tuple(answers)


def _cloud_verdicts(task: Task, pairs: Sequence[tuple[Answer, Prompt]]) -> list[tuple[bool, int]]:
    """Whether the cloud's answers are right, and their tokens."""
    parsed = [task.parse(answer.text or "") for answer, _ in pairs]
    right = _are_right(task, parsed, [prompt for _, prompt in pairs])
    return [
        (correct, _tokens(task, answer)) for correct, (answer, _) in zip(right, pairs, strict=True)
    ]


def _tokens(task: Task, answer: Answer) -> int:
    if answer.tokens is not None:
        return answer.tokens
    # A lone surrogate, which a hostile answer may hold, cannot be encoded.
    text = (answer.text or "").encode("utf-8", "replace").decode("utf-8")
    return len(task.vocabulary.encode(text))
