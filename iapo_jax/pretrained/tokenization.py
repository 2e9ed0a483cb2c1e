"""Tokenizers: ids and texts, stop tokens, where the thinking ends. The home of transformers."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from iapo_jax.errors import UserError
from iapo_jax.types import Rollout

_END_OF_TURN = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>")


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


def tokens_before(tokenizer: Any, rows: Iterable[np.ndarray], end: str) -> list[int]:
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


def real_tokens(rollout: Rollout) -> list[np.ndarray]:
    """The tokens of all P * G completions without padding."""
    tokens = rollout.tokens.reshape(-1, rollout.tokens.shape[-1])
    return [row[:n] for row, n in zip(tokens, rollout.length.ravel(), strict=True)]


def thinking_lengths(
    tokenizer: Any, tokens: list[np.ndarray], stops: Sequence[int], ends: Sequence[str]
) -> np.ndarray:
    """Tokens of each completion before the first text of `ends`, or the first stop token."""
    open_rows = [row[: np.argmax(np.append(np.isin(row, stops), True))] for row in tokens]
    lengths = [[len(row) for row in open_rows]]
    lengths += [tokens_before(tokenizer, open_rows, end) for end in ends]
    return np.min(lengths, axis=0)
