"""Samples G completions of each prompt in one jitted loop.

The prompt is computed once per group. Its last token is the first input of every completion, so
the prompt needs no logits. Each completion draws from its own key: its tokens do not depend on the
other completions of the batch.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from iapo_jax.model.scoring import last_tokens, logits_of, prefill
from iapo_jax.types import Array, Cache, Context, Model, Params, Prompts, Rollout

_EXCLUDED = -1e30  # logit of a token that must not be drawn
_TOP_P_STEPS = 30  # halvings of the threshold's interval: 1e-9 of the largest probability


class SamplingState(NamedTuple):
    """The loop's carry."""

    step: Array  # tokens drawn so far
    token: Array  # [P, G] int32, the next input
    done: Array  # [P, G] bool
    cache: Cache  # of the inputs so far; has room for T
    tokens: Array  # [P, G, T]
    log_prob: Array  # [P, G, T]
    length: Array  # [P, G]


def keep_top_k(logits: Array, k: int) -> Array:
    """Excludes logits below the k-th largest; ties with it are kept. [..., V] -> [..., V].

    >>> print(keep_top_k(jnp.array([1.0, 3.0, 2.0]), 2))
    [-1.e+30  3.e+00  2.e+00]
    """
    smallest = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < smallest, _EXCLUDED, logits)


def keep_top_p(logits: Array, p: Array) -> Array:
    """Keeps the smallest set of top tokens whose mass reaches p, and ties: [..., V] -> [..., V].

    Bisection on the probability threshold: 30 reductions instead of a sort of the vocabulary.
    arXiv:1904.09751.

    >>> print(keep_top_p(jnp.log(jnp.array([0.25, 0.125, 0.625])), 0.8) > -1e9)
    [ True False  True]
    """
    probability = jax.nn.softmax(logits)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        mass = jnp.where(probability >= middle, probability, 0.0).sum(-1, keepdims=True)
        return jnp.where(mass >= p, middle, low), jnp.where(mass >= p, high, middle)

    top = probability.max(-1, keepdims=True)
    threshold, _ = jax.lax.fori_loop(0, _TOP_P_STEPS, halve, (jnp.zeros_like(top), top))
    return jnp.where(probability < jnp.minimum(threshold, top), _EXCLUDED, logits)


def sample_token(
    keys: Array, logits: Array, allowed: Array | None = None, *, top_k: int = 0, top_p: float = 1.0
) -> tuple[Array, Array]:
    """Draws one token per row, and its log-probability in nats under the full softmax.

    Args:
      keys: [...] typed PRNG keys.
      logits: [..., V] float32, divided by the temperature.
      allowed: [V] bool; other ids are never drawn.
      top_k, top_p: as for `sample`.

    Returns:
      Tokens [...] int32 and log-probabilities [...]: those of the policy, which the scorer
      computes, not of the truncated distribution.

    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> logits = jnp.log(jnp.array([[0.75, 0.25]] * 2))
    >>> token, log_prob = sample_token(keys, logits, top_k=1)
    >>> print(token, jnp.exp(log_prob))
    [0 0] [0.75 0.75]
    """
    offered = logits if allowed is None else jnp.where(allowed, logits, _EXCLUDED)
    if top_k > 0:
        offered = keep_top_k(offered, top_k)
    if top_p < 1.0:
        offered = keep_top_p(offered, top_p)
    noise = partial(jax.random.gumbel, shape=logits.shape[-1:])
    for _ in range(keys.ndim):
        noise = jax.vmap(noise)
    token = jnp.argmax(offered + noise(keys), axis=-1).astype(jnp.int32)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[..., None], axis=-1)
    return token, log_prob[..., 0]


