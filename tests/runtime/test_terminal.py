"""Messages on the terminal."""

import subprocess
import sys

from scripts import PROJECT

FORKED = """
import os, signal
from loguru import logger
from tqdm import tqdm
from utils.runtime.terminal import log_to_terminal

list(tqdm(range(3), disable=True))  # a bar before the fork
if (killed := os.fork()) == 0:
    log_to_terminal()
    tqdm.get_lock().acquire()  # as in the middle of a line
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(killed, 0)
if (other := os.fork()) == 0:
    log_to_terminal()
    logger.info("still here")
    os._exit(0)
os.waitpid(other, 0)
"""


def test_a_process_that_is_killed_while_it_writes_stops_no_other() -> None:
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert done.stderr == "still here\n"
