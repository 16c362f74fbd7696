"""Reading checkpoints of training code that is not installed here, without running anything of theirs.

torch's own unpickler for weights does the work: it makes tensors and plain values, and calls nothing that it
was not given. It is given a `Record` for each other name in the file: instances of classes (a config dataclass, a
namespace of arguments) are then read as their attributes, and a call of anything is refused.
"""

from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.files.tensor_files import check_file, errors_of_reading, is_archive


class Record:
    """An instance of a class that is not here: its attributes as saved, and nothing it could do."""

    name = ""  # file and class, for messages
    attributes: dict[str, Any]

    def __new__(cls, *arguments: object) -> "Record":
        record = super().__new__(cls)
        record.attributes = {}
        return record

    def __init__(self, *arguments: object):
        # Instances are unpickled without a call of their class. What calls it means a function,
        # or a class whose content is more than its attributes.
        raise UserError(f"{self.name} is called by the pickle in this file; refused, nothing was run")

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.attributes = state


def attributes_of(value: object) -> dict[str, Any] | None:
    """The content of a dict or of a record; None for anything else."""
    return value.attributes if isinstance(value, Record) else value if isinstance(value, dict) else None


def load_foreign(path: Path) -> tuple[Any, list[str]]:
    """As `load_tensors`, with a `Record` in place of each instance of a class; and the names of these classes.

    Raises:
        UserError: the file is missing or damaged, calls anything, or has classes in torch's format from before 1.6.
    """
    with errors_of_reading(path):
        check_file(path)
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) if is_archive(path) else []
        records = [(type("Record", (Record,), {"name": f"{path}: {name}"}), name) for name in names]
        with torch.serialization.safe_globals(records):
            return torch.load(path, map_location="cpu", weights_only=True), names
