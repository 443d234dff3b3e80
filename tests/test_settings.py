import dataclasses
from typing import Literal

import pytest
from ml_collections import ConfigDict

from offload_jax.settings import check_program, nearest, parse, require


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"

    def __post_init__(self):
        require(self.rate > 0, f"config.inner.rate is {self.rate}; it must be positive.")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    enabled: bool = True
    keep: int | None = None
    sizes: tuple = (1, 2)
    name: str = "x"


@pytest.mark.parametrize("wrap", [dict, ConfigDict])
def test_a_mapping_becomes_the_dataclass_with_its_defaults(wrap):
    values = wrap({"inner": {"rate": 0.5, "schedule": "cosine"}, "sizes": (3, 4), "keep": 7})
    assert parse(Outer, values) == Outer(Inner(0.5, 0, "cosine"), True, 7, (3, 4), "x")
    assert parse(Outer, wrap({"inner": {"rate": 0.5}})) == Outer(Inner(0.5))


def test_an_integer_is_a_float_and_none_is_allowed_where_it_is_declared():
    parsed = parse(Outer, {"inner": {"rate": 2}, "keep": None})
    assert type(parsed.inner.rate) is float and parsed.inner.rate == 2.0
    assert parsed.keep is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"enabeld": False}, "config.enabeld is not a setting; did you mean 'enabled'?"),
        ({"zzzzz": 1}, "config.zzzzz is not a setting."),
        ({"inner": {"rate": 1.0, "warmpu": 3}},
         "config.inner.warmpu is not a setting; did you mean 'warmup'?"),
        ({"inner": {}}, "config.inner.rate is missing."),
        ({"inner": {"rate": "fast"}}, "config.inner.rate is 'fast'; it must be of type float."),
        ({"inner": {"rate": None}}, "config.inner.rate is None; it must be of type float."),
        ({"inner": {"rate": True}}, "config.inner.rate is True; it must be of type float."),
        ({"inner": {"rate": 1.0, "warmup": 3.0}},
         "config.inner.warmup is 3.0; it must be of type int."),
        ({"inner": {"rate": 1.0, "warmup": True}},
         "config.inner.warmup is True; it must be of type int."),
        ({"inner": {"rate": 1.0, "schedule": "linear"}},
         "config.inner.schedule is 'linear'; it must be one of 'constant', 'cosine'."),
        ({"inner": {"rate": 0.0}}, "config.inner.rate is 0.0; it must be positive."),
        ({"inner": 3}, "config.inner must be a section."),
        ({"inner": None}, "config.inner must be a section."),
        ({"enabled": 1}, "config.enabled is 1; it must be of type bool."),
        ({"keep": "2"}, "config.keep is '2'; it must be of type int."),
        ({"sizes": [3, 4]}, "config.sizes is [3, 4]; it must be of type tuple."),
        ({"name": 3}, "config.name is 3; it must be of type str."),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrap", [dict, ConfigDict])
def test_a_mistake_is_one_sentence_that_names_the_key(wrap, values, sentence):
    with pytest.raises(ValueError) as caught:
        parse(Outer, wrap({"inner": {"rate": 1.0}} | values))
    assert str(caught.value) == sentence


def test_a_missing_section_is_named_with_the_path_it_was_looked_for_under():
    with pytest.raises(ValueError, match=r"^run\.inner is missing\.$"):
        parse(Outer, {"keep": 1}, path="run")


def test_the_nearest_name_is_the_nearest_and_far_ones_are_not_offered():
    assert nearest("stesp", ["batch", "steps", "seeds"]) == "; did you mean 'steps'?"
    assert nearest("qqq", ["batch", "steps"]) == "."


@pytest.mark.parametrize("value", [3, None, "x", (1,)])
def test_what_is_no_section_is_refused(value):
    with pytest.raises(ValueError, match=r"^config\.outer must be a section\.$"):
        parse(Outer, value, "config.outer")


def test_a_config_of_another_program_says_whose_it_is():
    check_program({"base": {}, "methods": {}}, "experiments.table")
    check_program({"sede": 3}, "experiments.launch")  # nobody's: others tell what is wrong
    with pytest.raises(ValueError, match=r"is for experiments\.launch, not for experiments\.table"):
        check_program({"task": {}, "seed": 1}, "experiments.table")
