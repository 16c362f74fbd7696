"""Where a run keeps its files, its log, its TensorBoard events and its W&B run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from loguru import logger
from torch.utils.tensorboard import SummaryWriter

from utils.config import Config, config_to_yaml
from utils.data.dataset import City
from utils.data.loader import BatchLoader
from utils.errors import UserError
from utils.files.atomic import atomic_write, make_folder, remove_temporary_files, write_error
from utils.files.locks import folder_lock
from utils.runtime.distributed import ALONE, Processes
from utils.tracking.event_files import read_rows, retire_events, trim_events
from utils.tracking.log_file import add_log_file
from utils.training.heuristics import Heuristics
from utils.training.metrics import BatchRecord, Metrics

if TYPE_CHECKING:
    from utils.tracking.wandb_run import WandbRun


# Errors that end a run as somebody intended, and what the log file says of them.
AS_INTENDED = {
    "KeyboardInterrupt": "stopped by Ctrl-C (SIGINT)",
    "TerminatedError": "stopped by SIGTERM",
    "TrialPruned": "stopped by the search: this trial is pruned",
}


@dataclass
class Run:
    """The folders of one run, below the working folder, and its curves."""

    save: Path
    log: Path
    tensorboard: Path
    processes: Processes = ALONE  # the first writes, and the others only have the paths
    writer: SummaryWriter | None = None  # once the curves are open
    wandb: WandbRun | None = None  # distillation training, where the configuration says so
    rows_done: int = 0  # batches and epochs of the checkpoint

    def open_curves(self, batches: int = 0, epochs: int = 0) -> None:
        """Start empty curves, or continue those of an interrupted run after `batches` and `epochs`."""
        if not self.processes.is_main:
            return
        self.rows_done = batches + epochs
        with self._writing_curves():
            if epochs:
                trim_events(self.tensorboard, batches, epochs)
            else:
                retire_events(self.tensorboard)
            self.writer = SummaryWriter(str(self.tensorboard))

    def write_config(self, config: Config) -> None:
        """Write the configuration in force as `config.yaml` beside the log: a file that `--config` takes."""
        if not self.processes.is_main:
            return
        path, text = self.log / "config.yaml", config_to_yaml(config)
        atomic_write(path, lambda file: file.write(text.encode()))
        logger.info(f"the whole configuration: {path}")
        logger.bind(file_only=True).info(f"configuration in force:\n{text}")  # stays when another run replaces the file

    def start_wandb(self, config: Config, dataset: str, seed: int, run_id: str, model_bytes: int) -> None:
        """Start the W&B run `run_id`, which gets all rows of the curves that it does not have yet."""
        # Takes a second, and few runs need it.
        from utils.tracking.wandb_run import start_wandb

        self.wandb = start_wandb(config, dataset, seed, run_id, model_bytes, self.rows_done)
        if self.wandb is not None:
            self.wandb.catch_up(read_rows(self.tensorboard), self.rows_done)

    def log_scalars(self, tag: str, points: list[tuple[int, float]]) -> None:
        """Points (step, value) of one curve."""
        with self._writing_curves():
            for step, value in points:
                self.writer.add_scalar(tag, value, step)
            self.writer.flush()

    def log_batches(self, records: list[BatchRecord]) -> None:
        """Losses and learning rate of batches, by the batch number."""
        if self.writer is None:
            return
        rows = [{"batch": r.batch, "learning_rate": r.learning_rate, **r.losses} for r in records]
        with self._writing_curves():
            for row in rows:
                for name, value in row.items():
                    if name != "batch":
                        self.writer.add_scalar(name, value, row["batch"])
        if self.wandb is not None:
            self.wandb.log_rows(rows)

    def log_epoch(self, epoch: int, max_epoch: int, metrics: Metrics, seconds: float) -> None:
        """Validation metrics of an epoch (from 1), by the epoch number."""
        if self.writer is None:
            return
        values = {f"val_{name}": value for name, value in dataclasses.asdict(metrics).items()}
        with self._writing_curves():
            for name, value in values.items():
                self.writer.add_scalar(name, value, epoch)
            self.writer.flush()
        if self.wandb is not None:
            self.wandb.log_rows([{"epoch": epoch, **values}])
        logger.opt(raw=True).info(epoch_line(epoch, max_epoch, metrics, seconds, datetime.now()))

    def epoch_saved(self) -> None:
        """Let W&B have the rows of an epoch whose checkpoint is saved."""
        if self.wandb is not None:
            self.wandb.epoch_saved()

    def log_result(self, best_epoch: int, epochs: int, best: Metrics, test: Metrics, best_path: Path) -> None:
        """Put the result into the W&B run, if there is one, with the best model if the configuration says so."""
        if self.wandb is not None:
            self.wandb.log_result(best_epoch, epochs, best, test, best_path)

    def close(self, succeeded: bool) -> None:
        """End the curves."""
        if self.writer is not None:
            # What ended the run may be that they cannot be written.
            with contextlib.nullcontext() if succeeded else contextlib.suppress(OSError):
                self.writer.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=0 if succeeded else 1)

    @contextlib.contextmanager
    def _writing_curves(self) -> Iterator[None]:
        """Turn what TensorBoard's writer raises, in its thread or in ours, into a `WriteError`."""
        try:
            yield
        except OSError as error:
            raise write_error(self.tensorboard, error, kept="the points written so far stay") from None


