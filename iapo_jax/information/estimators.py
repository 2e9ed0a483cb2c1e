"""Answer information: the uncertainty about the final answer after each token of a completion.

After every probed prefix of a completion the exit postfix is appended, so that the model answers at
once. An estimator reads its answer in one of three ways, each an uncertainty u_t in nats about the
answer y after t tokens (`ESTIMATORS`):

    answer_entropy      H(first answer token | q, o_<=t, postfix)          arXiv:2602.19049
    answer_log_prob     -log p(y* | q, o_<=t, postfix), y* a reference answer
    answer_set_entropy  H(y | q, o_<=t, postfix), y one of a set of answers

The information that token t carries is s_t = u_{t-1} - u_t nats. Functions named `answer_*` take a
rollout; those named `*_at` use the contexts of an earlier forward pass, at chosen positions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from iapo_jax.information.answer_scores import ABSENT, AT_ONCE, answer_log_probs
from iapo_jax.information.early_exits import Exit, map_exits
from iapo_jax.information.probe_positions import every_prefix, interpolate
from iapo_jax.model.scoring import forward_completions, next_token_scores, prefill
from iapo_jax.types import (
    Answers,
    Array,
    Cache,
    Context,
    Model,
    Params,
    ProbePositions,
    Prompts,
    Rollout,
)


class Probe(NamedTuple):
    """The text appended after a prefix to elicit an answer, and the positions where it is appended.

    >>> positions = every_prefix(length=jnp.array([[3, 2]]), size=3)
    >>> Probe(postfix=jnp.array([5, 6]), positions=positions).answers is None
    True
    """

    postfix: Array | Sequence[int]  # [K] int32, K >= 1: the early exit
    positions: ProbePositions
    answers: Answers | None = None  # for the estimators that read complete answers


# ------------------------------------------------------------------------- for a rollout


@partial(jax.jit, static_argnames="model")
def answer_entropy(
    model: Model,
    params: Params,
    rollout: Rollout,
    postfix: Array | Sequence[int],
    *,
    positions: ProbePositions | None = None,
) -> Array:
    """u_t = H(first answer token | q, o_<=t, postfix), full vocabulary, temperature 1.

    Eq. 5 of arXiv:2602.19049.

    Args:
      rollout: completions [P, G, T].
      postfix: [K] ids, K >= 1, of the text that opens the answer.
      positions: the prefixes that are probed; all by default. u_t is linear in between.

    Returns:
      [P, G, T+1] float32 nats; column t is u_t, after t tokens.

    >>> from iapo_jax.model import DecoderConfig, init_params, make_model
    >>> config = DecoderConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_layers=1,
    ...                        num_heads=2, num_kv_heads=1, head_dim=4)
    >>> model, params = make_model(config), init_params(config, jax.random.key(0))
    >>> rollout = Rollout(Prompts(jnp.array([[3, 1]]), jnp.array([2])), jnp.array([[[4, 5, 6]]]),
    ...                   length=jnp.array([[3]]), log_prob=None, finished=None)
    >>> u = answer_entropy(model, params, rollout, [7, 8])
    >>> u.shape, bool((u <= jnp.log(11)).all())
    ((1, 1, 4), True)
    """
    return _of_rollout(entropy_at, model, params, rollout, postfix, positions)


@partial(jax.jit, static_argnames="model")
def answer_log_prob(
    model: Model,
    params: Params,
    rollout: Rollout,
    postfix: Array | Sequence[int],
    answers: Answers,
    *,
    positions: ProbePositions | None = None,
) -> Array:
    """u_t = -log p(y* | q, o_<=t, postfix), the surprisal of y*, the first of `answers`.

    Args:
      rollout, postfix, positions: as for `answer_entropy`.
      answers: tokens [P, 1 or G, Y, A]; only the first answer of each set is used.

    Returns:
      [P, G, T+1] float32 nats; 0 for a completion without a reference answer.

    >>> from iapo_jax.model import DecoderConfig, init_params, make_model
    >>> config = DecoderConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_layers=1,
    ...                        num_heads=2, num_kv_heads=1, head_dim=4)
    >>> model, params = make_model(config), init_params(config, jax.random.key(0))
    >>> rollout = Rollout(Prompts(jnp.array([[3, 1]]), jnp.array([2])), jnp.array([[[4, 5, 6]]]),
    ...                   length=jnp.array([[3]]), log_prob=None, finished=None)
    >>> answers = Answers(tokens=jnp.array([[[[9, 10]]]]), length=jnp.array([[[2]]]),
    ...                   meaning=jnp.array([[[0]]]))
    >>> answer_log_prob(model, params, rollout, [7, 8], answers).shape
    (1, 1, 4)
    """
    return _of_rollout(log_prob_at, model, params, rollout, postfix, positions, answers)


@partial(jax.jit, static_argnames="model")
def answer_set_entropy(
    model: Model,
    params: Params,
    rollout: Rollout,
    postfix: Array | Sequence[int],
    answers: Answers,
    *,
    positions: ProbePositions | None = None,
) -> Array:
    """u_t = -sum_m q_t(m) log q_t(m),  q_t(m) = sum_{y means m} p_t(y) / sum_y p_t(y).

    p_t(y) = p(y | q, o_<=t, postfix) for each of the answers; those of equal `meaning`, such as
    1000 and 1,000, are one event. u_t is at most the log of the number of meanings, and 0 if there
    is only one or none.

    Args:
      rollout, postfix, positions: as for `answer_entropy`.
      answers: tokens [P, 1 or G, Y, A].

    Returns:
      [P, G, T+1] float32 nats.

    >>> from iapo_jax.model import DecoderConfig, init_params, make_model
    >>> config = DecoderConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_layers=1,
    ...                        num_heads=2, num_kv_heads=1, head_dim=4)
    >>> model, params = make_model(config), init_params(config, jax.random.key(0))
    >>> rollout = Rollout(Prompts(jnp.array([[3, 1]]), jnp.array([2])), jnp.array([[[4, 5, 6]]]),
    ...                   length=jnp.array([[3]]), log_prob=None, finished=None)
    >>> answers = Answers(tokens=jnp.array([[[[9, 10], [8, 10]]]]), length=jnp.array([[[2, 2]]]),
    ...                   meaning=jnp.array([[[0, 1]]]))
    >>> u = answer_set_entropy(model, params, rollout, [7, 8], answers)
    >>> bool((u <= jnp.log(2)).all())
    True
    """
    return _of_rollout(set_entropy_at, model, params, rollout, postfix, positions, answers)


def _of_rollout(
    estimate: Callable[..., Array],
    model: Model,
    params: Params,
    rollout: Rollout,
    postfix: Array | Sequence[int],
    positions: ProbePositions | None,
    *answers: Answers,
) -> Array:
    """An estimator after all T+1 prefixes of a rollout."""
    params = model.gather(params)
    prompts, tokens = rollout.prompts, rollout.tokens
    size = tokens.shape[-1]
    if positions is None:
        positions = every_prefix(rollout.length, size)
    prompt = prefill(model, params, prompts)
    _, cache = forward_completions(model, params, prompts, tokens, prompt)
    postfix = jnp.asarray(postfix, jnp.int32)
    found = estimate(model, params, prompts, (prompt, cache), postfix, positions, *answers)
    return interpolate(found, positions, size)


# ------------------------------------------------------------------------- at chosen positions


def entropy_at(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    positions: ProbePositions,
) -> Array:
    """`answer_entropy` at the positions: [P, G, C] float32 nats.

    Args:
      contexts: the prompts (`scoring.prefill`), and the cache of the completions' T+1 inputs
        (`scoring.forward_completions`).
      postfix: [K] int32, K >= 1.
    """

    def entropy(exit: Exit) -> Array:
        no_candidates = jnp.zeros((1, 1, 0), jnp.int32)
        weight = model.logit_weight(params)
        return next_token_scores(exit.state, weight, no_candidates, devices=model.devices).entropy

    return map_exits(model, params, prompts, contexts, postfix, positions, entropy, width=0)


def log_probs_at(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    positions: ProbePositions,
    answers: Answers,
) -> Array:
    """log p(y | q, o_<=t, postfix) of complete answers: the sum over their tokens, temperature 1.

    Arguments as for `entropy_at`. Returns [P, G, C, Y] float32 nats; -1e30 for a missing
    answer (length 0).
    """
    size, width = answers.tokens.shape[-2:]
    at_once = min(width, AT_ONCE) - 1
    read = partial(answer_log_probs, model, params, answers, max(at_once, postfix.shape[0]))
    arguments = (model, params, prompts, contexts, postfix, positions)
    return map_exits(*arguments, read, width=at_once, answers=size)


def log_prob_at(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    positions: ProbePositions,
    answers: Answers,
) -> Array:
    """`answer_log_prob` at the positions: [P, G, C] float32 nats. Arguments as for `entropy_at`."""
    first = Answers(*(leaf[:, :, :1] for leaf in answers))
    log_p = log_probs_at(model, params, prompts, contexts, postfix, positions, first)[..., 0]
    return jnp.where(first.length > 0, -log_p, 0.0)


def set_entropy_at(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    positions: ProbePositions,
    answers: Answers,
) -> Array:
    """`answer_set_entropy` at the positions: [P, G, C] nats. Arguments as for `entropy_at`."""
    log_p = log_probs_at(model, params, prompts, contexts, postfix, positions, answers)
    return set_entropy(log_p, answers.meaning[:, :, None], answers.length[:, :, None] > 0)


def set_entropy(log_prob: Array, meaning: Array, present: Array) -> Array:
    """Entropy over the meanings of answers, renormalized: [..., Y] -> [...] nats.

    q(m) is proportional to the sum of exp(log_prob) over the present answers of meaning m.

    >>> log_prob, meaning = jnp.log(jnp.array([0.1, 0.1, 0.2])), jnp.array([0, 0, 1])
    >>> print(set_entropy(log_prob, meaning, jnp.ones(3, bool)).round(3))
    0.693
    """
    log_prob = jnp.where(present, log_prob, ABSENT)
    same = meaning[..., None] == jnp.arange(log_prob.shape[-1])  # [..., Y, meaning]
    by_meaning = jax.nn.logsumexp(jnp.where(same, log_prob[..., None], ABSENT), axis=-2)
    log_q = jax.nn.log_softmax(by_meaning, axis=-1)
    entropy = -jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
    return jnp.where(present.any(-1), jnp.maximum(entropy, 0.0), 0.0)


ESTIMATORS: dict[str, Callable[..., Array]] = {
    "answer_entropy": entropy_at,
    "answer_log_prob": log_prob_at,
    "answer_set_entropy": set_entropy_at,
}


def uncertainty_at(
    estimator: str,
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    probe: Probe,
    size: int,
) -> Array:
    """u_t after each of the T+1 prefixes, by the estimator of that name: [P, G, T+1] nats.

    Computed at the probe's positions and interpolated between them. `size` is T.
    """
    arguments: tuple = (model, params, prompts, contexts, probe.postfix, probe.positions)
    if probe.answers is not None and estimator != "answer_entropy":
        arguments += (probe.answers,)
    return interpolate(ESTIMATORS[estimator](*arguments), probe.positions, size)
