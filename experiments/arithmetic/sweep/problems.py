"""The problem files of the settings, and the digests by which a result names them."""

import functools
import hashlib
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]


def file_of(setting: str, split: str) -> Path:
    """The problems of a split; make_testbed.py makes the file."""
    return HERE / "data" / setting / f"{split}.jsonl"


@functools.cache
def digest_of(setting: str, split: str) -> str:
    """A digest of the file's bytes, or the published one if the file is missing.

    Empty if there is neither, as for *large* before its data are made.
    """
    path = file_of(setting, split)
    digest = sha256(path) if path.is_file() else published().get(name_of(path), "")
    return digest[:12]


@functools.cache
def published() -> dict[str, str]:
    """SHA256SUMS: the files from which the results of the repository were made, by `name_of`."""
    lines = (HERE / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def name_of(path: Path) -> str:
    """A file's name in SHA256SUMS."""
    return path.relative_to(HERE).as_posix()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
