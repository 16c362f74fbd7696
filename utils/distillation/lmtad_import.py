"""Reading checkpoints of training code that is not installed here, without running anything of theirs.

torch's own unpickler for weights does the work: it makes tensors and plain values, and calls nothing that it
was not given. What this adds: instances of classes that are not here (a config dataclass, a namespace of
arguments) are read as plain records of their attributes.
"""

import _compat_pickle
import itertools
import pickletools
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError
from utils.files.file_kinds import foreign_kind
from utils.files.tensor_files import is_archive, load_tensors

# What tensors are made of. torch allows more, such as `bytearray`, which can ask for any amount of memory.
PLAIN = re.compile(
    r"torch\.([A-Z][A-Za-z0-9]*Storage|b?float\d+|u?int\d+|bool|Size|device|_utils\._rebuild_(tensor_v2|parameter))"
    r"|collections\.OrderedDict|builtins\.set"
)
CLASS_NAME = re.compile(r"(?:[A-Za-z_]\w*\.)+_*[A-Z]\w*", re.ASCII)
# These hold what runs programs, or asks for any amount of memory; of their classes, arguments are the one to expect.
LIBRARIES = {*sys.stdlib_module_names, "torch"}
HARMLESS = {"argparse.Namespace"}


class Record:
    """Stands for an instance of a class that is not here: its attributes as saved, and nothing it could do."""

    name = ""  # file and class, for messages
    attributes: dict[str, Any]

    def __new__(cls, *arguments: object) -> "Record":
        record = super().__new__(cls)
        record.attributes = {}
        return record

    def __init__(self, *arguments: object):
        # Instances of classes are unpickled without a call of the class. What calls it means a function,
        # or a class whose content is more than its attributes.
        raise UserError(f"{self.name} is called by the pickle in this file; refused, nothing was run")

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.attributes = state


def attributes_of(value: object) -> dict[str, Any] | None:
    """The content of a dict or of a record; None for anything else."""
    return value.attributes if isinstance(value, Record) else value if isinstance(value, dict) else None


def load_foreign(path: Path) -> Any:
    """Like `load_tensors`, with a `Record` in place of each instance of a class.

    Raises:
        UserError: the file is missing or damaged, or its pickle names anything that is not plain data.
    """
    records = [(type("Record", (Record,), {"name": f"{path}: {name}"}), name) for name in unknown_classes(path)]
    with torch.serialization.safe_globals(records):
        return load_tensors(path)


def unknown_classes(path: Path) -> list[str]:
    """Full names of the classes in the file that `load_tensors` does not know.

    Raises:
        UserError: as `load_foreign`, except that checksums of tensors are not looked at.
    """
    names = _names(path) if path.is_file() else set()  # an absent file is `load_tensors`'s to report
    names = sorted(name for name in names if not PLAIN.fullmatch(name))
    for name in names:
        is_foreign_class = name.partition(".")[0] not in LIBRARIES and CLASS_NAME.fullmatch(name)
        if name not in HARMLESS and not is_foreign_class:
            raise UserError(
                f"{path}: its pickle names {name[:80]!r}, which is not plain data; refused, nothing was run"
            )
    return names


def _names(path: Path) -> set[str]:
    """All that the pickle names, as `module.name`; read without running the pickle."""
    names = set()
    try:
        if kind := foreign_kind(path, zip_expected=True):
            raise UserError(f"{path}: {kind}")
        if not is_archive(path):
            return names  # damaged, or in the format from before torch 1.6: `load_tensors` tells
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickles = [archive.read(entry) for entry in entries if entry.filename.endswith("data.pkl")]
        for operation, argument, _ in itertools.chain.from_iterable(map(pickletools.genops, pickles)):
            if operation.name == "PROTO" and argument != 2:
                raise UserError(
                    f"{path}: has pickle protocol {argument}, expected 2, which torch.save writes by default"
                )
            # The other operations that name something are not known to torch's unpickler, which refuses them.
            if operation.name == "GLOBAL":
                names.add(_present_name(*argument.rsplit(" ", 1)))
    except UserError:
        raise
    except Exception as error:
        # What a damaged or foreign file raises here is not a closed list, as in `load_tensors`.
        raise UserError(f"{path}: not a file of tensors saved by torch, or damaged ({error})") from None
    return names


def _present_name(module: str, name: str) -> str:
    """Protocol 2, which torch writes, has Python 2's names for what is in the standard library."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"
