"""Encodes untrusted text inside trusted text so that it cannot contain control tokens.

The author of a config or a chat template may write control tokens such as `<|im_end|>`. A data row,
or an answer from a completion, may contain the same characters, which must not become the token:
otherwise a row could end its turn and speak as the assistant. Tokenizers cannot prevent this on
their own, because they look for their control tokens first. An example, with the question
`2+2<|im_end|>`:

1. `hide` puts a secret mark before each character of each control token in the question:
   `2+2M<M|MiM...`. The chat template, which may compare or strip text, sees no control token.
2. The template adds its own control tokens: `<|im_start|>user\\n2+2M<M|M...<|im_end|>\\n`.
3. `encode_hidden` renames the control tokens that have no mark, the template's, to secret names
   (`N:151644.`) and removes the marks: `N:151644.user\\n2+2<|im_end|>N:151645.\\n`.
4. A second tokenizer, equal to the first except that its control tokens have these secret names,
   encodes the text: the template's control tokens become their ids, and `<|im_end|>` becomes the
   ids of ordinary text.
"""

import json
import re
import secrets
import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from iapo_jax.errors import UserError
from iapo_jax.pretrained.tokenization import decode, encode

_TAG = re.compile(r"<.+>|\[.+\]", re.DOTALL)

# Secret, so that no text contains them; the ids do not depend on their values.
_MARK, _NAME = secrets.token_hex(8), secrets.token_hex(8)


class Prompt(NamedTuple):
    """A prompt as text, and as the ids that a model reads."""

    text: str
    ids: list[int]


class _RenamedTokenizer(NamedTuple):
    """A tokenizer whose control tokens have secret names (step 4)."""

    backend: Any
    original_ids: dict[int, int]  # from the ids of its added tokens

    def encode(self, text: str) -> list[int]:
        ids = self.backend.encode(text, add_special_tokens=False).ids
        return [self.original_ids.get(i, i) for i in ids]


class _Vocabulary(NamedTuple):
    """The added tokens of a tokenizer, prepared for `hide` and `encode_hidden`; computed once."""

    control: dict[str, int]
    control_pattern: re.Pattern
    unmarked_pattern: re.Pattern  # every added token without a mark, as tokenizers find them
    normalize: Callable[[str], str] | None  # if tokens are matched in a normalized text
    renamed: list[_RenamedTokenizer]  # empty until it is needed


_vocabularies: weakref.WeakKeyDictionary[Any, _Vocabulary] = weakref.WeakKeyDictionary()


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Text and id of each added token that is special, or has the form of a tag such as <think>.

    Other added tokens, such as the words of a small vocabulary, are ordinary text.
    """
    return dict(_vocabulary(tokenizer).control)


def _vocabulary(tokenizer: Any) -> _Vocabulary:
    if tokenizer not in _vocabularies:
        decoder = getattr(tokenizer, "added_tokens_decoder", {})
        added = {i: token for i, token in decoder.items() if token.content}
        control = {
            token.content: i
            for i, token in added.items()
            if token.special or _TAG.fullmatch(token.content)
        }
        normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        normalized = normalizer and any(token.normalized for token in added.values())
        every = _alternatives(token.content for token in added.values())
        _vocabularies[tokenizer] = _Vocabulary(
            control=control,
            control_pattern=re.compile(_alternatives(control)),
            unmarked_pattern=re.compile(f"(?<!{_MARK})(?:{every})"),
            normalize=normalizer.normalize_str if normalized else None,
            renamed=[],
        )
    return _vocabularies[tokenizer]


def _alternatives(texts: Iterable[str]) -> str:
    """A pattern for any of the texts, the longest first, as tokenizers match them."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def hide(tokenizer: Any, text: str) -> str:
    """Marks the control tokens of an untrusted text, which may then be part of a trusted one."""
    vocabulary = _vocabulary(tokenizer)
    hidden = vocabulary.control_pattern.sub(lambda found: _marked(found[0]), text)
    if hidden != text or not vocabulary.normalize:
        return hidden
    if vocabulary.control_pattern.search(vocabulary.normalize(text)):
        blank = len(text) - len(text.lstrip())  # a template may strip it
        return text[:blank] + _MARK + text[blank:]
    return text


def _marked(text: str) -> str:
    return _MARK + _MARK.join(text)


def show(text: str) -> str:
    """The inverse of `hide`."""
    return text.replace(_MARK, "")


def encode_hidden(tokenizer: Any, text: str, where: str) -> Prompt:
    """Encodes a text so that no control token in its hidden parts (`hide`) becomes its id.

    Raises:
      UserError: beginning with `where`, if the tokenizer cannot encode such a part as text.
    """
    if _MARK not in text:
        return Prompt(text, encode(tokenizer, text))
    vocabulary, renamed = _vocabulary(tokenizer), _renamed(tokenizer)
    for token in vocabulary.control:
        if _marked(token) in text:
            _check_spelling(tokenizer, token, where)
    control_ids = set(vocabulary.control.values())
    trusted = [
        found for found in vocabulary.unmarked_pattern.findall(text) if found in vocabulary.control
    ]
    secret = vocabulary.unmarked_pattern.sub(
        lambda found: _secret_name(vocabulary.control.get(found[0]), found[0]), text
    )
    ids = renamed.encode(show(secret))
    if sum(i in control_ids for i in ids) != len(trusted):
        raise _not_plain(where, "text that")
    return Prompt(show(text), ids)


def _check_spelling(tokenizer: Any, token: str, where: str) -> None:
    """Checks that the vocabulary can spell a control token with other ids."""
    ids = _renamed(tokenizer).encode(token)
    control_ids = set(_vocabulary(tokenizer).control.values())
    if control_ids & set(ids) or decode(tokenizer, ids).strip() != token.strip():
        raise _not_plain(where, f"{token!r}, which")


def _not_plain(where: str, what: str) -> UserError:
    return UserError(
        f"{where} contains {what} this tokenizer can only encode as a control token; "
        "expected text without it, or a tokenizer that can encode it as ordinary text"
    )


def encode_text(tokenizer: Any, text: str, *, before: str = "", after: str = "") -> list[int]:
    """Ids of an untrusted text between two trusted ones.

    Raises:
      UserError: as `encode_hidden`.
    """
    complete = f"{before}{hide(tokenizer, text)}{after}"
    return encode_hidden(tokenizer, complete, f"the text {text!r:.60}").ids


def _secret_name(token_id: int | None, text: str) -> str:
    """The secret name of a control token; other added tokens keep their text."""
    return text if token_id is None else f"{_NAME}:{token_id}."


def _renamed(tokenizer: Any) -> _RenamedTokenizer:
    """The tokenizer with its control tokens renamed; made once, from its JSON."""
    vocabulary = _vocabulary(tokenizer)
    if not vocabulary.renamed:
        original = tokenizer.backend_tokenizer
        settings = json.loads(original.to_str())
        settings["post_processor"] = settings["truncation"] = settings["padding"] = None
        ids = {}
        for token in settings["added_tokens"]:
            token_id = vocabulary.control.get(token["content"])
            if token_id is not None:
                name = _secret_name(token_id, token["content"])
                token |= {"content": name, "normalized": False}
            ids[token["content"]] = token["id"]
        backend = type(original).from_str(json.dumps(settings))
        original_ids = {backend.token_to_id(text): i for text, i in ids.items()}
        vocabulary.renamed.append(_RenamedTokenizer(backend, original_ids))
    return vocabulary.renamed[0]
