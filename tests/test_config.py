"""Config files: documented fields, values as written, mistakes in one sentence."""

import dataclasses

import pytest

from iapo_jax.config import (
    SftConfig,
    TrainConfig,
    describe,
    load_config,
    load_run_config,
    run_cli,
    to_yaml,
)
from iapo_jax.errors import UserError

SCHEMAS = [TrainConfig, SftConfig]


def leaves(schema, prefix=""):
    """(dotted name, field) of every field that holds a value."""
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.default_factory):
            yield from leaves(field.default_factory, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


def cli(argv, schema=TrainConfig, main=lambda config, arguments: None, flags=None):
    return run_cli(schema, main, prog="iapo_jax.train", flags=flags or {}, argv=argv)


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
    for name, field in leaves(schema):
        help = field.metadata["help"]
        assert len(help) > 3, name
        (line,) = [line for line in text.splitlines() if line.startswith(f"  {name} = ")]
        assert line.endswith(help)
    sections = [
        f for f in dataclasses.fields(schema) if dataclasses.is_dataclass(f.default_factory)
    ]
    assert sections
    for section in sections:
        assert f"\n{section.name}: {section.default_factory.__doc__}" in text


@pytest.mark.parametrize("schema", SCHEMAS)
def test_help_lists_every_field_and_flag(schema, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli(["--help"], schema, flags={"dry_run": "stop before the first step"})
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} = " in printed for name, _ in leaves(schema))
    assert all(f"--{flag}" in printed for flag in ("config", "print_config", "dry_run"))


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
        "algorithm:\n  options:\n    alpha: 1e-4\n    only_correct: false\n  beta: 0\n"
        "model:\n  revision: null\n"
    )
    config = load_config(TrainConfig, path)
    assert config.information.postfix == "</think>\n<answer>"
    assert config.reward.functions == ["accuracy", "mine.py:pay"]
    assert config.reward.weights == [1.0, 0.5]
    assert config.algorithm.options == {"alpha": 1e-4, "only_correct": False}
    assert config.algorithm.beta == 0.0 and config.algorithm.epsilon is None


@pytest.mark.parametrize("schema", SCHEMAS)
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
    for schema in SCHEMAS:
        assert load_run_config(write(to_yaml(schema()))) == schema()


def test_flags_and_config_reach_main(write):
    seen = []
    main = lambda config, arguments: seen.append((config.max_steps, arguments.dry_run))  # noqa: E731
    path = write("max_steps: 3\n")
    assert cli(["--config", path, "--dry_run"], main=main, flags={"dry_run": "stop early"}) == 0
    assert cli(["max_steps=4"], main=main, flags={"dry_run": "stop early"}) == 0
    assert seen == [(3, True), (4, False)]


@pytest.mark.parametrize(
    "text, overrides, parts",
    [
        ("max_step: 3", [], ["experiment.yaml", "unknown field max_step", "max_steps?"]),
        ("optimizer:\n  learning_rat: 1", [], ["optimizer.learning_rat;", "learning_rate?"]),
        ("zebra: 1", [], ["unknown field zebra", "known: seed, output_dir"]),
        ("max_steps: many", [], ["experiment.yaml", "max_steps", "many", "Integer"]),
        ("max_steps: 1.5", [], ["max_steps", "1.5", "Integer"]),
        ("optimizer:\n  learning_rate: fast", [], ["optimizer.learning_rate", "fast", "Float"]),
        ("optimizer: 1e-5", [], ["optimizer is a section of fields, found 1e-05"]),
        ("optimizer:", [], ["optimizer is a section of fields, found None"]),
        ("- a\n- b", [], ["expected a mapping of fields"]),
        ("a: [1", [], ["experiment.yaml", "not readable as YAML"]),
        ("max_steps: 3", ["max_steps"], ["'max_steps' on the command line", "key=value"]),
        ("max_steps: 3", ["bach.num_generations=2"], ["command line", "bach", "batch?"]),
        ("max_steps: 3", ["log.progress=perhaps"], ["log.progress", "perhaps"]),
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
        ([], "nothing to do: expected --config FILE"),
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


def test_the_repositorys_experiments_load(root):
    files = sorted((root / "experiments").rglob("*.yaml"))
    assert files
    for path in files:
        schema = SftConfig if "rows_per_step" in path.read_text() else TrainConfig
        load_config(schema, str(path))
