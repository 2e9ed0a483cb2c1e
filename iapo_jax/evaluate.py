"""Accuracy and length of models: `python -m iapo_jax.evaluate --model DIR --dataset NAME ...`.

Samples every problem, judges every completion, and writes figures with 95% intervals; two models
are compared on the same problems. What was sampled is kept: the same command goes on where it was
interrupted, and with more samples it draws only those that are missing.
"""

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from iapo_jax.config.checks import check_config
from iapo_jax.config.evaluate import EvaluateConfig
from iapo_jax.config.loading import load_config, to_yaml
from iapo_jax.config.train import TrainConfig
from iapo_jax.data import problems as data
from iapo_jax.data import prompts
from iapo_jax.data.catalogue import parse_spec
from iapo_jax.data.problems import LoadedSet, Problems
from iapo_jax.data.questions import check_overlap, normalize
from iapo_jax.errors import UserError
from iapo_jax.evaluation.records import Record, check_same, read_record
from iapo_jax.evaluation.sampling import (
    Protocol,
    check_batch,
    describe,
    evaluate_to,
    make_task,
)
from iapo_jax.evaluation.summary import summarize, table
from iapo_jax.information import probes
from iapo_jax.pretrained.loaded import LoadedModel, open_mesh, start_mesh
from iapo_jax.runtime import cli
from iapo_jax.runtime.console import is_writer, say
from iapo_jax.runtime.files import write_atomically, write_json, writing
from iapo_jax.runtime.interruption import handling_signals
from iapo_jax.runtime.processes import exit_with
from iapo_jax.training import model_sources

_FLAGS = {  # flag: metavar, meaning; the others are fields of the config, as key=value
    "num_samples": ("N", "completions of each problem; default 32"),
    "k": ("K,K,...", "of pass@k, majority@k; default 1,2,4,... N"),
    "seed": ("N", "decides every draw; default 0"),
    "max_completion_length": ("T", "tokens; default 2048"),
    "temperature": ("X", "default 1"),
    "top_p": ("X", "default 1"),
    "top_k": ("N", "1 = greedy; default 0 = all"),
    "prompts_per_batch": ("N", "prompts sampled at once; default 16"),
    "samples_per_batch": ("N", "completions of each at once; default all"),
    "inspect": ("N", "probe the first sample of N problems, for the report; default 0"),
}


