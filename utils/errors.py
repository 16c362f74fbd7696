"""The error that is meant for people."""


class UserError(Exception):
    """A mistake in the input, the configuration or the environment that a user can mend.

    The message is one line: the file, the line or key, what was found, what was expected, what to do.
    It is printed without a traceback, and the exit code is 1.
    """

    def __init__(self, message: str):
        # Names of files and what stands in them may hold line breaks.
        super().__init__(" ".join(message.splitlines()))
