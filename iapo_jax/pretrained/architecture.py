"""A Hugging Face config.json as a `DecoderConfig`."""

from typing import Any

from iapo_jax.errors import UserError
from iapo_jax.model.decoder import DecoderConfig, Llama3Rope

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_OPTIONAL_SIZES = ("num_key_value_heads", "head_dim")
_LLAMA3_ROPE = tuple(Llama3Rope.__dataclass_fields__)
_NUMBERS = ("rms_norm_eps", "initializer_range", "rope_theta", *_LLAMA3_ROPE)


def decoder_config(
    hf: dict,
    *,
    dtype: str = "float32",
    attention: str = "auto",
    remat: bool = False,
    source: str = "config.json",
) -> DecoderConfig:
    """The architecture that a Hugging Face config.json describes.

    `rope_theta` and `rope_scaling` may be at the top level or, as transformers 5 writes them,
    in `rope_parameters`.

    Raises:
      UserError: naming `source` and the field, if the decoder does not support the architecture.
    """
    _check_supported(hf, source)
    _check_choice("model.dtype", dtype, ("float32", "bfloat16"))
    _check_choice("model.attention", attention, ("auto", "xla"))
    _check_sizes(hf, source)
    _check_numbers(hf, source)
    _check_heads(hf, source)
    kind, heads, bias = hf["model_type"], hf["num_attention_heads"], _flag(hf, "attention_bias")
    theta, scaling = _rope(hf, source)
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        hidden_size=hf["hidden_size"],
        intermediate_size=hf["intermediate_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads") or heads,
        head_dim=hf.get("head_dim") or hf["hidden_size"] // heads,
        rope_theta=theta,
        rope_scaling=scaling,
        rms_norm_eps=hf.get("rms_norm_eps", 1e-6),
        tie_word_embeddings=_flag(hf, "tie_word_embeddings"),
        qkv_bias=kind == "qwen2" or bias,
        output_bias=kind != "qwen2" and bias,
        mlp_bias=_flag(hf, "mlp_bias"),
        qk_norm=kind == "qwen3",
        initializer_range=hf.get("initializer_range", 0.02),
        dtype=dtype,
        attention=attention,
        remat=remat,
    )


def _flag(hf: dict, name: str) -> bool:
    return bool(hf.get(name, False))


def _check_choice(field: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{field} is {value!r}; expected {' or '.join(known)}")


def _check_supported(hf: dict, source: str) -> None:
    """Refuses architectures that the decoder would compute incorrectly."""
    if not isinstance(hf, dict):
        raise UserError(f"{source} is {hf!r:.60}; expected an object")
    kind = hf.get("model_type")
    if kind not in ("qwen2", "qwen3", "llama"):
        raise UserError(f"{source}: model_type is {kind!r}; expected qwen2, qwen3 or llama")
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"{source}: hidden_act is {hf['hidden_act']!r}; expected silu")
    layers = hf.get("layer_types") or []
    if hf.get("use_sliding_window") or any(layer != "full_attention" for layer in layers):
        raise UserError(f"{source}: layers use a sliding window; expected only full attention")
    if hf.get("quantization_config"):
        raise UserError(f"{source}: the weights are quantized; expected float weights")


def _check_sizes(hf: dict, source: str) -> None:
    missing = [name for name in _SIZES if name not in hf]
    if missing:
        raise UserError(f"{source}: {missing[0]} is missing; expected a positive integer")
    for name in (*_SIZES, *_OPTIONAL_SIZES):
        value = hf.get(name)
        if value is None and name in _OPTIONAL_SIZES:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise UserError(f"{source}: {name} is {value!r}; expected a positive integer")


def _check_numbers(hf: dict, source: str) -> None:
    rope = _rope_section(hf)
    if not isinstance(rope, dict):
        raise UserError(f"{source}: rope_scaling is {rope!r:.60}; expected an object")
    for name in _NUMBERS:
        for section in (hf, rope):
            value = section.get(name, 1.0)
            if value is None and name == "rope_theta":
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and value >= 0):
                raise UserError(f"{source}: {name} is {value!r}; expected a non-negative number")


def _check_heads(hf: dict, source: str) -> None:
    heads = hf["num_attention_heads"]
    if heads % (hf.get("num_key_value_heads") or heads):
        raise UserError(
            f"{source}: num_key_value_heads is {hf['num_key_value_heads']}; expected a divisor of "
            f"num_attention_heads ({heads})"
        )
    if not hf.get("head_dim") and hf["hidden_size"] % heads:
        raise UserError(
            f"{source}: hidden_size is {hf['hidden_size']}; expected a multiple of "
            f"num_attention_heads ({heads}), or head_dim"
        )


def _rope_section(hf: dict) -> Any:
    return hf.get("rope_scaling") or hf.get("rope_parameters") or {}  # as transformers reads them


def _rope(hf: dict, source: str) -> tuple[float, Llama3Rope | None]:
    """theta, and the scaling of the rotary embedding; None for no scaling."""
    rope = _rope_section(hf)
    theta = float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{source}: the rope scaling is {kind!r}; expected none, default or llama3")
    missing = [name for name in _LLAMA3_ROPE if name not in rope]
    if missing:
        raise UserError(
            f"{source}: the llama3 rope scaling has no {missing[0]}; expected a non-negative number"
        )
    return theta, Llama3Rope(**{name: rope[name] for name in _LLAMA3_ROPE})
