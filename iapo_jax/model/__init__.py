"""The decoder, attention, the chunked head, and the sampling loop: pure and jitted."""

from iapo_jax.model.decoder import DecoderConfig, init_params, make_model

__all__ = [
    "DecoderConfig",
    "init_params",
    "make_model",
]
