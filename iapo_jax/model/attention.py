"""Attention of new tokens over several segments of keys, joined exactly.

A segment is a block of keys; each query reads those before its own limit. Prompts, the completion
so far, a completion seen up to a probed prefix and the causal block of the new tokens themselves
are all segments; they differ only in the limits. Per segment

    out = softmax(q k^T / sqrt(d)) v,    lse = logsumexp(q k^T / sqrt(d)),

and segments join as  out = sum_i exp(lse_i - lse) out_i,  lse = logsumexp_i lse_i.

A segment with few scores is computed by one softmax, others tile by tile; `choose_form` selects
the tiled implementation for the backend.
"""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as Spec

from iapo_jax.model import attention_kernels
from iapo_jax.sharding import BATCH_AXES, batch_devices, is_described
from iapo_jax.types import Array

_EMPTY = -1e30  # score of a key that a query may not read; finite, so that 0 keys give no NaN
QUERY_TILE = 256  # queries in a tile of the blockwise form; smaller tiles leave CPU cores waiting
KEY_TILE = 128  # keys in a tile; a query tile may compute up to this many beyond its last limit
DENSE_SCORES = 128 * 1024  # maximum per head and row in one softmax, unless keys fit in a tile


class Segment(NamedTuple):
    """Keys and values shared by all queries of a row, and how many of them each query reads.

    For queries of shape [*rows, *rest, H, d], `keys` is [*rows, S, M, d]: a segment may have fewer
    leading axes than the queries, and is then shared along the other axes. `visible` broadcasts to
    [*rows, *rest]; a query reads the keys 0 .. visible-1.
    """

    keys: Array  # [*rows, S, M, d]
    values: Array  # [*rows, S, M, d]
    visible: Array  # int32, broadcastable to the queries' leading axes


def attend(
    query: Array,
    segments: Sequence[Segment],
    *,
    mesh: Mesh | None = None,
    implementation: str = "auto",
) -> Array:
    """Exact attention of every query over the union of its visible keys.

    Args:
      query: [..., H, d]; H is a multiple of the key heads M, grouped key-head-major.
      segments: at least one; every query must read at least one key in one of them.
      mesh: splits the first axis and the heads; None on a single device.
      implementation: "auto", the backend's own kernel if it works, else XLA's loops; or "xla".

    Returns:
      [..., H, d] in the dtype of `query`; scores, softmax and the join are float32.

    Raises:
      AssertionError: if the leading axes or the numbers of heads do not fit.

    >>> segment = Segment(keys=jnp.zeros((1, 2, 1, 4)), values=jnp.arange(8.0).reshape(1, 2, 1, 4),
    ...                   visible=jnp.array([[1, 2]]))
    >>> print(attend(jnp.ones((1, 2, 1, 4)), [segment])[0, :, 0])
    [[0. 1. 2. 3.]
     [2. 3. 4. 5.]]
    """
    tiled = choose_form(implementation, mesh, query.shape[-1])
    parts = [_segment_attention(query, segment, tiled) for segment in segments]
    if len(parts) == 1:
        return parts[0][0].astype(query.dtype)
    lse = functools.reduce(jnp.logaddexp, [lse for _, lse in parts])
    return sum(out * jnp.exp(part - lse)[..., None] for out, part in parts).astype(query.dtype)


Attention = Callable[[Array, Array, Array, Array], tuple[Array, Array]]
# (q [B,Q,M,R,d], k and v [B,S,M,d], visible [B,Q]) -> (out [B,Q,M,R,d], lse [B,Q,M,R]), float32


def choose_form(implementation: str, mesh: Mesh | None, width: int) -> Attention:
    """The tiled form: the backend's kernel if it works on the device, otherwise XLA's loops."""
    described = mesh is not None and is_described(mesh)
    device = mesh.devices.flat[0] if described else None
    platform = device.platform if described else jax.default_backend()
    own = {"gpu": attention_kernels.gpu_attention, "tpu": attention_kernels.tpu_attention}.get(
        platform
    )
    if (
        implementation == "xla"
        or own is None
        or not attention_kernels.works(platform, width, device)
    ):
        return blockwise_attention
    return partial(kernel_attention, own, mesh)