@partial(jax.jit, static_argnames=("model", "num_generations", "max_length", "top_k", "top_p"))
def sample(
    model: Model,
    params: Params,
    prompts: Prompts,
    key: Array,
    *,
    num_generations: int,
    max_length: int,
    stop_ids: Array | Sequence[int],
    allowed: Array | None = None,
    temperature: Array | float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    first: Array | None = None,
) -> Rollout:
    """Draws G = `num_generations` completions of up to T = `max_length` tokens for each prompt.

    o_t ~ softmax(logits / temperature), restricted to `allowed`, `top_k` and `top_p`. One compiled
    loop, which ends when every completion has ended.

    Args:
      params: of `model`. Callers that sample often pass `model.unroll(params)`, which is then
        computed once.
      prompts: [P, L].
      key: one PRNG key, or [P] keys. Token t of completion g of prompt p is drawn from
        fold_in(fold_in(keys[p], g), t), whatever else is in the batch; one key gives
        keys[p] = fold_in(key, p).
      stop_ids: a completion ends after the first of these, which is part of it.
      allowed: [V] bool; other ids are never drawn. All are allowed by default.
      temperature: > 0.
      top_k: draws from the k most likely tokens; 0 from all.
      top_p: draws from the most likely tokens whose mass reaches p; 1 from all.
      first: [P] int32, the number g of each prompt's first completion, if earlier ones were drawn
        before; 0 by default.

    Returns:
      Rollout of [P, G, T] arrays; `log_prob` is that of the full softmax at the temperature.

    >>> from iapo_jax.model import DecoderConfig, init_params, make_model
    >>> config = DecoderConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_layers=1,
    ...                        num_heads=2, num_kv_heads=1, head_dim=4)
    >>> model, params = make_model(config), init_params(config, jax.random.key(0))
    >>> prompts = Prompts(tokens=jnp.array([[3, 1, 4], [1, 5, 0]]), length=jnp.array([3, 2]))
    >>> rollout = sample(model, params, prompts, jax.random.key(1), num_generations=4,
    ...                  max_length=6, stop_ids=[0, 10])
    >>> rollout.tokens.shape, bool((rollout.length <= 6).all())
    ((2, 4, 6), True)
    """
    params = model.unroll(params)
    shape = (prompts.tokens.shape[0], num_generations)
    prompt = prefill(model, params, prompts)
    weight = model.logit_weight(params)
    keys = _completion_keys(key, shape, first)
    stop_ids = jnp.asarray(stop_ids, jnp.int32)

    def step(state: SamplingState) -> SamplingState:
        positions = jnp.broadcast_to(prompts.length[:, None] - 1 + state.step, shape)
        contexts = [prompt, Context(state.cache, state.step.reshape(1, 1))]
        hidden, new = model.forward(params, state.token[..., None], positions[..., None], contexts)
        logits = logits_of(hidden[..., 0, :], weight) / temperature
        step_keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, state.step)
        drawn = sample_token(step_keys, logits, allowed, top_k=top_k, top_p=top_p)
        return _extended(state, *drawn, new, stop_ids)

    def is_running(state: SamplingState) -> Array:
        return (state.step < max_length) & ~state.done.all()

    start = _start(prompts, prompt, num_generations, max_length)
    end = jax.lax.while_loop(is_running, step, start)
    return Rollout(
        prompts=prompts,
        tokens=end.tokens,
        length=end.length,
        log_prob=end.log_prob,
        finished=end.done,
    )


def _completion_keys(key: Array, shape: tuple[int, int], first: Array | None) -> Array:
    """A key for each completion: [P, G]."""
    prompts, number = shape[0], jnp.arange(shape[1])
    if key.ndim == 0:
        key = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(prompts))
    numbers = jnp.broadcast_to(number if first is None else first[:, None] + number, shape)
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(key, numbers)


def _start(prompts: Prompts, prompt: Context, generations: int, max_length: int) -> SamplingState:
    """The state before the first token: the last prompt token is the next input."""
    shape = (prompts.tokens.shape[0], generations)

    def empty_cache(x: Array) -> Array:
        # keys or values of the prompts [..., P, L, M, d] -> [..., P, G, T, M, d]
        lead, (_, heads, width) = x.shape[:-4], x.shape[-3:]
        return jnp.zeros((*lead, *shape, max_length, heads, width), x.dtype)

    return SamplingState(
        step=jnp.int32(0),
        token=jnp.broadcast_to(last_tokens(prompts)[:, None], shape),
        done=jnp.zeros(shape, bool),
        cache=jax.tree.map(empty_cache, prompt.cache),
        tokens=jnp.zeros((*shape, max_length), jnp.int32),
        log_prob=jnp.zeros((*shape, max_length), jnp.float32),
        length=jnp.zeros(shape, jnp.int32),
    )


def _extended(
    state: SamplingState, token: Array, log_prob: Array, new: Cache, stop_ids: Array
) -> SamplingState:
    """The state after one more token of every completion that has not ended."""
    token = jnp.where(state.done, 0, token)
    log_prob = jnp.where(state.done, 0.0, log_prob)
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=state.step)
    return SamplingState(
        step=state.step + 1,
        token=token,
        done=state.done | jnp.isin(token, stop_ids),
        cache=jax.tree.map(lambda old, x: write(old, x, axis=old.ndim - 3), state.cache, new),
        tokens=write(state.tokens, token[..., None], axis=2),
        log_prob=write(state.log_prob, log_prob[..., None], axis=2),
        length=state.length + ~state.done,
    )


def prompt_keys(seed: Array, step: Array, rows: Array) -> Array:
    """Keys [P] of the prompts with these row numbers at a step: functions of seed, step and row.

    >>> prompt_keys(0, 3, jnp.array([7, 9])).shape
    (2,)
    """
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(rows))
