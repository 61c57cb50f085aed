"""The exceptions that a person is meant to read: one line each, never a traceback."""


class UserError(ValueError):
    """Something a user gave cannot be used.

    The message is one line: what is wrong, where, what was expected or found, what to do.
    The command line prints it without a traceback and exits with status 1. Further messages, such as a list of what
    failed, are lines below it.
    """

    def __init__(self, message: str, *further: str) -> None:
        # Messages quote names and values that come from anywhere: none may end the line or command the terminal.
        super().__init__("\n  ".join(_printable(text) for text in (message, *further)))


LONGEST = 2000  # characters of a line


def _printable(text: str) -> str:
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


class Stopped(Exception):
    """A run was asked to stop and has saved itself. The message says how to go on; the command line exits with 130."""
