"""Prints docs/configuration.md: `python -m iapo_jax.config > docs/configuration.md`."""

from iapo_jax.config.reference import to_markdown

print(to_markdown(), end="")
