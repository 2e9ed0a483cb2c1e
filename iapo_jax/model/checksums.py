"""Checksums of parameters: they change if any bit changes, and do not depend on the mesh."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp

from iapo_jax.types import Params


@jax.jit
def _digests(tree: Any) -> Any:
    return jax.tree.map(_digest, tree)


def _digest(x: jax.Array) -> jax.Array:
    whole = x if x.dtype.itemsize == 4 else x.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(whole, jnp.uint32)
    place = jnp.zeros_like(bits)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    mixed = (bits ^ (place * jnp.uint32(0x9E3779B1))) * jnp.uint32(0x85EBCA6B)
    return jnp.sum((mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35), dtype=jnp.uint32)


def digests(tree: Any) -> dict[str, int]:
    """A checksum of each leaf, by its path, which changes if any bit of the leaf changes.

    It is the same on every mesh, since integers add exactly.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(_digests(tree))
    return {jax.tree_util.keystr(path): int(leaf) for path, leaf in leaves}


def fingerprint(params: Params) -> str:
    """One digest of all parameters, bit by bit; the same on every mesh.

    Distinguishes models, unlike a file's name or time. It does not protect against forgery.
    """
    return hashlib.sha256(repr(list(digests(params).items())).encode()).hexdigest()
