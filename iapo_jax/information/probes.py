"""Turns texts of the config and of completions into the ids and positions of an answer probe.

A run encodes the postfix and the boundary tokens once, and the answers again for every rollout.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from iapo_jax.answers.checker import extract_answer, same_answer
from iapo_jax.config.sections import InformationSection
from iapo_jax.errors import UserError
from iapo_jax.information.estimators import ESTIMATORS, Probe
from iapo_jax.information.probe_positions import choose_positions
from iapo_jax.pretrained import control_tokens, tokenization
from iapo_jax.pretrained.model_directory import Pretrained
from iapo_jax.pretrained.tokenization import Tokenizer
from iapo_jax.sharding import by_prompt, put, replicated
from iapo_jax.types import Answers, Array, ProbePositions

_CHARS_PER_TOKEN = 128  # only the first tokens are used: no need to encode a megabyte
REFERENCES = ("gold", "own")


def encode_postfix(
    tokenizer: Tokenizer, text: str, field: str = "information.postfix"
) -> list[int]:
    """The exit postfix as ids.

    Raises:
      UserError: if it is empty, or if the tokenizer does not reproduce it.
    """
    if not text:
        raise UserError(f"{field} is empty; expected the text that opens the answer")
    ids = tokenization.encode(tokenizer, text)
    written = tokenization.decode(tokenizer, ids)
    if written != text:
        raise UserError(
            f"{field} is {text!r}, but encoding and decoding it gives {written!r}; expected text "
            "that the tokenizer reproduces exactly"
        )
    return ids


def boundary_tokens(
    tokenizer: Tokenizer, size: int, texts: Sequence[str], field: str = "information.boundaries"
) -> np.ndarray:
    """[V] bool: tokens whose text contains one of `texts`, such as "." or a newline.

    Raises:
      UserError: for a text that no single token contains.
    """
    written = tokenization.token_texts(tokenizer, size)
    found = np.zeros(size, bool)
    for text in texts:
        hits = [text in token for token in written]
        if not any(hits):
            raise UserError(
                f"{field} contains {text!r}, but no token of this tokenizer contains it; expected "
                "text that fits inside a single token, such as '.'"
            )
        found |= hits
    return found


def encode_answer(tokenizer: Tokenizer, text: str, end: str, width: int) -> list[int]:
    """The first `width` ids of an answer and its closing text; [] if the answer itself has none.

    The closing text is part of the event: without it, 1 would be a prefix of 12.

    Raises:
      UserError: if it spells a control token that this vocabulary cannot write as text.
    """
    text = text.strip()
    start = text[: width * _CHARS_PER_TOKEN]
    if not control_tokens.encode_text(tokenizer, start):
        return []
    after = end if start == text else ""
    return control_tokens.encode_text(tokenizer, start, after=after)[:width]


def _encode_own(tokenizer: Tokenizer, text: str | None, end: str, width: int) -> list[int]:
    """`encode_answer` of a completion's answer; [] if it cannot be written as text."""
    try:
        return encode_answer(tokenizer, text or "", end, width)
    except UserError:
        return []


def check_gold_answers(tokenizer: Tokenizer, golds: Sequence[str], end: str) -> None:
    """Checks that every answer has tokens to teacher-force.

    Raises:
      UserError: naming an answer that is empty or has no tokens.
    """
    for text in set(golds):
        if not encode_answer(tokenizer, text, end, 1):
            raise UserError(
                f"the answer {text!r} has no tokens; expected an answer to teacher-force"
            )


def tokenized_apart(
    tokenizer: Tokenizer, postfix: str, golds: Sequence[str], width: int
) -> list[str]:
    """Answers whose tokens would differ if postfix and answer were tokenized together.

    An example is -5 if `>-` is one token. At every prefix, the estimator then scores tokens that
    differ from those that the model usually writes.
    """
    start = tokenization.encode(tokenizer, postfix)
    encode = partial(control_tokens.encode_text, tokenizer)
    short = [text for text in dict.fromkeys(golds) if len(text) <= width * _CHARS_PER_TOKEN]
    return [
        text
        for text in short
        if encode(text.strip(), before=postfix) != start + encode(text.strip())
    ]


def count_longer(tokenizer: Tokenizer, golds: Sequence[str], end: str, width: int) -> int:
    """The number of answers that `encode_answer` truncates to `width` tokens."""
    return sum(len(encode_answer(tokenizer, text, end, width + 1)) > width for text in golds)


