"""Attention of one segment as GPU and TPU kernels. The only module that imports Pallas.

Both compute what `attention.blockwise_attention` computes, from a limit for every query:

    out_i = sum_{j < visible_i} softmax(q_i k_j / sqrt(d)) v_j,    lse_i its log-sum-exp.

Queries and their heads are rows of one matrix; key tiles beyond the largest limit of a query tile
are neither loaded nor multiplied. JAX's own splash attention for TPU fixes its mask when it is
traced, or takes a full [heads, Q, S] mask. Here limits are data: a chunk of probes starts at an
index that a loop computes, and boundary probes may be anywhere.

The GPU kernel gave correct results on an H200; the TPU kernel was only compiled, for v4 to v6e.
Neither is tuned. `works` tries a kernel on the device at hand, and `attention.choose_form` falls
back to XLA's loops if the kernel fails or is inaccurate.
"""

import functools
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from iapo_jax.types import Array

_EMPTY = -1e30  # as in attention: the score of a key that may not be read
GPU_ROWS, GPU_KEYS = 64, 64  # of one tile
TPU_ROWS, TPU_KEYS = 256, 256
TOLERANCES = {jnp.float32: 1e-4, jnp.bfloat16: 3e-2}  # bfloat16 rounds weights to 8 bits


def gpu_attention(
    q: Array, k: Array, v: Array, visible: Array, *, interpret: bool = False
) -> tuple[Array, Array]:
    """q [B,Q,M,R,d], k and v [B,S,M,d], visible [B,Q] -> (out [B,Q,M,R,d], lse [B,Q,M,R]) float32.

    One program for each tile of queries and key head. It needs JAX's Triton backend, which
    is deprecated in 0.12; `works` is False without it.
    """
    from jax.experimental.pallas import triton as plgpu

    width = max(16, pl.next_power_of_2(q.shape[-1]))
    rows, keys, values, limits, last = _folded(q, k, v, visible, GPU_ROWS, GPU_KEYS, width)
    batch, heads, size, _ = rows.shape
    grid = (size // GPU_ROWS, batch, heads)
    tile = pl.BlockSpec((None, None, GPU_ROWS, width), lambda i, b, m: (b, m, i, 0))
    whole = pl.BlockSpec((None, None, keys.shape[2], width), lambda i, b, m: (b, m, 0, 0))
    line = pl.BlockSpec((None, None, GPU_ROWS), lambda i, b, m: (b, m, i))
    out, lse = pl.pallas_call(
        functools.partial(_gpu_kernel, scale=q.shape[-1] ** -0.5),
        grid=grid,
        in_specs=[
            tile,
            whole,
            whole,
            pl.BlockSpec((None, GPU_ROWS), lambda i, b, m: (b, i)),
            pl.BlockSpec((None, None), lambda i, b, m: (b, i)),
        ],
        out_specs=[tile, line],
        out_shape=[
            jax.ShapeDtypeStruct(rows.shape, jnp.float32),
            jax.ShapeDtypeStruct(rows.shape[:-1], jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=4 if width <= 64 else 8, num_stages=2),
        interpret=interpret,
        name="cut_attention",
    )(rows, keys, values, limits, last)
    return _unfolded(out, q), _unfolded(lse[..., None], q)[..., 0]


def _gpu_kernel(q_ref, k_ref, v_ref, limit_ref, last_ref, out_ref, lse_ref, *, scale):
    query, limit = q_ref[...], limit_ref[...]

    def key_tile(index, carry):
        out, top, total = carry
        span = pl.dslice(index * GPU_KEYS, GPU_KEYS)
        scores = _dot(query, k_ref[span, :], (1, 1)) * scale
        column = index * GPU_KEYS + jnp.arange(GPU_KEYS)
        scores = jnp.where(column[None, :] < limit[:, None], scores, _EMPTY)
        new_top = jnp.maximum(top, scores.max(1))
        shrink = jnp.exp(top - new_top)
        weights = jnp.exp(scores - new_top[:, None])
        mixed = _dot(weights.astype(v_ref.dtype), v_ref[span, :], (1, 0))
        return out * shrink[:, None] + mixed, new_top, total * shrink + weights.sum(1)

    zeros = jnp.zeros(query.shape[:1], jnp.float32)
    start = (jnp.zeros(query.shape, jnp.float32), zeros + _EMPTY, zeros)
    out, top, total = jax.lax.fori_loop(0, last_ref[...], key_tile, start)
    total = jnp.maximum(total, 1e-30)
    out_ref[...] = out / total[:, None]
    lse_ref[...] = top + jnp.log(total)


def tpu_attention(
    q: Array, k: Array, v: Array, visible: Array, *, interpret: bool = False
) -> tuple[Array, Array]:
    """q [B,Q,M,R,d], k and v [B,S,M,d], visible [B,Q] -> (out [B,Q,M,R,d], lse [B,Q,M,R]) float32.

    Scores are [keys, queries], so that a limit is one lane. Key tiles are the innermost axis of the
    grid; a tile that is not read is not fetched.
    """
    width = -(-q.shape[-1] // 64) * 64
    rows, keys, values, limits, last = _folded(q, k, v, visible, TPU_ROWS, TPU_KEYS, width)
    batch, heads, size, _ = rows.shape
    grid = (batch, heads, size // TPU_ROWS, keys.shape[2] // TPU_KEYS)

    def read(b, i, j, last):  # instead of a tile that is not read, the last one again: no copy
        return jnp.minimum(j, jnp.maximum(last[b, i] - 1, 0))

    spec = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1,
        grid=grid,
        in_specs=[
            pl.BlockSpec((None, None, TPU_ROWS, width), lambda b, m, i, j, last: (b, m, i, 0)),
            pl.BlockSpec(
                (None, None, TPU_KEYS, width),
                lambda b, m, i, j, last: (b, m, read(b, i, j, last), 0),
            ),
            pl.BlockSpec(
                (None, None, width, TPU_KEYS),
                lambda b, m, i, j, last: (b, m, 0, read(b, i, j, last)),
            ),
            pl.BlockSpec((None, 1, TPU_ROWS), lambda b, m, i, j, last: (b, 0, i)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, width, TPU_ROWS), lambda b, m, i, j, last: (b, m, 0, i)),
            pl.BlockSpec((None, None, 1, TPU_ROWS), lambda b, m, i, j, last: (b, m, 0, i)),
        ],
        scratch_shapes=[
            pltpu.VMEM((width, TPU_ROWS), jnp.float32),
            pltpu.VMEM((1, TPU_ROWS), jnp.float32),
            pltpu.VMEM((1, TPU_ROWS), jnp.float32),
        ],
    )
    out, lse = pl.pallas_call(
        functools.partial(_tpu_kernel, scale=q.shape[-1] ** -0.5),
        grid_spec=spec,
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, width, size), jnp.float32),
            jax.ShapeDtypeStruct((batch, heads, 1, size), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")
        ),
        interpret=interpret,
        name="cut_attention",
    )(last, rows, keys, values.swapaxes(2, 3), limits[:, None])
    return _unfolded(out.swapaxes(2, 3), q), _unfolded(lse.swapaxes(2, 3), q)[..., 0]


