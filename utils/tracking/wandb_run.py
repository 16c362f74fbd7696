"""Tracking a run with Weights & Biases, beside its TensorBoard curves, without ever costing the run anything.

TensorBoard's events are the authority; the W&B run follows them. Rows (of batches and epochs) are numbered from 0 in
the order of the events, and a resumed run repeats the rows of the epoch that was interrupted exactly. So a count says
which rows W&B has: online it is the service's own; offline it is in a file beside the client's log, see `COUNT_FILE`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
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

if TYPE_CHECKING:
    from utils.training.metrics import Metrics

INIT_TIMEOUT_S = 15  # a service that does not answer delays the start by this much
FINISH_TIMEOUT_S = 30  # and the end by this much, if no model is uploaded
SLOWEST_UPLOAD_BYTES_PER_S = 1_000_000
SENDS_AGAIN = "the same command, also after the end of the run, sends what is missing"

# In the folder of each part of a run (from a start of the client to its end) that ended in order: how many rows of the
# run W&B has from this part and those before it, or will have after `wandb sync`.
COUNT_FILE = "hoser_rows.txt"
OFFLINE = "offline-"
SET_ASIDE = "set-aside-"  # before the names of folders whose rows are sent again, so that no `wandb sync` finds them

Row = dict[str, float]


def start_wandb(
    config: Config, dataset: str, seed: int, run_id: str, model_bytes: int, rows_done: int
) -> WandbRun | None:
    """Start, or continue, the W&B run `run_id`: online, or else offline, with a warning.

    `model_bytes` is what will be uploaded if `wandb.log_model` is set, `rows_done` the rows of the checkpoint.
    Returns None if W&B cannot be used at all (also a warning), or is disabled by the client's own settings.
    """
    settings, optim = config.wandb, config.optimizer_config
    options = {
        "project": settings.project,
        "entity": settings.entity or None,
        "name": settings.run_name or f"{dataset}_b{optim.batch_size}_acc{optim.accum_steps}",
        "tags": list(dict.fromkeys(settings.tags)),
        "config": without_local_paths({"dataset": dataset, "seed": seed, **config_to_dict(config)}),
        "id": run_id,
        "resume": "allow",  # offline too: `wandb sync` then appends each part of a run to those before it
    }
    try:
        client, rows_sent = _start(options, model_bytes if settings.log_model else 0, rows_done)
        if client.disabled:
            return None
        if client.id != run_id:
            raise RuntimeError(f"the client started run {client.id} instead of {run_id}")
    except Exception as error:  # the client's own errors, those of its settings, its service process: no closed list
        logger.warning(f"W&B cannot be used ({redact(error)}); the run continues without it")
        return None
    where = Path(client.dir).parent if client.offline else redact(client.url)
    logger.info(f"tracking with W&B, run {client.id}: {where}")
    return WandbRun(client, config, rows_sent)


def _start(options: dict[str, Any], upload_bytes: int, rows_done: int) -> tuple[wandb.Run, int]:
    """The run, and how many of its rows W&B has: online, offline or disabled, as the client's settings say.

    Offline too if the service cannot be reached.
    """
    if wandb.run is not None:
        # One of this process that failed: the client would continue it, whatever the id.
        with contextlib.suppress(Exception):
            wandb.run.finish(exit_code=1)
        wandb.teardown()
    # What the client would print is logged here in a line: where it tracks, and how it fails.
    wandb.setup(settings=wandb.Settings(silent=True))
    options["settings"] = _client_settings(upload_bytes)
    mode, folder = wandb.setup().settings.mode, Path(wandb.setup().settings.wandb_dir)
    earlier = _parts(folder, options["id"])
    if mode == "disabled":
        return wandb.init(**options), 0
    if mode not in ("offline", "dryrun"):
        try:
            # Never a question on the terminal: nobody may be there to answer it.
            if not wandb.login(prompt=False, verify=False):
                raise wandb.errors.UsageError("no API key; `uv run wandb login` stores one")
            client = wandb.init(**options)
            # The service has counted; what is only on this disk is sent again.
            for part in earlier:
                if part.name.startswith(OFFLINE) and not _is_synced(part):
                    _set_aside(part)
            return client, client.starting_step if client.resumed else 0
        except (wandb.errors.Error, OSError) as error:
            logger.warning(f"W&B cannot be reached ({redact(error)}); tracking offline. With a network, {SENDS_AGAIN}")
            wandb.teardown()  # or else the same id is still in use
            for part in set(_parts(folder, options["id"])) - set(earlier):  # the client's attempt, without a row
                _set_aside(part)
    rows_sent = _rows_of_parts(earlier, rows_done)
    return wandb.init(**{**options, "mode": "offline"}), rows_sent


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
    # Paths and user of this machine are not for others to see. These names may go in any release of the client.
    for name, value in (("x_disable_meta", True), ("x_save_requirements", False)):
        if name in type(settings).model_fields:
            setattr(settings, name, value)
    return settings


def _parts(folder: Path, run_id: str) -> list[Path]:
    """Folders of the parts of a run, the earliest first."""
    # A part that starts in the second of another one has a number behind the id in its folder's name.
    folders = {path.parent for path in folder.glob(f"*run-*/run-{run_id}.wandb")}
    parts = [path for path in folders if path.name.startswith(("run-", f"{OFFLINE}run-"))]
    return sorted(parts, key=lambda path: path.name.removeprefix(OFFLINE))


def _is_synced(part: Path) -> bool:
    """Whether `wandb sync` has sent it."""
    return any(part.glob("*.synced"))


def _set_aside(part: Path) -> None:
    # A part that starts in the second in which one that was set aside had started gets the same name.
    numbers = itertools.chain([""], map("-{}".format, itertools.count(2)))
    names = (part.with_name(SET_ASIDE + part.name + number) for number in numbers)
    part.rename(next(path for path in names if not path.exists()))


def _rows_of_parts(parts: list[Path], rows_done: int) -> int:
    """How many rows W&B has, or will have, from the `parts` of a run; `rows_done` are those of the checkpoint.

    An offline part that was killed may end in half a record, at which `wandb sync` would stop: it is set aside, and
    the next part has its rows.

    Raises:
        RuntimeError: the last part was online and was cut off.
    """
    rows, is_cut_off = 0, False
    for part in parts:
        file = part / COUNT_FILE
        count = file.read_text() if file.exists() else ""
        is_cut_off = False
        if count.isdigit():
            rows = int(count)
        elif _is_synced(part):
            rows = rows_done
        elif part.name.startswith(OFFLINE):
            _set_aside(part)
        else:
            is_cut_off = True
    if is_cut_off:
        raise RuntimeError(f"only the service knows what arrived of an online part that was cut off; {SENDS_AGAIN}")
    return rows


class WandbRun:
    """A started W&B run. A failure is logged once and ends the tracking, never the training."""

    def __init__(self, client: wandb.Run, config: Config, rows_sent: int):
        """Continue behind the first `rows_sent` rows, which W&B has."""
        self._config = config
        self._client: wandb.Run | None = client
        self._is_offline: bool = client.offline
        self._rows_sent = rows_sent
        self._next_row = 0
        self._unsent: list[tuple[int, Row]] = []
        self._trouble: str | None = None  # logged at the end, if that does not fail as well
        self._guard(self._define_axes)

    def catch_up(self, rows: Iterable[Row], rows_done: int) -> None:
        """Log the rows of the curves so far, of which the checkpoint counts `rows_done`."""
        self.log_rows(rows)
        self.epoch_saved()
        self._next_row = max(self._next_row, rows_done)  # if event files were deleted, their rows are lost

    def log_rows(self, rows: Iterable[Row]) -> None:
        """Log the next rows, but for those that W&B has: {"batch": 3, "loss": ...} or {"epoch": 1, ...}.

        Offline they wait until the checkpoint of their epoch is saved: no later part will have them again.
        """
        for row in rows:
            if self._next_row >= self._rows_sent:
                self._unsent.append((self._next_row, row))
            self._next_row += 1
        if not self._is_offline:
            self.epoch_saved()

    def epoch_saved(self) -> None:
        """Log the rows that wait for the checkpoint."""
        for number, row in self._unsent:
            self._guard(lambda number=number, row=row: self._client.log(row, step=number, commit=True))
            self._rows_sent = number + 1
        self._unsent.clear()

    def log_result(self, best_epoch: int, epochs: int, best: Metrics, test: Metrics, best_path: Path) -> None:
        """Put the metrics of the whole run into its summary; upload its best model if `wandb.log_model` is set."""
        summary = {
            "epoch": epochs,
            "best_epoch": best_epoch,
            "best_val_acc": best.next_step_acc,
            **{f"test_{name}": value for name, value in dataclasses.asdict(test).items()},
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
        trouble = None if self._is_offline else self._trouble or first_error(folder / "logs" / "debug-internal.log")
        if trouble:
            logger.warning(f"W&B may not have all of the run ({redact(trouble)}); {SENDS_AGAIN}")
            return
        with contextlib.suppress(OSError):  # without the count the rows are only sent again
            (folder / COUNT_FILE).write_text(str(self._rows_sent))
        if self._is_offline:
            parts = f"{folder.parent}/".replace(f"{Path.cwd()}/", "") + f"offline-run-*-{client.id}*"
            logger.info(f"W&B was offline; to upload: uv run wandb sync {parts}")

    def _guard(self, action: Callable[[], object]) -> None:
        if self._client is None:
            return
        try:
            action()
        except Exception as error:  # no closed list, see above; it must not reach the training
            folder = Path(self._client.dir).parent
            self._client = None
            logger.warning(
                f"W&B failed ({redact(error)}); the run continues without it. What was logged is kept in {folder}; "
                f"{SENDS_AGAIN}"
            )

    def _define_axes(self) -> None:
        self._client.define_metric("batch", hidden=True)
        self._client.define_metric("epoch", hidden=True)
        # Not "*": the client would then add the number of a batch to the rows of epochs.
        for pattern, axis in (("loss*", "batch"), ("learning_rate", "batch"), ("val_*", "epoch")):
            self._client.define_metric(pattern, step_metric=axis)

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


def first_error(path: Path) -> str | None:
    """The first error in the log of the client's service process, which prints nothing when a request is refused."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        if '"level":"ERROR' in line:
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                entry = json.loads(line)
                return ": ".join(str(entry[key]) for key in ("msg", "error", "status") if key in entry)
    return None


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
