"""Hugging Face directories in and out: config, tokenizer, chat template, stop tokens.

Never runs code from a model's directory. The home of transformers.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # "PyTorch was not found"

import huggingface_hub
import numpy as np
import transformers

from iapo_jax.errors import UserError
from iapo_jax.model import DecoderConfig, Llama3Rope
from iapo_jax.types import Params
from iapo_jax.weights import read_json, save_weights, write_json

_MODEL_FILES = {
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", "tokenizer.model"),
}
_WEIGHT_FILES = (".safetensors", ".safetensors.index.json")
_END_OF_TURN = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>")


def resolve_directory(name: str, revision: str | None = None) -> Path:
    """A local directory as it is, or a snapshot of a hub model (weights and text files only)."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise UserError(
            f"model directory {name!r} does not exist (looked in {Path.cwd()}); expected a "
            "Hugging Face directory or a hub name such as Qwen/Qwen2.5-1.5B-Instruct"
        )
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns)
        )
    except Exception as error:  # offline, unknown name, gated: each with its own class
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{name!r} is neither a local directory nor a model that the hub would give: {reason}"
        ) from None


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
        raise UserError(f"{source}: quantised weights are not supported")
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


def save_pretrained(
    params: Params,
    hf_config: dict,
    tokenizer: Any,
    directory: Path,
    *,
    generation_config: dict | None = None,
    dtype: str = "float32",
) -> None:
    """Writes a directory that transformers opens as it is; complete or not there at all.

    An older model directory of that name is replaced, once the new one is complete.

    Raises:
      UserError: if `directory` holds anything but a model.
    """
    final, directory = directory, directory.with_name(directory.name + ".partial")
    for place in (final, directory, final.with_name(final.name + ".replaced")):
        check_replaceable(place)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    save_weights(params, directory, hf_config["num_hidden_layers"], dtype)
    config = {k: v for k, v in hf_config.items() if k not in ("dtype", "torch_dtype")}
    write_json(directory / "config.json", {**config, "dtype": dtype})
    if generation_config:
        write_json(directory / "generation_config.json", generation_config)
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
    """Only what a model directory consists of may be replaced by one.

    Raises:
      UserError: naming what else is there.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory} is a file; expected a directory to write a model to")
    for path in sorted(directory.iterdir()) if directory.exists() else ():
        known = path.name in _MODEL_FILES or path.name.endswith(_WEIGHT_FILES)
        if path.is_dir() or not known:
            raise UserError(
                f"{directory} holds {path.name}, which belongs to no exported model: not replaced; "
                "expected a new or empty directory, or one that an export wrote"
            )


def load_tokenizer(directory: str | Path) -> Any:
    """The directory's fast tokenizer, with its chat template."""
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # tokenizers raises the bare class for a damaged file
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise UserError(f"{directory}: no tokenizer that transformers can open: {reason}") from None
    # Beside a qwen2 config.json transformers opens a directory without one as an empty tokenizer.
    if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
        raise UserError(f"{directory}: the tokenizer has no vocabulary (tokenizer.json is missing)")
    return tokenizer


def read_generation_config(directory: Path) -> dict:
    """generation_config.json, or an empty dict where there is none."""
    path = directory / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def stop_ids(tokenizer: Any, generation_config: dict) -> list[int]:
    """Ids that end a completion: EOS of tokenizer and generation_config, end-of-turn tokens."""
    configured = generation_config.get("eos_token_id")
    ids = set(configured) if isinstance(configured, list) else {configured}
    vocabulary = tokenizer.get_vocab()
    ids |= {tokenizer.eos_token_id} | {vocabulary.get(text) for text in _END_OF_TURN}
    return sorted(ids - {None})


def allowed_ids(tokenizer: Any, vocab_size: int) -> np.ndarray:
    """[V] bool: ids that stand for a token. Embedding rows beyond the tokenizer's are padding.

    Raises:
      UserError: if the tokenizer has ids that the model has no row for.
    """
    ids = np.fromiter(tokenizer.get_vocab().values(), dtype=np.int64)
    if ids.max() >= vocab_size:
        raise UserError(
            f"the tokenizer has ids up to {ids.max()}, the model only {vocab_size} rows: "
            "they do not belong together"
        )
    return np.isin(np.arange(vocab_size), ids)


