"""Programs whose work is known by hand, compiled for the CPU."""

import jax
import jax.numpy as jnp
import pytest

from offload_jax.hlo import work
from offload_jax.sharding import MeshConfig, make_mesh, sharding_of

X, W = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((64, 64), jnp.float32)
STACKED = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32)
PRODUCT = 2 * 32 * 64 * 64


def compiled(f, *shapes):
    return jax.jit(f).lower(*shapes).compile().as_text()


def layers(x, stacked):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stacked)[0]


def until_small(x, body):
    return jax.lax.while_loop(lambda x: jnp.abs(x).max() > 1.0, body, x)


def test_the_body_of_a_scan_counts_as_often_as_it_runs():
    text = compiled(layers, X, STACKED)
    assert work(text).flops == 5 * PRODUCT
    once = jax.jit(layers).lower(X, STACKED).compile().cost_analysis()["flops"]
    assert once < 2 * PRODUCT  # what XLA says of the same program


def test_nested_scans_multiply():
    def many(x, stacked):
        return jax.lax.scan(lambda x, _: (layers(x, stacked), None), x, length=3)[0]

    assert work(compiled(many, X, STACKED)).flops == 3 * 5 * PRODUCT


def test_the_backward_pass_and_what_it_computes_again_are_counted():
    def loss(stacked, x):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
        return jax.lax.scan(layer, x, stacked)[0].sum()

    # Forward, forward again, the gradients of inputs and weights.
    assert work(compiled(jax.grad(loss), STACKED, X)).flops == 4 * 5 * PRODUCT


def test_the_length_of_a_loop_that_depends_on_data_is_given():
    text = compiled(lambda x, s: until_small(x, lambda x: layers(x, s)), X, STACKED)
    assert work(text, [7]).flops == 7 * 5 * PRODUCT
    with pytest.raises(ValueError, match="loops whose length depends on data"):
        work(text)
    with pytest.raises(ValueError, match="has 1 loops"):
        work(text, [7, 7])


def test_of_a_conditional_the_dearer_branch_counts():
    def either(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert work(compiled(either, X, W)).flops == 2 * PRODUCT


def test_a_scan_reads_a_layer_at_a_time():
    many = jax.ShapeDtypeStruct((100, 64, 64), jnp.float32)
    moved = work(compiled(layers, X, many)).bytes
    weights = 4 * 100 * 64 * 64
    assert weights < moved < 10 * weights  # and not 100 times


def test_a_product_that_xla_tpu_writes_as_a_convolution():
    text = """HloModule m
ENTRY %main (a: bf16[8,1024,128], b: bf16[8,96,128]) -> f32[8,1024,96] {
  %a = bf16[8,1024,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,96,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = f32[8,1024,96]{2,1,0:T(8,128)} convolution(%a, %b), \
window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf
}
"""
    assert work(text).flops == 2 * 8 * 1024 * 96 * 128


def test_only_what_passes_main_memory_counts_as_moved():
    """A slice of 2 of 8 rows comes into the chip's vector memory (S(1)), is negated, goes back."""
    text = """HloModule m
ENTRY %main (a: f32[8,16]) -> f32[2,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %s = ((f32[8,16]{1,0}), f32[2,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:2], [0:16]}
  %d = f32[2,16]{1,0:S(1)} slice-done(%s)
  ROOT %n = f32[2,16]{1,0} negate(%d)
}
"""
    assert work(text).bytes == 2 * (4 * 2 * 16)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 8, 1), jax.devices()[:8])


def sharded(mesh, shape, *axes):
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding_of(mesh, axes, shape))


def test_a_collective_counts_its_bytes_and_runs(mesh):
    def sums(x):
        step = lambda x, _: (x - x.mean(axis=0), None)  # noqa: E731
        return jax.lax.scan(step, x, length=6)[0]

    with jax.set_mesh(mesh):
        text = compiled(sums, sharded(mesh, (32, 16), "prompts", None))
    (found,) = work(text).collectives
    assert (found.kind, found.times, found.bytes) == ("all-reduce", 6, 4 * 16)
    assert len(found.loops) == 1


@pytest.mark.parametrize("where", ["inside", "before"])
def test_what_a_loop_gathers_in_every_turn_though_it_stays_the_same_is_told(mesh, where):
    whole = jax.sharding.PartitionSpec()

    def decode(x, w):
        if where == "before":
            w = jax.lax.with_sharding_constraint(w, whole)

        def step(x):
            # Behind a barrier, so that XLA does not move the gather out of the loop.
            x, held = jax.lax.optimization_barrier((x, w))
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(held, whole))

        return until_small(x, step)

    with jax.set_mesh(mesh):
        text = compiled(
            decode, sharded(mesh, (32, 64), "prompts", None), sharded(mesh, (64, 64), "width", None)
        )
    gathers = [c for c in work(text, [10]).collectives if c.kind == "all-gather"]
    if where == "inside":
        assert [(c.times, c.bytes, c.repeats) for c in gathers] == [(10, 4 * 64 * 64, True)]
    else:
        assert [(c.times, c.repeats) for c in gathers] == [(1, False)]


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        work("nothing")