def epoch_line(epoch: int, max_epoch: int, metrics: Metrics, seconds: float, now: datetime) -> str:
    """The log line of a validation.

    `grep val_next_step_acc *.log | sort -t',' -k2 -rn | head -1` must print the best epoch: the accuracy is
    the second comma-separated field. Of equal numbers that command prints the line that is last in the
    alphabet, and the best epoch is the first of equals, so the line begins with what counts down, and not
    with the time.
    """
    to_go = f"{max_epoch - epoch:0{len(str(max_epoch))}d} to go"
    return (
        f"{to_go} | epoch {epoch}/{max_epoch} val_next_step_acc, {metrics.next_step_acc:.9f}, "
        f"val_time_pred_mape, {metrics.time_pred_mape:.6f} (of log1p(s); of seconds {metrics.time_mape:.4f}, "
        f"MAE {metrics.time_mae_s:.2f} s) | {seconds:.1f} s | {now:%Y-%m-%d %H:%M:%S}\n"
    )


def log_data(city: City, loaders: dict[str, BatchLoader], heuristics: Heuristics) -> None:
    """What there is to learn from, and the heuristics on the validation split."""
    counts = ", ".join(f"{loader.num_trips:,} {split}" for split, loader in loaders.items())
    logger.info(f"{city.network.num_roads:,} roads in {city.folder}; trips: {counts}")
    logger.info(
        f"without learning, on val: smallest angle {heuristics.smallest_angle_acc:.4f}, "
        f"smallest distance {heuristics.smallest_distance_acc:.4f}; "
        f"steps with a single candidate {heuristics.single_candidate_share:.4f}"
    )


def log_summary(best_epoch: int, best: Metrics, test: Metrics, best_path: str, seconds: list[float]) -> None:
    """The end of a run, in a few lines."""
    logger.info(f"best epoch {best_epoch}: {best} (val)")
    logger.info(f"test: {test}")
    per_epoch = f"; {sum(seconds) / len(seconds):.1f} s per epoch" if seconds else ""
    logger.info(f"best model: {best_path}{per_epoch}")


def check_run_name(dataset: str, run_name: str) -> None:
    """Refuse the name of a run that leads out of the folders.

    Raises:
        UserError: it does.
    """
    parts = Path(run_name).parts
    if not parts or Path(run_name).is_absolute() or ".." in parts or not run_name.isprintable():
        raise UserError(f"run name {run_name!r}: expected a path below save/{dataset}/, such as tune/study/trial_0")


def curves_folder(dataset: str, run_name: str) -> Path:
    """Where a run's TensorBoard events are.

    Runs of a search (`tune/...`) have a folder beside the dataset's, so that `tensorboard --logdir
    tensorboard_log/{dataset}` shows only the runs that a person compares.
    """
    top, (first, *rest) = Path("tensorboard_log"), Path(run_name).parts
    folder = top / dataset / run_name
    if first != "tune" or not rest or folder.is_dir():  # is_dir: of a version that had all runs in one folder
        return folder
    return Path(top, f"{dataset}_tune", *rest)


@contextlib.contextmanager
def open_run(dataset: str, run_name: str, processes: Processes = ALONE) -> Iterator[Run]:
    """Make the folders of a run and hold them for this process; log to a new file until the end.

    Of several processes the first does so for all.

    Raises:
        UserError: a name that leads out of the folders, a folder that cannot be written or that another
            process is using.
    """
    check_run_name(dataset, run_name)
    save, log, tensorboard = (
        Path("save") / dataset / run_name,
        Path("log") / dataset / run_name,
        curves_folder(dataset, run_name),
    )
    if not processes.is_main:
        yield Run(save, log, tensorboard, processes)
        return
    with folder_lock(save):
        for folder in (log, tensorboard):
            make_folder(folder)
        for folder in (save, tensorboard):
            remove_temporary_files(folder)
        sink = add_log_file(_new_log_file(log))
        run, succeeded = Run(save, log, tensorboard, processes), False
        try:
            yield run
            succeeded = True
        except UserError as error:
            # The terminal gets the message when the program ends; the file must get it while it is open.
            logger.bind(file_only=True).error(f"error: {error}")
            raise
        except BaseException as error:
            name = type(error).__name__
            succeeded = name == "TrialPruned"
            log = logger.bind(file_only=True).opt(exception=name not in AS_INTENDED)
            log.info(AS_INTENDED.get(name, f"stopped by an error: {name}"))
            raise
        finally:
            run.close(succeeded)
            logger.remove(sink)


def _new_log_file(folder: Path) -> Path:
    """A name by the time; one file for each run, also for two in one second."""
    stem = f"{datetime.now():%Y-%m-%d-%H-%M-%S}"
    path, copy = folder / f"{stem}.log", 1
    while path.exists():
        copy += 1
        path = folder / f"{stem}-{copy}.log"
    return path
