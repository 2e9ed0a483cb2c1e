"""Probes completions: the information that each token carries about the answer."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from iapo_jax.config.sections import InformationSection, LogSection, MeshSection, ModelSection
from iapo_jax.config.train import SamplingSection
from iapo_jax.errors import UserError
from iapo_jax.information import probes
from iapo_jax.information.inspection import Inspection
from iapo_jax.information.inspection_batches import (
    PromptGroup,
    inspect_batch,
    make_prober,
    pad_prompts,
    padded_length,
)
from iapo_jax.information.inspection_inputs import (
    check_text,
    completion_ids,
    context_length,
    encode_prompt,
    information_section,
    prompt_ids,
    prompt_text,
    shorten,
)
from iapo_jax.model.sampling import prompt_keys, sample
from iapo_jax.pretrained import tokenization
from iapo_jax.pretrained.control_tokens import Prompt
from iapo_jax.pretrained.loaded_model import LoadedModel, load_model, start_mesh
from iapo_jax.runtime.console import say
from iapo_jax.sharding import batch_devices, by_prompt, fetch


def open_model(model: str | ModelSection) -> LoadedModel:
    """Opens a Hugging Face directory or hub name, with the weights split over all devices.

    Raises:
      UserError: if it is not a model directory, or has no tokenizer.
    """
    section = ModelSection(path=model) if isinstance(model, str) else model
    if section.config:
        raise UserError("model.config defines a random model; expected model.path, a trained one")
    mesh = start_mesh(MeshSection(1, 1, -1), compilation_cache=LogSection().compilation_cache)
    return load_model(section, mesh)


def sample_completions(
    loaded: LoadedModel,
    prompt: str | Prompt,
    count: int,
    *,
    max_length: int = 2048,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    **information: Any,
) -> list[list[int]]:
    """Samples `count` completions: their ids, with the final stop token; determined by the seed.

    Args:
      max_length: in tokens; less if the model's context has less room beside prompt and probe.
      information: as for `inspect_completions`; room is left for postfix and answer.

    Raises:
      UserError: one sentence, for a value out of its range or a prompt that does not fit.
    """
    if count < 1:
        raise UserError(f"count is {count}; expected at least 1")
    sampling = SamplingSection(
        temperature=temperature, top_p=top_p, top_k=top_k, max_completion_length=max_length
    )
    section = information_section(information, sampling)
    pretrained, mesh = loaded.pretrained, loaded.mesh
    probe = len(tokenization.encode(pretrained.tokenizer, section.postfix))
    if section.estimator != "answer_entropy":
        probe += section.max_answer_length - 1
    ids = encode_prompt(loaded, prompt, 1, probe)
    max_length = min(max_length, context_length(loaded) - len(ids) - probe)
    completions = "1 completion" if count == 1 else f"{count} completions"
    say(f"sampling {completions} of at most {max_length} tokens")
    rollout = sample(
        loaded.model,
        jax.jit(loaded.model.unroll)(loaded.params),
        pad_prompts(loaded, [ids]),
        jax.jit(prompt_keys, out_shardings=by_prompt(mesh))(seed, 0, np.zeros(1, np.int32)),
        num_generations=count,
        max_length=max_length,
        stop_ids=np.asarray(pretrained.stop_ids, np.int32),
        allowed=pretrained.allowed,
        temperature=np.float32(temperature),
        top_p=top_p,
        top_k=top_k,
    )
    return [row.tolist() for row in tokenization.real_tokens(fetch(rollout))]


def inspect_completions(
    loaded: LoadedModel,
    prompt: str | Prompt,
    completions: Sequence[str | Sequence[int]],
    *,
    answer: str | None = None,
    temperature: float = 1.0,
    **information: Any,
) -> list[Inspection]:
    """Each completion's uncertainty about the answer after every prefix, in nats.

    The informativeness of token t is u_{t-1} - u_t while the model thinks, and 0 afterwards.
    Without an end of thinking, all tokens except the stop token are thinking. An empty completion
    has a single uncertainty, that of the prompt.

    Args:
      prompt: the model's entire input; a `Prompt` with ids if a part of it is untrusted.
      completions: strings, or ids (with the stop token, if one was drawn).
      answer: the reference answer, which `answer_log_prob` and `answer_set_entropy` teacher-force.
      temperature: of `log_prob` and `entropy`; that of the probe is 1.
      information: fields of `config.sections.InformationSection`; every prefix is probed.

    Raises:
      UserError: one sentence, if something does not fit the model or the estimator.
    """
    if isinstance(completions, str):
        raise UserError(
            f"completions is the string {shorten(completions)}; expected a list of strings"
        )
    if not len(completions):
        raise UserError("completions is empty; expected at least one completion")
    if answer is not None:
        check_text(answer, "the answer")
    check_text(prompt_text(prompt), "the prompt")
    section = information_section(information, SamplingSection(temperature=temperature))
    if section.stride > 1 or section.boundaries:
        say(
            "note: information.stride and information.boundaries are ignored here: every prefix is "
            "probed"
        )
    rows = [completion_ids(loaded, row, f"completion {i}") for i, row in enumerate(completions, 1)]
    groups = [PromptGroup(prompt=prompt, completions=rows, answer=answer)]
    prober = make_prober(loaded, _every_prefix(section), groups, temperature)
    say(f"probing: {probes.describe(prober.probe_maker)}")
    return inspect_batch(prober, groups, padded_length(max(map(len, rows))))


def inspect_problems(
    loaded: LoadedModel,
    groups: Sequence[PromptGroup],
    section: InformationSection,
    *,
    temperature: float = 1.0,
    advance: Callable[[int], Any] | None = None,
) -> list[Inspection]:
    """`inspect_completions` for many problems with the same number of completions, on any mesh.

    Args:
      advance: called after each batch with its number of problems.

    Raises:
      UserError: as `inspect_completions`.
    """
    prober = make_prober(loaded, _every_prefix(probes.settle(section)), groups, temperature)
    longest = max((len(row) for group in groups for row in group.completions), default=0)
    prompt_length = max(len(prompt_ids(loaded, group.prompt)) for group in groups)
    devices = batch_devices(loaded.mesh)
    inspections = []
    for start in range(0, len(groups), devices):
        batch = list(groups[start : start + devices])
        # The last batch is filled up: every device needs a row.
        filled = batch + batch[:1] * (devices - len(batch))
        found = inspect_batch(prober, filled, padded_length(longest), prompt_length=prompt_length)
        inspections += found[: len(found) * len(batch) // len(filled)]
        if advance is not None:
            advance(len(batch))
    return inspections


def _every_prefix(section: InformationSection) -> InformationSection:
    return dataclasses.replace(section, stride=1, boundaries=[])
