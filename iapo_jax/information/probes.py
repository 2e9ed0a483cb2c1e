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

from iapo_jax.config.sections import InformationSection
from iapo_jax.errors import UserError
from iapo_jax.information import answer_tokens
from iapo_jax.information.estimators import ESTIMATORS, Probe
from iapo_jax.information.probe_positions import choose_positions
from iapo_jax.pretrained import tokenization
from iapo_jax.pretrained.model_directory import Pretrained
from iapo_jax.pretrained.tokenization import Tokenizer
from iapo_jax.sharding import by_prompt, put, replicated
from iapo_jax.types import Answers, Array, ProbePositions

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


class ProbeMaker(NamedTuple):
    """The fixed parts of a run's probes; arrays are on the mesh."""

    section: InformationSection
    tokenizer: Tokenizer
    mesh: Mesh
    postfix: Array  # [K] int32
    boundary: Array | None  # [V] bool; None without information.boundaries
    width: int  # A
    longer: int = 0  # reference answers of more than A tokens, which are truncated
    apart: Sequence[str] = ()  # reference answers of `answer_tokens.tokenized_apart`


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
        answer_tokens.check_gold_answers(tokenizer, golds, section.answer_end)
        longer = answer_tokens.count_longer(tokenizer, golds, section.answer_end, width)
        apart = answer_tokens.tokenized_apart(tokenizer, section.postfix, golds, width)
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
      golds, completions: as for `answer_tokens.make_answers`.
    """
    section = probe_maker.section
    positions = _positions(tokens, thinking_length, probe_maker.boundary, stride=section.stride)
    answers = answer_tokens.make_answers(
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
