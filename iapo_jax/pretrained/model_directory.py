"""Hugging Face model directories, read and written: config, tokenizer, chat template, stop tokens.

Nothing here runs code from a model directory.
"""

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import numpy as np

from iapo_jax.errors import UserError
from iapo_jax.model.decoder import DecoderConfig
from iapo_jax.pretrained.architecture import decoder_config
from iapo_jax.pretrained.tokenization import (
    _check_ends,
    allowed_ids,
    load_tokenizer,
    stop_ids,
)
from iapo_jax.pretrained.weights import save_weights
from iapo_jax.runtime.files import read_json, write_json
from iapo_jax.types import Params

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"

_MODEL_FILES = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "tokenizer.model"),
}

_WEIGHT_FILES = (".safetensors", ".safetensors.index.json")


def resolve_directory(name: str, revision: str | None = None) -> Path:
    """A local directory, or a snapshot of a hub model (weights and text files only).

    Raises:
      UserError: if it is neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        where = "" if path.is_absolute() else f" in {Path.cwd()}"
        raise UserError(
            f"model directory {name!r} does not exist{where}; expected a Hugging Face directory or "
            "a hub name such as Qwen/Qwen2.5-1.5B-Instruct"
        )
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        )
    except Exception as error:  # offline, unknown name, gated: each with its own class
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model {name!r} is not a local directory, and downloading it from the hub failed: "
            f"{reason}"
        ) from None


def save_pretrained(
    params: Params,
    hf_config: dict,
    tokenizer: Any,
    directory: Path,
    *,
    generation_config: dict | None = None,
    dtype: str = "float32",
) -> None:
    """Writes, atomically, a directory that transformers can open.

    An existing model directory is replaced once the new one is complete.

    Raises:
      UserError: if `directory` contains anything but a model.
    """
    final, directory = directory, directory.with_name(directory.name + ".partial")
    for place in (final, directory, final.with_name(final.name + ".replaced")):
        check_replaceable(place)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    save_weights(params, directory, hf_config["num_hidden_layers"], dtype)
    config = {k: v for k, v in hf_config.items() if k not in ("dtype", "torch_dtype")}
    write_json(directory / "config.json", {**config, "dtype": dtype}, sort_keys=True)
    if generation_config:
        write_json(directory / "generation_config.json", generation_config, sort_keys=True)
    if tokenizer is not None:
        tokenizer.save_pretrained(directory)
    for path in directory.iterdir():  # a crash of the machine must not leave empty files behind
        with path.open("rb") as file:
            os.fsync(file.fileno())
    replaced = final.with_name(final.name + ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    directory.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def check_replaceable(directory: Path) -> None:
    """Checks that a directory contains nothing but a model's files, so that a model may replace it.

    Raises:
      UserError: naming the first other file.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; expected a directory to write a model to")
    for path in sorted(directory.iterdir()) if directory.exists() else ():
        known = path.name in _MODEL_FILES or path.name.endswith(_WEIGHT_FILES)
        if path.is_dir() or not known:
            raise UserError(
                f"{directory} contains {path.name}, which is not part of an exported model; "
                "expected a new or empty directory, or one that contains only an exported model"
            )


def read_generation_config(directory: Path) -> dict:
    """generation_config.json, or an empty dict if there is none."""
    path = directory / "generation_config.json"
    return read_json(path) if path.is_file() else {}


class Pretrained(NamedTuple):
    """A model directory without its weights."""

    directory: Path | None  # None for a new random model
    hf_config: dict
    config: DecoderConfig
    tokenizer: Any
    generation_config: dict
    stop_ids: list[int]
    allowed: np.ndarray  # [V] bool


def open_pretrained(section: Any) -> Pretrained:
    """Reads the model of a `ModelSection`: a directory, a hub name, or a new architecture.

    Raises:
      UserError: naming the field or the file that is missing, damaged or not supported.
    """
    if section.config:
        directory, hf = None, read_json(Path(section.config))
        if not section.tokenizer:
            raise UserError(
                "model.tokenizer is empty; expected a directory or a hub name, since model.config "
                "creates a new model"
            )
        source, generation = section.config, {}
    elif section.path:
        directory = resolve_directory(section.path, section.revision)
        source = str(directory / "config.json")
        hf = read_json(directory / "config.json", missing="a Hugging Face model directory")
        generation = read_generation_config(directory)
    else:
        raise UserError("model.path is empty; expected a Hugging Face directory or a hub name")
    config = decoder_config(
        hf,
        dtype=section.dtype,
        attention=section.attention,
        remat=section.remat,
        source=source,
    )
    tokenizer = load_tokenizer(section.tokenizer or directory)
    if directory is None:
        generation = {
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    if directory is not None:
        _check_ends(tokenizer, hf, source)
        _check_ends(tokenizer, generation, str(directory / "generation_config.json"))
    stops = stop_ids(tokenizer, generation)
    if not stops:
        raise UserError(
            f"{source}: no token ends a completion; expected eos_token in tokenizer_config.json, "
            "or eos_token_id in generation_config.json"
        )
    allowed = allowed_ids(tokenizer, config.vocab_size, source)
    return Pretrained(
        directory=directory,
        hf_config=hf,
        config=config,
        tokenizer=tokenizer,
        generation_config=generation,
        stop_ids=stops,
        allowed=allowed,
    )
