"""Evaluates models on datasets: `python -m iapo_jax.evaluate --model DIR --dataset NAME ...`.

Samples completions for every problem, checks them, and writes metrics with 95% intervals; models
are compared in pairs, on the same problems. Completions are kept: the same command resumes where it
was interrupted, and with more samples it draws only the missing ones.
"""

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from iapo_jax.config.checks import check_config
from iapo_jax.config.evaluate import EvaluateConfig
from iapo_jax.config.loading import load_config, to_yaml
from iapo_jax.config.train import TrainConfig
from iapo_jax.data import loading, prompts
from iapo_jax.data import problems as data
from iapo_jax.data.catalogue import parse_spec
from iapo_jax.data.loading import LoadedSet
from iapo_jax.data.problems import Problems
from iapo_jax.data.questions import check_overlap
from iapo_jax.errors import UserError
from iapo_jax.evaluation.datasets import canonical_spec, load_sets
from iapo_jax.evaluation.model_specs import Member, parse_models
from iapo_jax.evaluation.records import Record, check_same, read_record
from iapo_jax.evaluation.sampling import Protocol, check_batch, make_task
from iapo_jax.evaluation.stored_evaluation import describe, evaluate_to
from iapo_jax.evaluation.summary import summarize, table
from iapo_jax.information import probes
from iapo_jax.pretrained.loaded_model import LoadedModel, open_mesh, start_mesh
from iapo_jax.runtime import cli
from iapo_jax.runtime.console import is_writer, say
from iapo_jax.runtime.files import write_atomically, write_json, writing
from iapo_jax.runtime.interruption import handling_signals
from iapo_jax.runtime.processes import exit_with
from iapo_jax.training import model_sources

