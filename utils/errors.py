"""The error that is meant for people, and what others say."""

import contextlib
from pathlib import Path

MAX_MESSAGE = 1_000  # characters


class UserError(Exception):
    """A mistake in the input, the configuration or the environment that a user can mend.

    The message is one line: the file, the line or key, what was found, what was expected, what to do.
    It is printed without a traceback, and the exit code is 1. Paths below the working folder become relative.
    """

    def __init__(self, message: str):
        # Names of files and their contents may hold anything, and may be as long as a file.
        text = " ".join(message.splitlines())
        with contextlib.suppress(OSError):  # the working folder is gone
            text = text.replace(f"{Path.cwd()}/", "")
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
        if len(text) > MAX_MESSAGE:
            text = f"{text[: MAX_MESSAGE // 2]} ... {text[-MAX_MESSAGE // 2 :]}"
        super().__init__(text)


def first_line(error: BaseException) -> str:
    """What another library's error says, for use within a line: 200 characters at most, or else its kind."""
    text = next(iter(str(error).strip().splitlines()), "")[:200].rstrip(".")
    return text or type(error).__name__
