"""The problem files of the settings, and by what one knows that they are the same."""

import functools
import hashlib
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def file_of(setting: str, split: str) -> Path:
    """Where the problems of a split are."""
    return HERE / "data" / setting / f"{split}.jsonl"


@functools.cache
def digest_of(setting: str, split: str) -> str:
    """Of the file's bytes; empty where it is not there, as of *large* before it is made."""
    path = file_of(setting, split)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else ""
