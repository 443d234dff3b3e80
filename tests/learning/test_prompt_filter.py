import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offload_jax.judging import Judgement
from offload_jax.learning.prompt_filter import FilterConfig, d2_caps, filter_prompts

P, G = 12, 4
KEY = jax.random.key(3)
jit_filter = jax.jit(filter_prompts, static_argnames="config")


@st.composite
def judgements(draw):
    """Random judgements [P, G]; whole groups alike often enough to meet the corner cases."""
    outcome = st.integers(0, 2)  # wrong, right, call
    group = st.one_of(
        st.lists(outcome, min_size=G, max_size=G), outcome.map(lambda kind: [kind] * G)
    )
    outcomes = np.array(draw(st.lists(group, min_size=P, max_size=P)))
    called = outcomes == 2
    cloud = np.array(draw(st.lists(st.booleans(), min_size=P, max_size=P))) & called.any(axis=1)
    return Judgement(outcomes == 1, called, outcomes == 1, cloud)


def run(judged, config, key=KEY, ids=None):
    kept = jit_filter(judged, jnp.arange(P) if ids is None else jnp.asarray(ids), key, config)
    return np.array(kept.d1), np.array(kept.d2)


@settings(deadline=None)
@given(
    judgements(), st.sampled_from([0.0, 3 / 7, 1.0, 2.5]), st.sampled_from(["any_correct", "mixed"])
)
def test_d1_and_d2_are_what_the_paper_says(judged, rho, solved):
    d1, d2 = run(judged, FilterConfig(rho=rho, solved=solved))
    device = judged.device_correct.any(axis=1)
    positive = judged.device_correct | (judged.called & judged.cloud_correct[:, None])
    expected = device if solved == "any_correct" else positive.any(axis=1) & ~positive.all(axis=1)
    assert (d1 == expected).all()
    candidates = ~d1 & ~device & judged.cloud_correct
    assert not (d2 & ~candidates).any()
    cap = math.floor(Fraction(rho).limit_denominator(100) * int(d1.sum()))
    assert d2.sum() == min(cap, candidates.sum())
    if not d1.any():
        assert not d2.any()


@settings(deadline=None)
@given(judgements(), st.permutations(range(P)))
def test_the_draw_depends_on_prompt_ids_and_not_on_their_place(judged, order):
    order = np.array(order)
    d1, d2 = run(judged, FilterConfig())
    moved = jax.tree.map(lambda x: x[order], judged)
    moved_d1, moved_d2 = run(moved, FilterConfig(), ids=order)
    assert (moved_d1 == d1[order]).all() and (moved_d2 == d2[order]).all()


def only_calls(solved_prompts):
    """The first prompts solved by the device, all others by the cloud alone."""
    device, called = np.zeros((P, G), bool), np.zeros((P, G), bool)
    device[:solved_prompts, 0] = called[solved_prompts:, 0] = True
    return Judgement(device, called, device, called.any(axis=1))


def test_d2_is_drawn_uniformly_and_by_the_key():
    judged = only_calls(7)  # 5 candidates for floor(3/7 * 7) = 3 places
    draws = [run(judged, FilterConfig(), jax.random.key(i))[1] for i in range(600)]
    assert all(draw.sum() == 3 for draw in draws)
    frequency = np.mean(draws, axis=0)[7:]
    assert np.abs(frequency - 0.6).max() < 5 * math.sqrt(0.6 * 0.4 / 600)
    again = run(judged, FilterConfig(), jax.random.key(5))[1]
    assert (again == draws[5]).all()


def test_groups_without_a_negative_differ_between_the_readings():
    device, called = np.zeros((P, G), bool), np.zeros((P, G), bool)
    device[0] = True  # all correct
    called[1] = True  # all call
    called[2, 0] = True  # some call, the others are wrong
    cloud = np.zeros(P, bool)
    cloud[[1, 2]] = True
    judged = Judgement(device, called, device, cloud)
    d1, d2 = run(judged, FilterConfig(rho=2.0))
    assert d1[:3].tolist() == [True, False, False] and d2[:3].tolist() == [False, True, True]
    d1, d2 = run(judged, FilterConfig(rho=2.0, solved="mixed"))
    assert d1[:3].tolist() == [False, False, True] and d2[:3].tolist() == [False, True, False]


def test_a_prompt_that_no_response_called_is_no_candidate():
    judged = only_calls(10)
    judged = judged.replace(called=np.zeros((P, G), bool))
    assert not run(judged, FilterConfig(rho=1.0))[1].any()


def test_without_the_filter_every_prompt_is_kept():
    judged = only_calls(2)
    d1, d2 = run(judged, FilterConfig(enabled=False))
    assert (d1 ^ d2).all() and d1.sum() == 2


@pytest.mark.parametrize("rho", [3 / 7, 0.3, 0.29, 1 / 3, 0.0, 2.5])
def test_the_cap_is_the_exact_floor(rho):
    exact = Fraction(rho).limit_denominator(100)
    floors = [n * exact.numerator // exact.denominator for n in range(701)]
    assert d2_caps(rho, 700) == [min(700, floor) for floor in floors]


def test_as_large_a_rho_as_you_like_keeps_every_prompt_that_only_the_cloud_solves():
    assert d2_caps(1e300, 4) == [0, 4, 4, 4, 4]
    judged = only_calls(1)
    d1, d2 = run(judged, FilterConfig(rho=1e300))
    assert d2.sum() == P - d1.sum()


def test_a_negative_rho_is_refused():
    with pytest.raises(ValueError, match=r"config\.learning.*rho is -0\.1"):
        FilterConfig(rho=-0.1)