_FLAGS = {  # flag: metavar, meaning; the other fields of the config are set as key=value
    "num_samples": ("N", "completions of each problem; default: 32"),
    "k": (
        "K,K,...",
        "values of k for pass@k, majority@k, length@k and ratio@k; default: 1, 2, 4, ... up to "
        "num_samples",
    ),
    "seed": ("N", "seed of every draw; default: 0"),
    "max_completion_length": ("T", "maximum completion length in tokens; default: 2048"),
    "temperature": ("X", "sampling temperature; default: 1"),
    "top_p": ("X", "sample from the most likely tokens of total probability X; default: 1"),
    "top_k": ("N", "sample from the N most likely tokens; 1 = greedy, 0 = all (default)"),
    "prompts_per_batch": ("N", "prompts sampled at once; default: 16"),
    "samples_per_batch": ("N", "completions of each prompt sampled at once; default: all"),
    "inspect": ("N", "probe the first sample of N problems, for the report; default: 0"),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m iapo_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_field_help(parser, EvaluateConfig, "fields of --config FILE, and of key=value:")
    add = parser.add_argument
    model = (
        "Hugging Face directory, run directory, RUN/checkpoints/N or hub name; LABEL=DIR,DIR,... = "
        "several training seeds of one method"
    )
    add("--model", metavar="[LABEL=]DIR", action="append", default=[], help=model)
    spec = (
        "short name, NAME=PATH, file or hub name, optionally followed by :SPLIT, :first N, :last M"
    )
    add("--dataset", metavar="SPEC", action="append", default=[], help=spec)
    add(
        "--out",
        metavar="DIR",
        help="directory for all results; completions that it contains are not sampled again; "
        "default: eval",
    )
    add("--config", metavar="FILE", help="YAML file with the fields that differ from the defaults")
    for name, (metavar, meaning) in _FLAGS.items():
        add(f"--{name}", metavar=metavar, help=meaning)
    add("--print_config", action="store_true", help="print the resolved config and exit")
    add("overrides", nargs="*", metavar="key=value", help="override a field")
    return parser.parse_intermixed_args(argv)


def read_config(arguments: argparse.Namespace) -> EvaluateConfig:
    """The config from defaults, file, flags and overrides, checked.

    Raises:
      UserError: naming the field.
    """
    overrides = list(arguments.overrides)
    for name in _FLAGS:
        value = getattr(arguments, name)
        if name == "k" and value is not None and not re.fullmatch(r"\d+( *, *\d+)*", value):
            raise UserError(f"--k is {value!r}; expected comma-separated integers, such as 1,2,4")
        if value is not None:
            overrides.append(f"{name}=[{value}]" if name == "k" else f"{name}={value}")
    config = load_config(EvaluateConfig, arguments.config, overrides)
    config = dataclasses.replace(
        config,
        models=[*config.models, *arguments.model],
        datasets=[*config.datasets, *arguments.dataset],
        output_dir=arguments.out or config.output_dir,
    )
    if not config.models:
        raise UserError("--model is missing; expected a model or run directory, or a hub name")
    if not config.datasets:
        raise UserError("--dataset is missing; expected a short name, a file or a hub name")
    check_config(config)
    if config.inspect:
        probes.check_section(config.information)
    return _with_default_metrics(config)


def _with_default_metrics(config: EvaluateConfig) -> EvaluateConfig:
    """Fills in k and the budgets, which depend on other fields."""
    samples, limit = config.num_samples, config.max_completion_length
    ks = sorted(set(config.k)) or [2**i for i in range(samples.bit_length())]
    if not all(1 <= k <= samples for k in ks):
        raise UserError(f"k is {config.k}; expected integers from 1 to num_samples ({samples})")
    budgets = sorted(set(config.budgets)) or sorted({max(limit // n, 1) for n in (8, 4, 2)})
    return dataclasses.replace(config, k=ks, budgets=budgets)


def check_training_data(
    config: EvaluateConfig, members: Sequence[Member], sets: dict[str, LoadedSet]
) -> None:
    """Checks that no dataset shares a question with the training data of the models.

    Raises:
      UserError: with the number of shared questions.
    """
    training: dict[str, list] = {}
    for text in config.training_data:
        loaded = loading.load_set(parse_spec(text, "training_data"), "training_data", strict=None)
        training[text] = [row.question for row in loaded.rows]
    for member in members:
        run_dir = model_sources.training_run(member.source)
        if run_dir is None:
            continue
        key = f"{model_sources.run_config(run_dir).data.dataset} (of {run_dir})"
        try:
            training[key] = model_sources.training_questions(run_dir)
        except UserError as error:
            say(f"note: could not check for overlap with the training data of {run_dir}: {error}")
    for name, trained in training.items():
        for loaded in sets.values():
            questions = [row.question for row in loaded.rows]
            check_overlap(trained, questions, name, f"--dataset {loaded.text!r}")


def note_other_prompts(
    config: EvaluateConfig, members: Sequence[Member], sets: dict[str, LoadedSet]
) -> None:
    """Prints a note about each run that was trained with a different prompt."""
    notes: list[str] = []
    for member in members:
        run_dir = model_sources.training_run(member.source)
        trained = None if run_dir is None else model_sources.run_config(run_dir)
        if not isinstance(trained, TrainConfig):
            continue
        then = prompts.resolve_prompt(trained.prompt, loading.own_prompt(trained.data))
        for loaded in sets.values():
            now = prompts.resolve_prompt(config.prompt, loaded.prompt)
            differ = [
                f"prompt.{name}"
                for name, text in vars(now).items()
                if (text or "") != (getattr(then, name) or "")
            ]
            note = (
                f"{run_dir} was trained with a different prompt ({', '.join(differ)}), which may "
                "lower its accuracy here"
            )
            if differ and note not in notes:
                notes.append(note)
    for note in notes:
        say(f"note: {note}")


def _protocol(config: EvaluateConfig) -> Protocol:
    return Protocol.from_section(
        config,
        config.information,
        seed=config.seed,
        num_samples=config.num_samples,
        max_completion_length=config.max_completion_length,
        prompts_per_batch=config.prompts_per_batch,
        samples_per_batch=config.samples_per_batch,
        inspected=config.inspect,
    )


def prepare(
    config: EvaluateConfig, members: Sequence[Member], sets: dict[str, LoadedSet]
) -> dict[tuple[str, str], Problems]:
    """The problems of every model on every dataset, by (`Member.stem`, name of the dataset).

    Everything that can be checked without weights is checked here: a mistake in the last model must
    not end the command after hours of sampling from the first.

    Raises:
      UserError: one sentence for the first mistake.
    """
    if not config.mesh.distributed:  # else the devices are not known yet
        check_batch(config.prompts_per_batch, open_mesh(config.mesh))
    problems: dict[tuple[str, str], Problems] = {}
    notes: set[str] = set()
    for member in members:
        pretrained = model_sources.open_source(member.source, config.model)
        size = pretrained.config.vocab_size
        if config.top_k > size:
            raise UserError(
                f"top_k is {config.top_k}; expected at most {size}, the vocabulary size"
            )
        for name, loaded in sets.items():
            made = data.make_problems(
                loaded.rows,
                pretrained.tokenizer,
                prompts.resolve_prompt(config.prompt, loaded.prompt),
                config.max_prompt_length,
                field="max_prompt_length",
                loaded=loaded,
            )
            left_out = data.note_left_out(
                made,
                loaded,
                config.max_prompt_length,
                strict=config.strict,
                field="max_prompt_length",
                strict_field="strict",
            )
            for note in left_out:
                if note not in notes:
                    notes.add(note)
                    say(note)
            _check_known(config, member, name)
            problems[member.stem(), name] = made
    return problems


def _check_known(config: EvaluateConfig, member: Member, name: str) -> None:
    """Checks that existing results have the same settings; weights are compared once loaded.

    Raises:
      UserError: naming the file and the setting.
    """
    path = Path(config.output_dir) / f"{member.stem()}.{name}.json"
    known = read_record(path)
    if known is not None:
        settings = known.settings | _protocol(config).settings()
        check_same(known, known._replace(settings=settings), path)


def evaluate_member(
    config: EvaluateConfig,
    member: Member,
    model: LoadedModel,
    name: str,
    loaded: LoadedSet,
    problems: Problems,
) -> Record:
    """One model on one dataset."""
    task = make_task(model, problems, _protocol(config))
    record = describe(
        task,
        model.params,
        model=member.label,
        dataset=canonical_spec(loaded),
        dataset_name=loaded.name,
        member=member.number,
        members=member.count,
        source=member.source,
        step=model.step,
    )
    return evaluate_to(
        Path(config.output_dir),
        f"{member.stem()}.{name}",
        task,
        model.params,
        record,
        information=config.information,
        shown=config.progress,
    )


def evaluate(config: EvaluateConfig, command: str = "") -> dict:
    """Every model on every dataset; writes and returns summary.json.

    Raises:
      UserError: one sentence for the first mistake.
      Stopped: after a signal; what was sampled is kept.
    """
    members = parse_models(config.models)
    sets = load_sets(config.datasets, strict=config.strict)
    check_training_data(config, members, sets)
    note_other_prompts(config, members, sets)
    problems = prepare(config, members, sets)
    records = []
    with handling_signals():
        mesh = start_mesh(config.mesh, compilation_cache=config.compilation_cache)
        for member in members:
            model = model_sources.load_source(member.source, config.model, mesh)
            for name, loaded in sets.items():
                own = problems[member.stem(), name]
                records.append(evaluate_member(config, member, model, name, loaded, own))
            del model  # before the next one needs the memory
    if not is_writer():
        return {}
    summary = {"command": command, **summarize(records, config.k, config.budgets)}
    text, path = table(summary), Path(config.output_dir) / "summary.json"
    with writing(config.output_dir, UserError):
        write_json(path, summary)
        write_atomically(path.with_name("summary.txt"), text + "\n")
    say(f"\n{text}\n\nwritten to {config.output_dir}/")
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code (`errors`)."""
    arguments = parse(argv)
    words = sys.argv[1:] if argv is None else argv

    def run() -> None:
        config = read_config(arguments)
        if arguments.print_config:
            print(to_yaml(config), end="")
        else:
            evaluate(config, shlex.join(["python", "-m", "iapo_jax.evaluate", *words]))

    return cli.exit_code(run)


if __name__ == "__main__":
    raise SystemExit(exit_with(main))
