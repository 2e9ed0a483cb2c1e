"""Sampling G completions of each prompt in one jitted loop.

The prompt is computed once per group. Its last token is the first input of every completion, so
no logits are needed from the prompt. Each sequence draws from a key of its own: what it gets does
not depend on its neighbors.
"""

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
    cache: Cache  # of the inputs so far; room for T
    tokens: Array  # [P, G, T]
    log_prob: Array  # [P, G, T]
    length: Array  # [P, G]


def keep_top_k(logits: Array, k: int) -> Array:
    """Logits below the k-th largest excluded; ties with it are kept. [..., V]."""
    smallest = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < smallest, _EXCLUDED, logits)


def keep_top_p(logits: Array, p: Array) -> Array:
    """The smallest set of most likely tokens whose mass reaches p; ties are kept. [..., V].

    Bisection on the probability threshold: 30 reductions instead of a sort of the vocabulary.
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
    keys: Array, logits: Array, allowed: Array, *, top_k: int, top_p: float
) -> tuple[Array, Array]:
    """One token per row and its log-probability under the full softmax.

    Args:
      keys: [...] typed PRNG keys.
      logits: [..., V] float32, divided by the temperature.
      allowed: [V] bool; other ids are never drawn.

    The log-probability is that of the policy (what the scorer computes), not of the truncated
    distribution.
    """
    offered = jnp.where(allowed, logits, _EXCLUDED)
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
    keys: Array,
    *,
    num_generations: int,
    max_length: int,
    stop_ids: Array,
    allowed: Array,
    temperature: Array = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    first: Array | None = None,
) -> Rollout:
    """Draws G = `num_generations` completions of up to T = `max_length` tokens for each prompt.

    Args:
      params: of `model`; fastest after `model.unroll`.
      keys: [P] typed PRNG keys; token t of completion g is drawn from
        fold_in(fold_in(keys[p], g), t), whatever else is in the batch.
      stop_ids: [any] int32; a completion ends after the first of them, which is part of it.
      allowed: [V] bool.
      temperature: > 0.
      first: [P] int32: number g of each prompt's first completion, where others were drawn before.
    """
    shape = (prompts.tokens.shape[0], num_generations)
    prompt = prefill(model, params, prompts)
    weight = model.logit_weight(params)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    number = jnp.arange(num_generations)
    if first is None:
        keys = fold(keys, number)
    else:
        keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, first[:, None] + number)

    def empty_cache(x: Array) -> Array:
        # keys and values of a prompt [..., P, L, M, d] -> empty ones of its completions
        lead, (_, heads, width) = x.shape[:-4], x.shape[-3:]
        return jnp.zeros((*lead, *shape, max_length, heads, width), x.dtype)

    start = SamplingState(
        step=jnp.int32(0),
        token=jnp.broadcast_to(last_tokens(prompts)[:, None], shape),
        done=jnp.zeros(shape, bool),
        cache=jax.tree.map(empty_cache, prompt.cache),
        tokens=jnp.zeros((*shape, max_length), jnp.int32),
        log_prob=jnp.zeros((*shape, max_length), jnp.float32),
        length=jnp.zeros(shape, jnp.int32),
    )

    def step(state: SamplingState) -> SamplingState:
        positions = jnp.broadcast_to(prompts.length[:, None] - 1 + state.step, shape)
        contexts = [prompt, Context(state.cache, state.step.reshape(1, 1))]
        hidden, new = model.forward(params, state.token[..., None], positions[..., None], contexts)
        logits = logits_of(hidden[..., 0, :], weight) / temperature
        step_keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, state.step)
        token, log_prob = sample_token(step_keys, logits, allowed, top_k=top_k, top_p=top_p)
        token = jnp.where(state.done, 0, token)
        log_prob = jnp.where(state.done, 0.0, log_prob)
        write = lambda cache, x: jax.lax.dynamic_update_slice_in_dim(  # noqa: E731
            cache, x, state.step, axis=cache.ndim - 3
        )
        column = lambda rows, x: jax.lax.dynamic_update_slice_in_dim(  # noqa: E731
            rows, x[..., None], state.step, axis=2
        )
        return SamplingState(
            step=state.step + 1,
            token=token,
            done=state.done | jnp.isin(token, stop_ids),
            cache=jax.tree.map(write, state.cache, new),
            tokens=column(state.tokens, token),
            log_prob=column(state.log_prob, log_prob),
            length=state.length + ~state.done,
        )

    running = lambda state: (state.step < max_length) & ~state.done.all()  # noqa: E731
    end = jax.lax.while_loop(running, step, start)
    return Rollout(prompts, end.tokens, end.length, end.log_prob, end.done)


def prompt_keys(seed: Array, step: Array, rows: Array) -> Array:
    """Keys [P] of the prompts with these numbers at this step: a function of all three."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.asarray(rows))
