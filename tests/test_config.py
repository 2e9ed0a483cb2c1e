"""Config files: documented fields, values as written, mistakes in one sentence."""

import dataclasses
import math
import re
import time
from itertools import pairwise

import pytest

from iapo_jax import evaluate
from iapo_jax.algorithms.methods import ALGORITHMS, make_algorithm
from iapo_jax.config.checks import check_config
from iapo_jax.config.evaluate import EvaluateConfig
from iapo_jax.config.fields import Range, leaves, option, sections
from iapo_jax.config.loading import load_config, load_run_config, to_yaml
from iapo_jax.config.reference import describe, summary, to_markdown
from iapo_jax.config.sections import PromptSection
from iapo_jax.config.sft import SftConfig
from iapo_jax.config.train import TrainConfig
from iapo_jax.errors import UserError
from iapo_jax.runtime.cli import run_cli

SCHEMAS = [TrainConfig, SftConfig, EvaluateConfig]


def cli(argv, schema=TrainConfig, main=lambda config, arguments: None):
    return run_cli(schema, main, prog="iapo_jax.train", argv=argv)


@pytest.fixture
def write(tmp_path):
    def to_file(text):
        path = tmp_path / "experiment.yaml"
        path.write_text(text)
        return str(path)

    return to_file


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_field_is_documented(schema):
    text = describe(schema)
    for leaf in leaves(schema):
        assert len(leaf.help) > 3, leaf.name
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {leaf.name} = ")]
        assert line.endswith(leaf.help)
    assert list(sections(schema))
    for name, section in sections(schema):
        assert f"\n{name}: {summary(section)}" in text


