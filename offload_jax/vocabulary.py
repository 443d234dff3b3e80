"""The tokens of a device LLM, and how a conversation becomes one of its prompts."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from offload_jax.settings import require


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer and what a sampler has to know of it.

    Attributes:
        tokenizer: text to ids and back.
        stops: ids that end a response, at least one; the first is what training texts end with.
        pad: what stands after the end of a row; never looked at.
        chat_template: Jinja source that lays out a conversation; None if the model has none.
        special: the template's own names for tokens, such as `bos_token`.
    """

    tokenizer: tokenizers.Tokenizer
    stops: tuple[int, ...]
    pad: int
    chat_template: str | None = None
    special: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without anything that is not in it."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def render(self, messages: Sequence[Mapping[str, str]], reply: bool = True) -> str:
        """A conversation as text, in the layout that the model was trained on.

        Args:
            messages: `role` ("system", "user", "assistant") and `content` of each.
            reply: end with the opening of the assistant's turn.

        Raises:
            ValueError: there is no template, or it refuses the conversation.
        """
        template = self._template
        try:
            return template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=reply,
                **self.special,
            )
        except Exception as error:  # it is a program, if a tame one: it may fail in any way
            raise ValueError(f"The chat template refuses the conversation: {error}.") from None

    @functools.cached_property
    def _template(self) -> Any:
        """The compiled template; compiling takes much longer than rendering."""
        require(self.chat_template is not None, "The device LLM's checkpoint has no chat template.")
        try:
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise ValueError(
                "A chat template needs the package jinja2: pip install 'offload_jax[llm]'."
            ) from None

        def refuse(message):
            raise jinja2.TemplateError(message)

        # A template comes with a checkpoint, so it is not trusted: it can compute text, no more.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda x, **options: json.dumps(
            x, ensure_ascii=False, **options
        )
        environment.globals |= {"raise_exception": refuse, "strftime_now": lambda _: _A_DAY}
        try:
            return environment.from_string(self.chat_template)
        except Exception as error:
            raise ValueError(f"The chat template cannot be read: {error}.") from None

    def to_json(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "tokenizer": json.loads(self.tokenizer.to_str()),
            "stops": list(self.stops),
            "pad": self.pad,
            "chat_template": self.chat_template,
            "special": dict(self.special),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Vocabulary":
        """The inverse of `to_json`."""
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(values["tokenizer"]))
        return Vocabulary(
            tokenizer,
            tuple(values["stops"]),
            values["pad"],
            values["chat_template"],
            values["special"],
        )


# Llama 3's template writes today's date into the system prompt. A run must be repeatable, so the
# day does not pass.
_A_DAY = "26 Jul 2024"
