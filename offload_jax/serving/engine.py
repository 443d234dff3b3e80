"""The device LLM at the service of many clients: continuous batching in one thread of its own.

The thread owns the slots and everything on the device. Clients live in asyncio: they put tickets
into a bounded queue under a lock, and hear from the thread by `call_soon_threadsafe`.
"""

import collections
import dataclasses
import itertools
import math
import threading
import time
from functools import partial
from typing import Any

import jax
import numpy as np

from offload_jax.device import model
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import Params
from offload_jax.evaluation.decision import decision_point, opening_tokens, preference
from offload_jax.evaluation.fallback import fallback_tokens
from offload_jax.sampling.sampler import Sampler
from offload_jax.sampling.text import decode_response
from offload_jax.serving.attempt import Attempt, Question, QueueFullError
from offload_jax.serving.pieces import Pieces
from offload_jax.serving.slots import Entrant, admit, advance, empty_slots, opening_logprobs
from offload_jax.serving.ticket import SlotTicket
from offload_jax.settings import require
from offload_jax.sharding import prompt_shards
from offload_jax.tasks.task import Kind, Parsed, Prompt

_SMALLEST = 16  # tokens; narrower prompts are padded to it


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How many clients are served at once."""

    slots: int = 8  # responses under way
    queue: int = 64  # questions that wait; one more is refused
    chunk: int = 8  # tokens between two looks at who has come, ended or left

    def __post_init__(self):
        for name in ("slots", "queue", "chunk"):
            require(getattr(self, name) >= 1, f"{name} of the engine must be at least 1.")


class EngineStoppedError(Exception):
    """The engine was closed, or failed, as its cause says: nothing it had taken on is answered."""


class SlotEngine:
    """An `Engine` on slots that are filled again as soon as their responses end."""

    def __init__(self, params: Params, sampler: Sampler, config: EngineConfig | None = None):
        """Nothing is computed before `start`.

        Args:
            params: the policy's weights, on the sampler's mesh.
            sampler: task, shape of the device LLM and the most tokens of prompts and responses; its
                group and temperature are not used.
            config: slots, queue, chunk.
        """
        self.config = config or EngineConfig()
        self._sampler, self._params = sampler, params
        changed = {"compute_dtype": sampler.sampling.compute_dtype or sampler.device.compute_dtype}
        self._device = dataclasses.replace(sampler.device, **changed)
        self._openings = opening_tokens(sampler.task)
        self._opened = sampler.vocabulary.encode(sampler.task.openings[1])
        self._fixed = {"config": self._device, "stops": sampler.vocabulary.stops}
        # A fallback's prompt is the longest: the question, the whole work and an answer's opening.
        sampling = sampler.sampling
        longest = sampling.prompt_tokens + sampling.response_tokens + len(self._opened)
        self._widths = _widths(longest)
        self._rows = _rows(self.config.slots, prompt_shards(sampler.mesh))
        # The chunk in which a response ends is whole.
        self._positions = _rounded(longest + fallback_tokens(sampling) + self.config.chunk)
        self._tickets: list[SlotTicket | None] = [None] * self.config.slots  # the thread's own
        self._waiting: collections.deque[SlotTicket] = collections.deque()
        self._changed = threading.Condition()  # guards the queue, `_closing` and `_error`
        self._closing = False
        self._error: EngineStoppedError | None = None
        self._seconds = 1.0  # of an attempt, a running mean
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # What clients use, in the event loop's thread.

    def start(self) -> None:
        """Compiles all programs and begins to serve."""
        self.warm_up()
        self._thread.start()

    def close(self) -> None:
        """Ends at the next step; whoever still waits gets an `EngineStoppedError`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is None:  # never started
            self._end(EngineStoppedError("The engine was closed."))
        else:
            self._thread.join()

    def __enter__(self) -> "SlotEngine":
        self.start()
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def healthy(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive() and self._error is None

    @property
    def waiting(self) -> int:
        """Questions in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Slots in use."""
        return sum(ticket is not None for ticket in self._tickets)

    def submit(self, question: Question) -> SlotTicket:
        """Puts a question into the queue, from the event loop's thread.

        Raises:
            QueueFullError: there is no room.
            ValueError: the prompt has more tokens than the engine takes, or the question names an
                impossible temperature, number of tokens or id.
            EngineStoppedError: it was closed, or failed.
        """
        most, T = self._sampler.sampling.prompt_tokens, self._sampler.sampling.response_tokens
        limit = T if question.max_tokens is None else min(question.max_tokens, T)
        require(limit >= 1, f"max_tokens is {question.max_tokens}; at least 1 is needed.")
        require(
            math.isfinite(question.temperature) and question.temperature >= 0,
            f"temperature is {question.temperature}; it must be a number from 0 up.",
        )
        require(
            0 <= question.prompt.id < 2**31,
            f"The prompt's id is {question.prompt.id}; ids have 31 bits.",
        )
        prompt = self._encode(question)
        require(
            1 <= len(prompt) <= most,
            f"The prompt has {len(prompt)} tokens; this device LLM takes 1 to {most}.",
        )
        ticket = self._ticket(question, prompt, limit)
        with self._changed:
            self._check()
            if len(self._waiting) >= self.config.queue:
                raise QueueFullError(self._retry_after())
            self._waiting.append(ticket)
            self._changed.notify()
        return ticket

    async def fallback(self, attempt: Attempt) -> Attempt:
        """The same work with an answer in place of its call, as in `evaluation.fallback`.

        The text and tokens are those of the answer alone, its opening included. It stands in the
        queue before all questions and is never refused: its own was accepted long ago.

        Args:
            attempt: a first attempt, with a call or not.

        Raises:
            EngineStoppedError: the engine was closed, or failed.
        """
        task, tokens = self._sampler.task, list(attempt.tokens)
        work = tokens[: decision_point(task.vocabulary, tokens, task.parse(attempt.text).at)]
        question = dataclasses.replace(attempt.question, temperature=0.0)
        prompt = [*self._encode(question), *work, *self._opened]
        require(
            len(prompt) <= self._widths[-1],
            f"The work has {len(work)} tokens: more than an attempt of this engine.",
        )
        limit = fallback_tokens(self._sampler.sampling)
        ticket = self._ticket(question, prompt, limit, revised=attempt)
        with self._changed:
            self._check()
            before = sum(other.revised is not None for other in self._waiting)
            self._waiting.insert(before, ticket)
            self._changed.notify()
        try:
            return await ticket.attempt()
        finally:
            ticket.cancel()  # nobody waits any more; without effect if it has ended

    def _ticket(self, *what: Any, revised: Attempt | None = None) -> SlotTicket:
        pieces = Pieces(self._sampler.tokenizer)
        return SlotTicket(*what, pieces=pieces, leave=self._leave, revised=revised)

    def _encode(self, question: Question) -> list[int]:
        return self._sampler.vocabulary.encode(self._sampler.task.device_text(question.prompt))

    def _check(self) -> None:
        if self._closing or self._error is not None:
            raise self._error or EngineStoppedError("The engine was closed.")

    def _retry_after(self) -> int:
        """Seconds in which the queue, as it stands, is worked off."""
        return max(1, math.ceil(self._seconds * len(self._waiting) / self.config.slots))

    def _leave(self, ticket: SlotTicket) -> None:
        """Takes a cancelled ticket out of the queue; in a slot the thread finds it."""
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    # What the thread does, and `warm_up` before there is one.

    def warm_up(self) -> None:
        """Compiles every program that serving needs, and empties the slots."""
        sampling, nothing = self._sampler.sampling, Question(Prompt(0, "", {}))
        with jax.set_mesh(self._sampler.mesh):
            self._weights = _decode_weights(self._params, self._device, self._positions)
            self._slots = empty_slots(
                self._device, self.config.slots, self._positions, sampling.response_tokens
            )
            for width in self._widths:
                self._admit(0, [0] * width, nothing, 1)
            for rows in self._rows:
                self._advance(rows)
            self._score(0, 1, 0)

    def _run(self) -> None:
        try:
            with jax.set_mesh(self._sampler.mesh):
                while self._fill():
                    self._step()
        except BaseException as failure:  # whatever it is, somebody waits
            error = EngineStoppedError(f"The engine failed: {failure}")
            error.__cause__ = failure
            self._end(error)
            raise
        self._end(EngineStoppedError("The engine was closed."))

    def _end(self, error: EngineStoppedError) -> None:
        """Tells everybody who waits."""
        with self._changed:
            self._error = error
            tickets = [*filter(None, self._tickets), *self._waiting]
            self._waiting.clear()
        self._tickets = [None] * self.config.slots
        for ticket in tickets:
            ticket.fail(error)

    def _fill(self) -> bool:
        """Waits until there is something to do, and fills the free slots; False: close."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._waiting or self.running)
            if self._closing:
                return False
            entering = []
            for slot, ticket in enumerate(self._tickets):
                if ticket is not None and ticket.cancelled:
                    self._tickets[slot] = ticket = None
                if ticket is None and self._waiting:
                    self._tickets[slot] = self._waiting.popleft()
                    entering.append((slot, self._tickets[slot]))
        for slot, ticket in entering:
            ticket.began = time.monotonic()
            self._admit(slot, ticket.prompt, ticket.question, ticket.limit)
        return True

    def _step(self) -> None:
        """Some tokens for every slot; the pieces and attempts that come of them."""
        used = max((i for i, ticket in enumerate(self._tickets) if ticket is not None), default=0)
        self._advance(next(rows for rows in self._rows if rows > used))
        slots = self._slots
        tokens, lengths, running, stopped = jax.device_get(
            (slots.tokens, slots.lengths, slots.running, slots.stopped)
        )
        for slot, ticket in enumerate(self._tickets):
            if ticket is None or ticket.cancelled:
                continue
            response = tokens[slot, : lengths[slot]].tolist()
            if ticket.revised is None:
                ticket.push(response[: len(response) - bool(stopped[slot])])
            if not running[slot]:
                attempt = self._attempt(slot, ticket, response, bool(stopped[slot]))
                self._seconds += 0.1 * (attempt.seconds - self._seconds)
                self._tickets[slot] = None
                ticket.finish(attempt)

    def _attempt(
        self, slot: int, ticket: SlotTicket, response: list[int], stopped: bool
    ) -> Attempt:
        """What came of a question, read from its ended response."""
        task = self._sampler.task
        text = decode_response(self._sampler.tokenizer, response[: len(response) - stopped])
        if ticket.revised is None:
            parsed = task.parse(text)
            probability = self._call_probability(slot, ticket.prompt, response, parsed)
            prompt_tokens = len(ticket.prompt)
        else:
            text, response = task.openings[1] + text, self._opened + response
            parsed = task.parse(text)
            probability = ticket.revised.call_probability
            prompt_tokens = ticket.revised.prompt_tokens
        return Attempt(
            question=ticket.question if ticket.revised is None else ticket.revised.question,
            text=text,
            tokens=tuple(response),
            prompt_tokens=prompt_tokens,
            called=parsed.kind == Kind.CALL,
            answer=parsed.answer,
            call_probability=probability,
            ended=stopped,
            waited=ticket.began - ticket.came,
            seconds=time.monotonic() - ticket.began,
        )

    def _call_probability(
        self, slot: int, prompt: list[int], response: list[int], parsed: Parsed
    ) -> float:
        """As `evaluation.decision` has it, from the slot's own keys and values."""
        end = decision_point(self._sampler.vocabulary, response, parsed.at)
        before = prompt + response[:end]
        return float(preference(self._score(slot, len(before) - 1, before[-1])))

    def _admit(self, slot: int, prompt: list[int], question: Question, limit: int) -> None:
        width = next(width for width in self._widths if width >= len(prompt))
        tokens = np.full(width, self._sampler.vocabulary.pad, np.int32)
        tokens[: len(prompt)] = prompt
        entrant = Entrant(
            slot=np.int32(slot),
            tokens=tokens,
            length=np.int32(len(prompt)),
            seed=np.uint32(question.seed % 2**32),
            id=np.int32(question.prompt.id),
            temperature=np.float32(question.temperature),
            limit=np.int32(limit),
        )
        self._slots = admit(self._params, self._weights, self._slots, entrant, **self._fixed)

    def _advance(self, rows: int) -> None:
        wanted = np.array([ticket is not None for ticket in self._tickets])
        shape = {"steps": self.config.chunk, "rows": rows}
        self._slots = advance(self._weights, self._slots, wanted, **shape, **self._fixed)

    def _score(self, slot: int, length: int, token: int) -> Any:
        where = np.int32(slot), np.int32(length), np.int32(token)
        return jax.device_get(
            opening_logprobs(
                self._weights, self._slots, *where, *self._openings, config=self._device
            )
        )


@partial(jax.jit, static_argnums=(1, 2))
def _decode_weights(params: Params, config: DeviceConfig, positions: int) -> Params:
    return model.decode_weights(params, config, positions)


def _widths(longest: int) -> list[int]:
    """To which prompts are padded: powers of two, and the longest."""
    powers = (_SMALLEST << i for i in itertools.count())
    return [*itertools.takewhile(lambda width: width < longest, powers), _rounded(longest)]


def _rows(slots: int, shards: int) -> list[int]:
    """How many slots may be decoded: a quarter of them, and so on, while few are in use.

    The first slots all belong to one device: if there are several, all slots take part.
    """
    rows = [slots]
    while shards == 1 and rows[-1] >= 4:
        rows.append(rows[-1] // 4)
    return rows[::-1]


def _rounded(tokens: int) -> int:
    """XLA:CPU reads odd lengths at half the speed."""
    return -(-tokens // 16) * 16
