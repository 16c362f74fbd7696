"""Checkpoints of vanilla training: one of each epoch, and the best."""

import re
from pathlib import Path

from loguru import logger
from torch import nn

from utils.files.atomic import atomic_copy
from utils.files.disk_space import warn_if_short
from utils.files.tensor_files import save_tensors, state_dict_of

EPOCH_FILE = re.compile(r"epoch_(\d+)\.pth$")


class EpochCheckpoints:
    """Checkpoints of vanilla training: every epoch is kept, and `best.pth` is a copy of the best one."""

    def __init__(self, folder: Path, writes: bool = True):
        """`writes` is for one of several processes."""
        self.folder, self._writes = folder, writes
        self.best_path = folder / "best.pth"
        self.accuracies: list[float] = []

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 1) of the highest validation accuracy."""
        return self.accuracies.index(max(self.accuracies)) + 1

    def announce(self, max_epoch: int, model_bytes: int) -> None:
        """Say what becomes of an earlier run's files in the folder, and whether the disk has room for the new ones."""
        if not self._writes:
            return
        matches = ((EPOCH_FILE.match(path.name), path) for path in self.folder.glob("epoch_*.pth"))
        found = {int(match[1]): path for match, path in matches if match}
        replaced = [path for epoch, path in found.items() if epoch <= max_epoch]
        replaced += [self.best_path] if self.best_path.exists() else []
        warn_if_short(self.folder, (max_epoch + 1) * model_bytes, replaced, spare=model_bytes)
        if found:
            logger.info(
                f"{self.folder} holds an earlier run; vanilla training does not resume: starting "
                "from scratch, its files are replaced epoch by epoch"
            )
        stale = [found[epoch].name for epoch in sorted(found) if epoch > max_epoch]
        if stale:
            logger.warning(f"left over from a longer run, and not replaced by this one: {', '.join(stale)}")

    def save(self, model: nn.Module, accuracy: float) -> None:
        """Save the epoch that was just validated; if strictly better than all before, also as best.pth."""
        self.accuracies.append(accuracy)
        if not self._writes:
            return
        path = self.folder / f"epoch_{len(self.accuracies)}.pth"
        save_tensors(state_dict_of(model), path)
        if self.best_epoch == len(self.accuracies):
            atomic_copy(path, self.best_path)
