"""The rolling checkpoint of distillation training, and exact resume from it.

Nothing random need be stored: shuffles, dropout and the learning rate are functions of seed, epoch and step.
"""

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
from utils.files.tensor_files import load_tensors, save_tensors, state_dict_of
from utils.runtime.device import Precision
from utils.training.engine import Learner, restore_optimizer
from utils.training.metrics import Metrics
from utils.training.weights import different_features, load_parameters

VERSION = 2
MOMENTS = 2  # that AdamW keeps, each as large as the model
KEYS = (
    "epoch",
    "seed",
    "dataset",
    "distill_enabled",
    "model_state_dict",
    "optimizer_state_dict",
    "best_val_acc",
    "validation_metrics",
    "wandb_run_id",
    "resume_state",
)
STATE_KEYS = ("batches_done", "scaler", "val_time_pred_mape", "best_digest", "config")  # of resume_state
KINDS = {
    "epoch": int,
    "seed": int,
    "dataset": str,
    "distill_enabled": bool,
    "validation_metrics": list,
    "resume_state": dict,
}

# Keys (or sections, with a dot) of the configuration, by what a change of them means to a run that goes on.
UNREAD = ("teacher.", "optuna.")  # other programs read them
SIZES = (
    "road_network_encoder_config.",
    "navigator_config.",
    *(f"trajectory_encoder_config.{name}" for name in ("hidden_dim", "num_heads", "num_layers")),
)
WITHOUT_EFFECT_ON_THE_RESULT = (
    *("wandb.", "training.compile", "distill.cache", "distill.enable"),
    "optimizer_config.max_epoch",  # of a run that has more epochs, which is told by itself
    # What they lead to is compared: trips, teacher, sizes.
    *("data.", "trajectory_encoder_config.max_len", "distill.teacher"),
    *(f"road_network_encoder_config.{name}" for name in ("road_id_num_embeddings", "type_num_embeddings")),
)


