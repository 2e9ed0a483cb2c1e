"""The decoder: Qwen2, Qwen2.5, Qwen3 and Llama 3 in one set of Flax Linen pieces.

The pieces describe one layer; plain functions compose them, because the same weights are traversed
in different ways: scanned over stacked layers in training and scoring, unrolled over a list of
layers in sampling, and in both against a tree of contexts (`types.Context`). The only
module that imports Flax.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import Mesh

from iapo_jax.model.attention import Segment, attend
from iapo_jax.sharding import BATCH_AXES, batch_devices, constrain
from iapo_jax.types import Array, Cache, Context, Model, Params


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """The frequency bands of Llama 3.1's context extension."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """An architecture, in Hugging Face's terms, and how to compute it."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Rope | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    initializer_range: float = 0.02
    dtype: str = "float32"  # of the layers' arithmetic; norms, softmax and head stay float32
    attention: str = "auto"  # or "xla", without the backend's own kernel
    remat: bool = False  # recompute each layer in the backward pass instead of keeping it


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); returns its keys and values too.

    Tokens before `outputs_from` contribute keys and values only.
    """

    config: DecoderConfig
    mesh: Mesh | None = None
    outputs_from: int = 0

    @nn.compact
    def __call__(
        self, x: Array, angles: tuple[Array, Array], contexts: Sequence[Segment]
    ) -> tuple[Array, Cache]:
        """x [*lead, S, D], angles [*lead, S, d/2] -> x from `outputs_from` on, cache of all."""
        c = self.config
        split = functools.partial(_split, self.mesh)
        init = nn.initializers.normal(c.initializer_range)
        dense = functools.partial(nn.DenseGeneral, dtype=c.dtype, kernel_init=init)
        norm = functools.partial(nn.RMSNorm, epsilon=c.rms_norm_eps, dtype=c.dtype)

        h = norm(name="attention_norm")(x)
        project = functools.partial(dense, use_bias=c.qkv_bias)
        k = split(project((c.num_kv_heads, c.head_dim), name="key")(h), -2)
        v = split(project((c.num_kv_heads, c.head_dim), name="value")(h), -2)
        size = x.shape[-2]
        h, x, *read = (y[..., self.outputs_from :, :] for y in (h, x, *angles))
        q = split(project((c.num_heads, c.head_dim), name="query")(h), -2)
        if c.qk_norm:
            q, k = norm(name="query_norm")(q), norm(name="key_norm")(k)
        q, k = apply_rope(q, *read), apply_rope(k, *angles)
        own = Segment(k, v, jnp.arange(self.outputs_from + 1, size + 1))
        mixed = attend(q, [*contexts, own], mesh=self.mesh, implementation=c.attention)
        mixed = split(mixed, -2)
        output = dense(c.hidden_size, axis=(-2, -1), use_bias=c.output_bias, name="output")
        x = split(x + output(mixed))

        h = norm(name="mlp_norm")(x)
        wide = functools.partial(dense, c.intermediate_size, use_bias=c.mlp_bias)
        gated = split(nn.silu(wide(name="gate")(h)) * wide(name="up")(h), -1)
        x = split(x + dense(c.hidden_size, use_bias=c.mlp_bias, name="down")(gated))
        return x, Cache(k, v)


def _split(mesh: Mesh | None, x: Array, tensor_axis: int | None = None) -> Array:
    """Splits the batch over `data` and `fsdp`, and an axis of heads or units over `tensor`."""
    axes: list[Any] = [BATCH_AXES, *[None] * (x.ndim - 1)]
    if tensor_axis is not None:
        axes[tensor_axis] = "tensor"
    return constrain(x, mesh, *axes)


def rope_frequencies(config: DecoderConfig) -> Array:
    """Rotary frequencies theta^(-2i/d), i < d/2, in radians per token; [d/2] float32.

    With Llama 3's scaling, wavelengths above original/low_freq_factor are stretched by `factor`,
    those below original/high_freq_factor kept, and the band between is interpolated linearly in
    original/wavelength (arXiv:2407.21783).
    """
    exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequency = 1.0 / config.rope_theta**exponent
    band = config.rope_scaling
    if band is None:
        return frequency
    rotations = band.original_max_position_embeddings * frequency / (2 * jnp.pi)
    keep = (rotations - band.low_freq_factor) / (band.high_freq_factor - band.low_freq_factor)
    keep = jnp.clip(keep, 0.0, 1.0)
    return frequency * (keep + (1 - keep) / band.factor)


def rope_angles(config: DecoderConfig, positions: Array) -> tuple[Array, Array]:
    """cos and sin of the rotary angles at positions [...]: [..., d/2] float32 each.

    Computed once for all layers: they cost more than the rotation itself.
    """
    angles = positions[..., None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(x: Array, cos: Array, sin: Array) -> Array:
    """Rotary embedding of x [..., heads, d] by `rope_angles` [..., d/2], halves paired as in HF."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def init_params(config: DecoderConfig, key: Array) -> Params:
    """Random float32 parameters: normal(initializer_range), norms 1, biases 0; layers stacked.

    >>> config = DecoderConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_layers=3,
    ...                        num_heads=2, num_kv_heads=1, head_dim=4)
    >>> params = init_params(config, jax.random.key(0))
    >>> params["embedding"].shape, params["layers"]["query"]["kernel"].shape
    ((11, 8), (3, 8, 2, 4))
    """
    layer_key, embed_key, head_key = jax.random.split(key, 3)
    shape = (config.vocab_size, config.hidden_size)
    x, angles = jnp.zeros((1, 1, config.hidden_size)), rope_angles(config, jnp.zeros((1, 1)))

    def init_layer(key: Array) -> Params:
        return DecoderLayer(config).init(key, x, angles, ())["params"]

    params = {
        "embedding": config.initializer_range * jax.random.normal(embed_key, shape),
        "layers": jax.vmap(init_layer)(jax.random.split(layer_key, config.num_layers)),
        "final_norm": {"scale": jnp.ones(config.hidden_size)},
    }
    if not config.tie_word_embeddings:
        params["head"] = config.initializer_range * jax.random.normal(head_key, shape)
    return params


