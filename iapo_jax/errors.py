"""What ends a command, and with which exit code; the CLI prints each as one sentence.

    0    done
    2    a mistake in the input: nothing was begun
    3    a run under way cannot go on: the disk is full, numbers are not finite
    75   a signal asked it to stop: all is saved, the same command goes on

A second signal ends the process at once (130 or 143, as by the shell), and so does JAX where
another process of the run is gone (134).
"""

MISTAKE, FAILED, STOPPED = 2, 3, 75


class UserError(ValueError):
    """A mistake in the user's input, said in one sentence; the CLI prints it without traceback."""


class RunError(RuntimeError):
    """What keeps a run under way from going on, said in one sentence; what is saved is whole."""
