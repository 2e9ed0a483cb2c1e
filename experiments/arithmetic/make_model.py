"""Make the quick start's model: data and supervised fine-tuning.

    python experiments/arithmetic/make_model.py

Takes a quarter of an hour on two CPU cores. Writes runs/arithmetic_data, runs/arithmetic_sft and,
at the end, experiments/arithmetic/model. Run it from the project's root; after an interruption, the
same command resumes it.
"""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA, RUN = Path("runs/arithmetic_data"), Path("runs/arithmetic_sft")


def call(*arguments: str | Path) -> None:
    """Runs a Python command and stops if it fails."""
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


def main() -> None:
    """Command line."""
    if not (DATA / "sft.jsonl").is_file():
        call(HERE / "make_data.py", "--out", DATA)
    call("-m", "iapo_jax.sft", "--config", HERE / "sft.yaml", f"output_dir={RUN}")
    shutil.copytree(RUN / "hf", HERE / "model", dirs_exist_ok=True)
    print(f"wrote {HERE / 'model'}")


if __name__ == "__main__":
    main()