@functools.lru_cache(maxsize=32)
def param_shapes(config: DecoderConfig) -> Params:
    """The `jax.ShapeDtypeStruct` of each parameter; cached, so the same object each time."""
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


def forward(
    config: DecoderConfig,
    mesh: Mesh | None,
    params: Params,
    tokens: Array,
    positions: Array,
    contexts: Sequence[Context] = (),
    outputs_from: int = 0,
) -> tuple[Array, Cache]:
    """Runs new tokens, which read a tree of contexts and, causally, each other.

    Args:
      mesh: splits the batch and the heads; None on a single device.
      params: of `init_params`; the layers stacked (scanned here) or a list (unrolled here).
      tokens: [*lead, S] int32; positions the same shape, in tokens from the prompt's start.
      contexts: what was computed before; their caches have the layout of `params`.
      outputs_from: only the states from this token on are needed, so the last layer is computed
        for these alone. Not meant to be differentiated unless it is 0.

    Returns:
      hidden [*lead, S - outputs_from, D] after the final norm, and the cache of the new tokens.
    """
    angles = rope_angles(config, positions)
    x = _split(mesh, gather(mesh, params)["embedding"][tokens].astype(config.dtype))
    limits = [
        c.visible.reshape(c.visible.shape + (1,) * (tokens.ndim - c.visible.ndim)) for c in contexts
    ]

    def layer(x, weights_and_caches, outputs_from=0):
        weights, caches = weights_and_caches
        segments = [Segment(*cache, limit) for cache, limit in zip(caches, limits, strict=True)]
        module = DecoderLayer(config, mesh, outputs_from)
        return module.apply({"params": weights}, x, angles, segments)

    caches = [context.cache for context in contexts]
    if isinstance(params["layers"], list | tuple):
        made = []
        for index, weights in enumerate(params["layers"]):
            past = [Cache(c.keys[index], c.values[index]) for c in caches]
            last = index == config.num_layers - 1
            x, cache = layer(x, (weights, past), outputs_from if last else 0)
            made.append(cache)
        cache = Cache(tuple(c.keys for c in made), tuple(c.values for c in made))
    elif outputs_from:
        x, cache = _scan_all_but_last(layer, x, (params["layers"], caches), outputs_from)
    else:
        body = jax.checkpoint(layer) if config.remat else layer
        x, cache = jax.lax.scan(body, x, (params["layers"], caches))
    final_norm = nn.RMSNorm(epsilon=config.rms_norm_eps, dtype=config.dtype)
    return final_norm.apply({"params": params["final_norm"]}, x), cache


