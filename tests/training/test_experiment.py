import pytest

from offload_jax.training.experiment import check_devices, from_config


def test_the_shipped_configs_are_valid(tiny):
    experiment = from_config(tiny.smoke_config())
    assert experiment.learning.filter.rho == 3 / 7
    check_devices(experiment, shards=8)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("learning.stesp", 3, r"config\.learning\.stesp is not a setting; did you mean 'steps'"),
        ("sampling.group", 1, r"config\.sampling\.group must be at least 2"),
        ("sampling.group", "8", r"config\.sampling\.group is '8'; it must be of type int"),
        ("sampling.temperature", 0.0, r"config\.sampling\.temperature"),
        ("start.late_steps", 10**6, r"config\.start\.late_steps"),
        ("start.traces.max_tokens", 4000, r"config\.start\.traces\.max_tokens \(4000\)"),
        ("learning.batch.micro_prompts", 5, r"config\.learning\.batch: prompts \(32\)"),
        ("learning.batch.micro_prompts", 0, r"config\.learning\.batch: micro_prompts must be"),
        ("learning.batch.micro_group", 3, r"config\.learning\.batch\.micro_group \(3\)"),
        ("start.batch.micro_group", 2, r"config\.start\.batch\.micro_group \(2\)"),
        ("learning.optimizer.schedule", "exponential", r"schedule is 'exponential'.* 'cosine'"),
        ("learning.filter.rho", -1.0, r"rho is -1\.0"),
        ("learning.reward.call", 2.0, r"answer >= call >= format"),
        ("cloud.accuracy", 1.5, r"config\.cloud\.accuracy"),
        ("cloud.kind", "psychic", r"config\.cloud\.kind is 'psychic'.* 'oracle'"),
        ("evaluation.cap", 1.5, r"config\.evaluation\.cap"),
        ("evaluation.test_prompts", 10**6, r"config\.evaluation\.test_prompts is 1000000"),
        ("device.kv_heads", 3, r"config\.device\.kv_heads \(3\)"),
        ("start.optimizer.rate", 0.0, r"config\.start\.optimizer: rate is 0\.0"),
        ("start.late_traces.near", -1, r"config\.start\.late_traces: near is -1"),
        ("start.late_traces.max_tokens", 20, r"config\.start\.late_traces\.max_tokens is 20"),
        ("task.numbers", (1, 2, 3), r"config\.task\.numbers is \(1, 2, 3\)"),
        ("device.rope_base", 0.0, r"config\.device\.rope_base"),
        ("mesh.data", 0, r"config\.mesh\.data is 0"),
        ("mesh.fsdp", -1, r"Only one axis of config\.mesh may be -1"),
        ("seed", -1, r"config\.seed"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_key(tiny, key, value, sentence):
    config = tiny.smoke_config().to_dict()
    *path, last = key.split(".")
    section = config
    for name in path:
        section = section[name]
    section[last] = value
    with pytest.raises(ValueError, match=sentence):
        from_config(config)


def test_a_missing_key_is_named(tiny):
    config = tiny.smoke_config().to_dict()
    del config["device"]["width"]
    with pytest.raises(ValueError, match=r"config\.device\.width is missing"):
        from_config(config)


def test_a_batch_that_does_not_divide_over_the_mesh_is_named(tiny):
    with pytest.raises(ValueError, match=r"config\.start\.batch\.micro_prompts is 8.* 3 shards"):
        check_devices(from_config(tiny.smoke_config()), shards=3)
