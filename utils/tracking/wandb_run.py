"""Tracking a run with Weights & Biases, beside its TensorBoard curves, without ever costing the run anything.

TensorBoard's events are the authority; the W&B run follows them. A row (a batch or an epoch) is logged when it is
not among the rows that the client's logs or the service already have, so that a run that was killed anywhere, in
whatever mode, ends with each row once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

from loguru import logger

from utils.config import Config, config_to_dict
from utils.tracking.wandb_client import wandb
from utils.tracking.wandb_log import PartLog, RowKey, first_error, part_logs, rows_at_service

if TYPE_CHECKING:
    from utils.training.metrics import Metrics

INIT_TIMEOUT_S = 15  # a service that does not answer delays the start by this much
FINISH_TIMEOUT_S = 30  # and the end by this much, if no model is uploaded
SLOWEST_UPLOAD_BYTES_PER_S = 1_000_000
AXES = ("batch", "epoch")
SENDS_AGAIN = "the same command, also after the end of the run, sends what is missing"

Row = dict[str, float]


def start_wandb(config: Config, dataset: str, seed: int, run_id: str, model_bytes: int) -> WandbRun | None:
    """Start, or continue, the W&B run `run_id`: online, or else offline, with a warning.

    None if W&B cannot be used at all (also a warning), or is disabled by the client's own settings.
    `model_bytes` is what will be uploaded if `wandb.log_model` is set.
    """
    settings, optim = config.wandb, config.optimizer_config
    options = {
        "project": settings.project,
        "entity": settings.entity or None,
        "name": settings.run_name or f"{dataset}_b{optim.batch_size}_acc{optim.accum_steps}",
        "tags": list(dict.fromkeys(settings.tags)),
        "config": without_local_paths({"dataset": dataset, "seed": seed, **config_to_dict(config)}),
        "id": run_id,
        # In offline mode too: `wandb sync` then puts the parts of a run one behind the other.
        "resume": "allow",
    }
    try:
        client = _start(options, model_bytes if settings.log_model else 0)
        if client.disabled:
            return None
        if client.id != run_id:
            raise RuntimeError(f"the client started run {client.id} instead of {run_id}")
    except Exception as error:  # the client's own errors, those of its settings, its service process: no closed list
        logger.warning(f"W&B cannot be used ({redact(error)}); the run goes on without it")
        return None
    where = Path(client.dir).parent if client.offline else redact(client.url)
    logger.info(f"tracking with W&B, run {client.id}: {where}")
    return WandbRun(client, config)


def _start(options: dict[str, Any], upload_bytes: int) -> wandb.Run:
    """A run as the client's settings say: online, offline or disabled; offline if the service cannot be had."""
    if wandb.run is not None:
        # One of this process that failed: the client would go on with it, whatever the id.
        with contextlib.suppress(Exception):
            wandb.run.finish(exit_code=1)
        wandb.teardown()
    # What the client would say on the terminal is said here in a line: where it tracks, and how it fails.
    wandb.setup(settings=wandb.Settings(silent=True))
    options["settings"] = _client_settings(upload_bytes)
    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return wandb.init(**options)
    try:
        # Never a question on the terminal: nobody may be there to answer it.
        if not wandb.login(prompt=False, verify=False):
            raise wandb.errors.UsageError("no API key; `uv run wandb login` stores one")
        return wandb.init(**options)
    except (wandb.errors.Error, OSError) as error:
        logger.warning(
            f"W&B cannot be reached ({redact(error)}); tracking goes on offline. With a network, {SENDS_AGAIN}"
        )
        wandb.teardown()  # or else the same id is still in use
        return wandb.init(**{**options, "mode": "offline"})


def _client_settings(upload_bytes: int) -> wandb.Settings:
    settings = wandb.Settings(
        init_timeout=INIT_TIMEOUT_S,
        finish_timeout=FINISH_TIMEOUT_S + upload_bytes / SLOWEST_UPLOAD_BYTES_PER_S,
        finish_timeout_raises=True,
        console="off",  # our log has paths of this machine
        disable_git=True,
        program=Path(sys.argv[0]).name,  # by default with its whole path
        silent=True,
        host="",
    )
    # Not settings for the public, so they may go: the log on the disk is by default 15 s behind; and paths and
    # user of this machine are not for others to see.
    for name, value in (
        ("x_transaction_log_flush_interval", 1.0),
        ("x_disable_meta", True),
        ("x_save_requirements", False),
    ):
        if name in type(settings).model_fields:
            setattr(settings, name, value)
    return settings


