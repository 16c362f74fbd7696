"""Running the project's command lines as real processes, on a small city, in a folder of the test's own."""

import contextlib
import fcntl
import functools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN_FOLDER = "HOSER_TEST_RUN"  # environment variable: a folder that is there as long as the test run
PROJECT = Path(__file__).resolve().parents[2]
MINI_CITY = PROJECT / "tests" / "golden" / "mini_city"

MINI_CONFIG = """\
road_network_encoder_config:
  road_id_emb_dim: 16
  len_emb_dim: 4
  type_emb_dim: 4
  lon_emb_dim: 4
  lat_emb_dim: 4
  intersection_emb_dim: 32
  zone_id_emb_dim: 32
  zone_id_num_embeddings: 8
trajectory_encoder_config:
  hidden_dim: 32
  num_layers: 1
navigator_config:
  hidden_dim: 32
optimizer_config:
  max_epoch: 3
  batch_size: 25
  learning_rate: 0.005
"""


def make_mini_project(folder: Path) -> Path:
    """`data/Mini` (121 roads, 120 training trips) and `Mini.yaml` in `folder`; returns `folder`."""
    shutil.copytree(MINI_CITY, folder / "data" / "Mini")
    (folder / "Mini.yaml").write_text(MINI_CONFIG)
    return folder


def make_mini_teacher(folder: Path, seed: int = 3) -> Path:
    """A teacher with random weights for the city of `make_mini_project`; returns `folder`."""
    # Here: what only starts programs, such as the main process of a test run, need not import PyTorch.
    import torch

    from models.lmtad import LMTAD, LMTADConfig
    from utils.data.road_network import read_road_network
    from utils.distillation.grid import make_grid
    from utils.distillation.teacher_file import save_teacher

    city = read_road_network(folder / "data" / "Mini")
    grid = make_grid(city, cell_deg=0.001, downsample=1)
    torch.manual_seed(seed)
    model = LMTAD(LMTADConfig(block_size=16, vocab_size=grid.num_cells + 3, n_layer=2, n_head=2, n_embd=16))
    for parameter in model.parameters():
        parameter.data.mul_(5.0)  # opinions strong enough to see
    save_teacher(folder / "save" / "Mini" / "teacher" / "weights.pt", model, (grid.rows, grid.columns))
    return folder


def script_environment() -> dict[str, str]:
    """One thread: tests run side by side, and threads of several processes on few cores wait for each other."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def mini(script: str, *arguments: str) -> list[str]:
    """A script of the project and its arguments, for the city of `make_mini_project`."""
    return [script, "--dataset", "Mini", "--config", "Mini.yaml", *arguments]


class Script:
    """A running script of the project: a real process. Its output goes to the files `stdout` and `stderr`."""

    def __init__(
        self,
        arguments: list[str],
        cwd: Path,
        terminal: int | None = None,
        stdout: int | None = None,
        fault: dict[str, object] | None = None,
        file_size_limit: int = 0,
        environment: dict[str, str] | None = None,
    ):
        """Start a script.

        Args:
            arguments: a path in the project, and the arguments of the script.
            cwd: its working folder.
            terminal: a descriptor in the place of the file for stderr.
            stdout: the same for stdout.
            fault: a fault of `faults/injector.py` that is to happen in it.
            file_size_limit: largest size of a file that it may write, in bytes; 0 is no limit.
            environment: variables beside those of this process.
        """
        self.arguments, self._code = arguments, None
        self._folder = tempfile.TemporaryDirectory(prefix="script-")
        self._stdout, self._stderr = (Path(self._folder.name) / name for name in ("stdout", "stderr"))
        request = {
            "arguments": [str(PROJECT / arguments[0]), *arguments[1:]],
            "cwd": str(cwd),
            "environment": script_environment() | (environment or {}),
            "fault": fault,
            "file_size_limit": file_size_limit,
        }
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            self._connection = _connect()
            files = [
                out.fileno() if stdout is None else stdout,
                err.fileno() if terminal is None else terminal,
            ]
            socket.send_fds(self._connection, [json.dumps(request).encode()], files)
        self._answers = self._connection.makefile("rb", buffering=0)  # unbuffered: select must see what is left
        self.pid = int(self._answers.readline())

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    @property
    def returncode(self) -> int | None:
        """Exit code; minus the number of the signal that ended it; None while it runs."""
        if self._code is None and select.select([self._connection], [], [], 0)[0]:
            self._code = int(self._answers.readline())
        return self._code

    def wait(self, timeout_s: float = 120) -> int | None:
        """The exit code, or None if it still runs after `timeout_s`."""
        if self._code is None:
            select.select([self._connection], [], [], timeout_s)
        return self.returncode

    def wait_until(self, condition: Callable[[], object], timeout_s: float = 60) -> None:
        """Wait while it runs until `condition` holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.returncode is None, f"{self.arguments} has ended: {self.stderr}"
            assert time.monotonic() < deadline, f"{self.arguments} takes too long: {self.stderr}"
            time.sleep(0.005)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop_until(self, condition: Callable[[], object], timeout_s: float = 60) -> None:
        """Stand still until `condition` holds, which then is other processes' doing."""
        self.send_signal(signal.SIGSTOP)
        self.wait_until(condition, timeout_s)
        self.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def __enter__(self) -> "Script":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._connection.close()
        self._folder.cleanup()


@functools.cache
def _zygote() -> str:
    """The address of this test run's zygote, which the first worker that needs it starts."""
    folder = Path(os.environ[RUN_FOLDER])
    address = str(folder / "socket")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "started").exists():
            command = [sys.executable, str(PROJECT / "tests" / "support" / "zygote.py"), address, str(folder)]
            subprocess.Popen(command, env=script_environment(), cwd="/", start_new_session=True)
            (folder / "started").touch()
    return address


def _connect() -> socket.socket:
    for _ in range(3000):
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(_zygote())
            return connection
        except OSError:  # it is still importing
            connection.close()
            time.sleep(0.1)
    raise TimeoutError("the zygote does not answer")


def run(arguments: list[str], cwd: Path, timeout_s: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a script to its end, without a terminal, and give back what it printed; with the options of `Script`."""
    with Script(arguments, cwd, **options) as script:
        code = script.wait(timeout_s)
        assert code is not None, f"{arguments} still runs after {timeout_s} s: {script.stderr[-500:]}"
        return subprocess.CompletedProcess(arguments, code, script.stdout, script.stderr)


def copy_of_the_project(folder: Path) -> Path:
    """The project's code in `folder`, to be changed as its users do; returns `folder`."""
    for name in ("models", "utils", "tools"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "train_with_distill.py"):
        shutil.copy(PROJECT / name, folder / name)
    return folder


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Points of a TensorBoard run, without any purging by the reader: tag -> (step, value), by step.

    The reader takes files in the order of their names, which is that of process ids where two parts of a run begin in
    the same second, as they only do in tests.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: sorted(((e.step, e.value) for e in events.Scalars(tag)), key=lambda point: point[0]) for tag in tags}
