"""A cloud on loopback that misbehaves as told, to rehearse against.

`python -m experiments.fake_cloud --port=8008 --faults=500:0.1,stall:0.05 [--backend=URL]`

It solves Countdown questions, or passes questions on to another endpoint (`--backend`), such as
llama.cpp's server. Use it with `--config.cloud.base_url=http://127.0.0.1:8008/v1`.
"""

import asyncio
import os
import re
import sys
from collections.abc import Callable

from absl import app, flags

from offload_jax.cloud.fake import FAULTS, FakeCloud
from offload_jax.tasks.countdown import solver

PORT = flags.DEFINE_integer("port", 8008, "Where to listen, on 127.0.0.1.", 0, 65535)
FAULTS_FLAG = flags.DEFINE_list(
    "faults", [], f"Shares of requests that go wrong, fault:share,... of {', '.join(FAULTS)}."
)
SECONDS = flags.DEFINE_float("seconds", 0.0, "Time that an answer takes.", 0.0)
SEED = flags.DEFINE_integer("seed", 0, "Of the faults.")
MODEL = flags.DEFINE_string("model", "fake", "What /models lists.")
BACKEND = flags.DEFINE_string("backend", None, "An OpenAI-compatible base URL that answers.")
BACKEND_MODEL = flags.DEFINE_string("backend_model", "default", "The model to ask there.")


def main(argv: list[str]) -> None:
    """Serves until interrupted; a mistake is one sentence on stderr, status 2."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        faults = dict(_fault(text) for text in FAULTS_FLAG.value)
        answer = solve if BACKEND.value is None else passed_on(BACKEND.value, BACKEND_MODEL.value)
        fake = FakeCloud(answer, faults, SECONDS.value, [MODEL.value], SEED.value)
        asyncio.run(_serve(fake))
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        pass


def _fault(text: str) -> tuple[str, float]:
    name, _, share = text.partition(":")
    try:
        return name, float(share)
    except ValueError:
        raise ValueError(f"--faults: {text!r} is not fault:share.") from None


async def _serve(fake: FakeCloud) -> None:
    server = await fake.serve(PORT.value)
    port = server.sockets[0].getsockname()[1]
    print(f"A fake cloud listens on http://127.0.0.1:{port}/v1", flush=True)
    await server.serve_forever()


_COUNTDOWN = re.compile(r"Using the numbers ([\d, and]+), each .* that equals (\d+)\.")


def solve(question: str) -> str:
    """The answer to a Countdown question; anything else is echoed."""
    found = _COUNTDOWN.search(question)
    if found is None:
        return f"I was asked: {question}"
    numbers = [int(number) for number in re.findall(r"\d+", found.group(1))]
    return f"<answer> {solver.solve(tuple(numbers), int(found.group(2)))} </answer>"


def passed_on(base_url: str, model: str) -> Callable:
    """A function that asks another endpoint."""
    import openai

    client = openai.AsyncOpenAI(
        base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=0
    )

    async def ask(question: str) -> str:
        said = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], temperature=0.0
        )
        return said.choices[0].message.content or ""

    return ask


if __name__ == "__main__":
    app.run(main)
