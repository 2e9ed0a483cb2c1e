"""The chunked head: log-probabilities and entropies of given tokens, never [P, G, T, V] at once."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from iapo_jax.types import Array, Cache, Context, Model, Params, Prompts

CHUNK_LOGITS = 2**25  # logits of one chunk on each device: 128 MiB of float32


class TokenScores(NamedTuple):
    """Scores of tokens; both [...], float32 nats."""

    log_prob: Array
    entropy: Array  # of the distribution that the token was drawn from


def token_scores(
    hidden: Array, weight: Array, tokens: Array, temperature: Array | float, *, devices: int = 1
) -> TokenScores:
    """log p(token) and the entropy of p = softmax(hidden W^T / temperature).

    Args:
      hidden: [..., S, D], the state before each token.
      weight: [V, D]. Logits, softmax and the gradient of `weight` are float32 whatever its dtype.
      tokens: [..., S] int32.
      temperature: scalar > 0; not differentiated.
      devices: number of devices that share the rows or the vocabulary.

    Returns:
      [..., S] float32 nats, differentiable in `hidden` and `weight`. The backward pass recomputes
      the logits chunk by chunk: d log p/dz = onehot - p,  dH/dz = -p (log p + H).

    Raises:
      AssertionError: if the shapes of `hidden` and `tokens` do not fit.

    >>> hidden, weight = jnp.zeros((1, 2, 4)), jnp.ones((8, 4))
    >>> scores = token_scores(hidden, weight, jnp.array([[3, 5]]), 1.0)
    >>> print(jnp.exp(scores.log_prob), jnp.exp(scores.entropy).round())
    [[0.125 0.125]] [[8. 8.]]
    """
    chex.assert_equal(hidden.shape[:-1], tokens.shape)
    rows = tokens.size // max(tokens.shape[-1], 1)
    size = max(1, min(tokens.shape[-1], devices * CHUNK_LOGITS // (max(rows, 1) * weight.shape[0])))
    temperature = jnp.asarray(temperature, jnp.float32)
    return TokenScores(*_scores(hidden, weight, tokens, temperature, size))


def _chunks(x: Array, size: int, axis: int) -> Array:
    """Splits `axis` into chunks and puts their index first; rows stay complete (and sharded)."""
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

    Accelerators multiply float32 in bfloat16 or TF32 by default. Sampler and scorer both call this
    function, so that they agree.
    """
    return jnp.einsum(
        "...d,vd->...v", hidden.astype(jnp.float32), weight.astype(jnp.float32), precision="high"
    )


def _log_softmax(hidden: Array, weight: Array, temperature: Array) -> Array:
    logits = logits_of(hidden, weight)
    return jax.nn.log_softmax(logits / temperature, axis=-1)


def _entropy(log_p: Array) -> Array:
    """-sum p log p over the last axis; as a matrix, since XLA for CPU sums more axes slowly."""
    rows = log_p.reshape(-1, log_p.shape[-1])
    return -jnp.sum(jnp.exp(rows) * rows, axis=-1).reshape(log_p.shape[:-1])


def next_token_scores(
    hidden: Array, weight: Array, tokens: Array, *, devices: int = 1
) -> TokenScores:
    """Scores several candidates for the next token of each state at temperature 1; no gradient.

    Args:
      hidden: [P, G, S, D].
      weight: [V, D].
      tokens: [P, G or 1, Y] int32, the same for all S states; Y may be 0.
      devices: as for `token_scores`.

    Returns:
      log_prob [P, G, S, Y] of each candidate, entropy [P, G, S] of the full distribution, in nats.

    >>> hidden, weight = jnp.zeros((1, 1, 2, 4)), jnp.ones((8, 4))
    >>> scores = next_token_scores(hidden, weight, jnp.array([[[3, 5, 7]]]))
    >>> scores.log_prob.shape, scores.entropy.shape
    ((1, 1, 2, 3), (1, 1, 2))
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
    """Runs the prompts once, and returns the context that their completions read.

    The last prompt token is left out: it is the first input of every completion, so that state t of
    a completion has read t of its tokens and predicts token t + 1.

    >>> from iapo_jax.model import DecoderConfig, init_params, make_model
    >>> config = DecoderConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_layers=1,
    ...                        num_heads=2, num_kv_heads=1, head_dim=4)
    >>> model, params = make_model(config), init_params(config, jax.random.key(0))
    >>> prompts = Prompts(tokens=jnp.array([[3, 1, 4]]), length=jnp.array([3]))
    >>> print(prefill(model, params, prompts).visible)
    [2]
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
    """States and cache after all T+1 prefixes of the completions.

    Args:
      tokens: [P, G, T] int32.
      context: from `prefill`.

    Returns:
      States [P, G, T+1, D] and a cache. State t has read t completion tokens, and predicts token
      t + 1.

    >>> from iapo_jax.model import DecoderConfig, init_params, make_model
    >>> config = DecoderConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_layers=1,
    ...                        num_heads=2, num_kv_heads=1, head_dim=4)
    >>> model, params = make_model(config), init_params(config, jax.random.key(0))
    >>> prompts = Prompts(tokens=jnp.array([[3, 1, 4]]), length=jnp.array([3]))
    >>> tokens, context = jnp.array([[[5, 6], [7, 8]]]), prefill(model, params, prompts)
    >>> forward_completions(model, params, prompts, tokens, context)[0].shape
    (1, 2, 3, 8)
    """
    inputs, positions = completion_inputs(prompts, tokens)
    return model.forward(params, inputs, positions, [context])


def score_completions(
    model: Model, params: Params, prompts: Prompts, tokens: Array, temperature: Array | float = 1.0
) -> TokenScores:
    """log p(o_t) and H_t of completions; gradients flow into their prompts, too.

    Args:
      tokens: [P, G, T] int32.
      temperature: scalar > 0.

    Returns:
      [P, G, T] float32 nats; on padding, the scores of the padding ids.

    >>> from iapo_jax.model import DecoderConfig, init_params, make_model
    >>> config = DecoderConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_layers=1,
    ...                        num_heads=2, num_kv_heads=1, head_dim=4)
    >>> model, params = make_model(config), init_params(config, jax.random.key(0))
    >>> prompts = Prompts(tokens=jnp.array([[3, 1, 4]]), length=jnp.array([3]))
    >>> scores = score_completions(model, params, prompts, jnp.array([[[5, 6], [7, 8]]]))
    >>> scores.log_prob.shape, bool((scores.entropy <= jnp.log(11)).all())
    ((1, 2, 2), True)
    """
    params = model.gather(params)
    context = prefill(model, params, prompts)
    inputs, positions = completion_inputs(prompts, tokens[..., :-1])
    hidden, _ = model.forward(params, inputs, positions, [context])
    weight = model.logit_weight(params)
    return token_scores(hidden, weight, tokens, temperature, devices=model.devices)
