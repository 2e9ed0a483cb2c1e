"""The chunked head: log-probabilities and entropies of given tokens, never [P, G, T, V] at once."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from iapo_jax.types import Array, Cache, Context, Model, Params, Prompts

CHUNK_LOGITS = 2**25  # logits of one chunk on each device: 128 MiB of float32


class TokenScores(NamedTuple):
    """Of each scored token; both [...], float32 nats."""

    log_prob: Array
    entropy: Array  # of the distribution that the token was drawn from


def token_scores(
    hidden: Array, weight: Array, tokens: Array, temperature: Array, *, devices: int = 1
) -> TokenScores:
    """log p(token) and the entropy of p = softmax(hidden W^T / temperature).

    Args:
      hidden: [..., S, D], the state before each token.
      weight: [V, D]. Logits, softmax and the gradient of `weight` are float32 whatever its dtype.
      tokens: [..., S] int32.
      temperature: scalar > 0; not differentiated.
      devices: over so many the rows or the vocabulary are split.

    Both outputs are differentiable in `hidden` and `weight`; the backward pass recomputes the
    logits chunk by chunk: d log p/dz = onehot - p,  dH/dz = -p (log p + H).
    """
    chex.assert_equal(hidden.shape[:-1], tokens.shape)
    rows = tokens.size // max(tokens.shape[-1], 1)
    size = max(1, min(tokens.shape[-1], devices * CHUNK_LOGITS // (max(rows, 1) * weight.shape[0])))
    temperature = jnp.asarray(temperature, jnp.float32)
    return TokenScores(*_scores(hidden, weight, tokens, temperature, size))


def _chunks(x: Array, size: int, axis: int) -> Array:
    """Cuts `axis` into chunks and puts their index first; the rows stay whole (and sharded)."""
    axis %= x.ndim
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % size)
    x = jnp.pad(x, pad)
    x = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x, axis, 0)


def _join(x: Array, length: int, axis: int) -> Array:
    axis = axis % (x.ndim - 1)
    x = jnp.moveaxis(x, 0, axis)
    x = x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=axis)


def logits_of(hidden: Array, weight: Array) -> Array:
    """hidden [..., D] times weight [V, D] -> [..., V] float32.

    Accelerators multiply float32 in bfloat16 or TF32 unless told otherwise; sampler and scorer
    both go through here.
    """
    return jnp.einsum(
        "...d,vd->...v", hidden.astype(jnp.float32), weight.astype(jnp.float32), precision="high"
    )


def _log_softmax(hidden: Array, weight: Array, temperature: Array) -> Array:
    logits = logits_of(hidden, weight)
    return jax.nn.log_softmax(logits / temperature, axis=-1)


def _entropy(log_p: Array) -> Array:
    """-sum p log p over the last axis; as one matrix, since XLA's CPU sums of more axes crawl."""
    rows = log_p.reshape(-1, log_p.shape[-1])
    return -jnp.sum(jnp.exp(rows) * rows, axis=-1).reshape(log_p.shape[:-1])


