"""The rolling checkpoint of distillation training, and exact resume from it.

Nothing random need be stored: shuffles, dropout and the learning rate are functions of seed, epoch and step.
"""

import contextlib
import hashlib
import secrets
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger
from torch import Tensor

from utils.config import flatten
from utils.errors import UserError
from utils.files.atomic import atomic_write, move, remove, set_aside
from utils.files.checksums import content_digest
from utils.files.disk_space import warn_if_short
from utils.files.tensor_files import load_tensors, on_cpu, save_tensors, state_dict_of
from utils.runtime.precision import Precision
from utils.training.engine import Learner
from utils.training.metrics import Metrics
from utils.training.resume_file import (
    MOMENTS,
    Change,
    ResumeFile,
    announce,
    changes_between,
    digest_of,
    make_way_for_best,
    other_inputs,
)
from utils.training.weights import different_features

VERSION = 2
KINDS = {
    "epoch": int,
    "seed": int,
    "dataset": str,
    "distill_enabled": bool,
    "model_state_dict": dict,
    "optimizer_state_dict": dict,
    "best_val_acc": float,
    "validation_metrics": list,
    "wandb_run_id": object,  # text, or None
    "resume_state": dict,
}
TIME_METRICS = ("time_pred_mape", "time_mape", "time_mae_s")  # of `Metrics`
STATE_KEYS = ("batches_done", "scaler", "val_time_pred_mape", "best_digest", "config")  # of resume_state

# Keys (or sections, with a dot) of the configuration, by what a change of them means to a run that resumes.
UNREAD = ("teacher.", "optuna.")  # other programs read them
SIZES = (
    "road_network_encoder_config.",
    "navigator_config.",
    *(f"trajectory_encoder_config.{name}" for name in ("hidden_dim", "num_heads", "num_layers")),
)
WITHOUT_EFFECT_ON_THE_RESULT = (
    *("wandb.", "training.compile", "training.cuda_graph", "distill.cache", "distill.enable"),
    "optimizer_config.max_epoch",  # of a run that has more epochs, which has a message of its own
    # What they lead to is compared: trips, teacher, sizes.
    *("data.", "trajectory_encoder_config.max_len", "distill.teacher"),
    *(f"road_network_encoder_config.{name}" for name in ("road_id_num_embeddings", "type_num_embeddings")),
)


@dataclass(frozen=True)
class Identity:
    """What a run must share with a checkpoint to resume from it."""

    seed: int
    dataset: str
    distill_enabled: bool


