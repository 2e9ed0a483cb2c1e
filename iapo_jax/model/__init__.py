"""The decoder, attention, the chunked head and the sampling loop: pure and jitted."""

from iapo_jax.model.attention import (
    Segment,
    attend,
    blockwise_attention,
    dense_attention,
)
from iapo_jax.model.decoder import DecoderConfig, Llama3Rope, init_params, make_model
from iapo_jax.model.sampling import (
    keep_top_k,
    keep_top_p,
    prompt_keys,
    sample,
    sample_token,
)
from iapo_jax.model.scoring import (
    TokenScores,
    forward_completions,
    next_token_scores,
    prefill,
    score_completions,
    token_scores,
)

__all__ = [
    "DecoderConfig",
    "Llama3Rope",
    "Segment",
    "TokenScores",
    "attend",
    "blockwise_attention",
    "dense_attention",
    "forward_completions",
    "init_params",
    "keep_top_k",
    "keep_top_p",
    "make_model",
    "next_token_scores",
    "prefill",
    "prompt_keys",
    "sample",
    "sample_token",
    "score_completions",
    "token_scores",
]
