"""Where completions are probed, and how u_t is interpolated between these positions."""

import jax
import jax.numpy as jnp

from iapo_jax.types import Array, ProbePositions


def every_prefix(length: Array, size: int) -> ProbePositions:
    """All prefixes of each completion, of 0 to `length` tokens.

    Args:
      length: [P, G] tokens.
      size: T.

    Returns:
      Positions of C = T + 1 columns.

    >>> print(every_prefix(jnp.array([[2]]), 3))
    ProbePositions(index=Array([[[0, 1, 2, 2]]], dtype=int32), count=Array([[3]], dtype=int32))
    """
    return choose_positions(length, size)


def choose_positions(
    length: Array, size: int, *, stride: int = 1, boundary: Array | None = None
) -> ProbePositions:
    """Positions before the first token, after some tokens, and after the last of `length`.

    Args:
      length: [P, G], how many tokens are probed, such as those of the thinking; 0 gives the empty
        prefix alone.
      size: T.
      stride: probe after every `stride` tokens.
      boundary: [P, G, T] bool; instead of `stride`, probe after the tokens where it is True, for
        example the ends of sentences.

    Returns:
      Positions of C = T + 1 columns.

    >>> found = choose_positions(jnp.array([[5, 0]]), 6, stride=2)
    >>> found.index[0, 0].tolist(), found.count.tolist()
    ([0, 2, 4, 5, 5, 5, 5], [[4, 1]])
    """
    prefix = jnp.arange(size + 1)
    if boundary is None:
        after = jnp.broadcast_to(prefix % stride == 0, (*length.shape, size + 1))
    else:
        after = jnp.pad(boundary, ((0, 0), (0, 0), (1, 0)), constant_values=True)
    last = length[..., None]
    chosen = (after & (prefix < last)) | (prefix == last)
    index = jnp.sort(jnp.where(chosen, prefix, last), axis=-1)
    return ProbePositions(index.astype(jnp.int32), chosen.sum(-1, dtype=jnp.int32))


def interpolate(uncertainty: Array, positions: ProbePositions, size: int) -> Array:
    """u after all T+1 prefixes from u at the positions: [P, G, C] -> [P, G, T+1] nats.

    Linear between two positions: the information of a segment is shared equally among its tokens,
    so its sum is preserved. After the last position u is constant: tokens there carry nothing.

    >>> positions = choose_positions(jnp.array([[4]]), 5, stride=2)
    >>> print(interpolate(jnp.array([[[3.0, 1.0, 0.5, 0.5, 0.5, 0.5]]]), positions, 5))
    [[[3.   2.   1.   0.75 0.5  0.5 ]]]
    """
    prefix = jnp.arange(size + 1)
    search = jax.vmap(jax.vmap(lambda row: jnp.searchsorted(row, prefix)))
    # The first position at or after each prefix, and the one before it.
    after = jnp.minimum(search(positions.index), positions.count[..., None] - 1)
    before = jnp.maximum(after - 1, 0)
    start, low = (jnp.take_along_axis(x, before, axis=-1) for x in (positions.index, uncertainty))
    end, high = (jnp.take_along_axis(x, after, axis=-1) for x in (positions.index, uncertainty))
    share = (prefix - start) / jnp.maximum(end - start, 1)
    return jnp.where(prefix >= end, high, low + share * (high - low))