def printed_help(schema, flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        if schema is EvaluateConfig:
            evaluate.parse([flag])
        else:
            cli([flag], schema)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("schema", SCHEMAS)
def test_help_lists_the_ordinary_fields_and_help_all_every_one(schema, capsys):
    ordinary, complete = (printed_help(schema, flag, capsys) for flag in ("--help", "--help-all"))
    for leaf in leaves(schema):
        assert (f"  {leaf.name} = " in ordinary) == (not leaf.advanced)
        assert f"  {leaf.name} = " in complete
    for flag in ("config", "print_config", "help-all"):
        assert f"--{flag}" in ordinary and f"--{flag}" in complete
    if schema is not EvaluateConfig:
        assert "--dry_run" in ordinary and "--topology" in ordinary


def test_the_documentation_is_generated_from_the_fields(root):
    text = (root / "docs" / "configuration.md").read_text()
    assert text == to_markdown(), "python -m iapo_jax.config > docs/configuration.md"
    for schema in SCHEMAS:
        assert all(f"| `{leaf.name}` | " in text for leaf in leaves(schema))


def test_a_file_and_overrides_replace_defaults(write):
    path = write("max_steps: 7\noptimizer:\n  learning_rate: 1e-5\n  adam_beta2: 1\n")
    config = load_config(TrainConfig, path, ["max_steps=9", "batch.num_generations=4"])
    assert (config.max_steps, config.batch.num_generations, config.seed) == (9, 4, 0)
    # PyYAML alone reads 1e-5 as a string, since it has no dot.
    assert config.optimizer.learning_rate == 1e-5
    assert isinstance(config.optimizer.learning_rate, float)
    assert config.optimizer.adam_beta2 == 1.0
    assert load_config(TrainConfig, None, ["optimizer.learning_rate=2e-3"]) == dataclasses.replace(
        TrainConfig(), optimizer=dataclasses.replace(TrainConfig().optimizer, learning_rate=2e-3)
    )


def test_values_keep_their_types(write):
    path = write(
        'information:\n  postfix: "</think>\\n<answer>"\n'
        "reward:\n  functions: [accuracy, mine.py:pay]\n  weights: [1, 0.5]\n"
        "algorithm:\n  options:\n    information_weight: 1e-4\n    only_correct: false\n  beta: 0\n"
        "model:\n  revision: null\n"
    )
    config = load_config(TrainConfig, path)
    assert config.information.postfix == "</think>\n<answer>"
    assert config.reward.functions == ["accuracy", "mine.py:pay"]
    assert config.reward.weights == [1.0, 0.5]
    assert config.algorithm.options == {"information_weight": 1e-4, "only_correct": False}
    assert config.algorithm.beta == 0.0 and config.algorithm.epsilon is None


@pytest.mark.parametrize("schema", [TrainConfig, SftConfig])
def test_a_printed_config_loads_back(schema, write, capsys):
    path = write("prompt:\n  system: \"two\\nlines: 'quoted'\"\ndata:\n  dataset: 'rows #1'\n")
    assert cli(["--config", path, "optimizer.learning_rate=3e-7", "--print_config"], schema) == 0
    printed = capsys.readouterr().out
    config = load_config(schema, write(printed))
    assert to_yaml(config) == printed
    assert config.optimizer.learning_rate == 3e-7
    assert config.data.dataset == "rows #1"
    assert config.prompt.system == "two\nlines: 'quoted'"


def test_a_runs_config_knows_its_command(write):
    for schema in (TrainConfig, SftConfig):
        assert load_run_config(write(to_yaml(schema()))) == schema()


def test_flags_and_config_reach_main(write):
    seen = []

    def main(config, arguments):
        return seen.append((config.max_steps, arguments.dry_run))

    path = write("max_steps: 3\n")
    assert cli(["--config", path, "--dry_run"], main=main) == 0
    assert cli(["max_steps=4"], main=main) == 0
    assert seen == [(3, True), (4, False)]


@pytest.mark.parametrize(
    "text, overrides, parts",
    [
        ("max_step: 3", [], ["experiment.yaml", "unknown field max_step", "max_steps?"]),
        ("optimizer:\n  learning_rat: 1", [], ["optimizer.learning_rat;", "learning_rate?"]),
        ("zebra: 1", [], ["unknown field zebra", "expected one of seed, output_dir"]),
        ("max_steps: many", [], ["experiment.yaml", "max_steps is 'many'; expected an integer"]),
        ("max_steps: 1.5", [], ["max_steps is 1.5; expected an integer"]),
        (
            "optimizer: {learning_rate: a}",
            [],
            ["optimizer.learning_rate is 'a'; expected a number"],
        ),
        (
            "optimizer: 1e-5",
            [],
            ["optimizer is 1e-05; expected a section, such as optimizer.NAME=VALUE"],
        ),
        ("optimizer:", [], ["optimizer is None; expected a section"]),
        ("- a\n- b", [], ["expected a mapping of fields"]),
        ("a: [1", [], ["experiment.yaml", "not readable as YAML"]),
        ("max_steps: 3", ["max_steps"], ["'max_steps' on the command line", "key=value"]),
        ("max_steps: 3", ["bach.num_generations=2"], ["command line", "bach", "batch?"]),
        ("max_steps: 3", ["log.progress=5h"], ["log.progress is '5h'; expected true or false"]),
        ("max_steps: 3", ["=3"], ["'=3' on the command line", "key=value"]),
        ("prompt:\n  system: ${foo}", [], ["prompt.system", "'foo' not found", "\\${"]),
        ("max_steps: 3", ["prompt.system=${oc.env:NO_SUCH}"], ["prompt.system", "NO_SUCH"]),
        ("max_steps: 3", ["prompt.system=${"], ["command line", "prompt.system"]),
        ("max_steps: 3", ["optimizer=${foo}"], ["command line", "optimizer", "foo"]),
        (
            "max_steps: 3",
            ["reward.functions=accuracy"],
            ["reward.functions is 'accuracy'; expected a list"],
        ),
        ("reward:\n  weights: 1", [], ["reward.weights is 1; expected a list, such as [a, b]"]),
        ("max_steps: 3", ["reward.functions.0=a"], ["reward.functions is ", "expected a list"]),
        (
            "max_steps: 3",
            ["algorithm.options=5"],
            ["algorithm.options is 5; expected a mapping, such as {a: 1}"],
        ),
        (
            "max_steps: 3",
            ["data.dataset=[a"],
            ["'data.dataset=[a' on the command line", "not read"],
        ),
        ("max_steps: 3", ["max_steps=5 # five"], ["max_steps", "5 # five"]),
    ],
)
def test_a_mistake_is_one_sentence(write, capsys, text, overrides, parts):
    assert cli(["--config", write(text), *overrides], main=lambda *_: pytest.fail("ran")) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    for part in parts:
        assert part in printed.err


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--config", "/nowhere/a.yaml"], "config file '/nowhere/a.yaml' does not exist"),
        ([], "nothing to do; expected --config FILE or key=value"),
    ],
)
def test_a_missing_file_is_one_sentence(capsys, argv, sentence):
    assert cli(argv) == 2
    assert sentence in capsys.readouterr().err


