"""The exceptions that a person is meant to read: one line each, never a traceback."""


class UserError(ValueError):
    """Something a user gave cannot be used.

    The message is one line: what is wrong, where, what was expected or found, what to do.
    The command line prints it without a traceback and exits with status 1.
    """


class Stopped(Exception):
    """A run was asked to stop and has saved itself. The message says how to go on; the command line exits with 130."""
