"""A load on a served Countdown pair: `python -m experiments.serve_load --seconds=300 --clients=64`.

Every client asks one question after another, all different; some leave before their answer. Reports
time to the answer, tokens a second, what became of every request, the cloud's spend and, with
`--pid`, the server's memory. Status 1 if an answer was lost, doubled or given to another question.
"""

import asyncio
import dataclasses
import json
import random
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from offload_jax.settings import require
from offload_jax.tasks.countdown import solver
from offload_jax.tasks.countdown.task import make_prompt
from offload_jax.tasks.countdown.verifier import verify
from offload_jax.tasks.task import Prompt

URL = flags.DEFINE_string("url", "http://127.0.0.1:8000", "Where the pair is served.")
CLIENTS = flags.DEFINE_integer("clients", 64, "That ask at once.", 1)
SECONDS = flags.DEFINE_float("seconds", 300.0, "For which new questions are asked.", 0.1)
LEAVE = flags.DEFINE_float("leave", 0.05, "Share of requests whose client leaves early.", 0.0, 1.0)
DEVICE_ONLY = flags.DEFINE_float("device_only", 0.0, "Share that stays on the device.", 0.0, 1.0)
AGAIN = flags.DEFINE_integer("again", 50, "Device answers that are asked for again afterwards.", 0)
PID = flags.DEFINE_integer("pid", None, "The server's process, whose memory is watched.")
SEED = flags.DEFINE_integer("seed", 0, "Of the questions and of who leaves.")


@dataclasses.dataclass
class Load:
    """What became of the requests.

    Attributes:
        outcomes: how many ended how.
        seconds: to each answer.
        receipts: of the answers.
        ids: of the answers.
        kept: device answers with their questions, to ask for again.
        foreign: answers of the cloud that do not solve their question.
        memory: the server's MiB, second by second.
    """

    outcomes: Counter = dataclasses.field(default_factory=Counter)
    seconds: list[float] = dataclasses.field(default_factory=list)
    receipts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    ids: list[str] = dataclasses.field(default_factory=list)
    kept: list[tuple[Prompt, str]] = dataclasses.field(default_factory=list)
    foreign: int = 0
    memory: list[float] = dataclasses.field(default_factory=list)


def questions(rng: random.Random) -> Iterator[Prompt]:
    """Different problems that have a solution."""
    seen = set()
    while True:
        numbers = tuple(sorted(rng.randint(1, 25) for _ in range(rng.choice((3, 4)))))
        targets = [t for t in solver.reachable(numbers) if 10 <= t <= 99 and t not in numbers]
        target = rng.choice(targets) if targets else None
        if target is not None and (numbers, target) not in seen:
            seen.add((numbers, target))
            yield make_prompt(len(seen), numbers, target)


async def client(api: Any, model: str, asked: Iterator[Prompt], load: Load, until: float) -> None:
    """One client's questions, one after another."""
    rng = random.Random(next(asked).question)
    while time.monotonic() < until:
        prompt = next(asked)
        load.outcomes["asked"] += 1
        patience = rng.uniform(0.0, 1.0) if rng.random() < LEAVE.value else None
        outcome, wait = await request(api, model, prompt, load, patience, rng)
        load.outcomes[outcome] += 1
        await asyncio.sleep(wait)


async def request(
    api: Any,
    model: str,
    prompt: Prompt,
    load: Load,
    patience: float | None,
    rng: random.Random,
) -> tuple[str, float]:
    """How a request ended, and the seconds to wait before the next."""
    import openai

    began = time.monotonic()
    extra = {"device_only": rng.random() < DEVICE_ONLY.value}
    try:
        async with asyncio.timeout(patience):
            said = await _ask(api, model, prompt, extra)
    except TimeoutError:
        return "left", 0.0
    except openai.RateLimitError as error:
        return "refused", rng.uniform(0.0, float(error.response.headers["Retry-After"]))
    except openai.APIStatusError as error:
        return f"status {error.status_code}", 0.0
    except openai.APIError as error:
        return type(error).__name__, 0.0
    load.seconds.append(time.monotonic() - began)
    load.ids.append(said.id)
    receipt, text = said.model_extra["offload"], said.choices[0].message.content
    load.receipts.append(receipt)
    if receipt["served_by"] == "cloud":
        load.foreign += not verify(text, prompt.gold["numbers"], prompt.gold["target"])
    elif not receipt["called"]:
        load.kept.append((prompt, text))
    return "answered", 0.0


