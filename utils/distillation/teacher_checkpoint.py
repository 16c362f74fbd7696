"""The rolling checkpoint of a teacher's training, and the file of its best weights."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor

from models.lmtad import LMTAD
from utils.config_sections import CELLS
from utils.distillation.teacher_file import save_teacher
from utils.errors import UserError
from utils.files.atomic import earlier_path, free_number, move
from utils.files.checksums import content_digest
from utils.files.disk_space import warn_if_short
from utils.files.tensor_files import on_cpu, state_dict_of
from utils.runtime.precision import Precision
from utils.training.resume_file import (
    MOMENTS,
    ResumeFile,
    announce,
    changes_between,
    digest_of,
    make_way_for_best,
    other_inputs,
)

KINDS = {
    "identity": dict,
    "settings": dict,
    "val_perplexity": list,
    "batches_done": int,
    "model_state_dict": dict,
    "best_state_dict": dict,
    "optimizer_state_dict": dict,
    "scaler": dict,
}
# What the version before trained, without saying so.
FORMER_IDENTITY = {"tokens": CELLS, "destination": False}


class TeacherCheckpoint:
    """`checkpoint_latest.pth` in the run's folder, and the teacher file that distillation reads."""

    def __init__(
        self,
        folder: Path,
        weights: Path,
        identity: dict[str, object],
        settings: dict[str, Any],
        inputs: dict[str, str],
        records: dict[str, Any],
    ):
        """Nothing is read yet.

        Args:
            folder: of the run.
            weights: the teacher file.
            identity: what a run must share with a checkpoint to resume from it.
            settings: the section `teacher`, whose other keys may change.
            inputs: what else shapes the result, and may change, by what it is.
            records: what the teacher file says of its tokens and trips (`teacher_file.RECORDS`).
        """
        self.path, self.weights = folder / "checkpoint_latest.pth", weights
        self.settings, self.inputs, self.records = settings, inputs, records
        self._file = ResumeFile(self.path, identity)
        self._is_fresh = True  # what is there is another training's, and is set aside before the first epoch is saved
        self.perplexities: list[float] = []
        self.batches_done = 0  # through all epochs; an epoch's number of batches may change when a run resumes
        self._best_state: dict[str, Tensor] = {}
        self._replaced_digest = ""  # of the best weights before these

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 1) of the lowest validation perplexity."""
        perplexities = [math.inf if math.isnan(value) else value for value in self.perplexities]
        return perplexities.index(min(perplexities)) + 1

    # What is in the file --------------------------------------------------------------------------------------------

    def state_dict(self, model: LMTAD, optimizer: torch.optim.Optimizer, precision: Precision) -> dict[str, Any]:
        """The content of the checkpoint."""
        return {
            "identity": self._file.identity,
            "settings": self.settings,
            "others": self.inputs,
            "records": self.records,
            "weights": str(self.weights),
            "val_perplexity": self.perplexities,
            "batches_done": self.batches_done,
            "model_state_dict": state_dict_of(model),
            "best_state_dict": self._best_state,
            "replaced_digest": self._replaced_digest,
            "optimizer_state_dict": on_cpu(optimizer.state_dict()),
            "scaler": precision.scaler.state_dict(),
        }

    def load_state_dict(
        self, content: dict[str, Any], model: LMTAD, optimizer: torch.optim.Optimizer, precision: Precision
    ) -> None:
        """Put training, model and optimizer into the state that `content`, of this teacher, was saved in.

        Raises:
            UserError: it does not fit the model.
        """
        self._file.load_learner(content, model, optimizer)
        precision.load_scaler(content["scaler"])
        self.perplexities, self.batches_done = content["val_perplexity"], content["batches_done"]
        self._best_state = content["best_state_dict"]
        self._replaced_digest = content.get("replaced_digest", "")

    # The steps of a training ----------------------------------------------------------------------------------------

    def restore(self, model: LMTAD, optimizer: torch.optim.Optimizer, precision: Precision) -> None:
        """Resume an interrupted training of the same teacher, if there is one.

        Raises:
            UserError: the checkpoint is damaged, the file of the weights is somebody else's, or no epoch is left and
                the teacher was trained with other settings.
        """
        content = self._file.read(KINDS)
        self._check_owned(content)
        if content is None:
            return
        if mismatches := self._mismatches(content):
            logger.warning(f"⚠️  Checkpoint mismatch ({', '.join(mismatches)})")
            logger.warning("⚠️  Starting fresh; the other teacher is set aside when the first epoch is done")
            return
        self._announce_changes(content)
        self.load_state_dict(content, model, optimizer, precision)
        self._is_fresh = False
        self._finish_weights(model)
        epochs = len(self.perplexities)
        if epochs >= self.settings["max_epoch"]:
            logger.info(f"training is complete: all {epochs} epochs are done")
        else:
            logger.info(f"✅ Resumed from checkpoint: epoch {epochs + 1}")

    def warn_of_a_full_disk(self, model_bytes: int) -> None:
        """Say so if the disk has no room for what this will write."""
        checkpoint_bytes = (2 + MOMENTS) * model_bytes  # of this epoch and of the best one
        there = [path for path in (self.path, self.weights) if path.exists() and not self._is_fresh]
        warn_if_short(self.path.parent, checkpoint_bytes + model_bytes, there, spare=checkpoint_bytes)

    def save(
        self,
        model: LMTAD,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        val_perplexity: float,
        batches_done: int,
    ) -> None:
        """Save the epoch that was just validated; if strictly better than all before, also its weights.

        Raises:
            WriteError: a file cannot be written, and is as it was before.
        """
        self.perplexities.append(val_perplexity)
        self.batches_done = batches_done
        is_best = self.best_epoch == len(self.perplexities)
        if is_best:
            self._replaced_digest = content_digest(self._best_state)
            # Copies: on the CPU a state dict is a view of the parameters, which training changes in place.
            self._best_state = {name: value.clone() for name, value in state_dict_of(model).items()}
        if self._is_fresh:
            self._set_aside()
        self._file.save(self.state_dict(model, optimizer, precision))
        # In this order: when we are killed between the two, the checkpoint has the weights.
        if is_best:
            self._save_weights(model)

    def _save_weights(self, model: LMTAD) -> None:
        grid = self._file.identity.get("grid")
        save_teacher(self.weights, model, tuple(grid) if grid else None, records=self.records)

    def _mismatches(self, content: dict[str, Any]) -> list[str]:
        """Where the checkpoint is of another teacher."""
        mismatches = self._file.mismatches(FORMER_IDENTITY | content["identity"])
        files = [records.get("trips", {}).get("file") for records in (content.get("records", {}), self.records)]
        if content["identity"].get("data") != self._file.identity.get("data") and None not in files:
            old, new = files
            mismatches += [f"trips={old} vs {new}"] if old != new else []
        return mismatches

    def _announce_changes(self, content: dict[str, Any]) -> None:
        """Other settings hold from the next epoch on. Raises UserError if there is none."""
        old, new = ({f"teacher.{key}": value for key, value in s.items()} for s in (content["settings"], self.settings))
        changes, inputs = changes_between(old, new), other_inputs(content.get("others", {}), self.inputs)
        epochs = len(content["val_perplexity"])
        if epochs < self.settings["max_epoch"]:
            announce(changes, inputs, ": perplexities before and after do not compare")
            return
        shaping = [str(change) for change in changes if change.key != "teacher.max_epoch"]
        shaping += [f"other {name}" for name in inputs]
        if shaping:
            raise self._file.finished_with_others(epochs, shaping, "teacher.max_epoch", self.weights)

    # The weights ----------------------------------------------------------------------------------------------------

    def _check_owned(self, content: dict[str, Any] | None) -> None:
        """Refuse to overwrite weights elsewhere that the checkpoint has not written. Raises UserError."""
        recorded = content.get("weights") if content else None
        elsewhere = self.weights.parent.resolve() != self.path.parent.resolve()
        if elsewhere and self.weights.exists() and recorded != str(self.weights):
            raise UserError(
                f"{self.weights} exists and is not of this training; remove it, or name another "
                "file with --set distill.teacher=FILE"
            )

    def _finish_weights(self, model: LMTAD) -> None:
        """Write the best weights if a kill came between the checkpoint and them; never over somebody else's."""
        digest = digest_of(self.weights, "state_dict") or ("something else" if self.weights.exists() else "")
        if digest == content_digest(self._best_state):
            return
        make_way_for_best(self.weights, digest, self._replaced_digest)
        best = copy.deepcopy(model)
        best.load_state_dict(self._best_state)
        self._save_weights(best)

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
