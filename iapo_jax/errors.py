"""What ends a command, and with which exit code; the CLI prints each as one sentence.

    0    done
    2    a mistake in the input: nothing was begun
    3    a run under way cannot go on: the disk is full, numbers are not finite, another process
         of it is gone (then JAX may be faster, and end it by 134)
    75   a signal asked it to stop: all is saved, the same command goes on

A second signal ends the process at once (130 or 143, as by the shell), and so does the first one
before a run has begun. Anything unforeseen is a traceback, and 1.
"""

import re

MISTAKE, FAILED, STOPPED = 2, 3, 75


# Escape sequences begin with one of these; bidirectional ones turn what is read around.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


# Half of a surrogate pair: Python's stand-in for a byte that was not UTF-8, or from a JSON escape.
_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with what a terminal would obey, or could not encode, written as \x1b or \ud800."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


class UserError(ValueError):
    """A mistake in the user's input, said in one sentence; the CLI prints it without traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it may quote a row of data


class RunError(RuntimeError):
    """What keeps a run under way from going on, said in one sentence; what is saved is whole."""


def check_unicode(text: str, what: str) -> str:
    """Returns the text if UTF-8 can encode it.

    Raises:
      UserError: if it holds half of a surrogate pair, beginning with `what`.
    """
    found = _SURROGATE.search(text)
    if found:
        raise UserError(f"{what} is {text!r:.80}; expected UTF-8 text without {found[0]!r}")
    return text
