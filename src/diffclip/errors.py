"""The one exception that means: the input is wrong, and here is the line that says how."""


class UserError(ValueError):
    """Something a user gave cannot be used.

    The message is one line: what is wrong, where, what was expected or found, what to do.
    The command line prints it without a traceback and exits with status 1.
    """
