"""A scripted device LLM and a scripted cloud, and the service on a real port."""

import asyncio
import dataclasses
import socket
import threading
from contextlib import contextmanager

import jax
import uvicorn

from offload_jax.cloud.protocol import Answer
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import init_params
from offload_jax.learning.update import TrainState
from offload_jax.serving.app import Limits, Service, make_app
from offload_jax.serving.attempt import Attempt, QueueFullError
from offload_jax.serving.pair import Gate, Pair
from offload_jax.settings import parse
from offload_jax.tasks import make_task, parsing
from offload_jax.tasks.countdown.tokenizer import make_vocabulary
from offload_jax.tasks.task import Prompt
from offload_jax.training.checkpoints import Checkpoints

CALL = f"<think> 3 + 7 = 10 </think> {parsing.CALL_MARKER}"
ANSWER = "<think> 25 + 21 = 46 </think> <answer> 25 + 3 * 7 </answer>"


def attempted(question, text, p=None, waited=0.25, seconds=0.5):
    """The attempt that is a text; a token per word."""
    parsed = parsing.parse(text)
    return Attempt(
        question=question,
        text=text,
        tokens=tuple(range(len(text.split()))),
        prompt_tokens=7,
        called=parsed.kind == 2,
        answer=parsed.answer,
        call_probability=p,
        ended=True,
        waited=waited,
        seconds=seconds,
    )


class FakeTicket:
    def __init__(self, engine, question, text):
        self.engine, self.question, self.text = engine, question, text

    async def __aiter__(self):
        for word in self.text.split():
            yield f"{word} "

    async def attempt(self):
        if self.engine.error is not None:
            raise self.engine.error
        if self.engine.hold:
            self.engine.begun.set()
            await asyncio.Event().wait()
        await asyncio.sleep(self.engine.seconds)
        return attempted(self.question, self.text, self.engine.p)

    def cancel(self):
        self.engine.cancelled.set()


@dataclasses.dataclass
class FakeEngine:
    """Says `text` to every question, and `second` when its call is refused."""

    text: str = ANSWER
    second: str = "<answer> 3 + 7 </answer>"
    p: float | None = 0.25
    seconds: float = 0.0
    hold: bool = False  # no attempt ends
    full: bool = False
    error: Exception | None = None
    longest: int = 10_000  # characters
    healthy: bool = True
    questions: list = dataclasses.field(default_factory=list)
    begun: threading.Event = dataclasses.field(default_factory=threading.Event)
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)

    def submit(self, question):
        if self.full:
            raise QueueFullError(3)
        if len(question.prompt.question) > self.longest:
            raise ValueError("A prompt has 99 tokens; config.sampling.prompt_tokens allows 12.")
        self.questions.append(question)
        return FakeTicket(self, question, self.text)

    async def fallback(self, attempt):
        return attempted(attempt.question, self.second, attempt.call_probability)


@dataclasses.dataclass
class FakeCloud:
    """Gives one answer to all questions, or raises an error."""

    said: Answer | Exception = dataclasses.field(
        default_factory=lambda: Answer("So: <answer> 46 </answer>", None, 11, 5, 0.002, 0.1)
    )
    asked: list = dataclasses.field(default_factory=list)

    def answer(self, prompts):
        self.asked += [prompt.question for prompt in prompts]
        if isinstance(self.said, Exception):
            raise self.said
        return [self.said for _ in prompts]

    def close(self):
        pass


def plain(question):
    return Prompt(1, question, {})


@contextmanager
def serving(engine, cloud, threshold=None, limits=None, read=None, patience=30.0, spent=None):
    """The service on loopback, in a thread of its own; gives it and its address."""
    gate = Gate(cloud, 4, patience)
    service = Service(
        "pair", engine, Pair(engine, gate, parsing.parse, threshold), read or plain,
        spent or (lambda: None), limits or Limits(keep_alive=0.02),
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(make_app(service), http="h11", ws="none", lifespan="off",
                            log_level="critical")  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield service, f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
        gate.close()
        assert not thread.is_alive()


def countdown():
    return make_task("countdown", "unused")


def save_policy(folder):
    """A checkpoint of random weights."""
    device = parse(
        DeviceConfig,
        {"vocabulary": 160, "width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_size": 8,
         "mlp": 16},
    )  # fmt: skip
    params = init_params(device, jax.random.key(0))
    state = TrainState(params=params, optimizer=None, step=0)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, device, make_vocabulary())
