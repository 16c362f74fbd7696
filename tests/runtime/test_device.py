"""How a process that computes on the CPU uses its memory."""

import ctypes
import subprocess
import sys

import pytest
from scripts import PROJECT, script_environment

KEPT_BYTES = """
import ctypes
import torch
from utils.runtime.device import choose_device

class Figures(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Figures

def in_use():
    return library.mallinfo2().uordblks

def activate(rows):
    x = torch.zeros(rows, 64, requires_grad=True)
    torch.nn.functional.gelu(x).sum().backward()

choose_device(-1, varied_shapes=True)
for rows in range(1000, 1020):
    activate(rows)
before = in_use()
for rows in range(2000, 2300):
    activate(rows)
print(in_use() - before)
"""


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks GNU's C library"
)


def kept_bytes(**environment: str) -> int:
    """What a process holds more of, after 300 activations and their gradients, each of a shape of its own."""
    inherited = {key: value for key, value in script_environment().items() if "PRIMITIVE_CACHE" not in key}
    done = subprocess.run(
        [sys.executable, "-c", KEPT_BYTES],
        cwd=PROJECT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_training_keeps_nothing_of_shapes_that_do_not_come_again() -> None:
    """Between the large buffers, which otherwise do not fit together again when they are freed."""
    assert kept_bytes() < 200_000


def test_how_much_is_kept_may_be_set_by_the_user() -> None:
    assert kept_bytes(ONEDNN_PRIMITIVE_CACHE_CAPACITY="1024") > 1_000_000