class WandbRun:
    """A started W&B run. Its failures are told once and end the tracking, never the training."""

    def __init__(self, client: wandb.Run, config: Config):
        self._config = config
        self._client: wandb.Run | None = client
        self.id: str = client.id
        self._known: set[RowKey] = set()
        self._skip = 0  # rows that the service has and this disk does not know of
        self._has_gap = False  # whether an online part before this offline one was cut off, its last rows with it
        self._trouble: str | None = None  # told of at the end, if that is not in trouble as well
        self._guard(self._define_axes)
        self._guard(self._find_known_rows)

    def log_rows(self, rows: Iterable[Row]) -> None:
        """Log rows, each with its number on one of the `AXES`, unless they are there already."""
        for row in rows:
            key = next((axis, int(row[axis])) for axis in AXES if axis in row)
            if key in self._known:
                continue
            self._known.add(key)
            if self._skip:
                self._skip -= 1
                continue
            self._guard(lambda row=row: self._client.log(row))

    def log_result(self, best_epoch: int, epochs: int, best: Metrics, test: Metrics, best_path: Path) -> None:
        """Put the figures of the whole run into its summary; upload its best model if `wandb.log_model` is set."""
        summary = {
            "epoch": epochs,
            "best_epoch": best_epoch,
            "best_val_acc": best.next_step_acc,
            "test_next_step_acc": test.next_step_acc,
            "test_time_pred_mape": test.time_pred_mape,
        }
        self._guard(lambda: self._client.summary.update(summary))
        if self._config.wandb.log_model:
            self._guard(lambda: self._upload(best_path, best_epoch, best))

    def finish(self, exit_code: int) -> None:
        """End this part of the run; what cannot be uploaded in time stays on the disk."""
        client = self._client
        if client is None:
            return
        self._guard(lambda: client.finish(exit_code=exit_code))
        if self._client is None:
            return
        self._client, folder = None, Path(client.dir).parent
        if client.offline:
            how = f"uv run wandb sync {folder.parent}/offline-run-*-{self.id}*"
            if self._has_gap:
                # `wandb sync` would put these rows behind what arrived, and leave out what did not.
                how = f"not with `wandb sync`, since an earlier part was cut off; {SENDS_AGAIN}"
            logger.info(f"W&B was offline; to upload: {how}")
            return
        trouble = self._trouble or first_error(folder / "logs" / "debug-internal.log")
        if trouble:
            logger.warning(f"W&B may not have got all of the run ({redact(trouble)}); {SENDS_AGAIN}")

    def _guard(self, action: Callable[[], object]) -> None:
        if self._client is None:
            return
        try:
            action()
        except Exception as error:  # no closed list, see above; the training must not hear of it
            folder = Path(self._client.dir).parent
            self._client = None
            logger.warning(
                f"W&B failed ({redact(error)}); the run goes on without it. What was logged is kept in {folder}; "
                f"{SENDS_AGAIN}"
            )

    def _define_axes(self) -> None:
        self._client.define_metric("batch", hidden=True)
        self._client.define_metric("epoch", hidden=True)
        # Not "*": the client would then add the number of a batch to the rows of epochs.
        for pattern, axis in (("loss*", "batch"), ("learning_rate", "batch"), ("val_*", "epoch")):
            self._client.define_metric(pattern, step_metric=axis)

    def _find_known_rows(self) -> None:
        client = self._client
        own = Path(client.dir).parent
        logs = [log for log in part_logs(own.parent, client.id) if log.path.parent != own.resolve()]
        _mend(logs)
        if client.offline:
            self._known = {key for log in logs for key in log.rows()}
            self._has_gap = any(not log.is_offline and not log.has_ended for log in logs)
            return
        for log in logs:
            if log.is_offline and not log.is_synced:
                # Sent now: `wandb sync`, later, would put old figures into the summary.
                log.set_aside()
                logs = [other for other in logs if other is not log]
        rows = rows_at_service(logs, client.starting_step if client.resumed else 0)
        self._known = {key for key in rows if key is not None}
        self._skip = rows.count(None)

    def _upload(self, path: Path, epoch: int, metrics: Metrics) -> None:
        """Upload a model as a file of the run and as a model artifact, both named best.pth."""
        client = self._client
        # A copy: an offline run is uploaded later, when the run's folder may hold another model.
        copy = Path(client.dir) / "best.pth"
        shutil.copyfile(path, copy)
        client.save(str(copy), base_path=client.dir, policy="now")
        metadata = {
            "dataset": client.config["dataset"],
            "seed": client.config["seed"],
            "epoch": epoch,
            "val_acc": metrics.next_step_acc,
            "val_time_pred_mape": metrics.time_pred_mape,
            "distill": client.config["distill"],
        }
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", f"hoser-{metadata['dataset']}-{client.id}")
        try:
            artifact = wandb.Artifact(name, type="model", metadata=metadata)
            artifact.add_file(str(copy), name="best.pth")
            client.log_artifact(artifact, aliases=["latest", "best"])
        except Exception as error:  # no closed list, as elsewhere here
            self._trouble = f"best.pth as an artifact: {redact(error)}"


def _mend(logs: list[PartLog]) -> None:
    """Bring the logs of offline parts that were killed into a form that `wandb sync` can read.

    One without content would even keep it from the others, so it is removed.
    """
    for log in [log for log in logs if log.is_offline and not log.is_synced]:
        if log.is_empty():
            shutil.rmtree(log.path.parent)
            logs.remove(log)
        else:
            log.mend()


def without_local_paths(value: Any) -> Any:
    """Nested values with each path that leads out of the working folder cut to its last name."""
    if isinstance(value, dict):
        return {key: without_local_paths(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str) and _is_local_path(value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def _is_local_path(text: str) -> bool:
    leads_out = ".." in re.split(r"[/\\]", text)
    return text.startswith(("/", "~", "file:")) or PureWindowsPath(text).is_absolute() or leads_out


def redact(error: BaseException | str) -> str:
    """An error in one line, without API keys and passwords."""
    text = " ".join(str(error).split()) or type(error).__name__
    key = os.environ.get("WANDB_API_KEY")
    if key:
        text = text.replace(key, "***")
    return re.sub(r"//[^/@\s]+@", "//***@", text)[:300]
