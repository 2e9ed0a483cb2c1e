"""The weights of a Hugging Face directory: names, shapes, reading, writing.

Only safetensors. Our leaves are stacked over layers, and kernels are [in..., out...]; Hugging Face
has one tensor for each layer, stored as [out, in]. The only module that imports safetensors.
"""

from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from iapo_jax.errors import UserError
from iapo_jax.model.decoder import DecoderConfig, param_shapes
from iapo_jax.runtime.files import read_json, write_json
from iapo_jax.types import Params

_MODULES = {
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}

_TOP = {
    "embedding": "model.embed_tokens.weight",
    "final_norm.scale": "model.norm.weight",
    "head": "lm_head.weight",
}

SHARD_SIZE = "5GB"


def hf_names(path: str, num_layers: int) -> list[str]:
    """The HF tensor names of one of our leaves: a single one, or one for each layer."""
    if path in _TOP:
        return [_TOP[path]]
    _, module, leaf = path.split(".")
    suffix = "bias" if leaf == "bias" else "weight"
    return [f"model.layers.{i}.{_MODULES[module]}.{suffix}" for i in range(num_layers)]


def _hf_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The HF shape of the leaf of one layer: kernels [in..., out...] are stored as [out, in]."""
    if not path.endswith("kernel"):
        return shape if path in _TOP else (int(np.prod(shape)),)
    inputs = 2 if path.endswith("output.kernel") else 1
    return (int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs])))


def _paths(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(".".join(str(k.key) for k in path), leaf) for path, leaf in leaves]


class _Tensors:
    """The tensors of a directory's safetensors files, opened lazily."""

    def __init__(self, directory: Path):
        self.directory = directory
        index = directory / "model.safetensors.index.json"
        if index.is_file():
            files = sorted(set(read_json(index).get("weight_map", {}).values()))
        else:
            files = sorted(p.name for p in directory.glob("*.safetensors"))
        if not files:
            other = [
                p.name for pattern in ("*.bin", "*.pt", "*.gguf") for p in directory.glob(pattern)
            ]
            found = f"the weights are in {other[0]}" if other else "there are no weights"
            raise UserError(f"{directory}: {found}; expected *.safetensors files")
        self.where: dict[str, Any] = {}
        for name in files:
            if not (directory / name).is_file():
                raise UserError(f"{directory}: the index names {name}, which is missing")
            try:
                handle = safe_open(directory / name, framework="numpy")
            except SafetensorError as error:
                raise UserError(f"{directory / name} is damaged or incomplete: {error}") from None
            self.where.update(dict.fromkeys(handle.keys(), handle))

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.where[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        return self.where[name].get_tensor(name)


def check_tensors(directory: Path, config: DecoderConfig) -> None:
    """Compares names and shapes of a directory's tensors with the architecture; reads no values.

    Raises:
      UserError: naming the first tensor that is missing, unexpected or of another shape.
    """
    _open_checked(directory, config)


def _open_checked(directory: Path, config: DecoderConfig) -> _Tensors:
    tensors, known = _Tensors(directory), set()
    for path, leaf in _paths(param_shapes(config)):
        shape = _hf_shape(path, leaf.shape[1:] if path.startswith("layers.") else leaf.shape)
        for name in hf_names(path, config.num_layers):
            known.add(name)
            if name not in tensors.where:
                raise UserError(f"{directory}: tensor {name} of shape {shape} is missing")
            found = tensors.shape(name)
            if found != shape:
                raise UserError(f"{directory}: tensor {name} has shape {found}; expected {shape}")
    for name in tensors.where:
        tied = name == _TOP["head"] and config.tie_word_embeddings
        if name not in known and not tied and not name.endswith("rotary_emb.inv_freq"):
            raise UserError(f"{directory}: tensor {name} does not belong to this architecture")
    return tensors


def load_params(directory: Path, config: DecoderConfig, shardings: Any = None) -> Params:
    """The float32 parameters of a directory, stacked over layers and placed by `shardings`.

    Raises:
      UserError: as `check_tensors`.
    """
    tensors, wanted = _open_checked(directory, config), param_shapes(config)

    def load(path: str, leaf: Any, sharding: Any) -> jax.Array:
        stacked = path.startswith("layers.")
        parts = []
        for name in hf_names(path, config.num_layers):
            part = tensors.read(name).astype(np.float32)
            part = part.T if path.endswith("kernel") else part
            parts.append(part.reshape(leaf.shape[1:] if stacked else leaf.shape))
        return jax.device_put(np.stack(parts) if stacked else parts[0], sharding)

    leaves = _paths(wanted)
    places = [None] * len(leaves) if shardings is None else jax.tree.leaves(shardings)
    loaded = [load(path, leaf, place) for (path, leaf), place in zip(leaves, places, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(wanted), loaded)


def hf_tensors(params: Params, num_layers: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Parameters as HF tensors by name; the inverse of `load_params`."""
    tensors = {}
    for path, leaf in _paths(params):
        stacked = path.startswith("layers.")
        leaf = np.asarray(leaf)
        for index, name in enumerate(hf_names(path, num_layers)):
            part = leaf[index] if stacked else leaf
            shape = _hf_shape(path, part.shape)
            part = part.reshape(shape[::-1]).T if path.endswith("kernel") else part.reshape(shape)
            tensors[name] = np.ascontiguousarray(part.astype(dtype))
    return tensors


def save_weights(params: Params, directory: Path, num_layers: int, dtype: str) -> None:
    """model.safetensors, or shards of at most 5 GB and their index."""
    tensors = hf_tensors(params, num_layers, jax.numpy.dtype(dtype))
    split = huggingface_hub.split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_SIZE,
    )
    for file, names in split.filename_to_tensors.items():
        try:
            save_file({n: tensors[n] for n in names}, directory / file, metadata={"format": "pt"})
        except SafetensorError as error:  # wraps the OSError
            raise OSError(f"{directory / file}: {error}") from error
        (directory / file).chmod(0o644)  # safetensors makes it readable by its owner only
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(directory / "model.safetensors.index.json", index, sort_keys=True)