def make_answers(
    tokenizer: Tokenizer,
    *,
    estimator: str,
    reference: str = "gold",
    golds: Sequence[str | None],
    completions: Sequence[Sequence[str]],
    answer_end: str,
    width: int,
) -> Answers | None:
    """The answers that the estimator teacher-forces: int32 arrays; None for `answer_entropy`.

    Args:
      reference: for `answer_log_prob`, "gold" or each completion's "own" answer.
      golds: reference answers of P prompts; None if a prompt has none.
      completions: texts of G completions for each of them.
      width: A; longer answers are truncated to A tokens.

    Returns:
      `answer_log_prob`: one answer [P, 1 or G, 1, A]. `answer_set_entropy`: the gold answer and
      the distinct answers of the group, [P, 1, G + 1, A]; unused rows are empty. A completion
      without an answer adds none.
    """
    if estimator == "answer_entropy":
        return None
    encode = partial(_encode_own, tokenizer, end=answer_end, width=width)
    if estimator == "answer_set_entropy":
        rows = zip(golds, completions, strict=True)
        return _stack([[_candidates(encode, *row)] for row in rows], width)
    if reference == "gold":
        return _stack([[[(encode(gold), 0)]] for gold in golds], width)
    own = [[[(encode(extract_answer(text)), 0)] for text in group] for group in completions]
    return _stack(own, width)


def encode_answers(
    tokenizer: Tokenizer, answers: Sequence[str], *, end: str = "</answer>", max_length: int = 32
) -> Answers:
    """One reference answer for each of P prompts, for `answer_log_prob`.

    Args:
      end: the text that closes an answer; without it, the answer 1 would be a prefix of 12.
      max_length: A; longer answers are truncated to A tokens.

    Returns:
      Answers with tokens [P, 1, 1, A], shared by the completions of a prompt.

    Raises:
      UserError: if an answer spells a control token that this vocabulary cannot write as text.

    >>> from iapo_jax.pretrained.tokenization import load_tokenizer
    >>> found = encode_answers(load_tokenizer("experiments/arithmetic/model"), ["42", "-7"])
    >>> found.tokens.shape, found.length.ravel().tolist()
    ((2, 1, 1, 32), [3, 3])
    """
    rows = [[[(encode_answer(tokenizer, text, end, max_length), 0)]] for text in answers]
    return _stack(rows, max_length)


def _candidates(encode, gold: str | None, completions: Sequence[str]) -> list[tuple]:
    """(ids, meaning) of the distinct answers: the gold one, then the others sorted by text.

    Padded with empty answers to one more than the number of completions.
    """
    texts = {extract_answer(text) for text in completions}
    texts = ([gold] if gold else []) + sorted(text for text in texts if text and text != gold)
    seen, found, meanings = set(), [], []
    for text in texts:
        ids = encode(text)
        if not ids or tuple(ids) in seen:
            continue
        seen.add(tuple(ids))
        equal = [meaning for other, meaning in meanings if same_answer(text, other)]
        meanings.append((text, equal[0] if equal else len(meanings)))
        found.append((ids, meanings[-1][1]))
    return found + [([], 0)] * (len(completions) + 1 - len(found))


def _stack(rows: list[list[list[tuple]]], width: int) -> Answers:
    """(ids, meaning) at [P][G or 1][Y] as arrays."""
    shape = len(rows), len(rows[0]), len(rows[0][0])
    tokens = np.zeros((*shape, width), np.int32)
    length, meaning = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for index in np.ndindex(shape):
        ids, meaning[index] = rows[index[0]][index[1]][index[2]]
        length[index] = len(ids)
        tokens[index][: len(ids)] = ids
    return Answers(tokens, length, meaning)


class ProbeMaker(NamedTuple):
    """The fixed parts of a run's probes; arrays are on the mesh."""

    section: InformationSection
    tokenizer: Tokenizer
    mesh: Mesh
    postfix: Array  # [K] int32
    boundary: Array | None  # [V] bool; None without information.boundaries
    width: int  # A
    longer: int = 0  # reference answers of more than A tokens, which are truncated
    apart: Sequence[str] = ()  # reference answers of `tokenized_apart`


def make_probe_maker(
    section: InformationSection, opened: Pretrained, mesh: Mesh, golds: Sequence[str]
) -> ProbeMaker:
    """Checks and tokenizes postfix and boundary tokens, and checks the reference answers.

    Raises:
      UserError: for an invalid field, or a text that this tokenizer cannot write.
    """
    check_section(section)
    everywhere, tokenizer = replicated(mesh), opened.tokenizer
    postfix = np.asarray(encode_postfix(tokenizer, section.postfix), np.int32)
    boundary, width, longer, apart = None, 1, 0, []
    if section.boundaries:
        tokens = boundary_tokens(tokenizer, opened.config.vocab_size, section.boundaries)
        boundary = put(tokens, everywhere)
    if section.estimator != "answer_entropy":
        width = section.max_answer_length
        check_gold_answers(tokenizer, golds, section.answer_end)
        longer = count_longer(tokenizer, golds, section.answer_end, width)
        apart = tokenized_apart(tokenizer, section.postfix, golds, width)
    where = put(postfix, everywhere)
    return ProbeMaker(section, tokenizer, mesh, where, boundary, width, longer, apart)


