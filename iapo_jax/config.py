"""What a user may write in a config file: frozen dataclasses, a documented default for each field.

`load_config(TrainConfig, path, ["optimizer.learning_rate=1e-5"])` merges defaults, file and
command line through omegaconf. Where TRL has a name for something, the name here is TRL's.
"""

import dataclasses
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from iapo_jax.errors import UserError

Config = TypeVar("Config")

_STRUCTURED = ("'", '"', "[", "{")  # an override that begins so is YAML
_LARGEST_FILE = 1_000_000  # bytes; a longer one is no config
_INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{")  # `\${` is a text
_WORDS = {str: "a text", int: "a whole number", float: "a number"}


def option(default: Any, help: str) -> Any:
    """A config field with its default and its meaning."""
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class ModelSection:
    """Which model, and how its layers are computed."""

    path: str = option("", "Hugging Face directory or hub name (safetensors)")
    revision: str | None = option(None, "branch, tag or commit on the hub")
    config: str | None = option(
        None, "a config.json: start a NEW random model of this architecture; then without path"
    )
    tokenizer: str | None = option(None, "directory or hub name; default: the one of path")
    dtype: str = option("float32", "arithmetic of the layers: float32 or bfloat16")
    attention: str = option(
        "auto", "auto: the backend's own kernel, if it proves right there; or xla: never"
    )
    remat: bool = option(False, "recompute each layer in the backward pass to save memory")


@dataclasses.dataclass(frozen=True)
class DataSection:
    """Where the rows come from: each has `prompt` or `question`, and `answer`."""

    dataset: str = option(
        "",
        "a short name (gsm8k, math-500, dapo-math-17k, aime-2024, aime-2025, amc-2023, "
        "commonsense-qa, arithmetic), NAME=PATH for a local copy of one, a JSONL, JSON or parquet "
        "file, a directory of datasets.save_to_disk, or a hub name; :SPLIT, :first N and :last M "
        "(of those) may follow",
    )
    subset: str | None = option(None, "configuration name on the hub, such as 'main' of gsm8k")
    split: str = option("train", "split of a named or saved data set, or on the hub")
    max_rows: int = option(0, "use only the first rows; 0 = all")
    max_prompt_length: int = option(512, "tokens; longer prompts are left out, counted and said")
    strict: bool = option(
        False, "rows that repeat a question or are too long are an error, instead of being said"
    )


@dataclasses.dataclass(frozen=True)
class PromptSection:
    """How a question becomes a prompt, through the tokenizer's chat template."""

    system: str | None = option(
        None,
        "system text; 'r1' = the built-in R1-style text; empty = no system turn; unset, here and "
        "below: the own text of a data set that is named by its short name, else nothing",
    )
    instruction: str | None = option(
        None, "appended to every question, such as how to write the answer; empty = nothing"
    )
    example_question: str | None = option(None, "a worked turn before the question; empty = none")
    example_answer: str | None = option(None, "the assistant's text of the worked turn")


@dataclasses.dataclass(frozen=True)
class BatchSection:
    """How much goes into one step; the derived numbers are printed at the start."""

    prompts_per_step: int = option(16, "P: prompts sampled in a step")
    num_generations: int = option(8, "G: completions of each prompt")
    micro_batch_size: int = option(
        0, "prompts, with all their completions, in one forward and backward pass; 0 = all"
    )
    mini_batches: int = option(1, "optimizer updates in one pass over a rollout")
    num_iterations: int = option(1, "passes over a rollout")


@dataclasses.dataclass(frozen=True)
class SamplingSection:
    """How completions are drawn."""

    temperature: float = option(1.0, "divides the logits in sampling, scoring and the loss")
    top_p: float = option(1.0, "keep the most likely tokens of this mass")
    top_k: int = option(0, "keep this many tokens; 0 = all")
    max_completion_length: int = option(2048, "T: tokens, the stop token included")
    length_bucket: int = option(
        0, "cut a rollout's padding to a multiple of this many tokens; 0 = never"
    )
    gather_weights: bool = option(
        True, "each device of the fsdp axis holds whole weights while it samples; faster, larger"
    )
    allow_truncated_distribution: bool = option(
        False, "train although top_p < 1 or top_k > 0 draws from another policy than is scored"
    )


@dataclasses.dataclass(frozen=True)
class RewardSection:
    """What a completion is paid for."""

    functions: list[str] = option(
        lambda: ["accuracy", "format"], "'accuracy', 'format', FILE.py:NAME or package.module.NAME"
    )
    weights: list[float] = option(list, "one for each function; empty = all 1")


@dataclasses.dataclass(frozen=True)
class AlgorithmSection:
    """Which rule gives credit to tokens."""

    name: str = option(
        "iapo", "an entry of iapo_jax.ALGORITHMS, or a rule of your own: FILE.py:NAME"
    )
    options: dict[str, Any] = option(
        dict, "hyper-parameters of its pieces (and of adapt), by name; docs/methods.md lists them"
    )
    adapt: str | None = option(
        None, "let one follow the run: price_for_length, price_for_accuracy, keep_for_difficulty"
    )
    dynamic_sampling: bool | None = option(
        None, "replace groups all right or all wrong by fresh ones; default: the algorithm's own"
    )
    max_rounds: int = option(10, "of sampling in a step, at most, with dynamic_sampling")
    loss_type: str | None = option(
        None, "grpo, bnpo, dr_grpo or dapo; default: the algorithm's own, here and below"
    )
    epsilon: float | None = option(None, "the ratio is clipped below at 1 - epsilon")
    epsilon_high: float | None = option(None, "and above at 1 + epsilon_high")
    beta: float | None = option(None, "weight of the k3 KL to the initial model; 0 = no reference")


@dataclasses.dataclass(frozen=True)
class InformationSection:
    """The early exit that asks for the answer after every prefix, or some of them."""

    estimator: str = option(
        "auto",
        "of the uncertainty: answer_entropy, answer_log_prob, answer_set_entropy; auto: the "
        "algorithm's own, and answer_entropy where there is none",
    )
    reference: str = option(
        "gold", "whose answer answer_log_prob teacher-forces: gold, or each completion's own"
    )
    postfix: str = option("</think>\n<answer>", "text that ends thinking and opens the answer")
    answer_end: str = option(
        "</answer>", "text that closes an answer; teacher-forced with it: 1 is no part of 12 then"
    )
    max_answer_length: int = option(
        32, "tokens of an answer with its end; longer ones are told by their first"
    )
    stride: int = option(1, "probe after every so many tokens; the sum over a segment is kept")
    boundaries: list[str] = option(
        list, "probe only after tokens that hold one of these texts, such as ['.', \"\\n\"]"
    )
    always: bool = option(
        False, "ask although the algorithm does not look: for the metrics, at the price of probes"
    )
    redundant_below: float = option(
        0.1, "nats; thinking after uncertainty fell below for good counts as redundant"
    )
    end_of_thinking: list[str] = option(
        lambda: ["</think>", "<answer>"], "tokens from the first of these texts on are not thinking"
    )


@dataclasses.dataclass(frozen=True)
class OptimizerSection:
    """AdamW with a schedule and clipping."""

    learning_rate: float = option(1e-6, "peak")
    lr_scheduler_type: str = option("linear", "constant, linear or cosine decay to 0 at max_steps")
    warmup_steps: int = option(0, "linear rise from 0")
    adam_beta1: float = option(0.9, "decay of the first moment")
    adam_beta2: float = option(0.99, "decay of the second moment")
    adam_epsilon: float = option(1e-8, "added to the root of the second moment")
    weight_decay: float = option(0.0, "decoupled; matrices only, never norms or biases")
    max_grad_norm: float = option(1.0, "clip the global gradient norm; 0 = never")


@dataclasses.dataclass(frozen=True)
class MeshSection:
    """Devices along each axis; -1 (on one axis at most) takes all that are left."""

    data: int = option(-1, "replicas of the parameters")
    fsdp: int = option(1, "parameters sharded, batches too")
    tensor: int = option(1, "heads, hidden units and vocabulary sharded")
    distributed: bool = option(
        False, "several processes, on one host or many: the same command on each"
    )
    coordinator: str | None = option(
        None, "HOST:PORT of process 0; unset, here and below: as the cluster says (TPU, Slurm, MPI)"
    )
    num_processes: int | None = option(None, "how many there are")
    process_id: int | None = option(None, "which one this is, from 0")
    join_timeout: int = option(300, "seconds within which all of them must have come")
    heartbeat_timeout: int = option(
        60, "seconds of silence after which a process counts as gone and the others end"
    )


@dataclasses.dataclass(frozen=True)
class EvalSection:
    """The table before and after; no table without a dataset."""

    dataset: str = option("", "as data.dataset; must hold other rows than the training data")
    subset: str | None = option(None, "as data.subset")
    split: str = option("test", "as data.split")
    max_rows: int = option(0, "use only the first rows; 0 = all")
    strict: bool = option(False, "as data.strict")
    shared: str = option(
        "refuse", "questions that the training data has, too: refuse, or leave_out of training"
    )
    num_samples: int = option(1, "completions of each prompt, at temperature and top_p below")
    temperature: float = option(1.0, "divides the logits")
    top_p: float = option(1.0, "keep the most likely tokens of this mass")
    top_k: int = option(0, "keep this many tokens; 0 = all, 1 = greedy")
    gather_weights: bool = option(True, "as sampling.gather_weights")
    prompts_per_batch: int = option(64, "prompts sampled at once; does not change the result")
    inspect: int = option(
        0, "probe the first sample of so many problems, before and after, for the report"
    )


@dataclasses.dataclass(frozen=True)
class SelectionSection:
    """Which checkpoint is kept: the best on training rows that are held out for that."""

    problems: int = option(0, "rows held out of the training data; 0 = none, and the last is kept")
    criterion: str = option("ratio", "accuracy, or ratio: accuracy per token")
    tolerance: float = option(
        0.02, "with ratio: what a checkpoint's accuracy may lie below the start model's"
    )
    num_samples: int = option(1, "completions of each problem, drawn as in training")
    prompts_per_batch: int = option(64, "prompts sampled at once; does not change the result")


@dataclasses.dataclass(frozen=True)
class LogSection:
    """What is written down while training."""

    logging_steps: int = option(1, "a row of metrics.jsonl every so many steps")
    save_total_limit: int = option(2, "newest checkpoints that are kept; 0 = all")
    completion_steps: int = option(1, "completions/step_N.jsonl every so many steps; 0 = never")
    tensorboard: bool = option(True, "write TensorBoard event files to OUTPUT_DIR/tensorboard")
    progress: bool = option(True, "a bar with reward, length and kl")
    compilation_cache: str = option(
        "~/.cache/iapo_jax/xla", "directory of compiled programs, kept between runs; empty = none"
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """`python -m iapo_jax.train`: reinforcement learning of one model on one data set."""

    seed: int = option(0, "decides data order and every random draw")
    output_dir: str = option("runs/train", "everything of this run goes here")
    max_steps: int = option(100, "rollouts")
    max_sampled_tokens: int = option(
        0,
        "end with the step in which so many completion tokens have been sampled, those of groups "
        "that dynamic sampling replaced among them: equal budgets for all methods; 0 = no limit",
    )
    save_steps: int = option(50, "a checkpoint every so many steps, and at the end; 0 = end only")
    resume: str = option(
        "auto", "auto = newest whole checkpoint if any; never = refuse; or a step number"
    )
    max_skipped: int = option(
        5, "the run stops after so many steps in a row whose numbers were not finite (each skipped)"
    )
    model: ModelSection = option(ModelSection, "")
    data: DataSection = option(DataSection, "")
    prompt: PromptSection = option(PromptSection, "")
    batch: BatchSection = option(BatchSection, "")
    sampling: SamplingSection = option(SamplingSection, "")
    reward: RewardSection = option(RewardSection, "")
    algorithm: AlgorithmSection = option(AlgorithmSection, "")
    information: InformationSection = option(InformationSection, "")
    optimizer: OptimizerSection = option(OptimizerSection, "")
    mesh: MeshSection = option(MeshSection, "")
    selection: SelectionSection = option(SelectionSection, "")
    eval: EvalSection = option(EvalSection, "")
    log: LogSection = option(LogSection, "")


@dataclasses.dataclass(frozen=True)
class SftBatchSection:
    """How much goes into one step."""

    rows_per_step: int = option(64, "rows of one optimizer update")
    micro_batch_size: int = option(0, "rows in one forward and backward pass; 0 = all")
    max_length: int = option(1024, "tokens of a completion; longer rows are left out and counted")


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """`python -m iapo_jax.sft`: supervised fine-tuning on prompts and completions."""

    seed: int = option(0, "decides data order and the initialisation of a new model")
    output_dir: str = option("runs/sft", "everything of this run goes here")
    max_steps: int = option(1000, "optimizer updates")
    save_steps: int = option(0, "a checkpoint every so many steps, and at the end; 0 = end only")
    resume: str = option(
        "auto", "auto = newest whole checkpoint if any; never = refuse; or a step number"
    )
    max_skipped: int = option(5, "as in training")
    model: ModelSection = option(ModelSection, "")
    data: DataSection = option(DataSection, "")
    prompt: PromptSection = option(PromptSection, "")
    batch: SftBatchSection = option(SftBatchSection, "")
    optimizer: OptimizerSection = option(OptimizerSection, "")
    mesh: MeshSection = option(MeshSection, "")
    log: LogSection = option(LogSection, "")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """`python -m iapo_jax.evaluate`: models on data sets, with intervals, compared in pairs."""

    models: list[str] = option(
        list,
        "[LABEL=]DIR: Hugging Face directory, run directory, RUN/checkpoints/N or hub name; "
        "LABEL=DIR,DIR,... are training seeds of one method",
    )
    datasets: list[str] = option(
        list, "NAME[=PATH][:SPLIT][:first N][:last M], a file or a hub name"
    )
    training_data: list[str] = option(
        list, "as datasets: must share no question with them; a run's own is looked at anyway"
    )
    output_dir: str = option("eval", "everything goes here; what is there is not sampled again")
    seed: int = option(0, "decides every draw")
    num_samples: int = option(32, "completions of each problem")
    k: list[int] = option(list, "of pass@k and so on; empty = 1, 2, 4, ... num_samples")
    budgets: list[int] = option(
        list,
        "tokens within which a completion must be right, up to max_completion_length; "
        "empty = 1/8, 1/4, 1/2 of it",
    )
    max_completion_length: int = option(2048, "tokens, the stop token included")
    max_prompt_length: int = option(1024, "tokens; longer prompts are left out, counted and said")
    strict: bool = option(False, "as data.strict of training")
    temperature: float = option(1.0, "divides the logits")
    top_p: float = option(1.0, "keep the most likely tokens of this mass")
    top_k: int = option(0, "keep this many tokens; 0 = all, 1 = greedy")
    prompts_per_batch: int = option(16, "prompts sampled at once; no part of the result")
    samples_per_batch: int = option(0, "completions of each at once; 0 = all; as above")
    gather_weights: bool = option(True, "as sampling.gather_weights of training")
    inspect: int = option(0, "probe the first sample of so many problems, for the report")
    progress: bool = option(True, "a bar with accuracy and length")
    compilation_cache: str = option("~/.cache/iapo_jax/xla", "as log.compilation_cache of training")
    model: ModelSection = option(ModelSection, "dtype and attention; path stays empty")
    prompt: PromptSection = option(PromptSection, "")
    information: InformationSection = option(InformationSection, "")
    mesh: MeshSection = option(MeshSection, "")


def load_config(schema: type[Config], path: str | None, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file, then `section.key=value` overrides.

    Overrides that name another algorithm.name than the file drop the file's algorithm.options.

    Raises:
      UserError: naming the file, the field, what was found and what is expected.
    """
    base = OmegaConf.structured(schema)
    for node in (base, *(base[k] for k in base if OmegaConf.is_config(base[k]))):
        OmegaConf.set_readonly(node, False)
    layers = []
    if path is not None:
        layers.append((path, _read_yaml(path)))
    for text in overrides:
        layers.append((f"{text!r} on the command line", _read_override(text)))
    named = [name for _, layer in layers[1:] if (name := _method_of(layer)) is not None]
    for number, (source, layer) in enumerate(layers):
        try:
            _check_names(schema, layer, source)
            base = OmegaConf.unsafe_merge(base, layer)  # which copies neither
            if number == 0 and path is not None and named and named[-1] != _method_of(base):
                base.algorithm.options = {}  # the file's are of another method
        except OmegaConfBaseException as error:
            raise UserError(f"{source}: {_first_line(error)}") from None
        except TypeError as error:  # omegaconf's own, for a path through what is no mapping
            raise UserError(f"{source}: {_first_line(error)}") from None
    try:
        config = OmegaConf.to_object(base)
    except OmegaConfBaseException as error:
        raise UserError(_first_line(error)) from None
    _check_entries(config)
    return config


def load_run_config(path: Path) -> TrainConfig | SftConfig:
    """The config.yaml of a run directory, whichever command wrote it.

    Raises:
      UserError: as `load_config`; also for `${...}`: a run writes its values down, and one from
        elsewhere must not read this machine's environment.
    """
    layer = _read_yaml(str(path))
    for name, value in walk(OmegaConf.to_container(layer, resolve=False)):
        if isinstance(value, str) and _INTERPOLATION.search(value):
            raise UserError(
                f"{path}: {name} is {value!r:.80}; expected a value, as a run writes it, and no ${{"
            )
    return load_config(TrainConfig if "sampling" in layer else SftConfig, str(path))


def walk(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything that is in nested mappings and lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from walk(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from walk(inner, f"{name}[{number}]")
    else:
        yield name, value


def _check_entries(section: Any, prefix: str = "") -> None:
    """Entries of lists have their type; omegaconf lets a list pass in the place of a text."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            _check_entries(value, f"{prefix}{field.name}.")
        elif get_origin(field.type) is list:
            (kind,) = get_args(field.type)
            for entry in value:
                if not isinstance(entry, kind):
                    raise UserError(
                        f"{prefix}{field.name} has the entry {entry!r:.80}; expected {_WORDS[kind]}"
                    )


def _first_line(error: Exception) -> str:
    message = str(error).splitlines()[0]
    if isinstance(error, InterpolationResolutionError | GrammarParseError):
        message += " (a literal ${ is written \\${)"
    return f"field {error.full_key}: {message}" if getattr(error, "full_key", None) else message


def _read_override(text: str) -> Any:
    """`key=value` as a layer.

    A value is YAML where it is quoted, a list, a mapping, a number, true, false or null. Any other
    is the text as it stands: `#` and `:` are nothing special in it.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"{text!r} on the command line: expected key=value, as max_steps=10")
    found: Any = value
    try:
        layer = OmegaConf.from_dotlist([f"value={value}"])
        found = OmegaConf.to_container(layer, resolve=False)["value"]
    except Exception as error:  # yaml's and omegaconf's own errors share no base class
        if value.startswith(_STRUCTURED):
            reason = " ".join(str(error).split())
            raise UserError(f"{text!r} on the command line: not readable: {reason}") from None
    plain = not isinstance(found, bool | int | float | None) or re.search(r"(^|\s)#", value)
    if not value or (plain and not value.startswith(_STRUCTURED)):
        found = value
    layer = OmegaConf.create({})
    try:
        OmegaConf.update(layer, key, found)
    except Exception as error:  # a key such as `a..b`, or a broken ${...}
        raise UserError(f"{text!r} on the command line: {_first_line(error)}") from None
    return layer


def _method_of(layer: Any) -> Any:
    return OmegaConf.select(layer, "algorithm.name") if OmegaConf.is_dict(layer) else None


def _read_yaml(path: str) -> Any:
    try:
        layer = OmegaConf.load(io.StringIO(_read_text(path)))
    except UserError:
        raise
    except Exception as error:  # yaml's and omegaconf's own errors share no base class
        reason = " ".join(str(error).split()).replace('in "<file>", ', "in ")
        raise UserError(f"{path}: not readable as YAML: {reason}") from None
    if not OmegaConf.is_dict(layer):
        raise UserError(f"{path}: expected a mapping of fields, found a list")
    if not layer:
        raise UserError(f"{path} is empty: expected a mapping of fields, such as max_steps: 10")
    return layer


def _read_text(path: str) -> str:
    place = Path(path)
    if not place.exists():
        raise UserError(f"config file {path!r} does not exist (looked in {Path.cwd()})")
    if place.is_dir():
        raise UserError(f"config file {path!r} is a directory; expected a YAML file")
    try:
        with place.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise UserError(
                f"config file {path!r} has more than {_LARGEST_FILE:,} bytes; expected a file of "
                "fields"
            )
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"config file {path!r} cannot be read: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not readable as YAML: not UTF-8: {error}") from None


def _check_names(
    schema: type, layer: Any, source: str, prefix: str = "", root: type | None = None
) -> None:
    """A misspelt field is an error that names the nearest one."""
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key in layer:
        if key not in fields:
            hint = _nearest(str(key), fields, prefix, root or schema)
            raise UserError(f"{source}: unknown field {prefix}{key}; {hint}")
        if OmegaConf.is_missing(layer, key):
            raise UserError(f"{source}: {prefix}{key} is ???; expected a value")
        inner = fields[key].default_factory
        if inner is dataclasses.MISSING:
            continue
        value = layer[key]
        if dataclasses.is_dataclass(inner):
            if not OmegaConf.is_dict(value):
                raise UserError(f"{source}: {prefix}{key} is a section of fields, found {value!r}")
            _check_names(inner, value, source, f"{prefix}{key}.", root or schema)
        elif isinstance(inner(), list) and not OmegaConf.is_list(value):
            raise UserError(f"{source}: {prefix}{key} is a list, such as [a, b]; found {value!r}")
        elif isinstance(inner(), dict) and not OmegaConf.is_dict(value):
            raise UserError(f"{source}: {prefix}{key} is a mapping, as {{a: 1}}; found {value!r}")


def _nearest(key: str, fields: dict[str, Any], prefix: str, root: type) -> str:
    """The field that was meant: of this section, else one of that name in another section."""
    plain = key.lower().replace("-", "_")
    near = difflib.get_close_matches(plain, fields, n=1)
    own = [f"{prefix}{name}" for name in near]
    known = [name for name, _ in walk(_defaults(root)) if name.rpartition(".")[2] == plain]
    found = own if plain in fields else known or own
    return f"did you mean {found[0]}?" if found else f"known: {', '.join(fields)}"


def _defaults(schema: type) -> dict[str, Any]:
    """Every field by section; what is no section is None."""
    return {
        field.name: _defaults(field.default_factory)
        if dataclasses.is_dataclass(field.default_factory)
        else None
        for field in dataclasses.fields(schema)
    }


def to_yaml(config: Any) -> str:
    """The resolved config as YAML; loads back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.create(_escape(dataclasses.asdict(config))))


def _escape(value: Any) -> Any:
    """Values are resolved already: a `${` in a text is meant as it stands."""
    if isinstance(value, dict):
        return {key: _escape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escape(inner) for inner in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(\\*)\$\{", lambda match: match[1] * 2 + "\\${", value)
