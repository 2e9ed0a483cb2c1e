"""Segment attention against a numpy softmax over the union of the visible keys."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iapo_jax.model import attention
from iapo_jax.model.attention import (
    Segment,
    attend,
    blockwise_attention,
    dense_attention,
)

dense = jax.jit(dense_attention)
blockwise = jax.jit(blockwise_attention)


def brute_force(query, segments):
    """One float64 softmax for each query and head over all keys that it sees: (out, lse)."""
    query = np.asarray(query, np.float64)
    *lead, heads, width = query.shape
    out, lse = np.zeros(query.shape), np.zeros((*lead, heads))
    for at in np.ndindex(*lead):
        for head in range(heads):
            keys, values = [], []
            for k, v, visible in segments:
                k, v = np.asarray(k, np.float64), np.asarray(v, np.float64)
                row = at[: k.ndim - 3]
                cut = int(np.broadcast_to(np.asarray(visible), lead)[at])
                group = head // (heads // k.shape[-2])
                keys.append(k[row][:cut, group])
                values.append(v[row][:cut, group])
            scores = np.concatenate(keys) @ query[at][head] / math.sqrt(width)
            top = scores.max()
            weights = np.exp(scores - top)
            lse[at][head] = top + np.log(weights.sum())
            out[at][head] = weights @ np.concatenate(values) / weights.sum()
    return out, lse


def normal(rng, *shape):
    return jnp.asarray(rng.standard_normal(shape), jnp.float32)


# queries, keys: below, at and above one tile, and several tiles
SIZES = [(1, 5), (7, 128), (128, 129), (130, 300), (257, 64)]


@pytest.mark.parametrize("heads, key_heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("form", [dense, blockwise], ids=["dense", "blockwise"])
def test_one_segment_is_a_softmax(form, heads, key_heads):
    for number, (queries, keys) in enumerate(SIZES if (heads, key_heads) == (6, 2) else SIZES[:2]):
        rng = np.random.default_rng(number)
        q = normal(rng, 2, queries, heads, 8)
        k, v = normal(rng, 2, keys, key_heads, 8), normal(rng, 2, keys, key_heads, 8)
        visible = jnp.asarray(rng.integers(1, keys + 1, (2, queries)), jnp.int32)
        want = brute_force(q, [(k, v, visible)])
        out, lse = form(q.reshape(2, queries, key_heads, -1, 8), k, v, visible)
        np.testing.assert_allclose(out.reshape(q.shape), want[0], atol=1e-5)
        np.testing.assert_allclose(lse.reshape(q.shape[:-1]), want[1], atol=1e-5)


def tree_case(rng, key_size):
    """Queries [P, G, C, K] of a probe: prompt [P], completion [P, G] up to cuts, themselves."""
    p, g, c, k, heads, key_heads, width = 2, 3, 5, 3, 4, 2, 8

    def block(*lead):
        return (
            normal(rng, *lead, key_heads, width),
            normal(rng, *lead, key_heads, width),
        )

    prompt_visible = jnp.asarray([key_size, 0])[:, None, None, None]  # the second sees no prompt
    cuts = jnp.asarray([0, 1, 4, key_size - 1, key_size])[None, None, :, None]
    segments = [
        Segment(*block(p, key_size), prompt_visible),
        Segment(*block(p, g, key_size), cuts),
        Segment(*block(p, g, c, k), jnp.arange(1, k + 1)),
    ]
    return normal(rng, p, g, c, k, heads, width), segments


@pytest.mark.parametrize("key_size", [9, 150])
@pytest.mark.parametrize("limit", [0, 2**30], ids=["blockwise", "dense"])
def test_a_tree_of_segments_is_one_softmax(monkeypatch, limit, key_size):
    monkeypatch.setattr(attention, "DENSE_SCORES", limit)
    query, segments = tree_case(np.random.default_rng(5), key_size)
    out = jax.jit(lambda q, s: attend(q, s))(query, segments)
    np.testing.assert_allclose(out, brute_force(query, segments)[0], atol=1e-5)


@pytest.mark.parametrize("limit", [0, 2**30], ids=["blockwise", "dense"])
def test_what_is_invisible_may_hold_anything(monkeypatch, limit):
    monkeypatch.setattr(attention, "DENSE_SCORES", limit)
    query, segments = tree_case(np.random.default_rng(6), 150)
    prompt, completion, own = segments

    def total(query, segments):
        return (attend(query, segments) ** 2).sum()

    both = jax.jit(jax.value_and_grad(total, argnums=(0, 1), allow_int=True))
    # The second prompt is invisible to everyone; beyond a cut of 145 nothing is read.
    completion = completion._replace(visible=jnp.minimum(completion.visible, 145))

    def filled(value):
        first = [x.at[1].set(value) for x in prompt[:2]]
        second = [x.at[:, :, 145:].set(value) for x in completion[:2]]
        return [Segment(*first, prompt[2]), Segment(*second, completion[2]), own]

    value, (d_query, d_clean) = both(query, filled(0.0))
    dirty_value, (d_query_dirty, d_dirty) = both(query, filled(1e18))
    np.testing.assert_allclose(dirty_value, value, rtol=1e-6)
    np.testing.assert_allclose(d_query_dirty, d_query, atol=1e-5)
    for segment, clean in zip(d_dirty, d_clean, strict=True):
        np.testing.assert_allclose(segment.keys, clean.keys, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(segment.values, clean.values, atol=1e-5, rtol=1e-5)
    for hidden in (d_dirty[0].keys[1], d_dirty[0].values[1]):
        assert not hidden.any()
    for hidden in (d_dirty[1].keys[:, :, 145:], d_dirty[1].values[:, :, 145:]):
        assert not hidden.any()


def test_nothing_visible_is_finite_and_vanishes_in_a_join():
    rng = np.random.default_rng(7)
    q, k = normal(rng, 1, 130, 1, 2, 8), normal(rng, 1, 140, 1, 8)
    for form in (dense, blockwise):
        out, lse = form(q, k, k, jnp.zeros((1, 130), jnp.int32))
        assert np.isfinite(out).all()
        assert (np.asarray(lse) < -1e29).all()


def test_gradients_of_blockwise_are_those_of_dense():
    """Through the output and through lse, with cuts of 0 and several tiles of both."""
    rng = np.random.default_rng(8)
    q = normal(rng, 2, 140, 2, 3, 8)
    k, v = normal(rng, 2, 270, 2, 8), normal(rng, 2, 270, 2, 8)
    visible = jnp.asarray(rng.integers(0, 271, (2, 140)), jnp.int32)
    d_out, d_lse = normal(rng, *q.shape), normal(rng, *q.shape[:-1])
    d_lse = jnp.where(visible[..., None, None] > 0, d_lse, 0.0)  # as a join gives it

    @partial(jax.jit, static_argnames="form")
    def gradients(q, k, v, form):
        def total(q, k, v):
            out, lse = form(q, k, v, visible)
            out = jnp.where(visible[..., None, None, None] > 0, out, 0.0)
            return (out * d_out).sum() + (jnp.maximum(lse, -100.0) * d_lse).sum()

        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    want = gradients(q, k, v, dense_attention)
    got = gradients(q, k, v, blockwise_attention)
    for name, a, b in zip("qkv", got, want, strict=True):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


def test_dense_gradients_are_finite_differences():
    """Ties the chain to numpy: a directional derivative of the brute force in float64."""
    rng = np.random.default_rng(9)
    query, segments = tree_case(rng, 9)
    weights = np.asarray(normal(rng, *query.shape), np.float64)
    direction = np.asarray(normal(rng, *segments[1].keys.shape), np.float64)

    def total(keys):
        moved = [segments[0], segments[1]._replace(keys=keys), segments[2]]
        return (attend(query, moved) * weights.astype(np.float32)).sum()

    got = (jax.jit(jax.grad(total))(segments[1].keys) * direction).sum()
    ends = []
    for sign in (1, -1):
        keys = np.asarray(segments[1].keys, np.float64) + sign * 1e-4 * direction
        moved = [segments[0], (keys, *segments[1][1:]), segments[2]]
        ends.append((brute_force(query, moved)[0] * weights).sum())
    np.testing.assert_allclose(got, (ends[0] - ends[1]) / 2e-4, rtol=1e-4)


@pytest.mark.parametrize("limit", [0, 2**30], ids=["blockwise", "dense"])
def test_bfloat16_is_close_and_keeps_its_dtype(monkeypatch, limit):
    monkeypatch.setattr(attention, "DENSE_SCORES", limit)
    query, segments = tree_case(np.random.default_rng(10), 150)

    def low(x):
        return x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x

    query, segments = jax.tree.map(low, (query, segments))
    out = jax.jit(lambda q, s: attend(q, s))(query, segments)
    assert out.dtype == jnp.bfloat16
    want = brute_force(query, segments)[0]  # of the rounded inputs
    assert np.abs(np.asarray(out, np.float64) - want).max() < 0.03  # 8 bits of mantissa


def test_wrong_shapes_are_refused():
    rng = np.random.default_rng(11)
    own = Segment(normal(rng, 2, 3, 2, 8), normal(rng, 2, 3, 2, 8), jnp.arange(1, 4))
    with pytest.raises(AssertionError):  # another number of rows
        attend(normal(rng, 3, 3, 4, 8), [own])
    with pytest.raises(AssertionError):  # 3 query heads on 2 key heads
        attend(normal(rng, 2, 3, 3, 8), [own])
