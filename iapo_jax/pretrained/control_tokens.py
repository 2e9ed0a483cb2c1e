"""Untrusted text beside trusted text: a control token that it spells is encoded as plain text.

The config and the chat template may hold control tokens; data rows, and answers that are cut out of
completions, only their letters. While trusted text is put around an untrusted one, a mark before
each letter of a control token hides it from templates.
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


# Nobody can guess them, and so no text holds them; what is encoded does not depend on them.
_MARK, _NAME = secrets.token_hex(8), secrets.token_hex(8)


class Prompt(NamedTuple):
    """A prompt as text, and as the ids that a model reads."""

    text: str
    ids: list[int]


class _Control(NamedTuple):
    """A tokenizer's control tokens, found once."""

    ids: dict[str, int]
    spelled: re.Pattern  # their texts
    trusted: re.Pattern  # texts of all added tokens, as tokenizers find them, but not behind a mark
    normalize: Callable[[str], str] | None  # where tokens are looked for in a normal form
    twins: list[tuple[Any, dict[int, int]]]  # of `_twin`, once it is needed


_known: weakref.WeakKeyDictionary[Any, _Control] = weakref.WeakKeyDictionary()


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Text and id of each added token that is special, or has the form of a tag such as <think>.

    Other added tokens, such as the words of a small vocabulary, are ordinary text.
    """
    return dict(_control(tokenizer).ids)


def _control(tokenizer: Any) -> _Control:
    if tokenizer not in _known:
        added = {
            i: t for i, t in getattr(tokenizer, "added_tokens_decoder", {}).items() if t.content
        }
        ids = {t.content: i for i, t in added.items() if t.special or _TAG.fullmatch(t.content)}
        normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        normalized = normalizer and any(token.normalized for token in added.values())
        every = _any_of(token.content for token in added.values())
        _known[tokenizer] = _Control(
            ids,
            re.compile(_any_of(ids)),
            re.compile(f"(?<!{_MARK})(?:{every})"),
            normalizer.normalize_str if normalized else None,
            [],
        )
    return _known[tokenizer]


def _any_of(texts: Iterable[str]) -> str:
    """The longest that fits, as in tokenizers; without any texts, what nothing fits."""
    return "|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or "(?!)"


def hide(tokenizer: Any, text: str) -> str:
    """An untrusted text, to be put between trusted ones and given to `encode_hidden`."""
    control = _control(tokenizer)
    hidden = control.spelled.sub(lambda found: _MARK + _MARK.join(found[0]), text)
    if hidden == text and control.normalize and control.spelled.search(control.normalize(text)):
        blank = len(text) - len(text.lstrip())  # which a template may take away
        hidden = text[:blank] + _MARK + text[blank:]
    return hidden


def show(text: str) -> str:
    """A text with what `hide` has hidden, as it was."""
    return text.replace(_MARK, "")


def encode_hidden(tokenizer: Any, text: str, where: str) -> Prompt:
    """A text whose untrusted parts went through `hide`: there no control token is an id.

    Raises:
      UserError: beginning with `where`, if the vocabulary has no other spelling of such a part.
    """
    if _MARK not in text:
        return Prompt(text, encode(tokenizer, text))
    control, (twin, ids) = _control(tokenizer), _twin(tokenizer)
    spell = lambda text: [ids.get(i, i) for i in twin.encode(text, add_special_tokens=False).ids]  # noqa: E731
    steering = set(control.ids.values())
    for found in control.ids:
        if _MARK + _MARK.join(found) in text:
            spelled = spell(found)
            if steering & set(spelled) or decode(tokenizer, spelled).strip() != found.strip():
                raise _unspellable(where, repr(found))
    count = 0

    def name(found: re.Match) -> str:
        nonlocal count
        count += found[0] in control.ids
        return _named(control.ids[found[0]]) if found[0] in control.ids else found[0]

    found = spell(show(control.trusted.sub(name, text)))
    if sum(i in steering for i in found) != count:
        raise _unspellable(where, "a text")
    return Prompt(show(text), found)


def _unspellable(where: str, what: str) -> UserError:
    return UserError(
        f"{where} holds {what} that this tokenizer can only write as a control token; expected a "
        "row of other text, or a tokenizer whose vocabulary can spell it"
    )


def encode_text(tokenizer: Any, text: str, *, before: str = "", after: str = "") -> list[int]:
    """Ids of an untrusted text between two trusted ones.

    Raises:
      UserError: as `encode_hidden`.
    """
    whole = f"{before}{hide(tokenizer, text)}{after}"
    return encode_hidden(tokenizer, whole, f"the text {text!r:.60}").ids


def _named(token: int) -> str:
    return f"{_NAME}:{token}."


def _twin(tokenizer: Any) -> tuple[Any, dict[int, int]]:
    """The tokenizer with control tokens that are spelled otherwise, as `_named`; and the ids of its
    added tokens -> those of the tokenizer's."""
    control = _control(tokenizer)
    if not control.twins:
        backend = tokenizer.backend_tokenizer
        told = json.loads(backend.to_str())
        told["post_processor"] = told["truncation"] = told["padding"] = None
        own = {}
        for token in told["added_tokens"]:
            i = control.ids.get(token["content"])
            if i is not None:
                token |= {"content": _named(i), "normalized": False}
            own[token["content"]] = token["id"]
        twin = type(backend).from_str(json.dumps(told))
        control.twins.append((twin, {twin.token_to_id(text): i for text, i in own.items()}))
    return control.twins[0]
