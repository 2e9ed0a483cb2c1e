"""Attention of new tokens over several segments of keys, joined exactly.

A segment is a block of keys that each query may read up to a cut of its own. Prompts, the
completion so far, a completion seen up to a probed prefix and the causal block of the new tokens
themselves are all segments; they differ only in the cuts. Per segment

    out = softmax(q k^T / sqrt(d)) v,    lse = logsumexp(q k^T / sqrt(d)),

and segments join as  out = sum_i exp(lse_i - lse) out_i,  lse = logsumexp_i lse_i.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from iapo_jax.types import Array

_EMPTY = -1e30  # score of a key that a query may not read; finite, so that 0 keys give no NaN
_BLOCK = 128  # queries and keys of one tile of the blockwise form
_DENSE_SCORES = 128 * 1024  # at most this many scores per head and row are built at once


class Segment(NamedTuple):
    """Keys and values shared by all queries of a row, and how many of them each query reads.

    For queries of shape [*rows, *rest, H, d], `keys` is [*rows, S, M, d]: a segment may have fewer
    leading axes than the queries, and is then shared by the rest. `visible` broadcasts to
    [*rows, *rest]; a query reads the keys 0 .. visible-1.
    """

    keys: Array  # [*rows, S, M, d]
    values: Array  # [*rows, S, M, d]
    visible: Array  # int32, broadcastable to the queries' leading axes


def attend(query: Array, segments: Sequence[Segment]) -> Array:
    """Exact attention of every query over the union of its visible keys.

    Args:
      query: [..., H, d]; H is a multiple of the key heads M, grouped key-head-major.
      segments: at least one; every query must see at least one key in one of them.

    Returns:
      [..., H, d] in the dtype of `query`; scores, softmax and the join are float32.
    """
    parts = [_segment_attention(query, segment) for segment in segments]
    if len(parts) == 1:
        return parts[0][0].astype(query.dtype)
    lse = functools.reduce(jnp.logaddexp, [lse for _, lse in parts])
    return sum(out * jnp.exp(part - lse)[..., None] for out, part in parts).astype(query.dtype)


def _segment_attention(query: Array, segment: Segment) -> tuple[Array, Array]:
    """Folds the queries of a row into [B, Q, M, R, d], attends, and unfolds."""
    *rows, keys_per_row, key_heads, width = segment.keys.shape
    *lead, heads, _ = query.shape
    chex.assert_equal(tuple(lead[: len(rows)]), tuple(rows))
    chex.assert_is_divisible(heads, key_heads)
    batch, queries = math.prod(rows), math.prod(lead[len(rows) :])
    q = query.reshape(batch, queries, key_heads, heads // key_heads, width)
    k, v = (x.reshape(batch, keys_per_row, key_heads, width) for x in segment[:2])
    visible = jnp.broadcast_to(segment.visible, lead).reshape(batch, queries)
    dense = queries * keys_per_row <= _DENSE_SCORES or keys_per_row <= _BLOCK
    out, lse = (dense_attention if dense else blockwise_attention)(q, k, v, visible)
    return out.reshape(query.shape), lse.reshape(*lead, heads)


def _scores(q: Array, k: Array, visible: Array, start: Array | int) -> Array:
    """[B, M, Q, R, S] float32 scores of the keys start .. start+S-1."""
    scale = q.shape[-1] ** -0.5
    scores = jnp.einsum("bqmrd,bsmd->bmqrs", q, k, preferred_element_type=jnp.float32) * scale
    readable = start + jnp.arange(k.shape[1]) < visible[..., None]  # [B, Q, S]
    return jnp.where(readable[:, None, :, None, :], scores, _EMPTY)


def dense_attention(q: Array, k: Array, v: Array, visible: Array) -> tuple[Array, Array]:
    """One softmax over all scores: q [B,Q,M,R,d], k and v [B,S,M,d], visible [B,Q].

    Returns (out [B,Q,M,R,d], lse [B,Q,M,R]), both float32; lse is about -1e30 where nothing is
    visible, so that the segment vanishes in a join.
    """
    scores = _scores(q, k, visible, 0)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(v.dtype)
    out = jnp.einsum("bmqrs,bsmd->bqmrd", weights, v, preferred_element_type=jnp.float32)
    return out, lse.swapaxes(1, 2)


@jax.custom_vjp
def blockwise_attention(q: Array, k: Array, v: Array, visible: Array) -> tuple[Array, Array]:
    """`dense_attention` without the score matrix: tiles of queries stream over tiles of keys.

    Keys beyond the largest cut of a query tile are never multiplied, so a causal segment costs
    half and a probe costs its prefix. Differentiable in q, k and v, also through lse:
    ds = p (dp - <do, o> + dlse).
    """
    return _forward(q, k, v, visible)[0]


def _tiles(x: Array, pad_value: float = 0) -> Array:
    """[B, Q, ...] -> [tiles, B, _BLOCK, ...], padded at the end."""
    extra = -x.shape[1] % _BLOCK
    x = jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2), constant_values=pad_value)
    return x.reshape(x.shape[0], -1, _BLOCK, *x.shape[2:]).swapaxes(0, 1)


def _untile(x: Array, size: int) -> Array:
    x = x.swapaxes(0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :size]


def _pad_keys(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % _BLOCK), (0, 0), (0, 0)))


def _key_tiles(visible: Array) -> Array:
    """Number of key tiles that some query of the tile reads."""
    return (jnp.max(visible) + _BLOCK - 1) // _BLOCK


def _key_tile(x: Array, index: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * _BLOCK, _BLOCK, axis=1)


def _forward(q, k, v, visible):
    batch, queries, heads, rest, width = q.shape
    keys, values = _pad_keys(k), _pad_keys(v)

    def query_tile(tile):
        q_tile, cut = tile

        def key_tile(index, carry):
            out, top, total = carry
            scores = _scores(q_tile, _key_tile(keys, index), cut, index * _BLOCK)
            new_top = jnp.maximum(top, scores.max(-1))
            shrink = jnp.exp(top - new_top)
            weights = jnp.exp(scores - new_top[..., None])
            value = _key_tile(values, index)
            mixed = jnp.einsum(
                "bmqrs,bsmd->bmqrd",
                weights.astype(v.dtype),
                value,
                preferred_element_type=jnp.float32,
            )
            return out * shrink[..., None] + mixed, new_top, total * shrink + weights.sum(-1)

        zeros = jnp.zeros((batch, heads, _BLOCK, rest), jnp.float32)
        start = (jnp.zeros((*zeros.shape, width), jnp.float32), zeros + _EMPTY, zeros)
        out, top, total = jax.lax.fori_loop(0, _key_tiles(cut), key_tile, start)
        total = jnp.maximum(total, 1e-30)  # a tile in which no query reads anything
        return (out / total[..., None]).swapaxes(1, 2), (top + jnp.log(total)).swapaxes(1, 2)

    out, lse = jax.lax.map(query_tile, (_tiles(q), _tiles(visible)))
    out, lse = _untile(out, queries), _untile(lse, queries)
    return (out, lse), (q, k, v, visible, out, lse)


def _backward(saved, cotangent):
    q, k, v, visible, out, lse = saved
    d_out, d_lse = cotangent
    keys, values = _pad_keys(k), _pad_keys(v)
    scale = q.shape[-1] ** -0.5
    delta = (d_out * out).sum(-1) - d_lse  # [B, Q, M, R]
    to_scores = "bmqrs,bqmrd->bsmd"

    def query_tile(carry, tile):
        q_tile, cut, d_out_tile, lse_tile, delta_tile = tile
        lse_tile, delta_tile = (x.swapaxes(1, 2)[..., None] for x in (lse_tile, delta_tile))

        def key_tile(index, carry):
            d_q, d_k, d_v = carry
            key, value = _key_tile(keys, index), _key_tile(values, index)
            weights = jnp.exp(_scores(q_tile, key, cut, index * _BLOCK) - lse_tile)
            d_weights = jnp.einsum("bqmrd,bsmd->bmqrs", d_out_tile, value.astype(jnp.float32))
            d_scores = weights * (d_weights - delta_tile) * scale
            d_q += jnp.einsum("bmqrs,bsmd->bqmrd", d_scores, key.astype(jnp.float32))
            add = lambda total, part: jax.lax.dynamic_update_slice_in_dim(  # noqa: E731
                total, _key_tile(total, index) + part, index * _BLOCK, axis=1
            )
            d_k = add(d_k, jnp.einsum(to_scores, d_scores, q_tile.astype(jnp.float32)))
            d_v = add(d_v, jnp.einsum(to_scores, weights, d_out_tile))
            return d_q, d_k, d_v

        d_q = jnp.zeros(q_tile.shape, jnp.float32)
        d_q, *carry = jax.lax.fori_loop(0, _key_tiles(cut), key_tile, (d_q, *carry))
        return tuple(carry), d_q

    zeros = jnp.zeros(keys.shape, jnp.float32)
    tiles = (_tiles(q), _tiles(visible), _tiles(d_out), _tiles(lse), _tiles(delta))
    (d_k, d_v), d_q = jax.lax.scan(query_tile, (zeros, zeros), tiles)
    size = k.shape[1]
    return (
        _untile(d_q, q.shape[1]).astype(q.dtype),
        d_k[:, :size].astype(k.dtype),
        d_v[:, :size].astype(v.dtype),
        None,
    )


blockwise_attention.defvjp(_forward, _backward)
