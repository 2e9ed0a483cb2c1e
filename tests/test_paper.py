"""The paper's table: configs, meshes, and the choice among runs."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from iapo_jax import make_algorithm
from iapo_jax.config.checks import check_config
from iapo_jax.config.evaluate import EvaluateConfig
from iapo_jax.config.loading import load_config, to_yaml
from iapo_jax.config.train import TrainConfig
from iapo_jax.losses import LossOptions
from iapo_jax.training.checkpoint_selection import Candidate

pytestmark = pytest.mark.nightly

FOLDER = Path(__file__).parents[1] / "experiments" / "paper"
CELLS = [
    f"qwen2.5-{size}_{data}"
    for size in ("0.5b", "1.5b", "7b")
    for data in ("gsm8k", "math500", "dapo")
]


@pytest.fixture(scope="module")
def paper():
    """The scripts by name."""
    names = ("cells", "dry_run", "choose")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            sys.modules.pop(name, None)


def test_a_config_for_each_data_set(paper):
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(paper["cells"].DATA_SETS)
    assert list(paper["cells"].CELLS) == CELLS


@pytest.mark.parametrize("name", ["gsm8k", "math500", "dapo"])
def test_models_are_evaluated_as_they_were_trained(name):
    found = load_config(EvaluateConfig, str(FOLDER / "evaluate" / f"{name}.yaml"))
    trained = load_config(TrainConfig, str(FOLDER / f"{name}.yaml"))
    assert found.prompt == trained.prompt and found.datasets == [trained.eval.dataset]
    assert found.max_completion_length == trained.sampling.max_completion_length
    assert found.max_prompt_length == trained.data.max_prompt_length
    assert found.k == [1, 2, 4, 8, 16, 32] and found.num_samples == 32


@pytest.mark.parametrize("cell", CELLS)
def test_each_has_the_papers_numbers_and_two_meshes_of_eight(paper, cell):
    cells = paper["cells"]
    for hardware in cells.HARDWARE:
        path = cells.config_of(cell)
        config = load_config(TrainConfig, str(path), cells.overrides(cell, hardware))
        check_config(config)
        mesh, batch = config.mesh, config.batch
        assert mesh.data * mesh.fsdp * mesh.tensor == 8
        sharing = mesh.data * mesh.fsdp
        assert batch.prompts_per_step % batch.micro_batch_size == 0
        assert (
            batch.micro_batch_size % sharing == 0 and config.eval.prompts_per_batch % sharing == 0
        )
        if hardware == cells.V5E and cell.startswith("qwen2.5-1.5b"):
            assert config == load_config(TrainConfig, str(path))  # the file's own command
        assert config.output_dir == f"runs/paper/{cell}"
        assert batch.num_generations == 8 and batch.prompts_per_step * 8 == 128
        optimizer = config.optimizer
        adam = optimizer.adam_beta1, optimizer.adam_beta2, optimizer.warmup_steps
        assert (optimizer.learning_rate, *adam) == (1e-6, 0.9, 0.99, 0)
        assert config.batch.num_iterations == 1 and config.sampling.temperature == 1
        assert optimizer.lr_scheduler_type == "linear" and optimizer.max_grad_norm == 1
        assert config.data.max_prompt_length == 512
        assert config.sampling.max_completion_length == 2048
    assert config.algorithm.name == "iapo" and config.information.estimator == "auto"
    section = config.algorithm
    own = {k: getattr(section, k) for k in ("loss_type", "epsilon", "epsilon_high", "beta")}
    made = make_algorithm(section.name, section.options, **own)
    assert made.loss == LossOptions("bnpo", 0.2, 0.28, 0.001)
    assert made.estimator == "answer_entropy" and section.options == {
        "information_weight": 0.01,
        "exploration_weight": 0.01,
    }
    name, data = cell.split("_")
    rows, epochs = {"gsm8k": (7473, 2), "math500": (400, 152), "dapo": (5600, 2)}[data]
    steps = epochs * (rows - config.selection.problems) // config.batch.prompts_per_step
    assert config.max_steps == pytest.approx(steps, abs=3)
    hub = name.replace("qwen", "Qwen").replace("b", "B")
    assert config.model.path == f"Qwen/{hub}-Instruct"


def test_the_printed_commands_are_the_cells(paper, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cells.py", "qwen2.5-7b_dapo"])
    paper["cells"].main()
    commands = [line for line in capsys.readouterr().out.splitlines() if line[0] != "#"]
    start = "python -m iapo_jax.train --config experiments/paper/dapo.yaml "
    assert [line.removeprefix(start).split() for line in commands] == [
        paper["cells"].overrides("qwen2.5-7b_dapo", hardware) for hardware in ("v5e-8", "8 GPUs")
    ]


def make_run(directory, split, *candidates):
    directory.mkdir()
    (directory / "config.yaml").write_text(to_yaml(TrainConfig()))
    rows = [
        dict(zip(Candidate._fields, one, strict=True)) | {"chosen": False, "split": split}
        for one in candidates
    ]
    (directory / "selection.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(directory)


def test_the_best_run_by_its_selection_split(paper, tmp_path, monkeypatch, capsys):
    start = (0, 0.80, 100.0, 0.0080)
    # The third is short by being wrong: more than 0.02 below the start.
    runs = [
        make_run(tmp_path / "a", "s", start, (10, 0.80, 90.0, 0.0089), (20, 0.81, 95.0, 0.0085)),
        make_run(tmp_path / "b", "s", start, (10, 0.79, 60.0, 0.0132), (20, 0.50, 10.0, 0.05)),
        make_run(tmp_path / "c", "s", start, (10, 0.70, 20.0, 0.035), (20, 0.60, 20.0, 0.03)),
    ]
    monkeypatch.setattr(sys, "argv", ["choose.py", *runs])
    assert paper["choose"].main() == 0
    told = capsys.readouterr().out.splitlines()
    assert told[1] == f"* accuracy 0.790, 60.0 tokens, step 10: {runs[1]}"
    assert told[0].startswith("  accuracy 0.800") and told[2].startswith("  accuracy 0.700")
    assert told[3] == f"kept: {runs[1]}/hf (by ratio; initial accuracy 0.800)"


def test_runs_that_cannot_be_compared(paper, tmp_path, monkeypatch, capsys):
    one = make_run(tmp_path / "a", "s", (0, 0.8, 9.0, 0.1), (1, 0.8, 9.0, 0.1))
    other = make_run(tmp_path / "b", "t", (0, 0.8, 9.0, 0.1), (1, 0.8, 9.0, 0.1))
    unmeasured = make_run(tmp_path / "c", "s")
    later = make_run(tmp_path / "d", "s", (1, 0.8, 9.0, 0.1))
    cases = [
        ([one, other], f"{other} was measured on different questions or with"),
        ([one, unmeasured], f"{unmeasured} has no measured checkpoint yet"),
        ([later], f"{later} has not measured its initial model"),
        ([str(tmp_path / "none")], "is not a run directory: it has no config.yaml"),
    ]
    for words, told in cases:
        monkeypatch.setattr(sys, "argv", ["choose.py", *words])
        assert paper["choose"].main() == 2
        assert told in capsys.readouterr().err


def test_a_cell_compiles_for_its_mesh(paper, shared_data, tmp_path, monkeypatch, capfd):
    """The README's command at the cell's own lengths and batch; of the model one small layer."""
    path = shared_data / "configs" / "Qwen2.5-0.5B-Instruct.config.json"
    small = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}
    small |= {"num_attention_heads": 8, "num_key_value_heads": 8}
    models = tmp_path / "models"
    models.mkdir()
    (models / path.name).write_text(json.dumps(json.loads(path.read_text()) | small))
    script = paper["dry_run"]
    monkeypatch.setattr(script, "HARDWARE", script.HARDWARE[:1])
    monkeypatch.chdir(tmp_path)
    tokenizer = shared_data / "tokenizers" / "qwen2.5-instruct"
    places = ["--models", str(models), "--tokenizer", str(tokenizer), "--data", str(shared_data)]
    monkeypatch.setattr(sys, "argv", ["dry_run.py", *places, "qwen2.5-0.5b_gsm8k"])
    assert script.main() == 0
    printed = "".join(capfd.readouterr())
    assert "== qwen2.5-0.5b_gsm8k, v5e-8\n" in printed and "all compiled" in printed
    for program in ("sample", "signals", "update"):
        assert re.search(rf"^{program}( +[0-9,.]+){{3}}$", printed, re.M), printed


def test_wrong_words_of_the_dry_run(paper, tmp_path, monkeypatch, capsys):
    places = ["--models", str(tmp_path), "--tokenizer", str(tmp_path), "--data", str(tmp_path)]
    for words, told in (
        (["qwen2.5-72b_gsm8k"], "unknown cell 'qwen2.5-72b_gsm8k'; expected one of qwen2.5-0.5b"),
        (["qwen2.5-7b_dapo"], "dapo has no parquet or JSON file; expected a file of the dataset"),
    ):
        monkeypatch.setattr(sys, "argv", ["dry_run.py", *places, *words])
        with pytest.raises(SystemExit) as stopped:
            paper["dry_run"].main()
        assert told in capsys.readouterr().err + str(stopped.value)
