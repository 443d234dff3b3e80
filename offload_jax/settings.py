"""From an ml_collections config to frozen, checked dataclasses; mistakes fail in one sentence."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds; the message names the setting."""
    if not condition:
        raise ValueError(message)


def parse(cls: type[T], values: Mapping[str, Any], path: str = "config") -> T:
    """Builds the settings dataclass `cls` from a mapping, recursively.

    Args:
        cls: a dataclass; nested dataclass fields are parsed from nested mappings.
        values: the config (an `ml_collections.ConfigDict` or a dict).
        path: where `values` sits, as it is named in error messages.

    Returns:
        An instance of `cls`; its own `__post_init__` has checked ranges.

    Raises:
        ValueError: an unknown or missing key, or a value of the wrong type; the message names the
            key's path and the nearest valid name.
    """
    require_section(values, path)
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in values:
        require(key in fields, f"{path}.{key} is not a setting{nearest(key, fields)}")
    for name, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        require(optional or name in values, f"{path}.{name} is missing.")
    converted = {key: _convert(hints[key], values[key], f"{path}.{key}") for key in values}
    try:
        return cls(**converted)
    except ValueError as error:
        # Settings that occur in several sections do not know where they are.
        named = str(error) if "config." in str(error) else f"{path}: {error}"
        raise ValueError(named) from None


def _of_kind(kinds: Sequence[type], value: Any, path: str) -> type:
    """Which of several settings dataclasses a section is: by its `kind` or `name`, a Literal.

    Without one it is the first.
    """
    require_section(value, path)
    known = {}
    for cls in kinds:
        key = next(key for key in ("kind", "name") if key in cls.__dataclass_fields__)
        for name in typing.get_args(typing.get_type_hints(cls)[key]):
            known[name] = cls
    if key not in value:
        return kinds[0]
    found = value[key]
    require(
        found in known,
        f"{path}.{key} is {found!r}; it must be one of {', '.join(map(repr, known))}.",
    )
    return known[found]


def require_section(values: Any, path: str) -> None:
    """Raises ValueError unless a config's value is a section, that is a mapping."""
    require(isinstance(values, Mapping) or hasattr(values, "keys"), f"{path} must be a section.")


def check_program(config: Mapping[str, Any], program: str) -> None:
    """Raises ValueError if a config is of another kind than `program` takes, and says who does."""
    kinds = {"regimes": "experiments.regimes", "base": "experiments.table"}
    kinds |= {"task": "experiments.launch"}
    takes = next((other for section, other in kinds.items() if section in config), program)
    require(takes == program, f"--config is for {takes}, not for {program}.")


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of a sentence on a misspelt name: `; did you mean 'x'?`, or a full stop."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else "."


def _convert(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return parse(kind, value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        allowed = ", ".join(repr(a) for a in arguments)
        require(value in arguments, f"{path} is {value!r}; it must be one of {allowed}.")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        return _convert(kinds[0] if len(kinds) == 1 else _of_kind(kinds, value, path), value, path)
    if kind is float and type(value) is int:
        return float(value)
    require(type(value) is kind, f"{path} is {value!r}; it must be of type {kind.__name__}.")
    return value