class RollingCheckpoint:
    """`checkpoint_latest.pth`, overwritten each epoch, and `best.pth`, overwritten by a better one."""

    def __init__(self, folder: Path, identity: Identity, config: dict[str, Any], writes: bool = True):
        """Read what an interrupted run left in `folder`, if it is this run's.

        Args:
            folder: the run's.
            identity: seed, data set and mode; a checkpoint of others is deleted, with a warning.
            config: as plain values; differences are named.
            writes: for one of several processes; the others only follow.

        Raises:
            UserError: the file is damaged, or is no such checkpoint.
        """
        self.path, self.best_path = folder / "checkpoint_latest.pth", folder / "best.pth"
        self._claim_path = folder / ".wandb_run_id"  # until the first checkpoint has it
        self.identity, self.config, self._writes = identity, config, writes
        names = {"seed": identity.seed, "dataset": identity.dataset, "distill": identity.distill_enabled}
        self._file = ResumeFile(self.path, names)
        self.data_keys: dict[str, str] = {}
        self.validations: list[Metrics] = []
        self.wandb_run_id: str | None = None
        self.batches_done = 0  # through all epochs; an epoch's number of batches may change when a run resumes
        self._best_digest = self._replaced_digest = ""  # of the best model, and of the one before it
        self._mismatches: list[str] = []
        self._content = self._read()
        self.epochs_found = self._content["epoch"] + 1 if self._content else 0

    @property
    def _max_epoch(self) -> int:
        return self.config["optimizer_config"]["max_epoch"]

    @property
    def epochs_done(self) -> int:
        return len(self.validations)

    @property
    def best_epoch(self) -> int:
        """The first epoch (from 1) of the highest validation accuracy."""
        accuracies = [metrics.next_step_acc for metrics in self.validations]
        return accuracies.index(max(accuracies)) + 1

    @property
    def best_val_acc(self) -> float:
        return self.validations[self.best_epoch - 1].next_step_acc

    # What is in the file --------------------------------------------------------------------------------------------

    def state_dict(self, learner: Learner) -> dict[str, Any]:
        """The content of the checkpoint: the documented keys, and what exact resume needs on top."""
        return {
            "epoch": self.epochs_done - 1,
            "seed": self.identity.seed,
            "dataset": self.identity.dataset,
            "distill_enabled": self.identity.distill_enabled,
            "model_state_dict": state_dict_of(learner.model),
            "optimizer_state_dict": on_cpu(learner.optimizer.state_dict()),
            "best_val_acc": self.best_val_acc,
            "validation_metrics": [item.next_step_acc for item in self.validations],
            "wandb_run_id": self.wandb_run_id,
            "resume_state": {
                "version": VERSION,
                "batches_done": self.batches_done,
                "scaler": learner.precision.scaler.state_dict(),
                **{f"val_{name}": [getattr(item, name) for item in self.validations] for name in TIME_METRICS},
                "best_digest": self._best_digest,
                "replaced_digest": self._replaced_digest,
                "config": self.config,
                "inputs": self.data_keys,
            },
        }

    def load_state_dict(self, content: dict[str, Any], learner: Learner) -> None:
        """Put the run and `learner` into the state that `content`, of this run, was saved in.

        Raises:
            UserError: its parts do not fit each other, or the model.
        """
        state = content["resume_state"]
        self._file.load_learner(content, learner.model, learner.optimizer)
        learner.precision.load_scaler(state["scaler"])
        accuracies = content["validation_metrics"]
        # The version before measured the first of the times' metrics only.
        times = [state.get(f"val_{name}", [None] * len(accuracies)) for name in TIME_METRICS]
        self.validations = [Metrics(*values) for values in zip(accuracies, *times, strict=True)]
        self._best_digest, self._replaced_digest = state["best_digest"], state.get("replaced_digest", "")
        self.batches_done, self.wandb_run_id = state["batches_done"], content["wandb_run_id"]

    # The steps of a run ---------------------------------------------------------------------------------------------

    def restore(self, learner: Learner, data_keys: dict[str, str]) -> None:
        """Put model, optimizer and gradient scaler into the state of the checkpoint, if there is one.

        `data_keys` are hashes of what the training depends on, by what it is.

        Raises:
            UserError: it is of another architecture, best.pth is not the file that goes with it, or no epoch is left
                and it was trained with other settings.
        """
        self.data_keys = data_keys
        content, self._content = self._content, None  # several times the model: not to be held through the run
        if content is None:
            # Not before all that the new run needs has been found in order.
            self._make_room()
            return
        settings = self._changed_settings(content["resume_state"])
        self._check_sizes(settings)
        self._announce_changes(content, settings, learner)
        self.load_state_dict(content, learner)
        self._check_best(content["model_state_dict"])
        if self.epochs_done < self._max_epoch:
            best = content["best_val_acc"]
            logger.info(f"✅ Resumed from checkpoint: epoch {self.epochs_done + 1}, best_val_acc={best:.4f}")

    def warn_of_a_full_disk(self, model_bytes: int) -> None:
        """Say so if the disk has no room for what this will write."""
        if self._writes and self.epochs_done < self._max_epoch:
            checkpoint_bytes = (1 + MOMENTS) * model_bytes
            there = [path for path in (self.path, self.best_path) if path.exists()]
            warn_if_short(self.path.parent, checkpoint_bytes + model_bytes, there, spare=checkpoint_bytes)

    def claim_wandb_run_id(self) -> str:
        """The id of the W&B run: the checkpoint's, or that of a start that was killed before there was one."""
        if self.wandb_run_id is None:
            run = f"{self.identity} {self.config}"
            key = hashlib.blake2b(run.encode(), digest_size=16).hexdigest()
            found, _, found_key = _read_text(self._claim_path).partition(" ")
            self.wandb_run_id = found if found and found_key == key else _new_id()
            if self.epochs_done:  # of a run that was not tracked so far
                self._file.save(load_tensors(self.path) | {"wandb_run_id": self.wandb_run_id})
                return self.wandb_run_id
            atomic_write(self._claim_path, lambda file: file.write(f"{self.wandb_run_id} {key}".encode()))
        return self.wandb_run_id

    def save(self, learner: Learner, metrics: Metrics, batches_done: int) -> None:
        """Save the epoch that was just validated; if strictly better than all before, also as best.pth.

        Raises:
            WriteError: a file cannot be written, and is as it was before.
        """
        self.batches_done = batches_done
        self.validations.append(metrics)
        if not self._writes:
            return
        is_best = self.best_epoch == self.epochs_done
        if is_best:
            self._replaced_digest, self._best_digest = self._best_digest, content_digest(state_dict_of(learner.model))
        content = self.state_dict(learner)
        self._file.save(content)
        remove(self._claim_path)
        # In this order: when we are killed between the two, best.pth can be restored from the checkpoint.
        if is_best:
            save_tensors(content["model_state_dict"], self.best_path)

    # Whose checkpoint it is -----------------------------------------------------------------------------------------

    def _read(self) -> dict[str, Any] | None:
        """The checkpoint, if it is this run's."""
        content = self._file.read(KINDS)
        if content is None:
            self._mention_the_former_folder()
            return None
        state, names = content["resume_state"], ("seed", "dataset", "distill_enabled")
        self._mismatches = self._file.mismatches(dict(zip(self._file.identity, map(content.get, names), strict=True)))
        if self._mismatches:
            return None
        if state.get("version") != VERSION:
            raise self._file.error(f"has another format than this version of the program, {VERSION}", "is too old")
        epochs, missing = content["epoch"] + 1, [key for key in STATE_KEYS if key not in state]
        lengths = [len(part) for part in (content["validation_metrics"], state.get("val_time_pred_mape", ()))]
        if missing or lengths != [epochs, epochs]:
            reason = f"lacks {', '.join(missing)}" if missing else f"{epochs} epochs, metrics of {lengths}"
            raise self._file.error(f"its parts do not fit each other ({reason})")
        if epochs < self._max_epoch:
            logger.info(f"✅ Valid checkpoint found: will resume from epoch {epochs + 1}")
        return content

    def _mention_the_former_folder(self) -> None:
        """Runs without a teacher shared the folder of those with one, in the version before."""
        former = self.path.parent.with_name(f"seed{self.identity.seed}_distill") / self.path.name
        if self.path.parent.name != f"seed{self.identity.seed}_nodistill" or not former.exists() or not self._writes:
            return
        content = None
        with contextlib.suppress(UserError):  # damaged: that is the other run's trouble
            content = load_tensors(former, mmap=True)
        if isinstance(content, dict) and content.get("distill_enabled") is False:
            name = former.parent.name
            logger.warning(f"{former} is of a run without a teacher: to resume it, --run_name {name}")

    def _make_room(self) -> None:
        """Before a fresh start: another run's model gets a name of its own, and its checkpoint is deleted.

        In this order: a kill between the two leaves the checkpoint, and the next start does the rest.
        """
        if self._mismatches:
            logger.warning(f"⚠️  Checkpoint mismatch ({', '.join(self._mismatches)})")
            logger.warning("⚠️  Deleting invalid checkpoint and starting fresh")
        if not self._writes:
            return
        if self.best_path.exists():
            aside = set_aside(self.best_path)
            logger.warning(f"{self.best_path} is of an earlier run: kept as {aside.name}")
        if self._mismatches:
            remove(self.path)

    # What has changed since -----------------------------------------------------------------------------------------

    def _changed_settings(self, state: dict[str, Any]) -> list[Change]:
        """The settings that this training reads and that are not those of the checkpoint."""
        unread = list(UNREAD)
        unread += ["distill."] if not self.identity.distill_enabled else []
        unread += ["wandb."] if not self.config["wandb"]["enable"] else []
        changes = changes_between(flatten(state["config"]), flatten(self.config))
        return [change for change in changes if not change.key.startswith(tuple(unread))]

    def _check_sizes(self, settings: list[Change]) -> None:
        """Refuse a checkpoint of a model of other sizes, by the key. Raises UserError."""
        changed = [change for change in settings if change.key.startswith(SIZES)]
        changed = [change for change in changed if None not in (change.old, change.new)]  # taken from the data
        if changed:
            raise self._file.error(
                f"does not fit this model: {', '.join(map(str, changed))}", "is of another architecture"
            )

    def _announce_changes(self, content: dict[str, Any], settings: list[Change], learner: Learner) -> None:
        """Settings and data may change between the parts of a run; it is then no longer the same run.

        Raises:
            UserError: they have, and no epoch is left that would be trained with the new ones.
        """
        state = content["resume_state"]
        features = different_features(learner.model, content["model_state_dict"])
        # The version before had one hash for trips and relations together, which says less.
        inputs = state.get("inputs") or {"teacher": state.get("data_keys", {}).get("teacher", "")}
        inputs = other_inputs(inputs, self.data_keys)
        if self.epochs_found < self._max_epoch:
            announce(settings, inputs)
            if any(change.key == "optimizer_config.max_epoch" for change in settings):
                logger.info("the learning-rate schedule is that of the new number of epochs from now on")
            if features:
                logger.warning(
                    f"other {', '.join(features)} than so far: from now on those of the data's files are used, and not "
                    "those in the checkpoint"
                )
            return
        without_effect = list(WITHOUT_EFFECT_ON_THE_RESULT)
        if Precision(state["config"]["training"]["precision"], learner.precision.device).name == learner.precision.name:
            without_effect.append("training.precision")
        shaping = [str(change) for change in settings if not change.key.startswith(tuple(without_effect))]
        shaping += [f"other {name}" for name in (*inputs, *features)]
        if shaping:
            raise self._file.finished_with_others(
                self.epochs_found,
                shaping,
                "optimizer_config.max_epoch",
                self.best_path,
                "train with them in a folder of their own (--run_name NAME)",
            )

    def _check_best(self, latest: dict[str, Tensor]) -> None:
        """best.pth must be the file that the checkpoint was saved with. Raises UserError."""
        digest = digest_of(self.best_path)
        if digest == self._best_digest:
            return
        if self.best_epoch == self.epochs_done:
            make_way_for_best(self.best_path, digest, self._replaced_digest)
            save_tensors(latest, self.best_path)
            return
        for path in self.path.parent.glob("best.earlier-*.pth"):
            # Another run had started here, and was killed before it had deleted the checkpoint.
            if not self.best_path.exists() and digest_of(path) == self._best_digest:
                move(path, self.best_path)
                return
        remedy = self._file.remedy("has lost its best model")
        raise UserError(
            f"{self.best_path}: missing or changed; expected the model of epoch {self.best_epoch}, and the checkpoint "
            f"holds that of epoch {self.epochs_done} only; put the file back, or {remedy}"
        )


def _new_id() -> str:
    """Eight letters and digits, as W&B's own ids."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def _read_text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
