"""A small step compiled for four CPU devices and, where libtpu is installed, for a TPU slice."""

import dataclasses
import importlib.util

import jax
import pytest

from offload_jax.aot import Workload, check, programs, topology, workload_of
from offload_jax.device.config import DeviceConfig
from offload_jax.device.params import count_params
from offload_jax.learning.optimizer import OptimizerConfig
from offload_jax.sampling.rollout import SamplingConfig
from offload_jax.scaling import CHIPS, Assumptions, chip_of, estimate
from offload_jax.sharding import MeshConfig, make_mesh
from offload_jax.training.experiment import BatchSettings, LearningSettings

WORKLOAD = Workload(
    DeviceConfig(
        vocabulary=512,
        width=256,
        layers=2,
        heads=4,
        kv_heads=2,
        head_size=64,
        mlp=512,
        compute_dtype="bfloat16",
        remat="full",
    ),
    SamplingConfig(group=4, prompt_tokens=32, response_tokens=48, shrink=1.0),
    LearningSettings(10, BatchSettings(8, 4, 1), OptimizerConfig(rate=1e-6)),
    MeshConfig(1, 4, 1),
)


@pytest.fixture(scope="module", params=["cpu", "v5e:2x2"])
def compiled(request):
    devices = jax.devices()[:4]
    with pytest.MonkeyPatch.context() as patch:
        if request.param != "cpu":
            pytest.importorskip("libtpu", reason="TPU's compiler: pip install 'offload_jax[tpu]'")
            # It reads XLA_FLAGS when it first compiles, and aborts at one that it does not know.
            patch.setenv("XLA_FLAGS", "")
            devices = topology(request.param)
        mesh = make_mesh(WORKLOAD.mesh, devices)
        return {program.name: program for program in programs(WORKLOAD, mesh)}


def test_a_small_step_compiles_and_fits(compiled):
    for program in compiled.values():
        assert 0 < program.bytes < CHIPS["v5e"].memory
        for phase in program.phases:
            assert phase.work.bytes > 0
            # Attention weighs more here than in a large model.
            assert 0.8 < phase.work.flops / phase.model_flops < 2


def test_no_weight_is_gathered_inside_the_decode_loop(compiled):
    prefill, decode = compiled["rollout"].phases
    gathered = [c for c in decode.work.collectives if c.kind == "all-gather" and c.repeats]
    assert gathered == []
    assert any(c.kind == "all-gather" for c in prefill.work.collectives)


def test_what_does_not_divide_is_refused_before_anything_is_compiled():
    mesh = make_mesh(MeshConfig(1, 8, 1), jax.devices()[:8])
    with pytest.raises(ValueError, match=r"config.learning.batch.micro_prompts is 4"):
        check(WORKLOAD, mesh)


def test_an_unknown_chip_is_refused_by_name():
    with pytest.raises(ValueError, match=r"v5ee.*did you mean 'v5e'"):
        chip_of("v5ee:8x8")


def test_the_papers_configs_parse_and_have_their_models_size():
    for name, size in {"math_llama32_3b": 3.213e9, "math_qwen25_15b": 1.544e9}.items():
        spec = importlib.util.spec_from_file_location(name, f"configs/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        workload = workload_of(module.get_config())
        assert count_params(workload.device) == pytest.approx(size, rel=1e-3)
        batch = workload.learning.batch.prompts, workload.sampling.group
        assert batch == (128, 8)


def test_the_cost_model_scales_and_names_what_bounds():
    chip = CHIPS["v5e"]
    few, many = (estimate(WORKLOAD, chip, n, Assumptions()) for n in (4, 8))
    assert few.update == pytest.approx(2 * many.update)
    assert many.decode_bound == "weights"
    wide = dataclasses.replace(WORKLOAD, mesh=MeshConfig(1, -1, 2))
    assert estimate(wide, chip, 8, Assumptions()).decode < many.decode
    assert estimate(WORKLOAD, chip, 1024, Assumptions()).prompts == 1024