def _check_ends(tokenizer: Any, configured: dict, source: str) -> None:
    """Whether the ids that the model ends with are the tokenizer's.

    Raises:
      UserError: naming the file and the id.
    """
    value = configured.get("eos_token_id")
    known = set(tokenizer.get_vocab().values())
    for one in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(one, int) or isinstance(one, bool):
            raise UserError(f"{source}: eos_token_id is {value!r:.60}; expected ids")
        if one not in known:
            raise UserError(
                f"{source}: eos_token_id is {value!r:.60}, but the tokenizer has no token of the "
                f"id {one}: they do not belong together"
            )


class Pretrained(NamedTuple):
    """A model directory, read: all but the weights."""

    directory: Path | None  # None for a new random model
    hf_config: dict
    config: DecoderConfig
    tokenizer: Any
    generation_config: dict
    stop_ids: list[int]
    allowed: np.ndarray  # [V] bool


def open_pretrained(section: Any) -> Pretrained:
    """Reads what `config.ModelSection` names: a directory, a hub name, or a new architecture."""
    if section.config:
        directory, hf = None, read_json(Path(section.config))
        if not section.tokenizer:
            raise UserError("model.config starts a new model and needs model.tokenizer beside it")
        source, generation = section.config, {}
    elif section.path:
        directory = resolve_directory(section.path, section.revision)
        source = str(directory / "config.json")
        hf, generation = read_json(directory / "config.json"), read_generation_config(directory)
    else:
        raise UserError("model.path is empty: expected a Hugging Face directory or a hub name")
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
        raise UserError(f"{source}: no token ends a completion: set eos_token_id of the tokenizer")
    allowed = allowed_ids(tokenizer, config.vocab_size)
    return Pretrained(directory, hf, config, tokenizer, generation, stops, allowed)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text as it is, without special tokens around it."""
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids as it is, special tokens too."""
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def token_texts(tokenizer: Any, size: int) -> list[str]:
    """The text of each id alone; "" for ids that stand for no token."""
    known = min(size, len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in range(known)], clean_up_tokenization_spaces=False)
    return texts + [""] * (size - known)


def token_text(tokenizer: Any, token: int) -> str:
    r"""The text of one id alone; bytes of a character that is split over ids as \xf0."""
    text = decode(tokenizer, [token])
    if "\ufffd" not in text:
        return text
    letters = tokenizer.convert_ids_to_tokens(token)
    if any(letter not in _BYTES for letter in letters):
        return text
    return bytes(_BYTES[letter] for letter in letters).decode("utf-8", "backslashreplace")


def _byte_letters() -> dict[str, int]:
    """The printable letters by which byte-level vocabularies write bytes (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_letters()


def decode_completions(
    tokenizer: Any, rows: Iterable[np.ndarray], stop: Iterable[int]
) -> list[str]:
    """Texts of completions; the stop token is left out, other tokens stay visible."""
    stop = set(stop)
    trimmed = [row[:-1] if len(row) and int(row[-1]) in stop else row for row in rows]
    return tokenizer.batch_decode(
        trimmed, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def thinking_lengths(tokenizer: Any, rows: Iterable[np.ndarray], end: str) -> list[int]:
    """How many tokens of each row stand before the text `end`; all of them where it is missing.

    A token that holds the first characters of `end` together with others already ends the thinking.
    """
    rows = list(rows)
    single = encode(tokenizer, end)
    if len(single) == 1:
        hits = [np.flatnonzero(row == single[0]) for row in rows]
        return [int(hit[0]) if len(hit) else len(row) for hit, row in zip(hits, rows, strict=True)]
    lengths = []
    for row in rows:
        offset = decode(tokenizer, row).find(end)
        low, high = 0, len(row)
        while offset >= 0 and low < high:  # the longest prefix whose text ends before `end`
            middle = (low + high + 1) // 2
            if len(decode(tokenizer, row[:middle])) <= offset:
                low = middle
            else:
                high = middle - 1
        lengths.append(low if offset >= 0 else len(row))
    return lengths