def _segment_attention(query: Array, segment: Segment, tiled: Attention) -> tuple[Array, Array]:
    """Folds the queries of a row into [B, Q, M, R, d], attends, and unfolds."""
    *rows, keys_per_row, key_heads, width = segment.keys.shape
    *lead, heads, _ = query.shape
    chex.assert_equal(tuple(lead[: len(rows)]), tuple(rows))
    chex.assert_is_divisible(heads, key_heads)
    batch, queries = math.prod(rows), math.prod(lead[len(rows) :])
    q = query.reshape(batch, queries, key_heads, heads // key_heads, width)
    k, v = (x.reshape(batch, keys_per_row, key_heads, width) for x in segment[:2])
    visible = jnp.broadcast_to(segment.visible, lead).reshape(batch, queries)
    dense = queries * keys_per_row <= DENSE_SCORES or keys_per_row <= KEY_TILE
    out, lse = (dense_attention if dense else tiled)(q, k, v, visible)
    return out.reshape(query.shape), lse.reshape(*lead, heads)


def dense_attention(q: Array, k: Array, v: Array, visible: Array) -> tuple[Array, Array]:
    """softmax(q k^T / sqrt(d)) v and the log-sum-exp of its scores, by one softmax over all scores.

    Args:
      q: [B, Q, M, R, d].
      k, v: [B, S, M, d].
      visible: [B, Q] int32; a query reads the keys 0 .. visible-1.

    Returns:
      out [B, Q, M, R, d] and lse [B, Q, M, R], both float32. lse is about -1e30 where nothing is
      visible, so that the segment vanishes in a join.

    >>> q, k, v = jnp.ones((1, 1, 1, 1, 4)), jnp.zeros((1, 2, 1, 4)), jnp.ones((1, 2, 1, 4))
    >>> out, lse = dense_attention(q, k, v, jnp.array([[2]]))
    >>> print(out.ravel(), jnp.exp(lse).ravel())
    [1. 1. 1. 1.] [2.]
    """
    dot = partial(jnp.einsum, "bqmrd,bsmd->bmqrs", preferred_element_type=jnp.float32)
    readable = jnp.arange(k.shape[1]) < visible[..., None]  # [B, Q, S]
    scores = dot(q, k) * q.shape[-1] ** -0.5
    scores = jnp.where(readable[:, None, :, None, :], scores, _EMPTY)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(v.dtype)
    out = jnp.einsum("bmqrs,bsmd->bqmrd", weights, v, preferred_element_type=jnp.float32)
    return out, lse.swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def kernel_attention(
    kernel: Attention, mesh: Mesh | None, q: Array, k: Array, v: Array, visible: Array
) -> tuple[Array, Array]:
    """`blockwise_attention` whose forward pass is `kernel`, run by each device on its own part.

    XLA cannot split a kernel, so XLA's loops run instead if rows or heads do not divide evenly
    among the devices.
    """
    return _kernel_forward(kernel, mesh, q, k, v, visible)[0]


def _kernel_forward(kernel, mesh, q, k, v, visible):
    if mesh is not None and mesh.size > 1:
        if q.shape[0] % batch_devices(mesh) or q.shape[2] % mesh.shape["tensor"]:
            return _forward(q, k, v, visible)
        heads, rows = Spec(BATCH_AXES, None, "tensor"), Spec(BATCH_AXES)
        kernel = jax.shard_map(
            kernel,
            mesh=mesh,
            in_specs=(heads, heads, heads, rows),
            out_specs=(heads, heads),
            check_vma=False,
        )
    out, lse = kernel(q, k, v, visible)
    return (out, lse), (q, k, v, visible, out, lse)


@jax.custom_vjp
def blockwise_attention(q: Array, k: Array, v: Array, visible: Array) -> tuple[Array, Array]:
    """`dense_attention` without the score matrix: tiles of queries stream over tiles of keys.

    Keys beyond what any query of a tile reads are never multiplied, so a causal segment costs
    half, and a probe costs only its prefix. Differentiable in q, k and v, also through lse:
    ds = p (dp - <do, o> + dlse). arXiv:2205.14135.

    >>> q, k, v = jnp.ones((1, 1, 1, 1, 4)), jnp.zeros((1, 2, 1, 4)), jnp.ones((1, 2, 1, 4))
    >>> out, lse = blockwise_attention(q, k, v, jnp.array([[2]]))
    >>> print(out.ravel(), jnp.exp(lse).ravel())
    [1. 1. 1. 1.] [2.]
    """
    return _forward(q, k, v, visible)[0]


def _query_tiles(x: Array) -> Array:
    """[B, Q, M, R, ...] -> [tiles, B, M, n, ...], n = QUERY_TILE * R rows of one matrix."""
    batch, size, heads, rest, *width = x.shape
    x = jnp.pad(x, ((0, 0), (0, -size % QUERY_TILE), *[(0, 0)] * (x.ndim - 2)))
    x = x.reshape(batch, -1, QUERY_TILE, heads, rest, *width)
    x = jnp.moveaxis(x, (1, 0, 3), (0, 1, 2))  # [tiles, B, M, QUERY_TILE, R, ...]
    return x.reshape(*x.shape[:3], QUERY_TILE * rest, *width)


def _join_tiles(tiles: Array, like: Array) -> Array:
    """The inverse of `_query_tiles`, for queries of the shape of `like` [B, Q, M, R, d]."""
    batch, size, heads, rest, _ = like.shape
    x = tiles.reshape(-1, batch, heads, QUERY_TILE, rest, *tiles.shape[4:])
    x = jnp.moveaxis(x, (0, 1, 2), (1, 0, 3))  # [B, tiles, QUERY_TILE, M, R, ...]
    return x.reshape(batch, -1, heads, rest, *tiles.shape[4:])[:, :size]


def _keys_first(x: Array) -> Array:
    """[B, S, M, d] -> [B, M, S, d], S padded to a multiple of KEY_TILE."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % KEY_TILE), (0, 0), (0, 0)))
    return x.swapaxes(1, 2)


def _limits(visible: Array, rest: int) -> tuple[Array, Array]:
    """For each tile: the limits of its rows [tiles, B, 1, n, 1], and the key tiles that they span.

    Computed for all tiles at once, since each maximum is a collective on a mesh.
    """
    limits = jnp.broadcast_to(visible[:, :, None, None], (*visible.shape, 1, rest))
    limits = _query_tiles(limits)
    return limits[..., None], (limits.max((1, 2, 3)) + KEY_TILE - 1) // KEY_TILE


def _key_tile(x: Array, index: Array) -> Array:
    return jax.lax.dynamic_slice_in_dim(x, index * KEY_TILE, KEY_TILE, axis=2)


def _tile_scores(query: Array, key: Array, limit: Array, index: Array) -> Array:
    """[B, M, n, KEY_TILE] float32 scores of one tile of queries with one of keys."""
    dot = partial(jnp.einsum, "bmnd,bmsd->bmns", preferred_element_type=jnp.float32)
    scores = dot(query, key) * query.shape[-1] ** -0.5
    return jnp.where(index * KEY_TILE + jnp.arange(KEY_TILE) < limit, scores, _EMPTY)


def _forward(q, k, v, visible):
    keys, values = _keys_first(k), _keys_first(v)
    mix = partial(jnp.einsum, "bmns,bmsd->bmnd", preferred_element_type=jnp.float32)

    def query_tile(tile):
        query, limit, last = tile

        def key_tile(index, carry):
            out, top, total = carry
            scores = _tile_scores(query, _key_tile(keys, index), limit, index)
            new_top = jnp.maximum(top, scores.max(-1))
            shrink = jnp.exp(top - new_top)
            weights = jnp.exp(scores - new_top[..., None])
            mixed = mix(weights.astype(v.dtype), _key_tile(values, index))
            return out * shrink[..., None] + mixed, new_top, total * shrink + weights.sum(-1)

        zeros = jnp.zeros(query.shape[:-1], jnp.float32)
        start = (jnp.zeros(query.shape, jnp.float32), zeros + _EMPTY, zeros)
        out, top, total = jax.lax.fori_loop(0, last, key_tile, start)
        total = jnp.maximum(total, 1e-30)  # for a tile in which no query reads any key
        return out / total[..., None], top + jnp.log(total)

    tiles = jax.lax.map(query_tile, (_query_tiles(q), *_limits(visible, q.shape[3])))
    out, lse = (_join_tiles(x, q) for x in tiles)
    return (out, lse), (q, k, v, visible, out, lse)


def _backward(saved, cotangent):
    q, k, v, visible, out, lse = saved
    d_out, d_lse = cotangent
    keys, values = (_keys_first(x).astype(jnp.float32) for x in (k, v))
    scale = q.shape[-1] ** -0.5
    delta = (d_out * out).sum(-1) - d_lse  # [B, Q, M, R]

    def query_tile(carry, tile):
        query, limit, last, d_out_tile, lse_tile, delta_tile = tile
        query = query.astype(jnp.float32)

        def key_tile(index, carry):
            d_q, d_k, d_v = carry
            key = _key_tile(keys, index)
            weights = jnp.exp(_tile_scores(query, key, limit, index) - lse_tile[..., None])
            d_weights = jnp.einsum("bmnd,bmsd->bmns", d_out_tile, _key_tile(values, index))
            d_scores = weights * (d_weights - delta_tile[..., None]) * scale
            d_q += jnp.einsum("bmns,bmsd->bmnd", d_scores, key)

            def add(total, part):
                tile = _key_tile(total, index) + part
                return jax.lax.dynamic_update_slice_in_dim(total, tile, index * KEY_TILE, axis=2)

            d_k = add(d_k, jnp.einsum("bmns,bmnd->bmsd", d_scores, query))
            d_v = add(d_v, jnp.einsum("bmns,bmnd->bmsd", weights, d_out_tile))
            return d_q, d_k, d_v

        d_q = jnp.zeros(query.shape, jnp.float32)
        d_q, *carry = jax.lax.fori_loop(0, last, key_tile, (d_q, *carry))
        return tuple(carry), d_q

    zeros = jnp.zeros(keys.shape, jnp.float32)
    tiles = (_query_tiles(q), *_limits(visible, q.shape[3]))
    tiles += tuple(_query_tiles(x) for x in (d_out, lse, delta))
    (d_k, d_v), d_q = jax.lax.scan(query_tile, (zeros, zeros), tiles)
    size = k.shape[1]
    return (
        _join_tiles(d_q, q).astype(q.dtype),
        d_k.swapaxes(1, 2)[:, :size].astype(k.dtype),
        d_v.swapaxes(1, 2)[:, :size].astype(v.dtype),
        None,
    )


blockwise_attention.defvjp(_forward, _backward)


kernel_attention.defvjp(_kernel_forward, lambda kernel, mesh, *rest: _backward(*rest))