def test_a_mistake_found_later_is_one_sentence_too(capsys):
    def main(config, arguments):
        raise UserError("data.dataset is empty")

    assert cli(["max_steps=1"], main=main) == 2
    assert capsys.readouterr().err == "error: data.dataset is empty\n"


def test_a_bug_is_not_hidden():
    def main(config, arguments):
        raise KeyError("mistake of the program")

    with pytest.raises(KeyError):
        cli(["max_steps=1"], main=main)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config(TrainConfig, None, ["seed=1"]).seed = 2


@pytest.mark.parametrize(
    "text, found",
    [
        ("", ""),
        ("rows #1.jsonl", "rows #1.jsonl"),
        ("#1", "#1"),
        ("Answer: ", "Answer: "),
        ("- a", "- a"),
        ("two\nlines", "two\nlines"),
        ("a\\nb", "a\\nb"),
        ("'quoted # text'", "quoted # text"),
        ('"a\\nb"', "a\nb"),
        ("5", "5"),
        ("[a", UserError),
        ("\\${x}", "${x}"),
    ],
)
def test_an_override_is_the_text_as_it_stands(write, text, found):
    if found is UserError:
        with pytest.raises(UserError):
            load_config(TrainConfig, None, [f"prompt.system={text}"])
        return
    config = load_config(TrainConfig, None, [f"prompt.system={text}"])
    assert config.prompt.system == found
    assert load_config(TrainConfig, write(to_yaml(config))) == config


def test_an_override_may_be_a_list_a_mapping_or_refer_to_a_field():
    overrides = [
        "reward.functions=[accuracy, a.py:b]",
        "algorithm.options={information_weight: 1e-3}",
    ]
    config = load_config(TrainConfig, None, [*overrides, "seed=7", "max_steps=${seed}"])
    assert config.reward.functions == ["accuracy", "a.py:b"]
    assert config.algorithm.options == {"information_weight": 1e-3}
    assert config.max_steps == 7


def schema_of(path):
    return SftConfig if "rows_per_step" in path.read_text() else TrainConfig


def test_the_repositorys_experiments_load(root):
    folders = (root / "experiments", root / "experiments" / "arithmetic")
    files = sorted(path for folder in folders for path in folder.glob("*.yaml"))
    assert len(files) == 4
    for path in files:
        check_config(load_config(schema_of(path), str(path)))


def overrides_in_head(path):
    """By method, the options that the head of an experiment's file names."""
    found = re.findall(r"^#  +algorithm\.name=(\S+) \"(.*)\"$", path.read_text(), re.MULTILINE)
    return {name: [options] for name, options in found}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("file", ["gsm8k.yaml", "quickstart.yaml"])
def test_every_method_is_a_key_away_in_every_experiment(root, file, name):
    folder = root / "experiments"
    options = overrides_in_head(folder / "gsm8k.yaml").get(name, [])
    overrides = [f"algorithm.name={name}", *options]
    config, base = (load_config(TrainConfig, str(folder / file), o) for o in (overrides, []))
    check_config(config)
    section = config.algorithm
    made = make_algorithm(name, section.options, max_length=config.sampling.max_completion_length)
    assert made.source == ALGORITHMS[name].source
    # The method's own loss, clipping and weights, and nothing of the file's method.
    unset = dataclasses.replace(TrainConfig().algorithm, name=name, options=section.options)
    assert section == unset
    if name != base.algorithm.name:
        assert bool(section.options) == bool(options)
    assert dataclasses.replace(config, algorithm=base.algorithm) == base


