"""Asks a pair one question: `python -m experiments.ask "Make 46 from 3, 7 and 25."`.

Shows the device's work as it comes, the hand-over when it happens, the answer, and its receipt.
The pair is the one served on --url, or is made from --checkpoint for this one question.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich.console
import rich.table
from absl import app, flags, logging
from ml_collections import config_flags
from rich.text import Text

from experiments.flags import parser, with_config

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "With --checkpoint: how; configs/serve.py if not given."
)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "A device LLM; no server is needed then.")
WORKDIR = flags.DEFINE_string("workdir", "runs/serve", "With --checkpoint: where the ledger lies.")
URL = flags.DEFINE_string("url", "http://127.0.0.1:8000/v1", "Where the pair is served.")
MODEL = flags.DEFINE_string("model", None, "Its name; the first that is served if not given.")
DEVICE_ONLY = flags.DEFINE_bool("device_only", False, "Nothing leaves the machine.")
SEED = flags.DEFINE_integer("seed", 0, "Of the sampling, where --temperature is not 0.", 0)
_PATIENCE = 600.0  # seconds from one piece of the answer to the next
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: greedy.", 0.0, 2.0)


def main(argv: list[str]) -> None:
    """Asks; what goes wrong is one sentence on stderr."""
    try:
        import openai
    except ImportError:
        _fail("it needs the package openai: pip install 'offload_jax[serve]'.")
    logging.set_verbosity(logging.ERROR)  # the client's HTTP library tells every request
    if len(argv) != 2:
        _fail('give one question, in quotes: python -m experiments.ask "Make 46 from 3, 7 and 25."')
    try:
        with _served() as url:
            client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=_PATIENCE)
            show(client, argv[1], rich.console.Console())
    except (ValueError, ImportError) as error:
        _fail(str(error))
    except openai.APITimeoutError:
        _fail(f"the pair said nothing for {_PATIENCE:g} seconds.", 1)
    except openai.APIConnectionError:
        _fail(f"no pair is served on {URL.value}: start one with python -m experiments.serve.", 1)
    except openai.APIError as error:
        said = error.body.get("message") if isinstance(error.body, dict) else None
        _fail(_printable(str(said or error.message)), 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # What openai talks with has another name from version to version, and is not wrapped here.
        if not type(error).__module__.startswith("http"):
            raise
        _fail(f"the pair broke off in its answer ({type(error).__name__}).", 1)


@contextmanager
def _served() -> Iterator[str]:
    """The URL of the pair; one that is made for this question ends with it."""
    if CHECKPOINT.value is None:
        for name in sys.argv[1:]:
            if name.startswith(("--config.", "--workdir")):
                raise ValueError(f"{name} is for --checkpoint; a served pair has its own.")
        yield URL.value
        return
    if flags.FLAGS["url"].present:
        raise ValueError("--url and --checkpoint are both given; one of them is enough.")
    # Whoever asks a server does not wait for jax.
    from offload_jax.cloud.protocol import CloudError
    from offload_jax.serving.build import from_config
    from offload_jax.serving.server import serving

    settings = from_config(CONFIG.value.to_dict())
    try:
        with serving(settings, CHECKPOINT.value, WORKDIR.value) as url:
            yield url
    except CloudError as error:
        raise ValueError(error) from None


def show(client: Any, question: str, console: rich.console.Console) -> None:
    """Streams an answer to a question onto the console."""
    stream = client.chat.completions.create(
        model=MODEL.value or client.models.list().data[0].id,
        messages=[{"role": "user", "content": question}],
        temperature=TEMPERATURE.value,
        seed=SEED.value,
        stream=True,
        extra_body={"stream_device_work": True, "device_only": DEVICE_ONLY.value},
    )
    for chunk in stream:
        extra = chunk.model_extra or {}
        if decision := extra.get("offload_decision"):
            console.print(_decided(decision))
        for choice in chunk.choices:
            work = (choice.delta.model_extra or {}).get("reasoning_content") or ""
            console.print(Text(_printable(work), "dim"), end="")
            if choice.delta.content:
                console.print(Text(f"\n{_printable(choice.delta.content)}", "bold"))
        if receipt := extra.get("offload"):
            console.print(_receipt(receipt))


def _decided(decision: dict[str, Any]) -> Text:
    """The line between the device's work and what follows."""
    what = "it calls the cloud" if decision["call"] else "it stays on the device"
    p = decision["call_probability"]
    sure = "" if p is None else f", P(call) {p:.3f}"
    return Text(f"\n── {what}: {decision['reason']}{sure} ──", "yellow")


def _receipt(receipt: dict[str, Any]) -> rich.table.Table:
    table = rich.table.Table(show_header=False, box=None, padding=(0, 1))
    for name, value in receipt.items():
        said = "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
        table.add_row(Text(name.replace("_", " "), "dim"), Text(_printable(said)))
    return table


def _printable(text: str) -> str:
    """What a server sends may not steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def _fail(message: str, status: int = 2) -> None:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    sys.argv = with_config(sys.argv, "serve.py")
    app.run(main, flags_parser=parser(CONFIG))
