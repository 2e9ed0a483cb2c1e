"""The errors that end a command, and the exit codes; the CLI prints each error as one sentence.

    0    done
    2    a mistake in the input, or a program that does not fit: no training was started
    3    the run cannot continue: the disk is full, numbers are not finite, a reward function fails,
         or another process of the run has ended (JAX may then end this one first, with 134)
    75   a signal stopped the run: everything is saved, and the same command resumes it

A second signal, or a first one before the run has started, ends the process at once (130 or 143, as
in a shell). Any other error prints a traceback and ends with 1.
"""

import re

MISTAKE, FAILED, STOPPED = 2, 3, 75


# Control characters begin escape sequences, bidirectional ones reorder the text around them, and
# surrogates cannot be encoded.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


# A lone surrogate: Python's stand-in for a byte that is not UTF-8, or the result of a JSON escape.
_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Escapes characters that a terminal obeys or cannot encode, as \x1b or \ud800."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


class UserError(ValueError):
    """A mistake in the user's input, in one sentence that the CLI prints without a traceback."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it may quote a row of data


class RunError(RuntimeError):
    """The reason why a run cannot continue, in one sentence; everything saved is complete."""


def check_unicode(text: str, what: str) -> str:
    """Returns the text if UTF-8 can encode it.

    Raises:
      UserError: beginning with `what`, if the text has a lone surrogate.
    """
    found = _SURROGATE.search(text)
    if found:
        raise UserError(f"{what} is {text!r:.80}; expected UTF-8 text without {found[0]!r}")
    return text