def test_gsm8ks_head_names_options_for_methods_that_need_them(root):
    path = root / "experiments" / "gsm8k.yaml"
    assert set(overrides_in_head(path)) == {"length_cap", "l1_max", "gtpo"}
    head = [line.split(":")[0] for line in path.read_text().splitlines() if line.startswith("# ")]
    assert [word for word in head if not word.startswith("#  ")] == [
        *("# Claim", "# Command", "# Methods", "# Hardware", "# Result")
    ]


# ---------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize("schema", SCHEMAS)
def test_defaults_are_in_their_ranges(schema):
    check_config(schema())


NUMBERS = (int, float, int | None, float | None)
# The mesh checks its own axes, which depend on the devices.
UNBOUNDED = {"mesh.data", "mesh.fsdp", "mesh.tensor"}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_number_has_a_range(schema):
    for leaf in leaves(schema):
        owner, _, name = leaf.name.rpartition(".")
        section = dict(sections(schema))[owner] if owner else schema
        (kind,) = {field.type for field in dataclasses.fields(section) if field.name == name}
        if kind in NUMBERS:
            assert (str(leaf.range) != "") == (leaf.name not in UNBOUNDED), leaf.name


def out_of_range(leaf):
    """Values next to each bound of a field, and values that no number may have."""
    r = leaf.range
    number = not r.one_of and not r.nonempty
    if r.at_least is not None:
        yield r.at_least - 1
    if r.above is not None:
        yield from (r.above, r.above - 1)
    if r.at_most is not None:
        yield r.at_most + 1
    if r.below is not None:
        yield from (r.below, r.below + 1)
    if r.one_of:
        yield "neither"
    if r.nonempty:
        yield ""
    if number and isinstance(leaf.default, float):
        yield from (float("nan"), float("inf"))
    if number and type(leaf.default) is int:
        yield 2**31


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_bound_of_every_field_is_checked(schema):
    count = 0
    for leaf in leaves(schema):
        for value in out_of_range(leaf):
            owner, _, name = leaf.name.rpartition(".")
            config = schema()
            if owner:
                section = dataclasses.replace(getattr(config, owner), **{name: value})
                config = dataclasses.replace(config, **{owner: section})
            else:
                config = dataclasses.replace(config, **{name: value})
            sentence = f"{leaf.name} is {value!r}; expected "
            expected = [str(leaf.range)] + ["at most 2147483647"] * (value == 2**31)
            if isinstance(value, float) and not math.isfinite(value):
                expected = ["a finite number"]
            with pytest.raises(UserError) as caught:
                check_config(config, writes=False)
            assert str(caught.value) in [sentence + text for text in expected]
            count += 1
    assert count > 20


@pytest.mark.parametrize(
    "bounds, text",
    [
        (dict(at_least=0), "at least 0"),
        (dict(at_least=0, at_most=9), "from 0 to 9"),
        (dict(at_least=0, below=1), "at least 0 and below 1"),
        (dict(above=0, hint="or not"), "more than 0 (or not)"),
        (dict(above=0, at_most=1), "more than 0 and at most 1"),
        (dict(one_of=("a", "b", "c")), "a, b or c"),
        (dict(nonempty="a directory"), "a directory"),
        ({}, ""),
    ],
)
def test_a_range_in_words(bounds, text):
    assert str(Range(**bounds)) == text