def next_token_scores(
    hidden: Array, weight: Array, tokens: Array, *, devices: int = 1
) -> TokenScores:
    """Several candidates for the next token of one state, at temperature 1; not differentiable.

    Args:
      hidden: [P, G, S, D].
      weight: [V, D].
      tokens: [P, G or 1, Y] int32, the same for all S states; Y may be 0.
      devices: as for `token_scores`.

    Returns:
      log_prob [P, G, S, Y] of each candidate, entropy [P, G, S] of the whole distribution.
    """
    *groups, length, _ = hidden.shape
    rows = groups[0] * groups[1]
    size = max(1, min(length, devices * CHUNK_LOGITS // (rows * weight.shape[0])))

    def chunk(h: Array) -> tuple[Array, Array]:
        log_p = _log_softmax(h, weight, jnp.float32(1.0))
        index = jnp.broadcast_to(tokens[:, :, None], (*h.shape[:-1], tokens.shape[-1]))
        return jnp.take_along_axis(log_p, index, axis=-1), _entropy(log_p)

    log_prob, entropy = jax.lax.map(chunk, _chunks(hidden, size, -2))
    return TokenScores(_join(log_prob, length, -2), _join(entropy, length, -1))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _scores(hidden, weight, tokens, temperature, size):
    return _scores_forward(hidden, weight, tokens, temperature, size)[0]


def _scores_forward(hidden, weight, tokens, temperature, size):
    def chunk(part):
        h, token = part
        log_p = _log_softmax(h, weight, temperature)
        log_prob = jnp.take_along_axis(log_p, token[..., None], axis=-1)[..., 0]
        return log_prob, _entropy(log_p)

    parts = jax.lax.map(chunk, (_chunks(hidden, size, -2), _chunks(tokens, size, -1)))
    log_prob, entropy = (_join(x, tokens.shape[-1], -1) for x in parts)
    return (log_prob, entropy), (hidden, weight, tokens, temperature, entropy)


def _scores_backward(size, saved, cotangent):
    hidden, weight, tokens, temperature, entropy = saved

    def chunk(d_weight, part):
        h, token, d_log_prob, d_entropy, ent = part
        log_p = _log_softmax(h, weight, temperature)
        pull = d_log_prob[..., None] + d_entropy[..., None] * (log_p + ent[..., None])
        d_logits = jax.nn.one_hot(token, weight.shape[0]) * d_log_prob[..., None]
        d_logits = (d_logits - jnp.exp(log_p) * pull) / temperature
        d_weight += jnp.einsum("...v,...d->vd", d_logits, h.astype(jnp.float32))
        return d_weight, jnp.einsum("...v,vd->...d", d_logits, weight.astype(jnp.float32))

    parts = [_chunks(hidden, size, -2)]
    parts += [_chunks(x, size, -1) for x in (tokens, *cotangent, entropy)]
    d_weight, d_hidden = jax.lax.scan(chunk, jnp.zeros(weight.shape, jnp.float32), tuple(parts))
    d_hidden = _join(d_hidden, tokens.shape[-1], -2)
    return d_hidden.astype(hidden.dtype), d_weight.astype(weight.dtype), None, None


_scores.defvjp(_scores_forward, _scores_backward)


def prefill(model: Model, params: Params, prompts: Prompts) -> Context:
    """The prompts [P, L], computed once, as their completions read them.

    The last prompt token is left out: it is the first input of every completion, so that the
    state at a completion's input t is the one that predicts its token t.
    """
    positions = jnp.broadcast_to(jnp.arange(prompts.tokens.shape[-1]), prompts.tokens.shape)
    _, cache = model.forward(params, prompts.tokens, positions, ())
    return Context(cache, prompts.length - 1)


def last_tokens(prompts: Prompts) -> Array:
    """The last real token of each prompt: [P] int32."""
    return jnp.take_along_axis(prompts.tokens, prompts.length[:, None] - 1, axis=1)[:, 0]


def completion_inputs(prompts: Prompts, tokens: Array) -> tuple[Array, Array]:
    """Inputs and positions [P, G, T+1]: the last prompt token, then the T completion tokens."""
    first = jnp.broadcast_to(last_tokens(prompts)[:, None, None], (*tokens.shape[:2], 1))
    inputs = jnp.concatenate([first, tokens], axis=-1)
    start = prompts.length[:, None, None] - 1
    return inputs, jnp.broadcast_to(start + jnp.arange(inputs.shape[-1]), inputs.shape)


def forward_completions(
    model: Model, params: Params, prompts: Prompts, tokens: Array, context: Context
) -> tuple[Array, Cache]:
    """States [P, G, T+1, D] and cache after all T+1 prefixes of the completions.

    Index t has read t completion tokens; its state predicts token t+1.
    """
    inputs, positions = completion_inputs(prompts, tokens)
    return model.forward(params, inputs, positions, [context])


def score_completions(
    model: Model, params: Params, prompts: Prompts, tokens: Array, temperature: Array
) -> TokenScores:
    """Scores completions [P, G, T] of their prompts; gradients flow into the prompts too."""
    params = model.gather(params)
    context = prefill(model, params, prompts)
    inputs, positions = completion_inputs(prompts, tokens[..., :-1])
    hidden, _ = model.forward(params, inputs, positions, [context])
    weight = model.logit_weight(params)
    return token_scores(hidden, weight, tokens, temperature, devices=model.devices)
