"""A Hugging Face config.json as a `DecoderConfig`."""

from iapo_jax.errors import UserError
from iapo_jax.model.decoder import DecoderConfig, Llama3Rope


def decoder_config(
    hf: dict,
    *,
    dtype: str = "float32",
    attention: str = "auto",
    remat: bool = False,
    source: str = "config.json",
) -> DecoderConfig:
    """An HF config.json as a `DecoderConfig`; refuses what the decoder would compute wrongly.

    `rope_theta` and `rope_scaling` may stand at the top level or, as transformers 5 writes them,
    in `rope_parameters`.
    """
    if not isinstance(hf, dict):
        raise UserError(f"{source}: expected an object, found {hf!r:.60}")
    kind = hf.get("model_type")
    if kind not in ("qwen2", "qwen3", "llama"):
        raise UserError(f"{source}: model_type {kind!r}; expected qwen2, qwen3 or llama")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"model.dtype is {dtype!r}; expected float32 or bfloat16")
    if attention not in ("auto", "xla"):
        raise UserError(f"model.attention is {attention!r}; expected auto or xla")
    if hf.get("hidden_act", "silu") != "silu":
        raise UserError(f"{source}: hidden_act {hf['hidden_act']!r}; expected silu")
    sliding = hf.get("layer_types") or []
    if hf.get("use_sliding_window") or any(t != "full_attention" for t in sliding):
        raise UserError(f"{source}: sliding-window attention is not supported")
    if hf.get("quantization_config"):
        raise UserError(f"{source}: quantized weights are not supported")
    needed = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    missing = [name for name in needed if name not in hf]
    if missing:
        raise UserError(f"{source}: field {missing[0]} is missing")
    for name in (*needed, "num_key_value_heads", "head_dim"):
        value, optional = hf.get(name), name not in needed
        whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not (whole or (optional and value is None)):
            raise UserError(f"{source}: {name} is {value!r}; expected a whole number above 0")
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UserError(f"{source}: rope_scaling is {rope!r:.60}; expected an object")
    numbers = ("rms_norm_eps", "initializer_range", "rope_theta", *Llama3Rope.__dataclass_fields__)
    for name, place in ((name, place) for name in numbers for place in (hf, rope)):
        value = place.get(name, 1.0)
        optional = name == "rope_theta" and value is None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (optional or (number and value >= 0)):
            raise UserError(f"{source}: {name} is {value!r}; expected a number, at least 0")
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
    bias = bool(hf.get("attention_bias", False))
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
        tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
        qkv_bias=kind == "qwen2" or bias,
        output_bias=kind != "qwen2" and bias,
        mlp_bias=bool(hf.get("mlp_bias", False)),
        qk_norm=kind == "qwen3",
        initializer_range=hf.get("initializer_range", 0.02),
        dtype=dtype,
        attention=attention,
        remat=remat,
    )


def _rope(hf: dict, source: str) -> tuple[float, Llama3Rope | None]:
    rope = hf.get("rope_scaling") or hf.get("rope_parameters") or {}  # as transformers reads them
    theta = float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{source}: rope scaling {kind!r}; expected none, default or llama3")
    names = [field for field in Llama3Rope.__dataclass_fields__]
    missing = [name for name in names if name not in rope]
    if missing:
        raise UserError(f"{source}: llama3 rope scaling lacks {missing[0]}")
    return theta, Llama3Rope(**{name: rope[name] for name in names})
