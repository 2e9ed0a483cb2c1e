"""Probing the completions of an evaluation, for its report."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iapo_jax.config.sections import InformationSection
from iapo_jax.evaluation.completions_file import Completion
from iapo_jax.evaluation.sampling import Task
from iapo_jax.information.inspection import to_json
from iapo_jax.information.inspection_batches import PromptGroup
from iapo_jax.information.probed_completions import inspect_problems
from iapo_jax.pretrained.control_tokens import Prompt
from iapo_jax.runtime.console import is_writer, progress_bar, say
from iapo_jax.runtime.files import write_json
from iapo_jax.runtime.processes import broadcast
from iapo_jax.types import Params


def inspect_to(
    path: Path,
    task: Task,
    params: Params,
    completions: Sequence[Completion],
    section: InformationSection | None,
    *,
    shown: bool = True,
) -> None:
    """Probes the first samples of the first problems, and writes the `Inspection` of each.

    Args:
      completions: only those passed on process 0 are used.
      section: None writes nothing.

    Raises:
      UserError: if a problem or a setting does not suit the model or the estimator.
    """
    if not task.protocol.inspected or section is None:
        return
    groups = _first_samples(task, completions)
    if not groups:
        say(
            "note: no completions to probe: the stored ones were sampled without eval.inspect "
            "(--inspect), so their token ids were not kept"
        )
        return
    loaded = task.loaded._replace(params=params)
    with progress_bar(0, len(groups), unit="completion", shown=shown) as bar:
        bar.set_description("probing")
        found = inspect_problems(
            loaded,
            groups,
            section,
            temperature=task.protocol.temperature,
            advance=bar.update,
        )
    if is_writer():
        write_json(path, [to_json(inspection) for inspection in found])


def _first_samples(task: Task, completions: Sequence[Completion]) -> list[PromptGroup]:
    """The first sample of each of the first problems, the same on every process."""
    problems, width = task.problems, task.protocol.max_completion_length
    count = min(task.protocol.inspected, len(problems.tokens))
    place = {row: i for i, row in enumerate(problems.rows)}
    ids, lengths = np.zeros((count, width), np.int32), np.zeros(count, np.int32)
    for completion in completions:
        index = place.get(completion.row, count)
        if completion.sample == 0 and index < count:
            ids[index, : len(completion.ids)] = completion.ids
            lengths[index] = len(completion.ids)
    ids, lengths = broadcast((ids, lengths))
    return [
        PromptGroup(
            prompt=Prompt(problems.texts[i], problems.tokens[i]),
            completions=[ids[i, : lengths[i]]],
            answer=problems.answers[i],
            kind=problems.columns[i].get("kind"),
        )
        for i in np.flatnonzero(lengths)
    ]
