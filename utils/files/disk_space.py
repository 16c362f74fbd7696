"""Whether the disk has room for what a run will write."""

import errno
import shutil
from collections.abc import Iterable
from pathlib import Path

from loguru import logger

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or what a user may have of it

# What the documentation of checkpoints advises.
REMEDIES = (
    "use distillation training, which stores one checkpoint only; or delete old epoch checkpoints: "
    "rm save/*/seed*/epoch_*.pth; or make more disk space available"
)


def warn_if_short(folder: Path, total: int, replaced: Iterable[Path], spare: int) -> None:
    """Say so if the disk of `folder` has less room than a run needs.

    Args:
        folder: of the run.
        total: bytes of the files that it will hold in the end.
        replaced: those of them that are there already, and so have their room.
        spare: bytes of the largest file, which is there twice while it is written.
    """
    need = total - sum(path.stat().st_size for path in replaced) + spare
    free = shutil.disk_usage(folder).free
    if free < need:
        logger.warning(f"{folder}: the run will write {readable(need)} more, and {readable(free)} are free; {REMEDIES}")


def readable(size: int) -> str:
    """A number of bytes as `df -h` has it."""
    value = float(size)
    for unit in ("B", "K", "M", "G"):
        if value < 1024:
            return f"{value:.4g}{unit}"
        value /= 1024
    return f"{value:.4g}T"
