"""Downloading a model from WandB: whole, checked and atomically, or not at all."""

import base64
import binascii
import hashlib
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

from tqdm import tqdm

from utils.errors import UserError
from utils.files.atomic import TEMPORARY_PREFIX, atomic_write, make_folder
from utils.tracking.wandb_client import File, Run
from utils.tracking.wandb_service import FAILURES, TRIES, answer_limit, failure_of, service_errors

DOWNLOADS = 3  # tries, when one breaks off
PARTS = ("road_network_encoder", "trajectory_encoder", "navigator")  # of a HOSER model


class _BrokenOffError(Exception):
    """Less came than was announced, or something else."""


def default_file_name(run: Run) -> str:
    """From name and id of the run, without anything that could lead to another folder."""
    parts = [re.sub(r"[^\w.-]+", "_", text).strip("._")[:100] for text in (run.name or "", run.id)]
    return "_".join(dict.fromkeys(part for part in parts if part)) + ".pth"


def placed_path(dataset: str, run_id: str) -> Path:
    """Where the model of a run is among those of a data set."""
    return Path("save") / dataset / f"wandb_{re.sub(r'[^A-Za-z0-9_.-]+', '_', run_id)}" / "best.pth"


def check_target(target: Path, force: bool) -> None:
    """Whether a file may be put there.

    Raises:
        UserError: it is a folder, or is there already and `force` is not set.
    """
    if target.is_dir():
        raise UserError(f"{target}: is a folder, expected the name of a file")
    if target.exists() and not force:
        raise UserError(f"{target}: is there already; --force overwrites it")


def download_model(file: File, target: Path, force: bool) -> int:
    """Download `file`, check that it is a model, and put it at `target`; returns its size in weights.

    Raises:
        UserError: the download fails, the file is of another kind, or `target` is there already and `force` is not
            set; it is as it was before.
    """
    check_target(target, force)
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=target.parent, ignore_cleanup_errors=True) as folder:
        path = _download(file, Path(folder))
        num_weights = check_model(path, file.name)
        check_target(target, force)  # another process may have been faster
        with path.open("rb") as source:
            atomic_write(target, lambda out: shutil.copyfileobj(source, out, 1 << 20))
    return num_weights


def check_model(path: Path, name: str) -> int:
    """How many weights the HOSER state dict in `path` has; `name` is for the message.

    Raises:
        UserError: it is something else.
    """
    # Imported here: torch takes seconds, and a search has no need of it.
    from utils.files.tensor_files import load_tensors
    from utils.training.weights import find_state_dict

    wanted = "a HOSER model is wanted, such as best.pth; nothing was saved"
    try:
        content = load_tensors(path)
        state = find_state_dict(content, path, lambda names: {n.partition(".")[0] for n in names}.issuperset(PARTS))
    except UserError as error:
        reason = str(error).partition(": ")[2]
        raise UserError(f"{name}: wrong file type: {reason}; {wanted}") from None
    return sum(value.numel() for value in state.values())


def _download(file: File, folder: Path) -> Path:
    """Into `folder`, with a progress bar; again when it breaks off."""
    shown, reason = file.name, ""
    for attempt in range(DOWNLOADS):
        try:
            with tqdm(
                total=file.size or None, desc=shown, unit="B", unit_scale=True, unit_divisor=1024, disable=None
            ) as bar:
                path = _fetch(file, folder, bar)
            _verify(file, path)
            return path
        except _BrokenOffError as error:
            reason = str(error)
            time.sleep(attempt / 2)
    raise UserError(f"{shown}: the download broke off {DOWNLOADS} times ({reason}); nothing was saved, try again later")


def _fetch(file: File, folder: Path, bar: tqdm) -> Path:
    """One download by the client, watched by the size of what it writes; it has no time limit of its own."""
    path = folder / file.name
    errors: list[BaseException] = []

    def work() -> None:
        try:
            file.download(root=str(folder), replace=True).close()
        except BaseException as error:
            errors.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    limit, changed, seen = TRIES * answer_limit(), time.monotonic(), 0
    while worker.is_alive():
        worker.join(0.05)
        size = path.stat().st_size if path.is_file() else 0
        if size != seen:
            bar.update(size - seen)
            seen, changed = size, time.monotonic()
        elif time.monotonic() - changed > limit:
            raise UserError(f"{file.name}: no answer from WandB for {limit:.0f} s; nothing was saved")
    if errors:
        _raise(errors[0], file)
    bar.update(path.stat().st_size - seen)
    return path


def _raise(error: BaseException, file: File) -> None:
    """Sort the ways in which the client's download can fail."""
    failure = failure_of(error)
    status = failure.response.http_status if failure and failure.response else 0
    if status == 200:  # the answer had begun
        raise _BrokenOffError(str(failure).splitlines()[0][:200])
    if status in (404, 410):
        raise UserError(f"{file.name}: WandB lists this file but does not have it (HTTP {status})")
    if isinstance(getattr(error, "exc", None), ValueError):
        raise UserError(f"{file.name}: found a name that is no path below a folder")
    if status in (401, 403):
        raise UserError(f"{file.name}: WandB does not hand this file out (HTTP {status}); try again")
    if not isinstance(error, FAILURES):
        raise error
    with service_errors():
        raise error


def _verify(file: File, path: Path) -> None:
    """Size and checksum as the service has them."""
    size = path.stat().st_size
    if file.size and size != file.size:
        raise _BrokenOffError(f"found {size} bytes, expected {file.size}")
    try:
        digest = base64.b64decode(file.md5 or "", validate=True)
    except (binascii.Error, ValueError, AttributeError):
        return  # not every kind of storage has one
    if len(digest) != 16:
        return
    with path.open("rb") as content:
        found = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).digest()
    if found != digest:
        raise _BrokenOffError("the checksum is wrong")
