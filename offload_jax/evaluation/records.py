"""Per-prompt records: one row per test prompt and policy, with everything a metric could need.

Every table and plot of test results is computed from these rows alone, so that a result can be
questioned, or cut another way, long after the run.
"""

import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

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
        fallback: the device's answer when its call is refused; None where it did not call, where
            it had none, or where it was not asked for one.
        fallback_correct: that answer is right; None where it did not call or was not asked.
        cloud_correct: the cloud's answer is right; None where the cloud was not asked or failed.
        cloud_failure: why the cloud, though asked, has no answer; None where it has one.
        device_tokens: number of tokens the device generated.
        prompt_tokens: number of tokens of the prompt in the device's template.
        logprob: mean log-probability per response token, in nats, at temperature 1.
        p_call: P(call) at the decision point, sigma(log pi(call marker) - log pi(opening of an
            answer)); None where it was not computed.
        agreement: self-consistency, the share of k sampled responses that agree with the most
            frequent answer; None where none were sampled.
        cloud_tokens: number of tokens of the cloud's answer; None where it was not asked.
        device_seconds: time of the device's attempt.
        cloud_seconds: time of the cloud's answer; None where it was not asked.
        cost: dollars of the cloud's answer; None where it was not asked.
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
    fallback: str | None
    fallback_correct: bool | None
    cloud_correct: bool | None
    cloud_failure: str | None
    device_tokens: int
    prompt_tokens: int
    logprob: float
    p_call: float | None
    agreement: float | None
    cloud_tokens: int | None
    device_seconds: float
    cloud_seconds: float | None
    cost: float | None

    def __post_init__(self):
        object.__setattr__(self, "gold", _as_json(self.gold))
        for name, expected in _TYPES.items():
            if not _fits(getattr(self, name), expected):
                raise ValueError(
                    f"a record's {name} cannot be {getattr(self, name)!r:.80}: "
                    f"it must be {_in_words(expected)}"
                )
            # A whole number of seconds is a float too, and is read back from disk as one.
            if float in (expected, *typing.get_args(expected)) and getattr(self, name) is not None:
                object.__setattr__(self, name, float(getattr(self, name)))
        self._check_ranges()
        self._check_kind()

    def _check_ranges(self):
        for name in (*_COUNTS, "device_seconds", *_CLOUD_AMOUNTS):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"a record's {name} cannot be negative: {getattr(self, name)}")
        if len(self.response_tokens) != self.device_tokens:
            raise ValueError(
                f"a record of {len(self.response_tokens)} response_tokens cannot have "
                f"device_tokens={self.device_tokens}"
            )
        if self.logprob > _ROUNDING:
            raise ValueError(f"a record's logprob cannot be positive: {self.logprob}")
        for name in ("p_call", "agreement"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ValueError(
                    f"a record's {name} must lie between 0 and 1, not {getattr(self, name)}"
                )
        for name in _CLOUD_AMOUNTS:
            if self.cloud_correct is None and getattr(self, name) is not None:
                raise ValueError(
                    f"a record whose cloud was not asked cannot have {name}={getattr(self, name)}"
                )

    def _check_kind(self):
        if self.called != (self.kind == "call"):
            raise ValueError(f"a record of kind {self.kind!r} cannot have called={self.called}")
        if (self.answer is not None) != (self.kind == "answer"):
            raise ValueError(
                f"a record of kind {self.kind!r} cannot have answer={self.answer!r:.80}"
            )
        if self.device_correct and self.kind != "answer":
            raise ValueError(f"a record of kind {self.kind!r} cannot have device_correct=True")
        for name in ("fallback", "fallback_correct"):
            if getattr(self, name) is not None and not self.called:
                raise ValueError(
                    f"a record that did not call cannot have {name}={getattr(self, name)!r:.80}"
                )
        if self.cloud_failure is not None and self.cloud_correct is not None:
            raise ValueError("a record of a cloud that failed cannot have cloud_correct")
        if self.fallback_correct and self.fallback is None:
            raise ValueError("a record without a fallback cannot have fallback_correct=True")


_TYPES = typing.get_type_hints(Record)
_CLOUD_AMOUNTS = ("cloud_tokens", "cloud_seconds", "cost")
_FLOATS = ("logprob", "p_call", "agreement", "device_seconds", *_CLOUD_AMOUNTS)
_ROUNDING = 1e-3  # nats by which a float32 mean of log-probabilities may exceed 0
_COUNTS = ("prompt_id", "seed", "device_tokens", "prompt_tokens")


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
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if expected is float:
        return _is_finite(value)
    return isinstance(value, origin or expected)


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond the largest float
        return False


def _in_words(expected: Any) -> str:
    if expected is float:
        return "a finite number"
    if expected is int:
        return "a whole number of at most 63 bits"
    if typing.get_origin(expected) is types.UnionType:
        return " or ".join(map(_in_words, typing.get_args(expected))).replace("NoneType", "None")
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
        contents: a digest of each prompt's question and gold: ids of two draws of a task coincide.
        device_correct: the device's own answer is right.
        called: the response asks for the cloud.
        fallback_known: whether a call's answer, were it refused, is known.
        fallback_correct: that answer is right; False where it is not known.
        cloud_known: whether the cloud was asked.
        cloud_correct: the cloud's answer is right; False where it is not known.
        cloud_failed: the cloud was asked and has no answer.
        device_tokens: number of tokens generated.
        logprob: mean log-probability per response token, in nats.
        p_call: P(call) at the decision point; NaN where it was not computed.
        agreement: self-consistency; NaN where it was not sampled.
        cloud_tokens: tokens of the cloud's answer; NaN where it is not known.
        device_seconds: time of the device's attempt.
        cloud_seconds: time of the cloud's answer; NaN where it is not known.
        cost: dollars of the cloud's answer; NaN where it is not known.
    """

    policy: str
    prompt_ids: Int[np.ndarray, " n"]
    contents: Int[np.ndarray, " n"]
    device_correct: Bool[np.ndarray, " n"]
    called: Bool[np.ndarray, " n"]
    fallback_known: Bool[np.ndarray, " n"]
    fallback_correct: Bool[np.ndarray, " n"]
    cloud_known: Bool[np.ndarray, " n"]
    cloud_correct: Bool[np.ndarray, " n"]
    cloud_failed: Bool[np.ndarray, " n"]
    device_tokens: Int[np.ndarray, " n"]
    logprob: Float[np.ndarray, " n"]
    p_call: Float[np.ndarray, " n"]
    agreement: Float[np.ndarray, " n"]
    cloud_tokens: Float[np.ndarray, " n"]
    device_seconds: Float[np.ndarray, " n"]
    cloud_seconds: Float[np.ndarray, " n"]
    cost: Float[np.ndarray, " n"]


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
        contents=np.array([_digest(record) for record in records], np.int64),
        device_correct=np.array([record.device_correct for record in records], bool),
        called=np.array([record.called for record in records], bool),
        fallback_known=np.array([record.fallback_correct is not None for record in records], bool),
        fallback_correct=np.array([record.fallback_correct is True for record in records], bool),
        cloud_known=np.array([record.cloud_correct is not None for record in records], bool),
        cloud_correct=np.array([record.cloud_correct is True for record in records], bool),
        cloud_failed=np.array([record.cloud_failure is not None for record in records], bool),
        device_tokens=np.array([record.device_tokens for record in records], np.int64),
        # float64 turns None into NaN
        **{name: np.array([getattr(r, name) for r in records], np.float64) for name in _FLOATS},
    )


def _digest(record: Record) -> int:
    text = json.dumps([record.question, record.gold], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def without_calls(results: Columns) -> Columns:
    """The same device where it may not call: what it answers when its calls are refused.

    Raises ValueError where a call's fallback is not known.
    """
    unknown = results.prompt_ids[results.called & ~results.fallback_known]
    if unknown.size:
        raise ValueError(
            f"what {results.policy} answers when its call is refused is not known of "
            f"{unknown.size} prompts, such as {unknown[0]}"
        )
    return dataclasses.replace(
        results,
        device_correct=results.device_correct | results.fallback_correct,
        called=np.zeros_like(results.called),
    )


def share_cloud(first: Columns, second: Columns) -> tuple[Columns, Columns]:
    """Gives each policy the cloud answers that the other one's records hold.

    The cloud is deterministic per prompt, so an answer is the prompt's, whoever asked for it; its
    tokens, seconds and dollars go with it where a policy's own records do not tell them.
    Raises ValueError where the prompts differ, or where the two disagree about an answer.
    """
    check_same_cloud(first, second)
    return _filled(first, second), _filled(second, first)


def check_same_cloud(first: Columns, second: Columns) -> None:
    """Raises ValueError where the prompts differ, or what is known of the cloud's answers."""
    check_same_prompts(first, second)
    both = first.cloud_known & second.cloud_known
    conflict = first.prompt_ids[both & (first.cloud_correct != second.cloud_correct)]
    if conflict.size:
        raise ValueError(
            f"the records of {first.policy} and {second.policy} disagree on whether the cloud "
            f"solves prompt {conflict[0]}: they come from different clouds"
        )


def _filled(own: Columns, other: Columns) -> Columns:
    amounts = {}
    for name in _CLOUD_AMOUNTS:
        known, lent = getattr(own, name), getattr(other, name)
        amounts[name] = np.where(np.isnan(known), lent, known)
    return dataclasses.replace(
        own,
        cloud_known=own.cloud_known | other.cloud_known,
        cloud_failed=own.cloud_failed & ~other.cloud_known,
        cloud_correct=own.cloud_correct | other.cloud_correct,
        **amounts,
    )


def check_same_prompts(first: Any, second: Any) -> None:
    """Raises ValueError unless both (anything with `prompt_ids`) are about the same prompts.

    Of two with `contents`, the prompts of an id must also be the same in words.
    """
    differing = np.setxor1d(first.prompt_ids, second.prompt_ids)
    if differing.size:
        raise ValueError(
            f"two policies can only be compared on the same prompts, but {differing.size} "
            f"prompts, such as {differing[0]}, are in the records of one only"
        )
    if isinstance(first, Columns) and isinstance(second, Columns):
        other = first.prompt_ids[first.contents != second.contents]
        if other.size:
            raise ValueError(
                f"{other.size} prompts, such as {other[0]}, are others in the records of "
                f"{first.policy} than in those of {second.policy}: they come from different data"
            )
