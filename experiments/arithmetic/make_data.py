"""Write the arithmetic task's files.

    python experiments/arithmetic/make_data.py --out DIR [--sft_rows 200000] [--seed 0]

Writes ``train.jsonl``, ``select.jsonl`` and ``test.jsonl`` (rows of question and answer: the
disjoint splits of the named dataset ``arithmetic``), ``sft.jsonl`` (supervised rows on different
questions) and ``tokenizer/``. With ``--sft_rows 0`` there is no ``sft.jsonl``.
"""

import argparse
from pathlib import Path

import numpy as np
from problems import MAX_TOKENS, sft_row
from testbed.pieces import EARLY_SHARE
from tokenizer import save_tokenizer
from tqdm import tqdm

from iapo_jax.data.arithmetic import make_splits
from iapo_jax.runtime.files import write_jsonl


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sft_rows", type=int, default=200_000)
    parser.add_argument("--early_share", type=float, default=EARLY_SHARE)
    parser.add_argument("--max_tokens", type=int, default=MAX_TOKENS)
    parser.add_argument(
        "--categories",
        action="store_true",
        help="keep the categories of the pieces in sft.jsonl",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(args.out / "tokenizer")
    splits = make_splits(args.seed)
    for name, rows in splits.items():
        write_jsonl(args.out / f"{name}.jsonl", rows)
    if not args.sft_rows:
        return
    held_out = {row["question"] for rows in splits.values() for row in rows}
    rng = np.random.default_rng([args.seed, 0])
    rows = (
        sft_row(
            rng,
            exclude=held_out,
            early_share=args.early_share,
            max_tokens=args.max_tokens,
            categories=args.categories,
        )
        for _ in tqdm(range(args.sft_rows), desc="sft rows", mininterval=1.0)
    )
    write_jsonl(args.out / "sft.jsonl", rows)


if __name__ == "__main__":
    main()
