"""The device mesh, and the placement of parameters and batches on it.

Axes: `data` replicates parameters, `fsdp` shards them, `tensor` splits heads, hidden units and
vocabulary. Batches are split over `data` and `fsdp` together. Rules are for the leaves of one
layer, by name; an axis that does not divide a dimension does not shard it.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from iapo_jax.types import Array

AXES = ("data", "fsdp", "tensor")


# Keeps libtpu from looking for TPU hardware, and from reporting its absence.
_LIBTPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}

BATCH_AXES = ("data", "fsdp")

_RULES = {
    "embedding": (("tensor", "fsdp"), None),
    "head": (("tensor", "fsdp"), None),
    "query.kernel": ("fsdp", "tensor", None),
    "key.kernel": ("fsdp", "tensor", None),
    "value.kernel": ("fsdp", "tensor", None),
    "query.bias": ("tensor", None),
    "key.bias": ("tensor", None),
    "value.bias": ("tensor", None),
    "output.kernel": ("tensor", None, "fsdp"),
    "gate.kernel": ("fsdp", "tensor"),
    "up.kernel": ("fsdp", "tensor"),
    "gate.bias": ("tensor",),
    "up.bias": ("tensor",),
    "down.kernel": ("tensor", "fsdp"),
}


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh with the axes (data, fsdp, tensor) over the first devices.

    Args:
      data, fsdp, tensor: sizes; one axis may be -1 and takes all devices that are left.
      devices: used instead of `jax.devices()`, such as `described_devices`.

    Raises:
      ValueError: if the axes do not fit the devices.

    >>> dict(make_mesh(1, 1, 1).shape)
    {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    bad = [name for name, size in sizes.items() if size < 1 and size != -1]
    found = jax.devices() if devices is None else devices
    count = len(found)
    if len(free) > 1 or bad:
        raise ValueError(
            f"mesh {_sizes(sizes)}: expected sizes of at least 1, or -1 on at most one axis"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if free:
        if count % fixed:
            raise ValueError(
                f"mesh {_sizes(sizes)} needs a multiple of {fixed} devices, found {count}"
            )
        sizes[free[0]] = count // fixed
    total = math.prod(sizes.values())
    if total > count:
        raise ValueError(f"mesh {_sizes(sizes)} needs {total} devices, found {count}")
    grid = np.asarray(found[:total]).reshape(tuple(sizes.values()))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def described_devices(topology: str) -> list[Any]:
    """The TPU chips of a topology such as v5e:2x4, which need not be present to compile for.

    Raises:
      ValueError: without the package libtpu, or for a topology that it does not know.
    """
    from jax.experimental import topologies

    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    try:
        return list(topologies.get_topology_desc(topology, platform="tpu").devices)
    except Exception as error:  # whatever a plugin raises
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(
            f"topology {topology!r} cannot be described: {reason:.200}; expected a name such "
            "as v5e:2x4, and an installed libtpu (jax[tpu])"
        ) from None


def is_described(mesh: Mesh) -> bool:
    """Whether the devices of the mesh are absent, so that nothing can be put on them."""
    return mesh.devices.flat[0] not in set(jax.devices())


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of a value that every device holds."""
    return NamedSharding(mesh, Spec())


def by_prompt(mesh: Mesh) -> NamedSharding:
    """Sharding of arrays whose first axis is split over `data` and `fsdp`."""
    return NamedSharding(mesh, Spec(BATCH_AXES))


def batch_devices(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def param_shardings(mesh: Mesh, params: Any, *, axes: tuple[str, ...] = AXES) -> Any:
    """A NamedSharding for each leaf of a parameter tree (or of its shapes), by its name.

    Only the mesh's `axes` are used: without "fsdp", weights are replicated over that axis, so that
    a sampler need not gather them for every token.
    """
    fit = _fitting(mesh, axes)

    def place(path, leaf):
        names = [str(getattr(key, "key", key)) for key in path]
        rule = _RULES.get(".".join(names[-2:])) or _RULES.get(names[-1])
        stacked = len(leaf.shape) - len(rule or ())
        spec = [None] * stacked + list(rule or ())
        return NamedSharding(mesh, Spec(*map(fit, spec, leaf.shape)))

    return jax.tree_util.tree_map_with_path(place, params)


def _fitting(mesh: Mesh, allowed: tuple[str, ...]):
    def fit(axes, size):
        names = (axes,) if isinstance(axes, str) else tuple(axes or ())
        names = tuple(name for name in names if name in allowed)
        while names and size % math.prod(mesh.shape[name] for name in names):
            names = names[:-1]
        return names[0] if len(names) == 1 else (names or None)

    return fit


def constrain(x: Array, mesh: Mesh | None, *axes: Any) -> Array:
    """Constrains the sharding of an intermediate, axis by axis; its other axes are not split.

    Without a constraint XLA may keep weights in place and gather a complete batch on every device.
    A mesh axis that does not divide a dimension does not shard it. No mesh means no constraint.
    """
    if mesh is None:
        return x
    fit = _fitting(mesh, AXES)
    spec = [*axes, *[None] * (x.ndim - len(axes))]
    place = NamedSharding(mesh, Spec(*map(fit, spec, x.shape)))
    return jax.lax.with_sharding_constraint(x, place)


def micro_batches(batch: Any, count: int) -> Any:
    """[rows, ...] -> [count, rows / count, ...], dealt out so that no row changes its device."""

    def deal(x: Array) -> Array:
        return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(deal, batch)


def undo_micro_batches(parts: Any) -> Any:
    """The inverse of `micro_batches`."""

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

    return jax.tree.map(join, parts)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Host values as global arrays; every process passes the same complete values.

    On a mesh of absent devices (`is_described`), only their shapes.
    """
    described = is_described(sharding.mesh)

    def place(x):
        x = np.asarray(x)
        if described:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(place, tree)


def fetch(tree: Any) -> Any:
    """Global arrays as complete numpy arrays, on every process."""

    def get(x: Array) -> np.ndarray:
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))
        return np.asarray(x)

    return jax.tree.map(get, tree)
