"""The rolling checkpoint of a teacher's training, and the file of its best weights."""

import math
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor

from models.lmtad import LMTAD
from utils.distillation.teacher_file import save_teacher
from utils.errors import UserError
from utils.files.atomic import earlier_path, free_number, move, set_aside
from utils.files.checksums import content_digest
from utils.files.disk_space import warn_if_short
from utils.files.tensor_files import load_tensors, save_tensors, state_dict_of
from utils.runtime.device import Precision
from utils.training.engine import restore_optimizer
from utils.training.rolling_checkpoint import MOMENTS, Change, on_cpu
from utils.training.weights import load_parameters

KEYS = (
    *("identity", "settings", "val_perplexity", "batches_done"),
    *("model_state_dict", "best_state_dict", "optimizer_state_dict", "scaler"),
)


class TeacherCheckpoint:
    """`checkpoint_latest.pth` in the run's folder, and the teacher file that distillation reads."""

    def __init__(
        self,
        folder: Path,
        weights: Path,
        identity: dict[str, object],
        settings: dict[str, object] | None = None,
        others: dict[str, str] | None = None,
    ):
        """Nothing is read yet.

        Args:
            folder: of the run.
            weights: the teacher file.
            identity: what a run must share with a checkpoint to go on from it.
            settings: keys of the section `teacher`, which may change.
            others: what else shapes the result, and may change, by what it is.
        """
        self.path, self.weights = folder / "checkpoint_latest.pth", weights
        self.identity, self.settings, self.others = identity, settings or {}, others or {}
        self._is_fresh = True  # what is there is another training's, and is set aside before the first epoch is saved
        self.perplexities: list[float] = []
        self.batches_done = 0  # those of an epoch may change between the parts of a training
        self._best_state: dict[str, Tensor] = {}
        self._replaced_digest = ""  # of the best weights before these

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 1) of the lowest validation perplexity."""
        perplexities = [math.inf if math.isnan(value) else value for value in self.perplexities]
        return perplexities.index(min(perplexities)) + 1

    def restore(self, model: LMTAD, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
        """Go on from an interrupted training of the same teacher, if there is one.

        Raises:
            UserError: the checkpoint is damaged, the file of the weights is somebody else's, or no epoch is left and
                the teacher was trained with other settings.
        """
        if not self.path.exists():
            self._check_owned(None)
            return
        remedy = f"to train from scratch, rm {self.path} and run the same command again"
        try:
            content = load_tensors(self.path)
        except UserError as error:
            raise UserError(f"{error}; {remedy}") from None
        if not isinstance(content, dict) or not set(KEYS) <= set(content):
            raise UserError(f"{self.path}: no teacher's checkpoint; {remedy}")
        found, perplexities = content["identity"], content["val_perplexity"]
        self._check_owned(content.get("weights"))
        if found != self.identity:
            changed = [
                f"{key}={found.get(key)} vs {own}" for key, own in self.identity.items() if found.get(key) != own
            ]
            logger.warning(f"⚠️  Checkpoint mismatch ({', '.join(changed)})")
            logger.warning("⚠️  Starting fresh; the other teacher is set aside when the first epoch is done")
            return
        self._tell_changes(content["settings"], content.get("others", {}), len(perplexities))
        load_parameters(model, content["model_state_dict"], self.path, remedy)
        restore_optimizer(optimizer, content["optimizer_state_dict"])
        precision.load_scaler(content["scaler"])
        self.perplexities, self.batches_done = perplexities, content["batches_done"]
        self._best_state, self._is_fresh = content["best_state_dict"], False
        self._replaced_digest = content.get("replaced_digest", "")
        self._finish_weights(model)
        if self._is_complete(len(perplexities)):
            logger.info(f"training is complete: all {len(perplexities)} epochs are done")
        else:
            logger.info(f"✅ Resumed from checkpoint: epoch {len(perplexities) + 1}")

    def save(
        self,
        model: LMTAD,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        val_perplexity: float,
        batches_done: int,
    ) -> None:
        """Save the epoch that was just validated; if strictly better than all before, also its weights."""
        self.perplexities.append(val_perplexity)
        self.batches_done = batches_done
        is_best = self.best_epoch == len(self.perplexities)
        state = state_dict_of(model)
        if is_best:
            self._replaced_digest = content_digest(self._best_state)
            # Copies: on the CPU a state dict is a view of the parameters, which go on changing.
            self._best_state = {name: value.clone() for name, value in state.items()}
        content = {
            "identity": self.identity,
            "settings": self.settings,
            "others": self.others,
            "weights": str(self.weights),
            "val_perplexity": self.perplexities,
            "batches_done": batches_done,
            "model_state_dict": state,
            "best_state_dict": self._best_state,
            "replaced_digest": self._replaced_digest,
            "optimizer_state_dict": on_cpu(optimizer.state_dict()),
            "scaler": precision.scaler.state_dict(),
        }
        if self._is_fresh:
            self._set_aside()
        save_tensors(content, self.path)
        if is_best:
            self._save_weights(model)

    def _is_complete(self, epochs_done: int) -> bool:
        return epochs_done >= self.settings.get("max_epoch", epochs_done + 1)

    def _tell_changes(self, settings: dict[str, object], others: dict[str, str], epochs_done: int) -> None:
        """Other settings hold from the next epoch on. Raises UserError if there is none."""
        changes = [
            Change(f"teacher.{key}", settings[key], own)
            for key, own in self.settings.items()
            if settings.get(key, own) != own
        ]
        other = [name for name, own in self.others.items() if others.get(name, own) != own]
        if not self._is_complete(epochs_done):
            for change in changes:
                logger.warning(f"{change.key} was {change.old} so far, and is {change.new} now")
            for name in other:
                logger.warning(f"the {name} is not the same as so far: perplexities before and after do not compare")
            return
        shaping = [str(change) for change in changes if change.key != "teacher.max_epoch"]
        shaping += [f"other {name}" for name in other]
        if shaping:
            raise UserError(
                f"{self.path}: the teacher is trained ({epochs_done} epochs), but not with these settings: "
                f"{', '.join(shaping)}. Go on from here with --set teacher.max_epoch=N (above {epochs_done}), or start "
                f"over: rm {self.path} ({self.weights} is kept under another name)"
            )

    def _check_owned(self, recorded: str | None) -> None:
        """Refuse to overwrite weights elsewhere that the checkpoint (`recorded` in it) has not written."""
        elsewhere = self.weights.parent.resolve() != self.path.parent.resolve()
        if elsewhere and self.weights.exists() and recorded != str(self.weights):
            raise UserError(
                f"{self.weights} exists and is not of this training; remove it, or name another "
                "file with --set distill.teacher=FILE"
            )

    def warn_of_a_full_disk(self, model_bytes: int) -> None:
        """Say so if the disk has no room for what this will write."""
        checkpoint_bytes = (2 + MOMENTS) * model_bytes  # of this epoch and of the best one
        there = [path for path in (self.path, self.weights) if path.exists() and not self._is_fresh]
        warn_if_short(self.path.parent, checkpoint_bytes + model_bytes, there, spare=checkpoint_bytes)

    def _set_aside(self) -> None:
        """Another training's checkpoint and weights, or weights from elsewhere, keep names of their own."""
        self._is_fresh = False
        # The weights first: a kill between the two leaves the checkpoint, which then gets the number of the weights.
        pair = (self.weights, self.path)
        number = self._number_of_lone_weights() or free_number(*pair)
        kept = [(path, earlier_path(path, number)) for path in pair if path.exists()]
        for path, aside in kept:
            move(path, aside)
            logger.warning(f"{path} was there before: kept as {aside.name}")
        if kept:
            later = free_number(*pair)
            moves = [(path, earlier_path(path, later)) for path in pair] + [(aside, path) for path, aside in kept]
            back = " && ".join(f"mv {source} {target}" for source, target in moves)
            logger.info(f"to go back to it, and keep this one: {back}")

    def _number_of_lone_weights(self) -> int:
        """That of weights which were set aside without their checkpoint, which is still here; 0 if there are none."""
        if self.weights.exists() or not self.path.exists():
            return 0
        numbers = range(free_number(self.weights, self.path) - 1, 0, -1)
        pairs = ((n, earlier_path(self.weights, n), earlier_path(self.path, n)) for n in numbers)
        return next((n for n, weights, checkpoint in pairs if weights.exists() and not checkpoint.exists()), 0)

    def _finish_weights(self, model: LMTAD) -> None:
        """Write the best weights if a kill came between the checkpoint and them; never over somebody else's."""
        digest = _digest_of(self.weights)
        if digest == content_digest(self._best_state):
            return
        if self.weights.exists() and digest != self._replaced_digest:
            aside = set_aside(self.weights)
            logger.warning(f"{self.weights} is not of this training: kept as {aside.name}")
        self._save_weights(model)

    def _save_weights(self, model: LMTAD) -> None:
        best = LMTAD(model.config)
        best.load_state_dict(self._best_state)
        save_teacher(self.weights, best, tuple(self.identity["grid"]))


def _digest_of(path: Path) -> str:
    """Of the weights in a teacher file; a blank if there is no such file, or another one."""
    try:
        return content_digest(dict(load_tensors(path)["state_dict"]))
    except (UserError, KeyError, TypeError, ValueError):
        return " "
