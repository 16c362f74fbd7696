"""The error that is meant for people."""


class UserError(Exception):
    """A mistake in the input, the configuration or the environment that a user can mend.

    The message is one line: the file, the line or key, what was found, what was expected, what to do.
    It is printed without a traceback, and the exit code is 1.
    """
