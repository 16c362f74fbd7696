"""Downloading a model from W&B: checked and atomically, or not at all."""

import re
import shutil
import tempfile
from pathlib import Path

from utils.errors import UserError
from utils.files.atomic import TEMPORARY_PREFIX, atomic_write, make_folder
from utils.tracking.wandb_client import File, Run, service_errors

PARTS = ("road_network_encoder", "trajectory_encoder", "navigator")  # of a HOSER model


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
        UserError: it is a folder, or exists already and `force` is not set.
    """
    if target.is_dir():
        raise UserError(f"{target}: is a folder, expected the name of a file")
    if target.exists() and not force:
        raise UserError(f"{target}: exists already; --force overwrites it")


def download_model(file: File, target: Path, force: bool) -> int:
    """Download `file`, check that it is a model, and write it to `target`; returns the number of its weights.

    Raises:
        UserError: the download fails, the file is of another kind, or `target` exists already and `force` is not set;
            `target` is as it was before.
    """
    check_target(target, force)
    make_folder(target.parent)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=target.parent, ignore_cleanup_errors=True) as folder:
        try:
            with service_errors():
                file.download(root=folder, replace=True).close()
        except ValueError:
            raise UserError(f"{file.name}: found a name that is no path below a folder") from None
        except UserError as error:
            raise UserError(f"{file.name}: {error}; nothing was saved") from error.__cause__
        path = Path(folder) / file.name
        num_weights = check_model(path, file.name)
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

    try:
        state = find_state_dict(
            load_tensors(path), path, lambda names: {name.partition(".")[0] for name in names}.issuperset(PARTS)
        )
    except UserError as error:
        reason = str(error).partition(": ")[2]
        raise UserError(
            f"{name}: wrong file type: {reason}; expected a HOSER model, such as best.pth; nothing was saved"
        ) from None
    return sum(value.numel() for value in state.values())
