"""Records to test on: the parts that a metric reads are given, the rest is filled in."""

from offload_jax.evaluation.records import Record


def record(prompt_id, outcome="wrong", cloud=None, policy="start", seed=0, fallback=None):
    """One record; `outcome` is what the device did: "right", "wrong" (an answer) or "call".

    `fallback`: whether the answer that follows a refused call is right.
    """
    called, asked = outcome == "call", cloud is not None
    return Record(
        prompt_id=prompt_id,
        policy=policy,
        seed=seed,
        question="Make 46 from 3, 7 and 25.",
        gold={"numbers": (3, 7, 25), "target": 46},
        response_tokens=[5, 6, 7],
        response="25 + 3 × 7",
        finish="stop",
        kind="call" if called else "answer",
        answer=None if called else "25+3*7",
        device_correct=outcome == "right",
        called=called,
        fallback=None if fallback is None else "25+3*7",
        fallback_correct=fallback,
        cloud_correct=cloud,
        cloud_failure=None,
        device_tokens=3,
        prompt_tokens=9,
        logprob=-0.25,
        p_call=0.75 if called else 0.125,
        agreement=None,
        cloud_tokens=50 if asked else None,
        device_seconds=0.5,
        cloud_seconds=2.0 if asked else None,
        cost=0.001 if asked else None,
    )


def many(outcomes, clouds, policy="start", first_id=0):
    """Records of consecutive prompts."""
    pairs = zip(outcomes, clouds, strict=True)
    return [record(first_id + i, o, c, policy) for i, (o, c) in enumerate(pairs)]
