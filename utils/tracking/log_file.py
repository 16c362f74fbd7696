"""The log file of a run: what cannot be written to it is lost, and the run continues."""

import sys
from pathlib import Path

from loguru import logger
from tqdm import tqdm

FORMAT = "{time:YYYY-MM-DD HH:mm:ss} | {message}"


class LogFile:
    """A sink of loguru, which of its own would print a traceback for every line that a full disk refuses."""

    def __init__(self, path: Path):
        """Begin the file. Raises OSError."""
        self._path, self._told = path, False
        self._file = path.open("ab", buffering=0)  # a line that was refused is not tried again with the next

    def write(self, message: str) -> None:
        """Append a line; the first time that it fails, say so on the terminal."""
        line = message.encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            if not self._told:
                # Not by the logger, within which we are.
                text = f"{self._path}: lines are missing ({error}); the run continues"
                tqdm.write(text, file=sys.stderr)
            self._told = True

    def stop(self) -> None:
        """Close the file; loguru calls it when the sink is removed."""
        self._file.close()


def add_log_file(path: Path) -> int:
    """Log to `path`, too; returns the number by which loguru removes it. Raises OSError."""
    return logger.add(LogFile(path), format=FORMAT, level="INFO", diagnose=False)