async def _ask(api: Any, model: str, prompt: Prompt, extra: dict[str, Any]) -> Any:
    message = {"role": "user", "content": prompt.question}
    return await api.chat.completions.create(model=model, messages=[message], extra_body=extra)


async def watch(load: Load) -> None:
    """The server's memory, once a second, as long as it lives."""
    while PID.value is not None and _status(PID.value).is_file():
        status = _status(PID.value).read_text()
        load.memory.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
        await asyncio.sleep(1.0)


def _status(pid: int) -> Path:
    return Path(f"/proc/{pid}/status")


async def run() -> bool:
    """Asks, reports, and says whether everything was in order."""
    import openai

    api = openai.AsyncOpenAI(
        base_url=f"{URL.value}/v1", api_key="none", max_retries=0, timeout=300.0
    )
    try:
        models = (await api.models.list()).data
    except openai.APIError as error:
        raise ValueError(f"--url={URL.value}: {error}") from None
    require(len(models) > 0, f"--url={URL.value} serves no model.")
    require(PID.value is None or _status(PID.value).is_file(), f"--pid={PID.value} is no process.")
    model = models[0].id
    load, asked = Load(), questions(random.Random(SEED.value))
    watching = asyncio.create_task(watch(load))
    began = time.monotonic()
    until = began + SECONDS.value
    await asyncio.gather(*(client(api, model, asked, load, until) for _ in range(CLIENTS.value)))
    took = time.monotonic() - began
    watching.cancel()
    changed = 0
    for prompt, text in random.Random(0).sample(load.kept, min(AGAIN.value, len(load.kept))):
        said = await _ask(api, model, prompt, {"device_only": True})
        changed += said.choices[0].message.content != text
    found = report(load, took, changed)
    print(json.dumps(found, indent=2))
    return not any(found[name] for name in ("lost", "doubled", "foreign", "changed"))


def report(load: Load, took: float, changed: int) -> dict[str, Any]:
    """The numbers."""
    ended = sum(count for name, count in load.outcomes.items() if name != "asked")
    tokens = sum(receipt["device_completion_tokens"] for receipt in load.receipts)
    with urllib.request.urlopen(f"{URL.value}/account") as response:
        account = json.load(response)
    quantiles = np.quantile(load.seconds, (0.5, 0.95, 0.99)) if load.seconds else [np.nan] * 3
    ends = {"first": load.memory[:1], "middle": load.memory[len(load.memory) // 2 :][:1],
            "last": load.memory[-1:], "most": sorted(load.memory)[-1:]}  # fmt: skip
    return {
        "seconds": round(took, 1),
        "requests": dict(load.outcomes),
        "served_by": dict(Counter(receipt["served_by"] for receipt in load.receipts)),
        "degraded": dict(Counter(r["reason"] for r in load.receipts if r["degraded"])),
        "answers_per_second": round(len(load.seconds) / took, 2),
        "device_tokens_per_second": round(tokens / took, 1),
        "seconds_to_answer": dict(
            zip(("p50", "p95", "p99"), (round(float(q), 3) for q in quantiles), strict=True)
        ),
        "lost": load.outcomes["asked"] - ended,
        "doubled": len(load.ids) - len(set(load.ids)),
        "foreign": load.foreign,
        "changed": changed,
        "memory_mib": {name: round(value[0], 1) for name, value in ends.items() if value},
        "ledger": account["ledger"],
    }


def main(argv: list[str]) -> None:
    """Loads the server; a mistake is one sentence on stderr, status 2."""
    logging.set_verbosity(logging.ERROR)
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument {argv[1]!r}")
        in_order = asyncio.run(run())
    except (ImportError, OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if in_order else 1)


if __name__ == "__main__":
    app.run(main)
