"""Tokenizers: ids and texts, stop tokens, the end of thinking.

The only module that imports transformers.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from iapo_jax.errors import UserError
from iapo_jax.types import Rollout

Tokenizer = transformers.PreTrainedTokenizerBase
_END_OF_TURN = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>")


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The directory's fast tokenizer, with its chat template.

    Raises:
      UserError: if transformers cannot open it, or if it has no vocabulary.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # for a damaged file, tokenizers raises Exception itself
        reason = " ".join((str(error) or type(error).__name__).split())
        raise UserError(
            f"{directory}: transformers cannot open the tokenizer: {reason:.200}"
        ) from None
    # For a directory with a qwen2 config.json but no tokenizer, transformers returns an empty one.
    if tokenizer.get_vocab().keys() <= tokenizer.get_added_vocab().keys():
        raise UserError(f"{directory}: the tokenizer has no vocabulary (tokenizer.json is missing)")
    return tokenizer


def stop_ids(tokenizer: Tokenizer, generation_config: dict | None = None) -> list[int]:
    """Ids that end a completion: EOS of tokenizer and generation_config, end-of-turn tokens.

    >>> tokenizer = load_tokenizer("experiments/arithmetic/model")
    >>> tokenizer.convert_ids_to_tokens(stop_ids(tokenizer))
    ['<eos>']
    """
    configured = (generation_config or {}).get("eos_token_id")
    ids = set(configured) if isinstance(configured, list) else {configured}
    vocabulary = tokenizer.get_vocab()
    ids |= {tokenizer.eos_token_id} | {vocabulary.get(text) for text in _END_OF_TURN}
    return sorted(ids - {None})


def allowed_ids(tokenizer: Any, vocab_size: int, source: str = "config.json") -> np.ndarray:
    """[V] bool: the ids that the tokenizer has; further rows of the embedding are padding.

    Raises:
      UserError: beginning with `source`, if the tokenizer has ids beyond the vocabulary.
    """
    ids = np.fromiter(tokenizer.get_vocab().values(), dtype=np.int64)
    if ids.max() >= vocab_size:
        raise UserError(
            f"{source}: the tokenizer has ids up to {ids.max()}, but the vocabulary size of the "
            f"model is {vocab_size}; tokenizer and model do not match"
        )
    return np.isin(np.arange(vocab_size), ids)


def _check_ends(tokenizer: Any, configured: dict, source: str) -> None:
    """Checks that the tokenizer has the end-of-sequence ids of the model.

    Raises:
      UserError: naming the file and the id.
    """
    value = configured.get("eos_token_id")
    known = set(tokenizer.get_vocab().values())
    ids = value if isinstance(value, list) else [value]
    for token in ids if value is not None else ():
        if not isinstance(token, int) or isinstance(token, bool):
            raise UserError(
                f"{source}: eos_token_id is {value!r:.60}; expected an integer or a list of "
                "integers"
            )
        if token not in known:
            raise UserError(
                f"{source}: eos_token_id is {value!r:.60}, but the tokenizer has no token with the "
                f"id {token}; tokenizer and model do not match"
            )


def encode(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, without special tokens around it."""
    return tokenizer.encode(text, add_special_tokens=False, verbose=False)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, special tokens included."""
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def token_texts(tokenizer: Any, size: int) -> list[str]:
    """The text of each single id; "" for ids that the tokenizer does not have."""
    known = min(size, len(tokenizer))
    texts = tokenizer.batch_decode([[i] for i in range(known)], clean_up_tokenization_spaces=False)
    return texts + [""] * (size - known)


def token_text(tokenizer: Any, token: int) -> str:
    r"""The text of a single id; a byte of a character that several ids share is written as \xf0."""
    text = decode(tokenizer, [token])
    if "\ufffd" not in text:
        return text
    letters = tokenizer.convert_ids_to_tokens(token)
    if any(letter not in _BYTES for letter in letters):
        return text
    return bytes(_BYTES[letter] for letter in letters).decode("utf-8", "backslashreplace")


def _byte_letters() -> dict[str, int]:
    """The printable characters that stand for bytes in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_letters()


def decode_completions(
    tokenizer: Any, rows: Iterable[np.ndarray], stop: Iterable[int]
) -> list[str]:
    """The texts of completions without their stop token; all other tokens stay visible."""
    stop = set(stop)
    trimmed = [row[:-1] if len(row) and int(row[-1]) in stop else row for row in rows]
    return tokenizer.batch_decode(
        trimmed, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )


def decode_rollout(tokenizer: Tokenizer, rollout: Rollout) -> list[list[str]]:
    """The texts of G completions of each of P prompts, without the stop tokens.

    >>> tokenizer = load_tokenizer("experiments/arithmetic/model")
    >>> tokens = np.array([[[*tokenizer.encode("1+2=3"), tokenizer.eos_token_id]]])
    >>> rollout = Rollout(None, tokens, length=np.array([[6]]), log_prob=None,
    ...                   finished=np.array([[True]]))
    >>> decode_rollout(tokenizer, rollout)
    [['1+2=3']]
    """
    tokens, length, finished = map(np.asarray, (rollout.tokens, rollout.length, rollout.finished))
    ends = length - finished
    return [
        tokenizer.batch_decode(
            [row[:end] for row, end in zip(rows, row_ends, strict=True)],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        for rows, row_ends in zip(tokens, ends, strict=True)
    ]


def tokens_before(tokenizer: Any, rows: Iterable[np.ndarray], end: str) -> list[int]:
    """The number of tokens in each row before the text `end`; all tokens if it is missing.

    A token in whose middle `end` begins is not counted.
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
    """The tokens of all P * G completions, without padding."""
    tokens = rollout.tokens.reshape(-1, rollout.tokens.shape[-1])
    return [row[:n] for row, n in zip(tokens, rollout.length.ravel(), strict=True)]


def thinking_lengths(
    tokenizer: Any, tokens: list[np.ndarray], stops: Sequence[int], ends: Sequence[str]
) -> np.ndarray:
    """The number of tokens of each completion before the first of `ends` or of the stop tokens."""
    open_rows = [row[: np.argmax(np.append(np.isin(row, stops), True))] for row in tokens]
    lengths = [[len(row) for row in open_rows]]
    lengths += [tokens_before(tokenizer, open_rows, end) for end in ends]
    return np.min(lengths, axis=0)