@pytest.mark.parametrize(
    "override, sentence",
    [
        ("max_steps=-1", "max_steps is -1; expected at least 0"),
        ("save_steps=-1", "save_steps is -1; expected at least 0"),
        ("seed=-1", "seed is -1; expected from 0 to 2147483647"),
        ("data.max_rows=2147483648", "data.max_rows is 2147483648; expected at most 2147483647"),
        ("seed=2147483648", "seed is 2147483648; expected from 0"),
        ("log.logging_steps=0", "log.logging_steps is 0; expected at least 1"),
        ("log.completion_steps=-1", "log.completion_steps is -1; expected at least 0"),
        ("log.save_total_limit=-1", "log.save_total_limit is -1"),
        ("sampling.max_completion_length=0", "max_completion_length is 0; expected at least 1"),
        ("sampling.length_bucket=-8", "sampling.length_bucket is -8; expected at least 0"),
        ("sampling.temperature=0", "sampling.temperature is 0.0; expected more than 0 (for greedy"),
        ("sampling.top_p=0", "sampling.top_p is 0.0; expected more than 0 and at most 1"),
        ("sampling.top_k=-1", "sampling.top_k is -1; expected at least 0"),
        ("data.max_rows=-1", "data.max_rows is -1; expected at least 0"),
        ("data.max_prompt_length=0", "data.max_prompt_length is 0; expected at least 1"),
        ("batch.num_generations=0", "batch.num_generations is 0; expected at least 1"),
        ("batch.micro_batch_size=-2", "batch.micro_batch_size is -2; expected at least 0"),
        ("eval.num_samples=0", "eval.num_samples is 0; expected at least 1"),
        ("eval.max_rows=-3", "eval.max_rows is -3; expected at least 0"),
        ("eval.prompts_per_batch=0", "eval.prompts_per_batch is 0; expected at least 1"),
        ("eval.temperature=0", "expected more than 0 (for greedy decoding use top_k=1)"),
        ("eval.top_p=1.5", "eval.top_p is 1.5; expected more than 0 and at most 1"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate is -1.0; expected at least 0"),
        (
            "optimizer.learning_rate=.nan",
            "optimizer.learning_rate is nan; expected a finite number",
        ),
        (
            "optimizer.learning_rate=.inf",
            "optimizer.learning_rate is inf; expected a finite number",
        ),
        ("optimizer.warmup_steps=-1", "optimizer.warmup_steps is -1"),
        ("optimizer.adam_beta1=1", "optimizer.adam_beta1 is 1.0; expected at least 0 and below 1"),
        (
            "optimizer.adam_beta2=-0.1",
            "optimizer.adam_beta2 is -0.1; expected at least 0 and below 1",
        ),
        ("optimizer.adam_epsilon=0", "optimizer.adam_epsilon is 0.0; expected more than 0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay is -1.0"),
        ("optimizer.max_grad_norm=-1", "optimizer.max_grad_norm is -1.0"),
        ("algorithm.beta=-0.1", "algorithm.beta is -0.1; expected at least 0"),
        ("algorithm.epsilon=-0.1", "algorithm.epsilon is -0.1"),
        ("algorithm.epsilon_high=-0.1", "algorithm.epsilon_high is -0.1"),
        (
            "algorithm.options={information_weight: .nan}",
            "algorithm.options.information_weight is nan; expected a finite",
        ),
        ("output_dir=", "output_dir is ''; expected a directory"),
    ],
)
def test_a_value_out_of_range_is_one_sentence(override, sentence):
    with pytest.raises(UserError) as caught:
        check_config(load_config(TrainConfig, None, [override]))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["batch.rows_per_step=0", "batch.max_length=0", "seed=-1"])
def test_the_ranges_of_fine_tuning(override):
    with pytest.raises(UserError, match=override.split("=")[0]):
        check_config(load_config(SftConfig, None, [override]))


def test_output_dir_must_be_a_directory(tmp_path):
    (tmp_path / "file").write_text("")
    for wrong in ("file", "file/run"):
        with pytest.raises(UserError, match="output_dir is '.*', but .*file is not a directory"):
            check_config(TrainConfig(output_dir=str(tmp_path / wrong)))
    check_config(TrainConfig(output_dir=str(tmp_path / "a" / "b")))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_output_dir_must_be_writable(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match="output_dir is '.*run', but .* is not writable"):
        check_config(TrainConfig(output_dir=str(tmp_path / "run")))