@dataclass(frozen=True)
class Identity:
    """What a run must share with a checkpoint to go on from it."""

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
        self.data_keys: dict[str, str] = {}
        self.validations: list[Metrics] = []
        self.wandb_run_id: str | None = None
        self.batches_done = 0  # through all epochs; those of an epoch may change between the parts of a run
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

    def restore(self, learner: Learner, data_keys: dict[str, str]) -> None:
        """Put model, optimizer and gradient scaler into the state of the checkpoint, if there is one.

        `data_keys` are hashes of what the training depends on, by what it is.

        Raises:
            UserError: it is of another architecture, best.pth is not the file that goes with it, or no epoch is left
                and it was trained with other settings.
        """
        self.data_keys = data_keys
        if self._content is None:
            # Not before all that the new run needs has been found in order.
            self._make_room()
            return
        content, state = self._content, self._content["resume_state"]
        self._content = None  # several times the model: not to be held through the run
        self._check_parts(content, state)
        self._check_sizes(state)
        model, weights = learner.model, content["model_state_dict"]
        self._tell_changes(state, learner.precision, different_features(model, weights))
        load_parameters(model, weights, self.path, self._remedy("is of another architecture"))
        try:
            restore_optimizer(learner.optimizer, content["optimizer_state_dict"])
        except (ValueError, KeyError) as error:  # torch's own words for a state of other parameters
            raise UserError(f"{self.path}: {error}; {self._remedy('is corrupt')}") from None
        learner.precision.load_scaler(state["scaler"])
        accuracies, mapes = content["validation_metrics"], state["val_time_pred_mape"]
        self.validations = [Metrics(*pair) for pair in zip(accuracies, mapes, strict=True)]
        self._best_digest, self._replaced_digest = state["best_digest"], state.get("replaced_digest", "")
        self.batches_done, self.wandb_run_id = state["batches_done"], content["wandb_run_id"]
        self._check_best(weights)
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
                save_tensors(load_tensors(self.path) | {"wandb_run_id": self.wandb_run_id}, self.path)
                return self.wandb_run_id
            atomic_write(self._claim_path, lambda file: file.write(f"{self.wandb_run_id} {key}".encode()))
        return self.wandb_run_id

    def save(self, learner: Learner, metrics: Metrics, batches_done: int) -> None:
        """Save the epoch that was just validated; if strictly better than all before, also as best.pth."""
        self.batches_done = batches_done
        self.validations.append(metrics)
        if not self._writes:
            return
        model_state = state_dict_of(learner.model)
        is_best = self.best_epoch == self.epochs_done
        if is_best:
            self._replaced_digest, self._best_digest = self._best_digest, content_digest(model_state)
        content = {
            "epoch": self.epochs_done - 1,
            "seed": self.identity.seed,
            "dataset": self.identity.dataset,
            "distill_enabled": self.identity.distill_enabled,
            "model_state_dict": model_state,
            "optimizer_state_dict": on_cpu(learner.optimizer.state_dict()),
            "best_val_acc": self.best_val_acc,
            "validation_metrics": [item.next_step_acc for item in self.validations],
            "wandb_run_id": self.wandb_run_id,
            "resume_state": {
                "version": VERSION,
                "batches_done": batches_done,
                "scaler": learner.precision.scaler.state_dict(),
                "val_time_pred_mape": [item.time_pred_mape for item in self.validations],
                "best_digest": self._best_digest,
                "replaced_digest": self._replaced_digest,
                "config": self.config,
                "inputs": self.data_keys,
            },
        }
        save_tensors(content, self.path)
        remove(self._claim_path)
        # In this order: when we are killed between the two, best.pth can be had from the checkpoint.
        if is_best:
            save_tensors(model_state, self.best_path)

    def _tell_of_the_former_place(self) -> None:
        """Runs without a teacher shared the folder of those with one, in the version before."""
        former = self.path.parent.with_name(f"seed{self.identity.seed}_distill") / self.path.name
        if self.path.parent.name != f"seed{self.identity.seed}_nodistill" or not former.exists() or not self._writes:
            return
        content = load_tensors(former, mmap=True)
        if isinstance(content, dict) and content.get("distill_enabled") is False:
            name = former.parent.name
            logger.warning(f"{former} is of a run without a teacher: to go on with it, --run_name {name}")

    def _read(self) -> dict[str, Any] | None:
        if not self.path.exists():
            self._tell_of_the_former_place()
            return None
        try:
            content = load_tensors(self.path)
        except UserError as error:
            raise UserError(f"{error}; {self._remedy('is corrupt')}") from None
        if isinstance(content, dict) and "val_perplexity" in content:
            raise UserError(f"{self.path}: is a teacher's; choose another --run_name")
        if not isinstance(content, dict) or not set(KEYS) <= set(content):
            missing = [key for key in KEYS if not isinstance(content, dict) or key not in content]
            raise UserError(
                f"{self.path}: no checkpoint of this script (lacks {', '.join(missing)}); {self._remedy('is corrupt')}"
            )
        for key, kind in KINDS.items():
            if type(content[key]) is not kind or (kind is int and not 0 <= content[key] < 2**32):
                raise UserError(
                    f"{self.path}: {key}: found {type(content[key]).__name__}, expected {kind.__name__}; "
                    f"{self._remedy('is corrupt')}"
                )
        self._mismatches = self._compare(content)
        if self._mismatches:
            return None
        if content["resume_state"].get("version") != VERSION:
            raise UserError(
                f"{self.path}: has another format than this version of the program, {VERSION}; "
                f"{self._remedy('is too old')}"
            )
        if content["epoch"] + 1 < self._max_epoch:
            logger.info(f"✅ Valid checkpoint found: will resume from epoch {content['epoch'] + 2}")
        return content

    def _compare(self, content: dict[str, Any]) -> list[str]:
        """Where the checkpoint is another run's."""
        pairs = (
            ("seed", content["seed"], self.identity.seed),
            ("dataset", content["dataset"][:100], self.identity.dataset),
            ("distill", content["distill_enabled"], self.identity.distill_enabled),
        )
        return [f"{name}={found} vs {own}" for name, found, own in pairs if found != own]

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

    def _check_parts(self, content: dict[str, Any], state: dict[str, Any]) -> None:
        """Refuse a checkpoint that lacks what training goes on with. Raises UserError."""
        missing = [key for key in STATE_KEYS if key not in state]
        epochs = content["epoch"] + 1
        lengths = [len(part) for part in (content["validation_metrics"], state.get("val_time_pred_mape", ()))]
        if missing or lengths != [epochs, epochs]:
            reason = f"lacks {', '.join(missing)}" if missing else f"{epochs} epochs, metrics of {lengths}"
            raise UserError(f"{self.path}: its parts do not fit each other ({reason}); {self._remedy('is corrupt')}")

    def _check_sizes(self, state: dict[str, Any]) -> None:
        """Refuse a checkpoint of a model of other sizes, by the key. Raises UserError."""
        changed = [change for change in self._changes(state) if change.key.startswith(SIZES)]
        changed = [change for change in changed if None not in (change.old, change.new)]  # taken from the data
        if changed:
            raise UserError(
                f"{self.path}: does not fit this model: {', '.join(map(str, changed))}; "
                f"{self._remedy('is of another architecture')}"
            )

    def _changes(self, state: dict[str, Any]) -> "list[Change]":
        """The settings that this training reads and that are not those of the checkpoint."""
        old, new = (flatten(config) for config in (state.get("config") or {}, self.config))
        unread = list(UNREAD)
        unread += ["distill."] if not self.identity.distill_enabled else []
        unread += ["wandb."] if not self.config["wandb"]["enable"] else []
        return [
            Change(key, old[key], new[key])
            for key in sorted(old.keys() & new.keys())
            if old[key] != new[key] and not key.startswith(tuple(unread))
        ]

    def _tell_changes(self, state: dict[str, Any], precision: Precision, features: list[str]) -> None:
        """Settings and data may change between the parts of a run; it is then no longer the same run.

        `features` are those of the road network that have changed.

        Raises:
            UserError: they have, and no epoch is left that would be trained with the new ones.
        """
        settings = self._changes(state)
        # The version before had one hash for trips and relations together, which says less.
        inputs = state.get("inputs") or {"teacher": state.get("data_keys", {}).get("teacher", "")}
        data = [name for name, key in self.data_keys.items() if key and inputs.get(name, key) not in (key, "")]
        if self.epochs_found >= self._max_epoch:
            if self._same_arithmetic(state, precision):
                settings = [change for change in settings if change.key != "training.precision"]
            shaping = [str(item) for item in settings if not item.key.startswith(WITHOUT_EFFECT_ON_THE_RESULT)]
            shaping += [f"other {name}" for name in (*data, *features)]
            if shaping:
                raise self._finished_with_others(shaping)
            return
        for change in settings:
            logger.warning(f"{change.key} was {change.old} so far, and is {change.new} now")
            if change.key == "optimizer_config.max_epoch":
                logger.info("the learning-rate schedule goes on as that of the new number of epochs")
        for name in data:
            logger.warning(f"the {name} is not the same as so far")
        if features:
            logger.warning(
                f"other {', '.join(features)} than so far: from now on those of the data's files are used, and not "
                "those in the checkpoint"
            )

    @staticmethod
    def _same_arithmetic(state: dict[str, Any], precision: Precision) -> bool:
        """Whether the setting of the checkpoint means on this device what the present one means."""
        return Precision(state["config"]["training"]["precision"], precision.device).name == precision.name

    def _finished_with_others(self, differences: list[str]) -> UserError:
        done, shown = self.epochs_found, self.path
        return UserError(
            f"{shown}: training is complete ({done} epochs), but not with these settings: {', '.join(differences)}. "
            "Train with them in a folder of their own (--run_name NAME), or go on from here (--set "
            f"optimizer_config.max_epoch=N, above {done}), or start this run over (rm {shown}; best.pth is kept under "
            "another name), or repeat its own settings to see its result again"
        )

    def _check_best(self, latest: dict[str, Tensor]) -> None:
        """best.pth must be the file that the checkpoint was saved with."""
        digest = _digest_of(self.best_path)
        if digest == self._best_digest:
            return
        if self.best_epoch == self.epochs_done:
            if digest not in ("", self._replaced_digest):  # neither damaged nor the best one before
                aside = set_aside(self.best_path)
                logger.warning(f"{self.best_path} is not of this run: kept as {aside.name}")
            save_tensors(latest, self.best_path)
            return
        for path in self.path.parent.glob("best.earlier-*.pth"):
            # Another run had begun here, and was killed before it had deleted the checkpoint.
            if not self.best_path.exists() and _digest_of(path) == self._best_digest:
                move(path, self.best_path)
                return
        raise UserError(
            f"{self.best_path}: missing or changed; expected the model of epoch {self.best_epoch}, and "
            f"the checkpoint holds that of epoch {self.epochs_done} only; put the file back, or "
            f"{self._remedy('has lost its best model')}"
        )

    def _remedy(self, trouble: str) -> str:
        return (
            f"the checkpoint {trouble}: to restart training from scratch, rm {self.path} and run the same command again"
        )


@dataclass(frozen=True)
class Change:
    """A setting that is not what it was."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key} is {self.new} and was {self.old}"


def _new_id() -> str:
    """Eight letters and digits, as W&B's own ids."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def _digest_of(path: Path) -> str:
    """Of the content of a file of tensors; empty if there is none, or a damaged one."""
    try:
        return content_digest(load_tensors(path))
    except UserError:
        return ""


def _read_text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


def on_cpu(value: Any) -> Any:
    """Nested dicts and lists with every tensor on the CPU, so that they load on machines without a GPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: on_cpu(item) for key, item in value.items()}
    return [on_cpu(item) for item in value] if isinstance(value, list) else value