def _tpu_kernel(
    last_ref, q_ref, k_ref, v_ref, limit_ref, out_ref, lse_ref, acc, top, total, *, scale
):
    batch, tile, index = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(index == 0)
    def _():
        acc[...] = jnp.zeros(acc.shape, jnp.float32)
        top[...] = jnp.full(top.shape, _EMPTY, jnp.float32)
        total[...] = jnp.zeros(total.shape, jnp.float32)

    @pl.when(index < last_ref[batch, tile])
    def _():
        scores = _dot(k_ref[...], q_ref[...], (1, 1)) * scale  # [keys, queries]
        key = index * TPU_KEYS + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        scores = jnp.where(key < limit_ref[...], scores, _EMPTY)
        new_top = jnp.maximum(top[...], scores.max(0, keepdims=True))
        shrink = jnp.exp(top[...] - new_top)
        weights = jnp.exp(scores - new_top)
        acc[...] = acc[...] * shrink + _dot(v_ref[...], weights.astype(v_ref.dtype), (1, 0))
        total[...] = total[...] * shrink + weights.sum(0, keepdims=True)
        top[...] = new_top

    @pl.when(index == pl.num_programs(3) - 1)
    def _():
        safe = jnp.maximum(total[...], 1e-30)
        out_ref[...] = acc[...] / safe
        lse_ref[...] = top[...] + jnp.log(safe)


