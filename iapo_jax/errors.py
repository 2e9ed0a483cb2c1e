"""Mistakes of the user, as opposed to mistakes of the program."""


class UserError(ValueError):
    """A mistake in the user's input, said in one sentence; the CLI prints it without traceback."""
