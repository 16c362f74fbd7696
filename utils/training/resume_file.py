"""The file that an interrupted training resumes from: whose it is, what has changed since, and what to do about it.

The trainings of the student and of the teacher share this. What is in the file is each one's own: see `state_dict` and
`load_state_dict` of `RollingCheckpoint` and `TeacherCheckpoint`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import nn

from utils.errors import UserError
from utils.files.atomic import set_aside
from utils.files.checksums import content_digest
from utils.files.tensor_files import load_tensors, save_tensors
from utils.training.weights import load_parameters

MOMENTS = 2  # that AdamW keeps, each as large as the model


@dataclass(frozen=True)
class Change:
    """A setting that is not what it was."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} is {self.new} and was {self.old}"


class ResumeFile:
    """`checkpoint_latest.pth` of a training; it is this run's if its identity is the run's."""

    def __init__(self, path: Path, identity: Mapping[str, object]):
        """Nothing is read yet.

        Args:
            path: the file.
            identity: what a run must share with a checkpoint to resume from it.
        """
        self.path, self.identity = path, dict(identity)

    def read(self, kinds: Mapping[str, type]) -> dict[str, Any] | None:
        """What is in the file, or None if there is no file.

        Args:
            kinds: the keys that it must have, and the types of their values.

        Raises:
            UserError: it is damaged, or something else.
        """
        if not self.path.exists():
            return None
        try:
            content = load_tensors(self.path)
        except UserError as error:
            raise UserError(f"{error}; {self.remedy('is corrupt')}") from None
        found = content if isinstance(content, dict) else {}
        if missing := [key for key in kinds if key not in found]:
            raise self.error(f"no checkpoint of this script (lacks {', '.join(missing)})", "is of something else")
        for key, kind in kinds.items():
            if not isinstance(content[key], kind):
                raise self.error(f"{key}: found {type(content[key]).__name__}, expected {kind.__name__}")
        return content

    def save(self, content: Mapping[str, Any]) -> None:
        """Write the file, all or nothing.

        Raises:
            WriteError: it cannot be written, and is as it was before.
        """
        save_tensors(content, self.path)

    def mismatches(self, found: Mapping[str, Any]) -> list[str]:
        """Where `found` is the identity of another run: `seed=42 vs 43`."""
        return [f"{key}={found.get(key)} vs {own}" for key, own in self.identity.items() if found.get(key) != own]

    def load_learner(self, content: Mapping[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put model and optimizer into the state of the checkpoint.

        Raises:
            UserError: it is of another architecture, or holds no state of an optimizer.
        """
        load_parameters(model, content["model_state_dict"], self.path, self.remedy("is of another architecture"))
        try:
            restore_optimizer(optimizer, content["optimizer_state_dict"])
        except (ValueError, KeyError) as error:  # torch's own words for a state of other parameters
            raise self.error(str(error)) from None

    def error(self, problem: str, trouble: str = "is corrupt") -> UserError:
        """What to tell the user of a file that cannot be used: the problem, and how to start over."""
        return UserError(f"{self.path}: {problem}; {self.remedy(trouble)}")

    def remedy(self, trouble: str) -> str:
        """How to start over."""
        return (
            f"the checkpoint {trouble}: to restart training from scratch, rm {self.path} and run the same command again"
        )

    def finished_with_others(
        self, epochs: int, differences: list[str], epochs_key: str, best: Path, way_out: str = ""
    ) -> UserError:
        """What to tell the user who runs a finished training again with other settings or data."""
        ways = [way_out] if way_out else []
        ways.append(f"continue from here (--set {epochs_key}=N, above {epochs})")
        ways.append(f"start over (rm {self.path}; {best} is kept under another name)")
        return UserError(
            f"{self.path}: training is complete ({epochs} epochs), but not with these settings: "
            f"{', '.join(differences)}. You can {', or '.join(ways)}"
        )


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the moments of a saved optimizer; its settings stay those that `optimizer` was made with."""
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def changes_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The settings that both have, with other values."""
    return [Change(key, old[key], new[key]) for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]


def other_inputs(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The names of the data whose hashes differ; those without a hash on either side are taken for the same."""
    return [name for name, key in new.items() if key and old.get(name) not in (None, "", key)]


def announce(changes: Iterable[Change], inputs: Iterable[str], consequence: str = "") -> None:
    """Say what is in force from the next epoch on."""
    for change in changes:
        logger.warning(f"{change.key} was {change.old} so far, and is {change.new} now")
    for name in inputs:
        logger.warning(f"the {name} is not the same as so far{consequence}")


def digest_of(path: Path, key: str = "") -> str:
    """Of what a file of tensors holds, or holds under `key`; empty if there is no such file."""
    try:
        content = load_tensors(path)
    except UserError:
        return ""
    if key:
        content = content.get(key) if isinstance(content, dict) else None
    return "" if content is None else content_digest(content)


def make_way_for_best(path: Path, found: str, replaced: str) -> None:
    """Before the best model is written again: what is there keeps a name of its own if it is none of this run's.

    Args:
        path: the best model.
        found: digest of what is there; empty for a file that may be overwritten.
        replaced: digest of the run's best model before this one, which a kill may have left there.

    Raises:
        WriteError: it cannot be renamed.
    """
    if found not in ("", replaced):
        aside = set_aside(path)
        logger.warning(f"{path} is not of this training: kept as {aside.name}")