def _scan_all_but_last(
    layer: Any, x: Array, stacked: Any, outputs_from: int
) -> tuple[Array, Cache]:
    """The last layer for the tokens from `outputs_from` on; the others for all.

    The loop picks its layer by index, since slicing off the last layer would copy the stack.
    """
    last = jax.tree.leaves(stacked)[0].shape[0] - 1

    def layer_at(x: Array, index: Array) -> tuple[Array, Cache]:
        pick = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
        return layer(x, jax.tree.map(pick, stacked))

    x, caches = jax.lax.scan(layer_at, x, jnp.arange(last))
    x, cache = layer(x, jax.tree.map(lambda leaf: leaf[last], stacked), outputs_from)
    return x, jax.tree.map(lambda many, one: jnp.concatenate([many, one[None]]), caches, cache)


def unroll(config: DecoderConfig, params: Params) -> Params:
    """A list of layers in the compute dtype; norms, embedding and head stay as they are.

    A one-token step then reads each layer's weights in place instead of slicing them out of a
    stack, and reads half the bytes in bfloat16. Norms multiply in float32: with rounded scales, the
    sampler and the scorer would be different policies. Unrolled parameters are returned as they
    are.
    """
    if isinstance(params["layers"], list | tuple):
        return params

    def take(index, path, x):
        return x[index] if path[-1].key == "scale" else x[index].astype(config.dtype)

    slices = [functools.partial(take, index) for index in range(config.num_layers)]
    layers = [jax.tree_util.tree_map_with_path(part, params["layers"]) for part in slices]
    return {**params, "layers": layers}


def gather(mesh: Mesh | None, params: Params) -> Params:
    """Parameters with the embedding table gathered along `fsdp`.

    If the table were split along `fsdp`, every device would look up the full batch. Call this once,
    outside loops: `forward` then has nothing left to gather, and the gradients of all look-ups are
    summed before they cross devices. The head stays split.
    """
    table = constrain(params["embedding"], mesh, "tensor")
    return {**params, "embedding": table, "head": params.get("head", params["embedding"])}


def logit_weight(mesh: Mesh | None, params: Params) -> Array:
    """The output weights [V, D]. For stacked parameters, the vocabulary is split over all devices.

    Without the split over `data`, each chunk of the loss would sum a [V, D] gradient over devices.
    Unrolled parameters are for sampling, which uses the head as it is sharded.
    """
    weight = params.get("head", params["embedding"])
    if isinstance(params["layers"], list | tuple):
        return weight
    return constrain(weight, mesh, ("tensor", "fsdp", "data"))


@functools.lru_cache(maxsize=32)
def make_model(config: DecoderConfig, mesh: Mesh | None = None) -> Model:
    """The architecture as a `Model`: pure functions of parameters and tokens.

    The same arguments give the same object, so that `jax.jit` reuses its compiled programs.

    Args:
      mesh: splits batch, heads and vocabulary; None on a single device.

    >>> config = DecoderConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_layers=1,
    ...                        num_heads=2, num_kv_heads=1, head_dim=4)
    >>> model, params = make_model(config), init_params(config, jax.random.key(0))
    >>> tokens, positions = jnp.array([[3, 1, 4]]), jnp.array([[0, 1, 2]])
    >>> hidden, cache = model.forward(params, tokens, positions)
    >>> (hidden @ model.logit_weight(params).T).shape
    (1, 3, 11)
    """
    return Model(
        forward=functools.partial(forward, config, mesh),
        logit_weight=functools.partial(logit_weight, mesh),
        unroll=functools.partial(unroll, config),
        gather=functools.partial(gather, mesh),
        devices=1 if mesh is None else batch_devices(mesh),
    )