def describe(probe_maker: ProbeMaker) -> str:
    """One line: which estimator, and where it probes."""
    section = probe_maker.section
    what = section.estimator
    if what == "answer_log_prob":
        what += f" of the {section.reference} answer"
    where = "after every token" if section.stride == 1 else f"every {section.stride} tokens"
    if section.boundaries:
        where = f"after tokens with one of {section.boundaries}"
    parts = [
        f"{what} {where}",
        f"exit postfix {section.postfix!r} ({probe_maker.postfix.shape[0]} tokens)",
    ]
    if section.estimator != "answer_entropy":
        parts.append(
            f"answers of up to {probe_maker.width} tokens, {section.answer_end!r} included"
        )
    if probe_maker.longer:
        parts.append(
            f"{_reference_answers(probe_maker.longer)} longer than this and truncated "
            "(information.max_answer_length)"
        )
    if probe_maker.apart:
        count = len(probe_maker.apart)
        parts.append(
            f"for {count} reference answer{'' if count == 1 else 's'}, such as "
            f"{probe_maker.apart[0]!r}, the tokenizer would merge the end of the postfix with the "
            "start of the answer in running text; the probe scores them with separate tokens"
        )
    return "; ".join(parts)


def _reference_answers(count: int) -> str:
    return "1 reference answer is" if count == 1 else f"{count} reference answers are"


def settle(section: InformationSection, own: str = "answer_entropy") -> InformationSection:
    """The section with `auto` replaced by the algorithm's `own` estimator."""
    auto = section.estimator == "auto"
    return dataclasses.replace(section, estimator=own) if auto else section


def check_section(section: InformationSection) -> None:
    """Checks the fields that can be checked without a tokenizer, even if no algorithm uses them.

    Raises:
      UserError: naming the field, what was found and what is expected.
    """
    if section.estimator not in ("auto", *ESTIMATORS):
        raise UserError(f"information.estimator is {section.estimator!r}; {_expected(ESTIMATORS)}")
    if section.reference not in REFERENCES:
        raise UserError(f"information.reference is {section.reference!r}; {_expected(REFERENCES)}")
    for name in ("boundaries", "end_of_thinking"):
        if "" in getattr(section, name):
            raise UserError(
                f"information.{name} contains an empty string; expected non-empty strings"
            )
    if section.boundaries and section.stride > 1:
        raise UserError(
            f"information.stride is {section.stride} and information.boundaries is "
            f"{section.boundaries}; expected only one of the two"
        )


def _expected(names: Sequence[str]) -> str:
    return f"expected one of {', '.join(names)}"


def make_probe(
    probe_maker: ProbeMaker,
    tokens: Array,
    thinking_length: Array,
    golds: Sequence[str],
    completions: Sequence[Sequence[str]],
) -> Probe:
    """The probe of completions [P, G, T] up to their thinking lengths [P, G], both on the mesh.

    Args:
      golds, completions: as for `make_answers`.
    """
    section = probe_maker.section
    positions = _positions(tokens, thinking_length, probe_maker.boundary, stride=section.stride)
    answers = make_answers(
        probe_maker.tokenizer,
        estimator=section.estimator,
        reference=section.reference,
        golds=golds,
        completions=completions,
        answer_end=section.answer_end,
        width=probe_maker.width,
    )
    return Probe(
        probe_maker.postfix, positions, answers and put(answers, by_prompt(probe_maker.mesh))
    )


@partial(jax.jit, static_argnames="stride")
def _positions(
    tokens: Array, thinking_length: Array, boundary: Array | None, *, stride: int
) -> ProbePositions:
    after = None if boundary is None else boundary[tokens]
    return choose_positions(thinking_length, tokens.shape[-1], stride=stride, boundary=after)


def abstract_probe(probe_maker: ProbeMaker, shape: tuple[int, int, int]) -> Probe:
    """The shapes of `make_probe` for completions of shape (P, G, T), without any values."""
    prompts, size, length = shape
    split = by_prompt(probe_maker.mesh)

    def ids(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.int32, sharding=split)

    positions = ProbePositions(ids(prompts, size, length + 1), ids(prompts, size))
    section, answers = probe_maker.section, None
    if section.estimator != "answer_entropy":
        shared = section.estimator == "answer_set_entropy" or section.reference == "gold"
        count = size + 1 if section.estimator == "answer_set_entropy" else 1
        rows = (prompts, 1 if shared else size, count)
        answers = Answers(ids(*rows, probe_maker.width), ids(*rows), ids(*rows))
    return Probe(probe_maker.postfix, positions, answers)
