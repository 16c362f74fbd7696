"""Messages on the terminal, above any progress bar."""

import os
import select
import sys
import threading

from loguru import logger
from tqdm import tqdm


def log_to_terminal(level: str = "INFO", prefix: str = "") -> None:
    """Messages of this level or a higher one go to stderr as they are."""
    # Not tqdm's own lock, which forked processes share: one that is killed while it writes would stop the others.
    tqdm.set_lock(threading.RLock())
    logger.remove()
    logger.add(
        lambda message: tqdm.write(f"{prefix}{message}", file=sys.stderr, end=""),
        format="{message}",
        level=level,
        filter=lambda record: not record["extra"].get("file_only"),
    )


def output_is_closed() -> bool:
    """Whether the reader of our output has gone away, as in `... | head`."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def drop_output() -> None:
    """Discard what could not be printed: Python would try again at its exit, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
