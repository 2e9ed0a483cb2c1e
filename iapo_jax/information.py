"""Answer information: what each token tells about the final answer.

After every prefix of a completion the model is made to answer at once: the exit postfix is
appended and the distribution of the first answer token is read. With u_t its entropy after t
tokens, token t carries  s_t = u_{t-1} - u_t  nats (arXiv:2602.19049). The postfixes of all T+1
prefixes are extra query rows against one cache of the completion: nothing is copied.
"""

import jax
import jax.numpy as jnp

from iapo_jax.scoring import token_scores
from iapo_jax.types import Array, Cache, Context, Model, Params, Prompts

_PROBE_TOKENS = 2**14  # postfix tokens computed at once on each device


def answer_entropy(
    model: Model,
    params: Params,
    prompts: Prompts,
    contexts: tuple[Context, Cache],
    postfix: Array,
    size: int,
) -> Array:
    """u_t = H(first answer token | q, o_<=t, postfix), full vocabulary, temperature 1.

    Args:
      contexts: the prompts as `scoring.read_prompts` gives them, and the cache of the completions'
        T+1 inputs (`scoring.read_completions`).
      postfix: [K] int32, K >= 1.
      size: T.

    Returns:
      [P, G, T+1] float32 nats. Column t has read t completion tokens; columns beyond a
      completion's length read padding and mean nothing.
    """
    prompt, completion_cache = contexts
    groups = jax.tree.leaves(completion_cache)[0].shape[-5:-3]  # [..., P, G, T+1, M, d]
    cuts = size + 1
    per_cut = groups[0] * groups[1] * postfix.shape[0]
    chunk = max(1, min(cuts, model.devices * _PROBE_TOKENS // per_cut))
    chunks = -(-cuts // chunk)
    shape = (*groups, chunk, postfix.shape[0])

    def probe(start: Array) -> Array:
        cut = jnp.minimum(start + jnp.arange(chunk), size)
        # The completion's first input is the last prompt token: t tokens are t + 1 inputs.
        completion = Context(completion_cache, (cut + 1)[None, None])
        first = prompts.length[:, None, None, None] + cut[:, None]
        positions = jnp.broadcast_to(first + jnp.arange(postfix.shape[0]), shape)
        tokens = jnp.broadcast_to(postfix, shape)
        hidden, _ = model.forward(params, tokens, positions, [prompt, completion])
        weight = model.logit_weight(params)
        unused = jnp.zeros(shape[:-1], jnp.int32)
        return token_scores(hidden[..., -1, :], weight, unused, 1.0, devices=model.devices).entropy

    parts = jax.lax.map(probe, jnp.arange(chunks) * chunk)  # [chunks, P, G, chunk]
    return jnp.moveaxis(parts, 0, 2).reshape(*groups, -1)[..., :cuts]


def informativeness(uncertainty: Array, thinking: Array) -> Array:
    """s_t = u_{t-1} - u_t on thinking tokens, 0 elsewhere: [..., T+1] -> [..., T] nats.

    Over a completion that thinks from its start the sum is u_0 - u_(end of thinking).
    """
    return jnp.where(thinking, uncertainty[..., :-1] - uncertainty[..., 1:], 0.0)