def test_another_method_does_not_get_the_files_options(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("algorithm: {name: iapo, options: {information_weight: 0.5}}")

    def options(*overrides):
        return load_config(TrainConfig, str(path), overrides).algorithm.options

    assert options() == options("algorithm.name=iapo") == {"information_weight": 0.5}
    assert options("algorithm.options.exploration_weight=0.1") == {
        "information_weight": 0.5,
        "exploration_weight": 0.1,
    }
    assert options("algorithm.name=gfpo") == {}
    # in whichever order they stand
    assert options("algorithm.name=gfpo", "algorithm.options={keep: 2}") == {"keep": 2}
    assert options("algorithm.options={keep: 2}", "algorithm.name=gfpo") == {"keep": 2}


# ------------------------------------------------------------------------- hostile files

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefgh")
)  # fmt: skip


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"seed: !!python/object/apply:os.system ['touch PWNED']\n", "python/object/apply:os.sys"),
        (b"seed: !!python/name:os.system\n", "could not determine a constructor"),
        (b"seed: !!python/module:os\n", "could not determine a constructor"),
        (b"seed: !!python/object/new:os.stat_result [[1]]\n", "could not determine a constructor"),
        (b"seed: !own 5\n", "could not determine a constructor for the tag '!own'"),
        (BOMB.encode(), "not readable as YAML: YAML node expansion exceeds"),
        (b"algorithm: &a {options: *a}\n", "recursive aliases"),
        (b"algorithm: {options: " + b"{a: " * 9000 + b"1" + b"}" * 9001, "nesting depth"),
        (b"seed: 1\nmax_steps: 3\nseed: 2\n", "found duplicate key seed in line 3, column 1"),
        (b"data:\n  split: a\n  split: b\n", "found duplicate key split in line 3, column 3"),
        (b"optimizer:\n\tlearning_rate: 1\n", "cannot start any token in line 2, column 1"),
        (b"output_dir: caf\xe9\n", "not UTF-8"),
        ("seed: 1\n".encode("utf-16"), "not UTF-8"),
        (b"output_dir: a\0b\n", "control characters are not allowed"),
        (b"- seed\n", "is a list; expected a mapping of fields"),
        (b"hello\n", "unknown field hello"),
        (b"5\n", "not readable as YAML"),
        (b"", "is empty; expected a mapping of fields"),
        (b"# nothing\n", "is empty; expected a mapping of fields"),
        (b"seed: 1\n---\nseed: 2\n", "expected a single document"),
        (b"seed: " + b"9" * 5000, "Exceeds the limit"),
        (b"# " + b"x" * 1_000_000, "has more than 1,000,000 bytes"),
        (b"output_dir: ${sys.exec:rm}\n", "Unsupported interpolation type sys.exec"),
        (b"seed: ${max_steps}\nmax_steps: ${seed}\n", "Recursive interpolation"),
        (b"seed: ???\n", "seed is ???; expected a value"),
        (b"seed: null\n", "seed is None; expected an integer"),
        (b"model: {path: null}\n", "model.path is None; expected a string"),
        (b"seed: true\n", "seed is True; expected an integer"),
        (b"output_dir: [a]\n", "output_dir is ['a']; expected a string"),
        (b"reward: {functions: [null]}\n", "reward.functions[0] is None; expected a string"),
        (b"reward: {functions: [[a]]}\n", "reward.functions has the entry ['a']; expected a stri"),
        (b"algorithm: {options: {1: 2}}\n", "algorithm.options.1: Key 1 (int) is incompatible"),
        (b"~: 2\n", "Incompatible key type 'NoneType'"),
    ],
    ids=range(33),
)  # fmt: skip
def test_a_hostile_file_is_one_sentence(tmp_path, monkeypatch, content, sentence):
    """In bounded time and memory, and nothing in it is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_bytes(content)
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        load_config(TrainConfig, "c.yaml")
    assert time.process_time() - started < 5.0
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_a_path_that_is_not_a_file(tmp_path):
    with pytest.raises(UserError, match="is a directory; expected a YAML file"):
        load_config(TrainConfig, str(tmp_path))
    with pytest.raises(UserError, match="/dev/zero' has more than 1,000,000 bytes"):
        load_config(TrainConfig, "/dev/zero")


def test_a_byte_order_mark_and_the_environment_are_fine(write, monkeypatch):
    monkeypatch.setenv("PLACE", "here")
    config = load_config(TrainConfig, write("\ufeffseed: 3\noutput_dir: ${oc.env:PLACE}/x\n"))
    assert (config.seed, config.output_dir) == (3, "here/x")


@pytest.mark.parametrize(
    "override, near",
    [
        ("learning_rate=1", "optimizer.learning_rate?"),
        ("optimizer.max_steps=1", "max_steps?"),
        ("optimizer.warmup-steps=1", "optimizer.warmup_steps?"),
        ("SEED=1", "seed?"),
        ("Temperature=1", "sampling.temperature?"),
        ("algorithm.otpions.information_weight=1", "algorithm.options?"),
    ],
)
def test_the_nearest_field_of_any_section(override, near):
    with pytest.raises(UserError) as caught:
        load_config(TrainConfig, None, [override])
    assert str(caught.value).endswith(f"did you mean {near}")


@pytest.mark.parametrize(
    "override, near",
    [
        ("model_name_or_path=a", "model.path?"),
        ("model.model_name_or_path=a", "model.path?"),
        ("dataset_name=a", "data.dataset?"),
        ("data.dataset_config=a", "data.subset?"),
        ("dataset_train_split=a", "data.split?"),
        ("dataset_test_split=a", "eval.split?"),
        ("model_revision=a", "model.revision?"),
        ("attn_implementation=a", "model.attention (auto or xla)?"),
        ("gradient_checkpointing=true", "model.remat?"),
        ("reward_funcs=a", "reward.functions?"),
        ("reward_weights=[1]", "reward.weights?"),
        ("resume_from_checkpoint=a", "resume (auto, never or a step)?"),
        ("log_completions=true", "log.completion_steps (number of steps, not a bool)?"),
        ("report_to=none", "log.tensorboard (a bool, not a list of names)?"),
        ("disable_tqdm=true", "log.progress (inverted: progress=true means disable_tqdm=false)?"),
        (
            "steps_per_generation=2",
            "batch.mini_batches (number of updates, not of micro-batches)?",
        ),
        ("num_train_epochs=2", "max_steps (number of steps, not of epochs)?"),
        ("bf16=true", "model.dtype (bfloat16 instead of true)?"),
        ("max_prompt_length=2", "data.max_prompt_length?"),
        ("temperature=2", "sampling.temperature?"),
        ("sampling.learning_rate=2", "optimizer.learning_rate?"),
    ],
)
def test_names_of_trl_are_known(write, override, near):
    with pytest.raises(UserError) as caught:
        load_config(TrainConfig, None, [override])
    assert str(caught.value).endswith(f"did you mean {near}")
    name, _, value = override.partition("=")
    *owner, leaf = name.split(".")
    path = write(f"{owner[0]}: {{{leaf}: {value}}}" if owner else f"{leaf}: {value}")
    with pytest.raises(UserError) as caught:
        load_config(TrainConfig, path)
    assert str(caught.value).endswith(f"did you mean {near}")


def test_an_alias_means_its_own_field():
    """No alias is the name of another field."""
    for schema in SCHEMAS:
        known = {leaf.name.rpartition(".")[2]: leaf for leaf in leaves(schema)}
        for leaf in leaves(schema):
            for alias in leaf.aliases:
                assert alias not in known or alias == leaf.name.rpartition(".")[2], alias


@dataclasses.dataclass(frozen=True)
class Inner:
    """A section."""

    weight: float = option(1.0, "a weight", formerly=("inner.alpha", "alpha", "old.alpha"))


@dataclasses.dataclass(frozen=True)
class Renamed:
    """A config with a field that had other names."""

    inner: Inner = option(Inner, "")


@pytest.mark.parametrize("override", ["inner.alpha=1", "alpha=1", "inner.Alpha=1"])
def test_an_earlier_name_is_answered_by_the_new_one(override):
    with pytest.raises(UserError, match="unknown field .*; its name is now inner.weight$"):
        load_config(Renamed, None, [override])


@pytest.mark.parametrize("text", ["${a}", r"\${a}", r"\\${a}", r"\\\${a", r"a\\", "$ {", r"\ ${"])
def test_a_runs_config_keeps_any_text(write, text):
    config = dataclasses.replace(TrainConfig(), prompt=PromptSection(system=text))
    assert load_run_config(write(to_yaml(config))) == config


def test_a_runs_config_does_not_read_the_environment(write):
    for text in ("${oc.env:HOME}", "a${seed}", r"\\${seed}"):
        path = write(f"reward: {{functions: ['{text}']}}\nsampling: {{}}\n")
        with pytest.raises(UserError, match=r"reward.functions\[0\] is .* without \$\{\.\.\.\}"):
            load_run_config(path)
