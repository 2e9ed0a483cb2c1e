"""Log-probabilities of complete answers after an early exit, teacher-forced and in pieces."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from iapo_jax.information.early_exits import Exit, map_pieces
from iapo_jax.model.scoring import TokenScores, next_token_scores, token_scores
from iapo_jax.types import Answers, Array, Model, Params

ABSENT = -1e30  # log-probability of a missing answer; finite, so that 0 * it is 0
AT_ONCE = 8  # answer tokens per position at once; longer answers are read at fewer positions
_WIDTHS = (4, 8, 16, 32, 64, 128)  # answer widths in tokens; a branch is compiled for each up to A


def answer_log_probs(
    model: Model, params: Params, answers: Answers, at_once: int, exit: Exit
) -> Array:
    """log p of every answer after an exit: [P, G, c, Y].

    Args:
      at_once: tokens for each position, on average, that are computed at once; longer answers are
        read at fewer positions at a time.
    """
    weight = model.logit_weight(params)
    score = partial(token_scores, weight=weight, temperature=1.0, devices=model.devices)
    first = next_token_scores(exit.state, weight, answers.tokens[..., 0], devices=model.devices)
    total = first.log_prob
    if answers.tokens.shape[-1] > 1:
        read = partial(_log_prob_after_first, model, params, score, at_once, exit)

        def add(index: Array, total: Array) -> Array:
            tokens = jax.lax.dynamic_index_in_dim(answers.tokens, index, axis=2)
            length = jax.lax.dynamic_index_in_dim(answers.length, index, axis=2)[..., None]
            column = jax.lax.dynamic_index_in_dim(total, index, -1, False) + read(tokens, length)
            return jax.lax.dynamic_update_index_in_dim(total, column, index, -1)

        most = (answers.length > 0).sum(-1).max()
        total = jax.lax.fori_loop(0, most, add, total)
    return jnp.where(answers.length[:, :, None] > 0, total, ABSENT)


def _log_prob_after_first(
    model: Model,
    params: Params,
    score: Callable[..., TokenScores],
    at_once: int,
    exit: Exit,
    tokens: Array,
    length: Array,
) -> Array:
    """log p of the tokens of one answer [P, G or 1, 1, A] after its first: [P, G, c].

    Only as wide as the longest answer needs: a large A costs nothing if answers are short.
    """
    size = tokens.shape[-1]
    widths = [width for width in _WIDTHS if width < size] + [size]
    branches = []
    for width in widths:
        read = partial(_teacher_forced, model, params, score, tokens[..., :width], length)
        pieces = -(-(width - 1) // at_once)
        branches.append(partial(map_pieces, read, exit, pieces))
    narrowest = (length.max() > jnp.array(widths[:-1], jnp.int32)).sum()
    return jax.lax.switch(narrowest, branches)


def _teacher_forced(
    model: Model,
    params: Params,
    score: Callable[..., TokenScores],
    tokens: Array,
    length: Array,
    exit: Exit,
) -> Array:
    """log p of tokens 2 to `length` of one answer, summed: [P, G, c]."""
    size = tokens.shape[-1] - 1
    shape, offset = (*exit.position.shape, size), jnp.arange(size)
    hidden, _ = model.forward(
        params,
        jnp.broadcast_to(tokens[..., :-1], shape),
        exit.position[..., None] + offset,
        exit.contexts,
    )
    log_prob = score(hidden, tokens=jnp.broadcast_to(tokens[..., 1:], shape)).log_prob
    return jnp.where(offset + 1 < length, log_prob, 0.0).sum(-1)
