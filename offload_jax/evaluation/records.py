"""Per-prompt records: one row per test prompt and policy, with everything a metric could need.

Every table and plot of test results is computed from these rows alone, so that a result can be
questioned, or cut another way, long after the run.
"""

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from offload_jax.evaluation.jsonl import read_lines, write_lines


@dataclass(frozen=True)
class Record:
    """What one policy did with one test prompt. Raises ValueError if it contradicts itself.

    Attributes:
        prompt_id: the prompt's id, unique over all splits of the task.
        policy: who answered, e.g. "start" or "gapg".
        seed: the run's seed.
        question: the prompt in words, as the cloud is asked.
        gold: what the verifier needs; kept in JSON's types (a tuple becomes a list).
        response_tokens: the device's sampled token ids, never re-tokenised.
        response: their text.
        finish: "stop" (the device ended its response) or "length" (it was cut off).
        kind: what the response is: "answer", "call" or "neither".
        answer: the device's answer; None unless kind is "answer".
        device_correct: the device's own answer is right.
        called: the response asks for the cloud.
        cloud_correct: the cloud's answer is right; None where the cloud was not asked.
        device_tokens: number of tokens the device generated.
        prompt_tokens: number of tokens of the prompt in the device's template.
    """

    prompt_id: int
    policy: str
    seed: int
    question: str
    gold: dict[str, Any]
    response_tokens: list[int]
    response: str
    finish: Literal["stop", "length"]
    kind: Literal["answer", "call", "neither"]
    answer: str | None
    device_correct: bool
    called: bool
    cloud_correct: bool | None
    device_tokens: int
    prompt_tokens: int

    def __post_init__(self):
        object.__setattr__(self, "gold", _as_json(self.gold))
        for name, expected in _TYPES.items():
            if not _fits(getattr(self, name), expected):
                raise ValueError(
                    f"a record's {name} cannot be {getattr(self, name)!r:.80}: "
                    f"it must be {_in_words(expected)}"
                )
        for name in ("prompt_id", "seed", "device_tokens", "prompt_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"a record's {name} cannot be negative: {getattr(self, name)}")
        if self.called != (self.kind == "call"):
            raise ValueError(f"a record of kind {self.kind!r} cannot have called={self.called}")
        if (self.answer is not None) != (self.kind == "answer"):
            raise ValueError(
                f"a record of kind {self.kind!r} cannot have answer={self.answer!r:.80}"
            )
        if self.device_correct and self.kind != "answer":
            raise ValueError(f"a record of kind {self.kind!r} cannot have device_correct=True")


_TYPES = typing.get_type_hints(Record)


def _as_json(gold: Mapping[str, Any]) -> Any:
    """Gold as it will be read back, so that a record equals its own copy from disk."""
    try:
        return json.loads(json.dumps(dict(gold), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"a record's gold cannot be written as JSON: {error}") from None


def _fits(value: Any, expected: Any) -> bool:
    origin, args = typing.get_origin(expected), typing.get_args(expected)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin is types.UnionType:
        return any(_fits(value, option) for option in args)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, args[0]) for item in value)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or expected)


def _in_words(expected: Any) -> str:
    if typing.get_origin(expected) is Literal:
        return " or ".join(repr(option) for option in typing.get_args(expected))
    return expected.__name__ if isinstance(expected, type) else str(expected)


def write_records(path: str | os.PathLike, records: Sequence[Record]) -> None:
    """Writes records as JSON lines; the file appears whole or not at all."""
    write_lines(path, (dataclasses.asdict(record) for record in records))


def read_records(path: str | os.PathLike) -> list[Record]:
    """Reads what `write_records` wrote.

    Raises ValueError naming the file and the line that is cut short or is no record.
    """
    records = []
    for number, row in enumerate(read_lines(path), 1):
        missing, alien = _TYPES.keys() - row.keys(), row.keys() - _TYPES.keys()
        try:
            if missing or alien:
                names = ", ".join(sorted(missing or alien))
                raise ValueError(f"its fields are wrong ({names})")
            records.append(Record(**row))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, is not a record: {error}") from None
    return records


@dataclass(frozen=True)
class Columns:
    """The records of one policy as numpy columns of length n, in ascending order of prompt id.

    Attributes:
        policy: the policy's name.
        prompt_ids: distinct prompt ids.
        device_correct: the device's own answer is right.
        called: the response asks for the cloud.
        cloud_known: whether the cloud was asked.
        cloud_correct: the cloud's answer is right; False where it is not known.
        device_tokens: number of tokens generated.
    """

    policy: str
    prompt_ids: Int[np.ndarray, " n"]
    device_correct: Bool[np.ndarray, " n"]
    called: Bool[np.ndarray, " n"]
    cloud_known: Bool[np.ndarray, " n"]
    cloud_correct: Bool[np.ndarray, " n"]
    device_tokens: Int[np.ndarray, " n"]


def columns(records: Sequence[Record]) -> Columns:
    """Turns the records of one policy into columns, whatever their order.

    Raises ValueError where there is no record, more than one policy or seed, or a prompt twice.
    """
    if not records:
        raise ValueError("there are no records to compute a metric from")
    owners = sorted({(record.policy, record.seed) for record in records})
    if len(owners) > 1:
        named = ", ".join(f"{policy} (seed {seed})" for policy, seed in owners)
        raise ValueError(f"records of one policy and seed are needed, these are mixed: {named}")
    records = sorted(records, key=lambda record: record.prompt_id)
    prompt_ids = np.array([record.prompt_id for record in records], np.int64)
    repeated = prompt_ids[1:][prompt_ids[1:] == prompt_ids[:-1]]
    if repeated.size:
        raise ValueError(f"the records of {owners[0][0]} hold prompt {repeated[0]} more than once")
    return Columns(
        policy=owners[0][0],
        prompt_ids=prompt_ids,
        device_correct=np.array([record.device_correct for record in records], bool),
        called=np.array([record.called for record in records], bool),
        cloud_known=np.array([record.cloud_correct is not None for record in records], bool),
        cloud_correct=np.array([record.cloud_correct is True for record in records], bool),
        device_tokens=np.array([record.device_tokens for record in records], np.int64),
    )


def share_cloud(first: Columns, second: Columns) -> tuple[Columns, Columns]:
    """Gives each policy the cloud answers that the other one's records hold.

    The cloud is deterministic per prompt, so an answer is the prompt's, whoever asked for it.
    Raises ValueError where the prompts differ, or where the two disagree about an answer.
    """
    check_same_prompts(first, second)
    both = first.cloud_known & second.cloud_known
    conflict = first.prompt_ids[both & (first.cloud_correct != second.cloud_correct)]
    if conflict.size:
        raise ValueError(
            f"the records of {first.policy} and {second.policy} disagree on whether the cloud "
            f"solves prompt {conflict[0]}: they come from different clouds"
        )
    merged = {
        "cloud_known": first.cloud_known | second.cloud_known,
        "cloud_correct": first.cloud_correct | second.cloud_correct,
    }
    return dataclasses.replace(first, **merged), dataclasses.replace(second, **merged)


def check_same_prompts(first: Any, second: Any) -> None:
    """Raises ValueError unless both (anything with `prompt_ids`) are about the same prompts."""
    differing = np.setxor1d(first.prompt_ids, second.prompt_ids)
    if differing.size:
        raise ValueError(
            f"two policies can only be compared on the same prompts, but {differing.size} "
            f"prompts, such as {differing[0]}, are in the records of one only"
        )
