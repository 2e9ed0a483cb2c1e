"""The early exit: the postfix after many prefixes of every completion, chunk by chunk.

The postfixes of all prefixes, and the answers after them, are extra query rows against one cache of
the completion, so no key or value is copied.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from iapo_jax.types import Array, Cache, Context, Model, Params, ProbePositions, Prompts

PROBE_TOKENS = 2**13
"""Probe tokens (of postfixes or answers) that each device computes at once."""


class Exit(NamedTuple):
    """The state of completions after the postfix, for c prefixes of each."""

    state: Array  # [P, G, c, D], predicts the first answer token
    contexts: Sequence[Context]  # read by the answer's other tokens: prompt, completion, postfix
    position: Array  # [P, G, c] int32, of the first answer token


def map_exits(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    positions: ProbePositions,
    read: Callable[[Exit], Array],
    *,
    width: int,
    answers: int = 0,
) -> Array:
    """Applies `read` to the exit at every position, chunk by chunk: [P, G, C(, answers)].

    Chunks beyond the last position of all completions are not computed.

    Args:
      width: tokens after the postfix that `read` computes at once for each position.
    """
    groups, columns = positions.count.shape, positions.index.shape[-1]
    per_position = groups[0] * groups[1] * max(postfix.shape[0], width)
    chunk = max(1, min(columns, model.devices * PROBE_TOKENS // per_position))
    chunks = -(-columns // chunk)
    chunk = -(-columns // chunks)  # of about equal sizes, since the last is computed in full
    extra = chunks * chunk - columns
    index = jnp.pad(positions.index, ((0, 0), (0, 0), (0, extra)), mode="edge")

    def compute_chunk(number: Array, out: Array) -> Array:
        prefix = jax.lax.dynamic_slice_in_dim(index, number * chunk, chunk, axis=2)
        found = read(open_exit(model, params, prompts, contexts, postfix, prefix))
        return jax.lax.dynamic_update_slice_in_dim(out, found, number * chunk, axis=2)

    shape = (*groups, chunks * chunk, answers) if answers else (*groups, chunks * chunk)
    needed = (positions.count.max() + chunk - 1) // chunk
    out = jax.lax.fori_loop(0, needed, compute_chunk, jnp.zeros(shape, jnp.float32))
    # Columns beyond a completion's last position repeat it, computed or not.
    column = jnp.minimum(jnp.arange(columns), positions.count[..., None] - 1)
    column = column[..., None] if answers else column
    return jnp.take_along_axis(out, column, axis=2)


def open_exit(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    prefix: Array,
) -> Exit:
    """Runs the postfix after the prefixes of `prefix` [P, G, c] tokens."""
    prompt, completion_cache = contexts
    size = postfix.shape[0]
    # The completion's first input is the last prompt token: t tokens are t + 1 inputs.
    completion = Context(completion_cache, prefix + 1)
    start = prompts.length[:, None, None] + prefix
    tokens = jnp.broadcast_to(postfix, (*prefix.shape, size))
    hidden, cache = model.forward(
        params,
        tokens,
        start[..., None] + jnp.arange(size),
        [prompt, completion],
        outputs_from=size - 1,
    )
    exit_context = Context(cache, jnp.int32(size))
    return Exit(hidden[..., 0, :], [prompt, completion, exit_context], start + size)


def map_pieces(read: Callable[[Exit], Array], exit: Exit, pieces: int) -> Array:
    """Applies `read` to an exit in `pieces` sequential chunks of positions, to limit memory.

    Returns [P, G, c].
    """
    columns = exit.position.shape[-1]
    size = -(-columns // pieces)
    pieces = -(-columns // size)  # fewer if rounding up to whole positions makes pieces larger
    if pieces == 1:
        return read(exit)

    def compute_piece(number: Array, out: Array) -> Array:
        start = jnp.minimum(number * size, columns - size)  # the last overlaps the one before
        found = read(_piece(exit, start, size))
        return jax.lax.dynamic_update_slice_in_dim(out, found, start, axis=2)

    return jax.lax.fori_loop(0, pieces, compute_piece, jnp.zeros(exit.position.shape, jnp.float32))


def _piece(exit: Exit, start: Array, size: int) -> Exit:
    """The `size` positions of an exit from `start` on."""
    take = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
    prompt, completion, postfix = exit.contexts
    contexts = [
        prompt,
        completion._replace(visible=take(completion.visible, axis=2)),
        postfix._replace(cache=jax.tree.map(partial(take, axis=-4), postfix.cache)),
    ]
    return Exit(take(exit.state, axis=2), contexts, take(exit.position, axis=2))