def _dot(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    """A float32 product: in full precision for float32 matrices, without casts for bfloat16."""
    exact = left.dtype == jnp.float32
    return jax.lax.dot_general(
        left,
        right,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _folded(q: Array, k: Array, v: Array, visible: Array, rows: int, keys: int, width: int):
    """Rows [B,M,N,w], keys and values [B,M,S,w], limits [B,N], and key tiles read [B, N / rows].

    N = Q R; all padded to full tiles of `rows` and `keys`, and to `width`.
    """
    batch, size, heads, rest, narrow = q.shape
    q = q.swapaxes(1, 2).reshape(batch, heads, size * rest, narrow)
    limits = jnp.repeat(visible.astype(jnp.int32), rest, axis=1)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, -q.shape[2] % rows), (0, width - narrow)))
    limits = jnp.pad(limits, ((0, 0), (0, -limits.shape[1] % rows)))
    pad = ((0, 0), (0, 0), (0, -k.shape[1] % keys), (0, width - narrow))
    k, v = (jnp.pad(x.swapaxes(1, 2), pad) for x in (k, v))
    last = (limits.reshape(batch, -1, rows).max(-1) + keys - 1) // keys
    return q, k, v, limits, last


def _unfolded(x: Array, like: Array) -> Array:
    """[B,M,N,w] -> [B,Q,M,R,w or d], for queries of the shape of `like` [B,Q,M,R,d]."""
    batch, size, heads, rest, width = like.shape
    x = x[:, :, : size * rest, :width]
    return x.reshape(batch, heads, size, rest, x.shape[-1]).swapaxes(1, 2)


@functools.cache
def works(platform: str, width: int, described: jax.Device | None = None) -> bool:
    """Whether this platform's kernel compiles and is accurate for heads of `width` on this device.

    Tried once per process and width, in float32 and bfloat16; warns in one sentence if it fails.
    False if the platform is not JAX's backend. For a `described` device, which is absent, it
    reports whether the kernel compiles.
    """
    kernel = {"gpu": gpu_attention, "tpu": tpu_attention}.get(platform)
    if kernel is None or (described is None and jax.default_backend() != platform):
        return False
    trial = largest_error if described is None else functools.partial(_compiled, described)
    try:
        # The caller is being traced; another thread is not. Under `ensure_compile_time_eval`
        # Pallas could not trace its kernels.
        with ThreadPoolExecutor(1) as alone:
            trials = [alone.submit(trial, kernel, width, dtype) for dtype in TOLERANCES]
            errors = [trial.result() for trial in trials]
    except Exception as error:  # whatever a compiler may raise
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        warnings.warn(
            f"falling back to XLA attention: the {platform} attention kernel fails for head_dim "
            f"{width}: {reason}",
            stacklevel=2,
        )
        return False
    accurate = all(e <= most for e, most in zip(errors, TOLERANCES.values(), strict=True))
    if not accurate:
        warnings.warn(
            f"falling back to XLA attention: the {platform} attention kernel is inaccurate for "
            f"head_dim {width}: its errors are {errors}; expected at most "
            f"{list(TOLERANCES.values())}",
            stacklevel=2,
        )
    return accurate


def _trial_shapes(width: int) -> tuple[tuple[int, ...], ...]:
    return (1, 70, 2, 3, width), (1, 150, 2, width), (1, 150, 2, width)


def _compiled(device: jax.Device, kernel, width: int, dtype) -> float:
    """Returns 0 if the test case compiles for the device; raises otherwise."""
    place = jax.sharding.SingleDeviceSharding(device)
    shaped = functools.partial(jax.ShapeDtypeStruct, sharding=place)
    given = [shaped(shape, dtype) for shape in _trial_shapes(width)]
    jax.jit(kernel).lower(*given, shaped((1, 70), jnp.int32)).compile()
    return 0.0


def largest_error(kernel, width: int, dtype) -> float:
    """Maximum error against a plain softmax on a small case, in which some queries read no key.

    Infinite if a result is not finite, or if a query without keys would contribute to a join.
    """
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, _trial_shapes(width), strict=True)
    )
    visible = (jnp.arange(70) * 37 % 151)[None]  # the first reads nothing
    out, lse = jax.jit(kernel)(q, k, v, visible)
    wide = [x.astype(jnp.float32) for x in (q, k, v)]
    scores = jnp.einsum("bqmrd,bsmd->bqmrs", wide[0], wide[1], precision="highest") * width**-0.5
    readable = jnp.arange(150) < visible[..., None]
    scores = jnp.where(readable[:, :, None, None], scores, _EMPTY)
    want = jnp.einsum("bqmrs,bsmd->bqmrd", jax.nn.softmax(scores), wide[2], precision="highest")
    seen = visible[..., None, None] > 0
    off = jnp.where(seen[..., None], jnp.abs(out - want), 0.0).max()
    lse_off = jnp.where(seen, jnp.abs(lse - jax.nn.logsumexp(scores, axis=-1)), 0.0).max()
    sound = jnp.isfinite(out).all() & jnp.isfinite(lse).all() & (seen | (lse < _EMPTY / 10)).all()
    return float(jnp.where(sound, jnp.maximum(off, lse_off), jnp.inf))
