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
from utils.errors import UserError
from utils.rolling_checkpoint import on_cpu
from utils.teacher_file import save_teacher


class TeacherCheckpoint:
    """`checkpoint_latest.pth` in the run's folder, and the teacher file that distillation reads."""

    def __init__(self, folder: Path, weights: Path, identity: dict[str, object]):
        """`identity` is what a run must share with a checkpoint to go on from it, as plain values."""
        self.path, self.weights, self.identity = folder / "checkpoint_latest.pth", weights, identity
        self.perplexities: list[float] = []
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
            return
        if not intact:
            raise UserError(
                f"{display_path(self.path)}: its content is not what was saved (the checksum in it is another); "
                f"{remedy}"
            )
        fit_state_dict(model, content["model_state_dict"], self.path, remedy)
        optimizer.load_state_dict(content["optimizer_state_dict"])
        precision.load_scaler(content["scaler"])
        self.perplexities = content["val_perplexity"]
        self._best_state = content["best_state_dict"]
        self._save_weights(model)  # a kill may have come between the checkpoint and them
        logger.info(f"✅ Resumed from checkpoint: epoch {len(self.perplexities) + 1}")

    def save(self, model: LMTAD, optimizer: torch.optim.Optimizer, precision: Precision, val_perplexity: float) -> None:
        """Save the epoch that was just validated; if strictly better than all before, also its weights."""
        self.perplexities.append(val_perplexity)
        is_best = self.best_epoch == len(self.perplexities)
        state = state_dict_of(model)
        if is_best:
            # Copies: on the CPU a state dict is a view of the parameters, which go on changing.
            self._best_state = {name: value.clone() for name, value in state.items()}
        content = {
            "identity": self.identity,
            "weights": str(self.weights),
            "val_perplexity": self.perplexities,
            "model_state_dict": state,
            "best_state_dict": self._best_state,
            "optimizer_state_dict": on_cpu(optimizer.state_dict()),
            "scaler": precision.scaler.state_dict(),
        }
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

    def _save_weights(self, model: LMTAD) -> None:
        best = LMTAD(model.config)
        best.load_state_dict(self._best_state)
        save_teacher(self.weights, best, tuple(self.identity["grid"]))
