"""The rolling checkpoint of a teacher's training, and the file of its best weights."""

from pathlib import Path

import torch
from loguru import logger
from torch import Tensor

from models.lmtad import LMTAD
from utils.checkpoint import fit_state_dict, load_tensors, save_tensors, state_dict_of
from utils.config import display_path
from utils.device import Precision
from utils.digest import content_digest
from utils.disk_space import warn_if_short
from utils.errors import UserError
from utils.rolling_checkpoint import MOMENTS, on_cpu
from utils.teacher_file import save_teacher


class TeacherCheckpoint:
    """`checkpoint_latest.pth` in the run's folder, and the teacher file that distillation reads."""

    def __init__(
        self, folder: Path, weights: Path, identity: dict[str, object], settings: dict[str, object] | None = None
    ):
        """`identity`: what a run must share with a checkpoint to go on from it; `settings`: what may change."""
        self.path, self.weights = folder / "checkpoint_latest.pth", weights
        self.identity, self.settings = identity, settings or {}
        self._sets_aside = False  # the weights that are there, before the first ones of this training are written
        self.perplexities: list[float] = []
        self.batches_done = 0  # those of an epoch may change between the parts of a training
        self._best_state: dict[str, Tensor] = {}

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 1) of the lowest validation perplexity."""
        return self.perplexities.index(min(self.perplexities)) + 1

    def restore(self, model: LMTAD, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
        """Go on from an interrupted training of the same teacher, if there is one.

        Raises:
            UserError: the checkpoint is damaged, or the file of the weights is somebody else's.
        """
        if not self.path.exists():
            self._check_owned(None)
            self._sets_aside = True
            return
        remedy = f"to train from scratch, rm {display_path(self.path)} and run the same command again"
        try:
            content = load_tensors(self.path)
            digest, found = content.pop("digest"), content["identity"]
        except (UserError, KeyError, TypeError, AttributeError) as error:
            reason = error if isinstance(error, UserError) else f"{display_path(self.path)}: no teacher's checkpoint"
            raise UserError(f"{reason}; {remedy}") from None
        self._check_owned(content.get("weights"))
        intact = digest == content_digest(content)
        if intact and found != self.identity:
            changed = [
                f"{key}={found.get(key)} vs {own}" for key, own in self.identity.items() if found.get(key) != own
            ]
            logger.warning(f"⚠️  Checkpoint mismatch ({', '.join(changed)})")
            logger.warning("⚠️  Deleting invalid checkpoint and starting fresh")
            self.path.unlink()
            self._sets_aside = True
            return
        if not intact:
            raise UserError(
                f"{display_path(self.path)}: its content is not what was saved (the checksum in it is another); "
                f"{remedy}"
            )
        fit_state_dict(model, content["model_state_dict"], self.path, remedy)
        optimizer.load_state_dict(content["optimizer_state_dict"])
        precision.load_scaler(content["scaler"])
        for key, own in self.settings.items():
            if content["settings"].get(key, own) != own:
                logger.warning(f"teacher.{key} was {content['settings'][key]} so far, and is {own} now")
        self.perplexities, self.batches_done = content["val_perplexity"], content["batches_done"]
        self._best_state = content["best_state_dict"]
        self._save_weights(model)  # a kill may have come between the checkpoint and them
        logger.info(f"✅ Resumed from checkpoint: epoch {len(self.perplexities) + 1}")

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
            # Copies: on the CPU a state dict is a view of the parameters, which go on changing.
            self._best_state = {name: value.clone() for name, value in state.items()}
        content = {
            "identity": self.identity,
            "settings": self.settings,
            "weights": str(self.weights),
            "val_perplexity": self.perplexities,
            "batches_done": batches_done,
            "model_state_dict": state,
            "best_state_dict": self._best_state,
            "optimizer_state_dict": on_cpu(optimizer.state_dict()),
            "scaler": precision.scaler.state_dict(),
        }
        self._set_aside()
        save_tensors(content | {"digest": content_digest(content)}, self.path)
        if is_best:
            self._save_weights(model)

    def _check_owned(self, recorded: str | None) -> None:
        """Refuse to overwrite weights elsewhere that the checkpoint (`recorded` in it) has not written."""
        elsewhere = self.weights.parent.resolve() != self.path.parent.resolve()
        if elsewhere and self.weights.exists() and recorded != str(self.weights):
            raise UserError(
                f"{display_path(self.weights)} exists and is not of this training; remove it, or name another "
                "file with --set distill.teacher=FILE"
            )

    def warn_of_a_full_disk(self, model_bytes: int) -> None:
        """Say so if the disk has no room for what this will write."""
        checkpoint_bytes = (2 + MOMENTS) * model_bytes  # of this epoch and of the best one
        there = [path for path in (self.path, self.weights) if path.exists()]
        warn_if_short(self.path.parent, checkpoint_bytes + model_bytes, there, spare=checkpoint_bytes)

    def _set_aside(self) -> None:
        """Another training's weights, or weights from elsewhere, keep a name of their own."""
        if self._sets_aside and self.weights.exists():
            count = 1
            while (aside := self.weights.with_name(f"{self.weights.stem}.earlier-{count}.pt")).exists():
                count += 1
            self.weights.replace(aside)
            logger.info(f"{display_path(self.weights)} was there before: kept as {aside.name}")
        self._sets_aside = False

    def _save_weights(self, model: LMTAD) -> None:
        best = LMTAD(model.config)
        best.load_state_dict(self._best_state)
        save_teacher(self.weights, best, tuple(self.identity["grid"]))
