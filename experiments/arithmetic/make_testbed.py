"""Make the data and the initial models of the experiment's settings.

    python experiments/arithmetic/make_testbed.py [SETTING ...]

Writes `data/SETTING/` and `models/SETTING/` beside this file; supervised rows, tokenizer and run
directories go to `--work`. Run it from the project's root; after an interruption, the same command
resumes it. The default is all settings except *large*, which needs a GPU.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from problems import WORDS
from sweep.problems import published, sha256
from testbed.pieces import Problem
from testbed.settings import (
    SETTINGS,
    SMALL,
    Setting,
    problems_of,
    splits_of,
    supervised_rows,
)
from tokenizer import SYMBOLS, save_tokenizer, vocabulary
from tqdm import tqdm

from iapo_jax.runtime.files import iterate_jsonl, read_json, write_json, write_jsonl

HERE = Path(__file__).resolve().parent
TESTBED_WORDS, TESTBED_SYMBOLS = (*WORDS, "left"), SYMBOLS + "*():"


def write_splits(setting: Setting, directory: Path, supervised: Path, name: str) -> None:
    """Writes the problem sets as JSON lines, and supervised rows on different questions.

    If a setting was tried, its last test splits are drawn after the supervised rows and exclude
    their questions.
    """
    directory.mkdir(parents=True, exist_ok=True)
    splits = list(splits_of(setting))
    last = [split for split in splits if setting.tried and split in ("test", "longer")]
    for split in splits:
        if split not in last:
            _write_problems(problems_of(setting, split), directory / f"{split}.jsonl")
    if not supervised.is_file():
        questions = {
            one for split in splits if split not in last for one in problems_of(setting, split)
        }
        count = setting.sft_rows * setting.sft_steps // setting.sft_epochs
        drawn = supervised_rows(setting, count, questions)
        write_jsonl(supervised, tqdm(drawn, total=count, desc=f"{name}: sft rows", mininterval=1.0))
    if last:
        practiced = {row["question"] for _, row in iterate_jsonl(supervised)}
        for split in last:
            problems = problems_of(setting, split, practiced=practiced)
            _write_problems(problems, directory / f"{split}.jsonl")


def compare_with_published(name: str, models: Path) -> list[str]:
    """A note for each file that differs from the one behind the repository's results."""
    made = [*sorted((HERE / "data" / name).glob("*.jsonl")), models / name / "model.safetensors"]
    names = [path.relative_to(path.parents[2]).as_posix() for path in made]
    return [
        f"note: {path} differs from the file in SHA256SUMS, with which results.parquet was made"
        for path, own in zip(made, names, strict=True)
        if own in published() and sha256(path) != published()[own]
    ]


def _write_problems(problems: dict[str, Problem], path: Path) -> None:
    write_jsonl(path, ({"question": p.question, "answer": p.answer} for p in problems.values()))


def write_model_config(setting: Setting, path: Path) -> None:
    """The architecture: the quick start's, with this setting's size and vocabulary."""
    config = read_json(HERE / "config.json")
    size = -(-len(vocabulary(TESTBED_WORDS, TESTBED_SYMBOLS)) // 8) * 8
    heads, key_heads = setting.heads
    config |= {
        "vocab_size": size,
        "hidden_size": setting.width,
        "intermediate_size": -(-setting.width // 24) * 64,  # 8/3 of the width
        "num_hidden_layers": setting.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "max_position_embeddings": max(256, setting.max_prompt + setting.max_length),
    }
    write_json(path, config)


def make(name: str, work: Path, models: Path) -> None:
    """Data, supervised fine-tuning and the model directory of one setting."""
    setting, place = SETTINGS[name], work / name
    rows, run = place / "sft.jsonl", place / "run"
    place.mkdir(parents=True, exist_ok=True)
    write_splits(setting, HERE / "data" / name, rows, name)
    save_tokenizer(place / "tokenizer", TESTBED_WORDS, TESTBED_SYMBOLS)
    write_model_config(setting, place / "config.json")
    overrides = {
        "output_dir": run,
        "max_steps": setting.sft_steps,
        "model.config": place / "config.json",
        "model.tokenizer": place / "tokenizer",
        "model.dtype": setting.dtype,
        "data.dataset": rows,
        "data.max_prompt_length": setting.max_prompt,
        "batch.max_length": setting.max_length,
        "batch.rows_per_step": setting.sft_rows,
        "batch.micro_batch_size": setting.sft_micro_rows,
        "optimizer.learning_rate": setting.sft_learning_rate,
    }
    command = [sys.executable, "-m", "iapo_jax.sft", "--config", str(HERE / "sft.yaml")]
    code = subprocess.run([*command, *(f"{k}={v}" for k, v in overrides.items())]).returncode
    if code:  # the command has printed the reason; rerunning it resumes
        raise SystemExit(code)
    shutil.copytree(run / "hf", models / name, dirs_exist_ok=True)
    print("\n".join([f"wrote {models / name}", *compare_with_published(name, models)]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=", ".join(SETTINGS))
    parser.add_argument("--work", type=Path, default=Path("runs/testbed"))
    parser.add_argument("--models", type=Path, default=HERE / "models")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.settings) - set(SETTINGS))
    if unknown:
        parser.error(f"unknown setting {unknown[0]!r}; expected one of {', '.join(SETTINGS)}")
    for name in arguments.settings or SMALL:
        make(name, arguments.work, arguments.models)


if __name__ == "__main__":
    main()