class Member(NamedTuple):
    """One model of the command line."""

    label: str
    source: str
    number: int  # from 1, of `count` under this label
    count: int

    def stem(self) -> str:
        """What its files begin with."""
        return f"{self.label}-{self.number}" if self.count > 1 else self.label


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line as it is."""
    parser = argparse.ArgumentParser(
        prog="python -m iapo_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cli.add_field_help(parser, EvaluateConfig, "fields of --config FILE, and of key=value:")
    add = parser.add_argument
    model = "Hugging Face or run directory, RUN/checkpoints/N, hub name; LABEL=DIR,DIR: seeds"
    add("--model", metavar="[LABEL=]DIR", action="append", default=[], help=model)
    spec = "short name, NAME=PATH, file or hub name, then :SPLIT, :first N and :last M"
    add("--dataset", metavar="SPEC", action="append", default=[], help=spec)
    add("--out", metavar="DIR", help="default eval; what is there is not sampled again")
    add("--config", metavar="FILE", help="YAML; only what differs from the defaults")
    for name, (metavar, help) in _FLAGS.items():
        add(f"--{name}", metavar=metavar, help=help)
    add("--print_config", action="store_true", help="print the resolved config and stop")
    add("overrides", nargs="*", metavar="key=value", help="fields of the config")
    return parser.parse_intermixed_args(argv)


def read_config(arguments: argparse.Namespace) -> EvaluateConfig:
    """Defaults, file, flags and overrides, checked.

    Raises:
      UserError: naming the field.
    """
    overrides = list(arguments.overrides)
    for name in _FLAGS:
        value = getattr(arguments, name)
        if name == "k" and value is not None and not re.fullmatch(r"\d+( *, *\d+)*", value):
            raise UserError(f"--k is {value!r}; expected numbers, as 1,2,4")
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
        raise UserError("--model is missing: expected a model or run directory, or a hub name")
    if not config.datasets:
        raise UserError("--dataset is missing: expected a short name, a file or a hub name")
    check_config(config)
    samples, limit = config.num_samples, config.max_completion_length
    powers = [2**i for i in range(samples.bit_length())]
    ks = sorted(set(config.k)) or powers
    if not all(1 <= k <= samples for k in ks):
        raise UserError(f"k is {config.k}; expected numbers from 1 to num_samples ({samples})")
    budgets = sorted(set(config.budgets)) or sorted({max(limit // n, 1) for n in (8, 4, 2)})
    if config.inspect:
        probes.check_section(config.information)
    return dataclasses.replace(config, k=ks, budgets=budgets)


def parse_models(texts: Sequence[str]) -> list[Member]:
    """`DIR` and `LABEL=DIR,DIR,...`; a text that is a directory is that directory.

    Raises:
      UserError: for an empty name, or two models of one label.
    """
    members: list[Member] = []
    for text in texts:
        match = None if Path(text).expanduser().exists() else re.fullmatch(r"([^=/]*)=(.*)", text)
        label, paths = (match[1], match[2].split(",")) if match else ("", [text])
        paths = [path.strip() for path in paths]
        if not all(paths) or (match and not re.fullmatch(r"[\w.+@-]+", label)):
            raise UserError(
                f"--model {text!r}: expected DIR, or LABEL=DIR or LABEL=DIR,DIR,... with a label "
                "of letters, digits and any of . + @ _ -"
            )
        label = label or _label(paths[0])
        if any(one.label == label for one in members):
            raise UserError(
                f"--model {text!r} is the second model called {label!r}; expected distinct labels, "
                "as LABEL=DIR"
            )
        members += [Member(label, path, i, len(paths)) for i, path in enumerate(paths, 1)]
    stems = [one.stem() for one in members]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise UserError(f"--model: two models would write {twice[0]}.*; expected other labels")
    return members


def _label(path: str) -> str:
    parts = Path(path).expanduser().absolute().parts
    if len(parts) > 2 and parts[-2] == "checkpoints":
        name = f"{parts[-3]}-{parts[-1]}"
    else:
        name = parts[-2] if len(parts) > 1 and parts[-1] == "hf" else parts[-1]
    return re.sub(r"[^\w.+@-]+", "_", name) or "model"


def load_sets(config: EvaluateConfig) -> dict[str, LoadedSet]:
    """The data sets by the name that their files have.

    Raises:
      UserError: as `data.load_set`; if one is named twice.
    """
    sets: dict[str, LoadedSet] = {}
    for text in config.datasets:
        spec = parse_spec(text, "--dataset")
        loaded = data.load_set(spec, "--dataset", strict=config.strict)
        name = f"{loaded.name}-{loaded.split}" + f"-{spec.first}" * bool(spec.first)
        name += f"-last-{spec.last}" * bool(spec.last)
        name = re.sub(r"[^\w.+@-]+", "_", name)
        if name in sets:
            raise UserError(f"--dataset {text!r} names {name} a second time")
        sets[name] = loaded
        _say_oddities(name, loaded, named=bool(spec.name))
        for note in loaded.notes:
            say(f"{loaded.name}: {note}")
    return sets


def _say_oddities(name: str, loaded: LoadedSet, *, named: bool) -> None:
    """What makes a figure of this set mean less than it seems."""
    count = len(loaded.rows)
    again = count - len({normalize(row.question) for row in loaded.rows})
    empty = sum(not row.answer.strip() for row in loaded.rows)
    if again and named:  # of others `load_set` tells the rows
        say(f"note: {name}: {again} of {count} questions are there before; each counts as another")
    if empty:
        say(f"note: {name}: {empty} of {count} gold answers are empty: nothing is right there")


def check_training_data(
    config: EvaluateConfig, members: Sequence[Member], sets: dict[str, LoadedSet]
) -> None:
    """Whether the data sets share a question with what the models were trained on.

    Raises:
      UserError: with the count.
    """
    training: dict[str, list] = {}
    for text in config.training_data:
        loaded = data.load_set(parse_spec(text, "training_data"), "training_data", strict=None)
        training[text] = [row.question for row in loaded.rows]
    for member in members:
        run_dir = model_sources.training_run(member.source)
        if run_dir is None:
            continue
        key = f"{model_sources.run_config(run_dir).data.dataset} (of {run_dir})"
        try:
            training[key] = model_sources.training_questions(run_dir)
        except UserError as error:
            say(f"note: no check against the training data of {run_dir}: {error}")
    for name, trained in training.items():
        for loaded in sets.values():
            check_overlap(
                trained,
                [row.question for row in loaded.rows],
                name,
                f"--dataset {loaded.text!r}",
            )


def say_other_prompts(
    config: EvaluateConfig, members: Sequence[Member], sets: dict[str, LoadedSet]
) -> None:
    """Where a run is asked otherwise than it was trained, which its accuracy may suffer from."""
    said = set()
    for member in members:
        run_dir = model_sources.training_run(member.source)
        trained = None if run_dir is None else model_sources.run_config(run_dir)
        if not isinstance(trained, TrainConfig):
            continue
        then = prompts.resolve_prompt(trained.prompt, data.own_prompt(trained.data))
        for loaded in sets.values():
            now = prompts.resolve_prompt(config.prompt, loaded.prompt)
            names = [n for n, text in vars(now).items() if (text or "") != (getattr(then, n) or "")]
            fields = ", ".join(f"prompt.{name}" for name in names)
            if fields and (run_dir, fields) not in said:
                said.add((run_dir, fields))
                say(f"note: {run_dir} was trained with another {fields} than it is asked with here")


def _protocol(config: EvaluateConfig) -> Protocol:
    return Protocol(
        seed=config.seed,
        num_samples=config.num_samples,
        max_completion_length=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        end_of_thinking=config.information.end_of_thinking,
        prompts_per_batch=config.prompts_per_batch,
        samples_per_batch=config.samples_per_batch,
        gather_weights=config.gather_weights,
        inspected=config.inspect,
    )


def prepare(
    config: EvaluateConfig, members: Sequence[Member], sets: dict[str, LoadedSet]
) -> dict[tuple[str, str], Problems]:
    """The problems of every model on every data set, by the stem and the set's name.

    All that can be known without weights is looked at here: a mistake in the last model must not
    show after the first has been sampled for hours.

    Raises:
      UserError: one sentence for the first thing that is wrong.
    """
    if not config.mesh.distributed:  # whose devices are not known yet
        check_batch(config.prompts_per_batch, open_mesh(config.mesh))
    made, said = {}, set()
    for member in members:
        opened = model_sources.look(member.source, config.model)
        size = opened.config.vocab_size
        if config.top_k > size:
            raise UserError(f"top_k is {config.top_k}; expected at most the vocabulary of {size}")
        for name, loaded in sets.items():
            problems = data.make_problems(
                loaded.rows,
                opened.tokenizer,
                prompts.resolve_prompt(config.prompt, loaded.prompt),
                config.max_prompt_length,
                field="max_prompt_length",
                loaded=loaded,
            )
            for note in data.told_left_out(
                problems,
                loaded,
                config.max_prompt_length,
                strict=config.strict,
                field="max_prompt_length",
            ):
                if note not in said:
                    said.add(note)
                    say(note)
            _check_known(config, member, name)
            made[member.stem(), name] = problems
    return made


def _check_known(config: EvaluateConfig, member: Member, name: str) -> None:
    """Whether what is there was sampled as it would be now; the model is compared once it is read.

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
    """One model on one data set."""
    protocol = _protocol(config)
    task = make_task(model, problems, protocol)
    record = describe(
        task,
        model.params,
        model=member.label,
        dataset=_canonical(loaded),
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


def _canonical(loaded: LoadedSet) -> str:
    spec = parse_spec(loaded.text)
    named = f"{loaded.name}:{loaded.split}" + f":first {spec.first}" * bool(spec.first)
    return named + f":last {spec.last}" * bool(spec.last)


def evaluate(config: EvaluateConfig, command: str = "") -> dict:
    """Every model on every data set; writes and returns summary.json.

    Raises:
      UserError: one sentence for the first thing that is wrong.
      Stopped: if a signal asks for it; what was sampled is kept.
    """
    members = parse_models(config.models)
    sets = load_sets(config)
    check_training_data(config, members, sets)
    say_other_prompts(config, members, sets)
    problems = prepare(config, members, sets)
    records = []
    with handling_signals():
        mesh = start_mesh(config.mesh, compilation_cache=config.compilation_cache)
        for member in members:
            model = model_sources.load_source(member.source, config.model, mesh)
            for name, loaded in sets.items():
                of = problems[member.stem(), name]
                records.append(evaluate_member(config, member, model, name, loaded, of))
            del model  # before the next one needs the memory
    if not is_writer():
        return {}
    told = {"command": command, **summarize(records, config.k, config.budgets)}
    path, text = Path(config.output_dir) / "summary.json", table(told)
    with writing(config.output_dir, UserError):
        write_json(path, told)
        write_atomically(path.with_name("summary.txt"), text + "\n")
    say(f"\n{text}\n\nwritten to {config.output_dir}/")
    return told


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (`errors`)."""
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
    exit_with(main)
