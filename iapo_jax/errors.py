"""Mistakes of the user, as opposed to mistakes of the program, and how texts reach a terminal."""

import re

# Escape sequences begin with one of these; bidirectional ones turn what is read around.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with what a terminal would obey, or could not encode, written as \x1b or \ud800."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


class UserError(ValueError):
    """A mistake in the user's input, said in one sentence; the CLI prints it without traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it may quote a row of data
