import pytest

from offload_jax.evaluation.evaluate import agreement
from offload_jax.evaluation.usage import UsageConfig


@pytest.mark.parametrize(
    ("answers", "share"),
    [
        (["7", "7", "8", None], 1 / 2),
        (["7", "8", None, None], 1 / 4),
        ([None, None], 0),
        (["7", "7"], 1),
        (["", "", "7"], 1 / 3),
    ],
)
def test_agreement_is_the_share_of_the_most_frequent_answer(answers, share):
    assert agreement(answers) == share


def test_seconds_and_dollars_follow_from_tokens():
    usage = UsageConfig(
        device_prompt_rate=100.0,
        device_rate=10.0,
        cloud_latency=2.0,
        cloud_rate=50.0,
        cloud_prompt_price=1.0,
        cloud_price=4.0,
    )
    assert usage.device_seconds(prompt_tokens=50, tokens=20) == pytest.approx(0.5 + 2)
    assert usage.cloud_seconds(tokens=100) == pytest.approx(2 + 2)
    assert usage.dollars(prompt_tokens=1_000_000, tokens=500_000) == pytest.approx(1 + 2)


@pytest.mark.parametrize(
    "change",
    [{"device_rate": 0.0}, {"cloud_rate": -1.0}, {"cloud_latency": -1.0}, {"cloud_price": -1.0},
     {"cloud_latency": float("inf")}],
)  # fmt: skip
def test_impossible_rates_are_refused(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=rf"config\.evaluation\.usage\.{name} is"):
        UsageConfig(**change)
