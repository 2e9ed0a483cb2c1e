"""The models of an evaluation, as the command line names them: DIR, or LABEL=DIR,DIR,..."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from iapo_jax.errors import UserError

_NOT_IN_NAMES = r"[^\w.+@-]+"  # characters that labels and file names must not contain


class Member(NamedTuple):
    """One model; several members under one label are training seeds of one method."""

    label: str
    source: str
    number: int  # from 1, of `count` under this label
    count: int

    def stem(self) -> str:
        """The beginning of the names of its files."""
        return f"{self.label}-{self.number}" if self.count > 1 else self.label


def parse_models(texts: Sequence[str]) -> list[Member]:
    """The members that `DIR` and `LABEL=DIR,DIR,...` name; an existing directory is never split.

    Raises:
      UserError: for an empty name, or two models with one label.
    """
    members: list[Member] = []
    written: dict[str, str] = {}  # stem -> the argument that writes its files
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
        if any(member.label == label for member in members):
            raise UserError(
                f"--model {text!r} is the second model with the label {label!r}; expected distinct "
                "labels, given as LABEL=DIR"
            )
        for number, path in enumerate(paths, 1):
            member = Member(label, path, number, len(paths))
            stem = member.stem()
            if stem in written:
                raise UserError(
                    f"--model {written[stem]!r} and --model {text!r} would both write {stem}.*; "
                    "expected labels that give different file names"
                )
            written[stem] = text
            members.append(member)
    return members


def _label(path: str) -> str:
    """The name of the directory, or of the run that it belongs to."""
    parts = Path(path).expanduser().absolute().parts
    if len(parts) > 2 and parts[-2] == "checkpoints":
        name = f"{parts[-3]}-{parts[-1]}"
    else:
        name = parts[-2] if len(parts) > 1 and parts[-1] == "hf" else parts[-1]
    return file_name(name) or "model"


def file_name(text: str) -> str:
    """The text as part of a file name."""
    return re.sub(_NOT_IN_NAMES, "_", text)
