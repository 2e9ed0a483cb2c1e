"""Answer information: what each token tells about the final answer.

After every probed prefix of a completion the model is made to answer at once: the exit postfix is
appended, and what the model then says is read in one of three ways, each an uncertainty u_t in nats
about the answer y after t tokens (`ESTIMATORS`):

    answer_entropy      H(first answer token | q, o_<=t, postfix)          arXiv:2602.19049
    answer_log_prob     -log p(y* | q, o_<=t, postfix), y* a whole reference answer
    answer_set_entropy  H(y | q, o_<=t, postfix), y one of a set of whole answers

Token t carries s_t = u_{t-1} - u_t nats. The postfixes of all prefixes, and the answers behind
them, are extra query rows against one cache of the completion: no key or value is copied.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from iapo_jax.model.scoring import next_token_scores, token_scores
from iapo_jax.types import Answers, Array, Cache, Context, Model, Params, ProbePositions, Prompts

_PROBE_TOKENS = 2**13  # tokens behind the cuts computed at once on each device


_WIDTHS = (4, 8, 16, 32, 64, 128)  # tokens of an answer, one program for each up to A


_ABSENT = -1e30  # log-probability of an answer that is not there; finite, so that 0 * it is 0


class Probe(NamedTuple):
    """What is asked, and where."""

    postfix: Array  # [K] int32, K >= 1: the early exit
    positions: ProbePositions
    answers: Answers | None = None  # for the estimators that look at whole answers


class Exit(NamedTuple):
    """Completions, cut at c places each, after the postfix."""

    state: Array  # [P, G, c, D], predicts the first answer token
    contexts: Sequence[Context]  # what the answer's other tokens read: prompt, completion, postfix
    position: Array  # [P, G, c] int32, of the first answer token


# ------------------------------------------------------------------------- the estimators


def answer_entropy(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    positions: ProbePositions,
) -> Array:
    """u_t = H(first answer token | q, o_<=t, postfix), full vocabulary, temperature 1.

    Args:
      contexts: the prompts as `scoring.prefill` gives them, and the cache of the completions'
        T+1 inputs (`scoring.forward_completions`).
      postfix: [K] int32, K >= 1.
      positions: `every_prefix` or `choose_positions`.

    Returns:
      [P, G, C] float32 nats, a column for each of the positions.
    """

    def entropy(exit: Exit) -> Array:
        nothing = jnp.zeros((1, 1, 0), jnp.int32)
        weight = model.logit_weight(params)
        return next_token_scores(exit.state, weight, nothing, devices=model.devices).entropy

    return _at_positions(model, params, prompts, contexts, postfix, positions, entropy, width=0)


def answer_log_probs(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    positions: ProbePositions,
    answers: Answers,
) -> Array:
    """log p(y | q, o_<=t, postfix) of whole answers: the sum over their tokens, temperature 1.

    Arguments as for `answer_entropy`. Returns [P, G, C, Y] float32 nats; -1e30 for an answer that
    is not there (length 0).
    """
    tokens, length = answers.tokens, answers.length
    size, width = tokens.shape[-2:]
    at_once = min(width, _WIDTHS[1]) - 1
    weight = model.logit_weight(params)
    most = (length > 0).sum(-1).max()

    def rest(exit: Exit, index: Array) -> Array:
        """Log-probability of the tokens of answer `index` behind its first: [P, G, c]."""
        y = jax.lax.dynamic_index_in_dim(tokens, index, axis=2)  # [P, G or 1, 1, A]
        past = jax.lax.dynamic_index_in_dim(length, index, axis=2)[..., None]

        def teacher_force(width: int, exit: Exit) -> Array:
            shape = (*exit.position.shape, width - 1)
            offset = jnp.arange(width - 1)
            hidden, _ = model.forward(
                params,
                jnp.broadcast_to(y[..., : width - 1], shape),
                exit.position[..., None] + offset,
                exit.contexts,
            )
            target = jnp.broadcast_to(y[..., 1:width], shape)
            scores = token_scores(hidden, weight, target, 1.0, devices=model.devices)
            return jnp.where(offset + 1 < past, scores.log_prob, 0.0).sum(-1)

        def branch(width: int) -> Callable[[], Array]:
            pieces = -(-(width - 1) // max(at_once, postfix.shape[0]))
            return partial(_in_pieces, partial(teacher_force, width), exit, pieces)

        # As wide as the longest one needs: a large A costs nothing while answers are short.
        widths = [w for w in _WIDTHS if w < width] + [width]
        narrowest = (past.max() > jnp.array(widths[:-1], jnp.int32)).sum()
        return jax.lax.switch(narrowest, [branch(w) for w in widths])

    def log_probs(exit: Exit) -> Array:
        first = next_token_scores(exit.state, weight, tokens[..., 0], devices=model.devices)
        total = first.log_prob
        if width > 1:

            def add(index: Array, total: Array) -> Array:
                more = jax.lax.dynamic_index_in_dim(total, index, -1, False) + rest(exit, index)
                return jax.lax.dynamic_update_index_in_dim(total, more, index, -1)

            total = jax.lax.fori_loop(0, most, add, total)
        return jnp.where(length[:, :, None] > 0, total, _ABSENT)

    return _at_positions(
        model, params, prompts, contexts, postfix, positions, log_probs, width=at_once, answers=size
    )


def answer_log_prob(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    positions: ProbePositions,
    answers: Answers,
) -> Array:
    """u_t = -log p(y* | q, o_<=t, postfix), y* the first of `answers`: pointwise information.

    Arguments as for `answer_log_probs`. Returns [P, G, C] float32 nats; 0 everywhere for a
    completion without a reference answer: its tokens carry nothing.
    """
    first = Answers(*(leaf[:, :, :1] for leaf in answers))
    log_p = answer_log_probs(model, params, prompts, contexts, postfix, positions, first)[..., 0]
    return jnp.where(first.length > 0, -log_p, 0.0)


def answer_set_entropy(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    positions: ProbePositions,
    answers: Answers,
) -> Array:
    """u_t = -sum_m q_t(m) log q_t(m),  q_t(m) = sum_{y means m} p_t(y) / sum_y p_t(y).

    p_t(y) is `answer_log_probs`; answers of one `meaning`, such as 1000 and 1,000, are one event.
    At most log of the number of meanings; 0 where there is one alone, or none.

    Arguments as for `answer_log_probs`. Returns [P, G, C] float32 nats.
    """
    log_p = answer_log_probs(model, params, prompts, contexts, postfix, positions, answers)
    return set_entropy(log_p, answers.meaning[:, :, None], answers.length[:, :, None] > 0)


def set_entropy(log_prob: Array, meaning: Array, present: Array) -> Array:
    """Entropy in nats of the meanings of answers, renormalized over them; [..., Y] -> [...].

    q(m) is proportional to the sum of exp(log_prob) over the present answers of meaning m.
    """
    log_prob = jnp.where(present, log_prob, _ABSENT)
    same = meaning[..., None] == jnp.arange(log_prob.shape[-1])  # [..., Y, meaning]
    by_meaning = jax.nn.logsumexp(jnp.where(same, log_prob[..., None], _ABSENT), axis=-2)
    log_q = jax.nn.log_softmax(by_meaning, axis=-1)
    entropy = -jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
    return jnp.where(present.any(-1), jnp.maximum(entropy, 0.0), 0.0)


ESTIMATORS: dict[str, Callable[..., Array]] = {
    "answer_entropy": answer_entropy,
    "answer_log_prob": answer_log_prob,
    "answer_set_entropy": answer_set_entropy,
}


def answer_uncertainty(
    estimator: str,
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    probe: Probe,
    size: int,
) -> Array:
    """u_t after each of the T+1 prefixes, by the estimator of that name: [P, G, T+1] nats.

    Probed at the positions; between two of them u runs straight, and behind the last it stays.
    """
    asked = (probe.postfix, probe.positions)
    if probe.answers is not None and estimator != "answer_entropy":
        asked += (probe.answers,)
    return interpolate(
        ESTIMATORS[estimator](model, params, prompts, contexts, *asked), probe.positions, size
    )


# ------------------------------------------------------------------------- the probe


def _at_positions(
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
    """`read` at every cut, chunk by chunk: [P, G, C], or [P, G, C, answers].

    Args:
      width: tokens behind the postfix that `read` computes at once for each cut.

    Chunks behind the last cut of all completions are not computed.
    """
    groups, columns = positions.count.shape, positions.index.shape[-1]
    per_cut = groups[0] * groups[1] * max(postfix.shape[0], width)
    chunk = max(1, min(columns, model.devices * _PROBE_TOKENS // per_cut))
    chunks = -(-columns // chunk)
    chunk = -(-columns // chunks)  # all of about one size: the last is computed whole
    extra = chunks * chunk - columns
    position = jnp.pad(positions.index, ((0, 0), (0, 0), (0, extra)), mode="edge")

    def one(index: Array, out: Array) -> Array:
        cut = jax.lax.dynamic_slice_in_dim(position, index * chunk, chunk, axis=2)
        found = read(_exit(model, params, prompts, contexts, postfix, cut))
        return jax.lax.dynamic_update_slice_in_dim(out, found, index * chunk, axis=2)

    out = jnp.zeros((*groups, chunks * chunk, *[answers] * (answers > 0)), jnp.float32)
    out = jax.lax.fori_loop(0, (positions.count.max() + chunk - 1) // chunk, one, out)
    # Columns behind a completion's last cut repeat it, computed or not.
    column = jnp.minimum(jnp.arange(columns), positions.count[..., None] - 1)
    column = column.reshape(*column.shape, *[1] * (answers > 0))
    return jnp.take_along_axis(out, column, axis=2)


def _exit(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    cut: Array,
) -> Exit:
    """The postfix behind each prefix of `cut` [P, G, c] tokens."""
    prompt, completion_cache = contexts
    size = postfix.shape[0]
    # The completion's first input is the last prompt token: t tokens are t + 1 inputs.
    completion = Context(completion_cache, cut + 1)
    start = prompts.length[:, None, None] + cut
    tokens = jnp.broadcast_to(postfix, (*cut.shape, size))
    hidden, cache = model.forward(
        params,
        tokens,
        start[..., None] + jnp.arange(size),
        [prompt, completion],
        outputs_from=size - 1,
    )
    whole = Context(cache, jnp.int32(size))
    return Exit(hidden[..., 0, :], [prompt, completion, whole], start + size)


def _in_pieces(read: Callable[[Exit], Array], exit: Exit, pieces: int) -> Array:
    """`read`, a figure for each cut [P, G, c], of so many parts of the cuts one after another."""
    cuts = exit.position.shape[-1]
    size = -(-cuts // pieces)
    pieces = -(-cuts // size)  # fewer, where pieces of whole cuts are larger
    if pieces == 1:
        return read(exit)
    prompt, completion, whole = exit.contexts

    def one(index: Array, out: Array) -> Array:
        start = jnp.minimum(index * size, cuts - size)  # the last overlaps the one before
        part = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        own = jax.tree.map(partial(part, axis=-4), whole.cache)
        contexts = [
            prompt,
            completion._replace(visible=part(completion.visible, axis=2)),
            whole._replace(cache=own),
        ]
        found = read(Exit(part(exit.state, axis=2), contexts, part(exit.position, axis=2)))
        return jax.lax.dynamic_update_slice_in_dim(out, found, start, axis=2)

    return jax.lax.fori_loop(0, pieces, one, jnp.zeros(exit.position.shape, jnp.float32))


# ------------------------------------------------------------------------- where


def every_prefix(length: Array, size: int) -> ProbePositions:
    """All prefixes of each completion, 0 to its `length` [P, G] tokens; `size` is T, C is T+1."""
    return choose_positions(length, size)


def choose_positions(
    length: Array, size: int, *, stride: int = 1, boundary: Array | None = None
) -> ProbePositions:
    """Before the first token, after some tokens, and after the last of `length` [P, G].

    Args:
      length: tokens that are probed, such as those of thinking; 0 gives the empty prefix alone.
      size: T; C is T+1.
      stride: after every so many tokens.
      boundary: [P, G, T] bool; instead after the tokens that are True, such as ends of sentences.
    """
    prefix = jnp.arange(size + 1)
    if boundary is None:
        after = jnp.broadcast_to(prefix % stride == 0, (*length.shape, size + 1))
    else:
        after = jnp.pad(boundary, ((0, 0), (0, 0), (1, 0)), constant_values=True)
    last = length[..., None]
    chosen = (after & (prefix < last)) | (prefix == last)
    position = jnp.sort(jnp.where(chosen, prefix, last), axis=-1)
    return ProbePositions(position.astype(jnp.int32), chosen.sum(-1, dtype=jnp.int32))


def interpolate(uncertainty: Array, positions: ProbePositions, size: int) -> Array:
    """u after all T+1 prefixes from u [P, G, C] at the positions: straight between two of them.

    The information of a segment is so shared equally among its tokens, and its sum kept. Behind
    the last position u stays: tokens there carry nothing.
    """
    prefix = jnp.arange(size + 1)
    search = jax.vmap(jax.vmap(lambda row: jnp.searchsorted(row, prefix)))
    right = jnp.minimum(
        search(positions.index), positions.count[..., None] - 1
    )  # first at or after
    left = jnp.maximum(right - 1, 0)
    start, low = (jnp.take_along_axis(x, left, axis=-1) for x in (positions.index, uncertainty))
    end, high = (jnp.take_along_axis(x, right, axis=-1) for x in (positions.index, uncertainty))
    share = (prefix - start) / jnp.maximum(end - start, 1)
    return jnp.where(prefix >= end, high, low + share * (high - low))
