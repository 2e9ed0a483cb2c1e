"""The evaluation set of a training run, sampled before the first step and after the last.

No decision depends on it; checkpoints are chosen on a different set (`checkpoint_selection`).
"""

from collections.abc import Sequence
from pathlib import Path

from iapo_jax.config.train import TrainConfig
from iapo_jax.data import loading, prompts
from iapo_jax.data import problems as data
from iapo_jax.data.questions import check_overlap
from iapo_jax.evaluation.records import Record
from iapo_jax.evaluation.sampling import Protocol, make_task
from iapo_jax.evaluation.stored_evaluation import describe, evaluate_to
from iapo_jax.evaluation.summary import before_and_after, summarize
from iapo_jax.pretrained.loaded_model import LoadedModel
from iapo_jax.runtime.files import write_json
from iapo_jax.types import Params


class HeldOut:
    """The evaluation set, which is sampled before and after a run.

    Args:
      training: the questions of all training rows, including those of the selection split.

    Raises:
      UserError: if the set cannot be read, or shares a question with the training data.
    """

    def __init__(
        self, config: TrainConfig, loaded: LoadedModel, training: Sequence[str | list[dict]]
    ):
        self.config, self.task = config, None
        self.notes: list[str] = []  # changes to its rows, for the user
        section = config.eval
        if not section.dataset:
            return
        self.data_set = loading.load_section(section, "eval.dataset")
        problems = data.make_problems(
            self.data_set.rows,
            loaded.pretrained.tokenizer,
            prompts.resolve_prompt(config.prompt, self.data_set.prompt),
            config.data.max_prompt_length,
            loaded=self.data_set,
        )
        limit = config.data.max_prompt_length
        long = data.note_left_out(
            problems, self.data_set, limit, strict=section.strict, strict_field="eval.strict"
        )
        self.notes = [*self.data_set.notes, *long]
        check_overlap(
            training,
            [row.question for row in self.data_set.rows],
            repr(config.data.dataset),
            f"eval.dataset {section.dataset!r}",
        )
        protocol = Protocol.from_section(
            section,
            config.information,
            seed=config.seed,
            num_samples=section.num_samples,
            max_completion_length=config.sampling.max_completion_length,
            prompts_per_batch=section.prompts_per_batch,
            inspected=section.inspect,
        )
        self.task = make_task(loaded, problems, protocol, field="eval")

    def before(self, params: Params) -> Record | None:
        """The record of the initial model; samples of an interrupted run are reused."""
        return self._record(params, "before", None)

    def after(self, params: Params, step: int) -> Record | None:
        """The record of the chosen checkpoint."""
        return self._record(params, "after", step)

    def _record(self, params: Params, name: str, step: int | None) -> Record | None:
        if self.task is None:
            return None
        record = describe(
            self.task,
            params,
            model=name,
            dataset=self.config.eval.dataset,
            dataset_name=self.data_set.name,
            source=self.config.model.path if step is None else str(Path(self.config.output_dir)),
            step=step,
        )
        return evaluate_to(
            Path(self.config.output_dir) / "eval",
            name,
            self.task,
            params,
            record,
            information=self.config.information,
            replace=True,
            shown=self.config.log.progress,
        )

    def compare(self, before: Record, after: Record) -> str:
        """Writes eval/summary.json and returns the comparison as a text table."""
        path = Path(self.config.output_dir) / "eval" / "summary.json"
        write_json(path, summarize([before, after]))
        return before_and_after(before, after)
