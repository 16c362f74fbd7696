"""Starts scripts as real processes, without the seconds that importing torch takes for each.

A process that has imported the libraries and the project's modules waits on a socket; for each request it forks a child
that becomes `python SCRIPT ARGUMENTS...` in the folder, with the environment and the output files that the request
names. The children are ordinary processes: they can be signalled and killed.
"""

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path

import torch

LIBRARIES = (
    "alembic.command",
    "kahip",
    "loguru",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
    "optuna",
    "optuna.importance",
    "requests",
    "scipy.sparse.csgraph",
    "sqlalchemy.orm",
    "tensorboard.backend.event_processing.event_file_loader",
    "torch._dynamo",  # what torch.optim imports when it is first used
    "torch.utils.tensorboard",
    "wandb",
    "wandb.apis.public",
    "yaml",
)
# Parts of W&B's client that are imported on first use, which takes seconds. Other versions may lack them.
PARTS_OF_WANDB = (
    "wandb.apis._generated.get_default_entity",
    "wandb.sdk.artifacts._generated.fragments",
    "wandb.sdk.artifacts._generated.operations",
    "wandb.sdk.artifacts._models.pagination",
    "wandb.sdk.launch.inputs.internal",
)

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ("models", "utils")


def import_the_project() -> None:
    """Import all modules of the packages."""
    sys.path.insert(0, str(PROJECT))
    for name in PACKAGES:
        for module in pkgutil.walk_packages([str(PROJECT / name)], f"{name}."):
            __import__(module.name)
    sys.path.pop(0)


def forget_the_project() -> None:
    """Let the next import run its modules' code again: that of a copy, or with a fault in what they import."""
    for name in [name for name in sys.modules if name.split(".")[0] in PACKAGES]:
        del sys.modules[name]


def warm_up() -> None:
    """Evaluate a model, so that no child has to set up what the libraries set up at their first use: 0.3 s each.

    Without gradients: PyTorch's engine for these must not be forked.
    """
    from models.hoser import HOSER
    from utils.config import load_config
    from utils.data.dataset import load_city
    from utils.data.loader import make_loaders
    from utils.runtime.precision import Precision
    from utils.training.engine import evaluate

    device, small = torch.device("cpu"), ["road_network_encoder_config.zone_id_num_embeddings=8"]
    with tempfile.TemporaryDirectory() as folder:
        data = shutil.copytree(PROJECT / "tests" / "golden" / "mini_city", Path(folder) / "Mini")
        config = load_config("Mini", overrides=small)
        city = load_city("Mini", config, data)
        loader = make_loaders(city, config, device)["val"]
        evaluate(HOSER(config, city.features), loader, Precision("float32", device), "warming up")


def serve(address: str, folder: str) -> None:
    """Answer requests as long as `folder` is there."""
    for library in LIBRARIES:
        __import__(library)
    for part in PARTS_OF_WANDB:
        with contextlib.suppress(ImportError):
            __import__(part)
    try:
        import_the_project()
        warm_up()
    except Exception:  # each script shows its own error
        traceback.print_exc()
        forget_the_project()
    gc.freeze()  # no child looks through the objects of the libraries, which would copy their memory
    # Written to at each signal, so that `select` returns: a child has ended.
    wake, signalled = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while Path(folder).is_dir():
            ready, _, _ = select.select([server, wake], [], [], 1.0)
            if wake in ready:
                os.read(wake, 4096)
            _report_ended(running)
            if server in ready:
                _start(server, running)


def _report_ended(running: dict[int, socket.socket]) -> None:
    """Tell each one that waits for a child that has ended its exit status."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with running.pop(pid) as connection, contextlib.suppress(BrokenPipeError):
            connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _start(server: socket.socket, running: dict[int, socket.socket]) -> None:
    """Start the script that a new connection asks for, and tell its process id."""
    connection, _ = server.accept()
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    pid = os.fork()  # once only: with all that is imported, it takes a twentieth of a second
    if pid == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        for other in (server, connection, *running.values()):
            other.close()
        _become(json.loads(message), files)
    for file in files:
        os.close(file)
    connection.sendall(f"{pid}\n".encode())
    running[pid] = connection


def _become(request: dict, files: list[int]) -> None:
    """Run the script as its own main program. Does not return."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    _prepare(request)
    script, *arguments = request["arguments"]
    if PROJECT not in Path(script).parents:  # a copy of the project
        forget_the_project()
    if (client := sys.modules.get("utils.tracking.wandb_client")) is not None:
        importlib.reload(client)  # which sets variables of the environment
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    code = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _prepare(request: dict) -> None:
    """What the test wants of this process: a fault, a limit of the size of its files."""
    if request["fault"]:
        sys.path.append(str(Path(__file__).resolve().parents[1]))
        from faults.injector import Fault, install

        forget_the_project()
        install(Fault(**request["fault"]), Path(request["cwd"]))
    if request["file_size_limit"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size_limit"],) * 2)


if __name__ == "__main__":
    serve(*sys.argv[1:])
