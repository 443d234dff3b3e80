"""A cloud on loopback that misbehaves as told, to rehearse against.

`python -m experiments.fake_cloud --port=8008 --faults=500:0.1,stall:0.05 [--backend=URL]`

It solves Countdown questions, or passes requests on to another endpoint (`--backend`), such as
llama.cpp's server, whose answers, usage and errors it gives back. Use it with
`--config.cloud.base_url=http://127.0.0.1:8008/v1`.
"""

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from absl import app, flags

from offload_jax.cloud.fake import FAULTS, FakeCloud
from offload_jax.tasks.countdown import solver

PORT = flags.DEFINE_integer("port", 8008, "Where to listen, on 127.0.0.1.", 0, 65535)
FAULTS_FLAG = flags.DEFINE_list(
    "faults", [], f"Shares of requests that go wrong, fault:share,... of {', '.join(FAULTS)}."
)
SECONDS = flags.DEFINE_float("seconds", 0.0, "Time that an answer takes.", 0.0)
SEED = flags.DEFINE_integer("seed", 0, "Of the faults.")
MODEL = flags.DEFINE_string("model", "fake", "What /models lists; a backend is asked by that name.")
BACKEND = flags.DEFINE_string("backend", None, "An OpenAI-compatible base URL that answers.")


def main(argv: list[str]) -> None:
    """Serves until interrupted; a mistake is one sentence on stderr, status 2."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        faults = dict(_fault(text) for text in FAULTS_FLAG.value)
        reply = None if BACKEND.value is None else passed_on(BACKEND.value)
        fake = FakeCloud(solve, faults, SECONDS.value, [MODEL.value], SEED.value, reply=reply)
        asyncio.run(_serve(fake))
    except (ValueError, OSError, ImportError) as error:
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


def passed_on(base_url: str) -> Callable[[dict[str, Any]], Awaitable[tuple[int, dict[str, Any]]]]:
    """A function that passes a request's body on, and gives status and body of the response.

    Whatever goes wrong there is an error of a server here: the backend's own status, else 502.
    """
    import openai

    client = openai.AsyncOpenAI(
        base_url=base_url, api_key=os.environ.get("OPENAI_API_KEY", "none"), max_retries=0
    )

    async def reply(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        try:
            said = await client.post("/chat/completions", body=request, cast_to=object)
            said["choices"][0]["message"]["content"]
            return 200, said
        except openai.APIStatusError as error:
            return error.status_code, _error(error.message)
        except openai.APIConnectionError:
            return 502, _error("it does not answer")
        except Exception as error:  # the client may fail at garbage in many ways
            return 502, _error(f"its answer is none ({type(error).__name__})")

    return reply


def _error(said: str) -> dict[str, Any]:
    return {"error": {"message": f"the backend: {said}"}}


if __name__ == "__main__":
    app.run(main)
