"""What a process of a search does: the baseline, trials until there are enough, and the final runs."""

import contextlib
import dataclasses
import gc
import json
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import optuna
import torch
from loguru import logger
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from utils.errors import UserError
from utils.files.atomic import WriteError, atomic_write, remove, set_aside
from utils.files.locks import FolderInUseError, folder_lock
from utils.runtime.signals import take_signals
from utils.search.samplers import PRUNED_AFTER
from utils.search.space import override_texts
from utils.search.storage import StorageError, storage_errors
from utils.search.study import Claim, SharedStudy, best_value
from utils.training.metrics import Metrics

NO_TEACHER = "distill.enable=false"
POLL_S = 1.0
MAX_REASON = 500  # characters


class RunResult(Protocol):
    """What the training script returns."""

    best_epoch: int
    best: Metrics
    test: Metrics
    validations: list[Metrics]


# Trains one run: train(seed=, config_overrides=, run_name=, optuna_trial=).
Train = Callable[..., RunResult]


@dataclasses.dataclass(frozen=True)
class RunMetrics:
    """Metrics of a run that is not one of the study's trials."""

    val_acc: float
    best_epoch: int
    test_acc: float
    curve: list[float]  # validation accuracy of each epoch

    @classmethod
    def from_result(cls, result: RunResult) -> "RunMetrics":
        curve = [metrics.next_step_acc for metrics in result.validations]
        return cls(result.best.next_step_acc, result.best_epoch, result.test.next_step_acc, curve)


class Worker:
    """One process of a study."""

    def __init__(
        self, study: SharedStudy, train: Train, overrides: list[str], keep: int, inputs: Callable[[], Mapping[str, str]]
    ):
        """`overrides`: of the command line; `keep`: trials that keep best.pth; `inputs`: hashes of what is read."""
        self.study, self._train, self._overrides, self._keep = study, train, overrides, keep
        self._inputs = inputs

    def baseline(self, wait: bool) -> None:
        """Train without a teacher what the trials train with one, unless it is done; the study holds its metrics.

        It is not a trial of the study: a trial without values would blind the samplers to what trials have in
        common. With `wait`, wait for a process of this machine that is training it. Without, leave it to the process
        or machine that is training it.
        """
        elsewhere = self.study.noted("baseline_host") not in (None, platform.node())
        if self.study.noted("baseline") or (elsewhere and not wait):
            return
        folder = self.study.folder / "baseline"
        with contextlib.suppress(FolderInUseError), folder_lock(folder, wait=wait):
            if not self.study.noted("baseline"):
                self._train_baseline(folder)

    def _train_baseline(self, folder: Path) -> None:
        self.study.note("baseline_host", platform.node())
        logger.info("baseline: training without a teacher")
        try:
            metrics = RunMetrics.from_result(self._run([NO_TEACHER], folder, self.study.seed))
        except Exception as error:
            if _is_machine_trouble(error):
                raise
            take_signals()  # a signal may have arrived as another error
            logger.error(f"baseline: failed: {_reason(error)}")
            self.study.note("baseline_error", _reason(error))
            return
        self.study.note("baseline", dataclasses.asdict(metrics))
        remove(folder / "checkpoint_latest.pth")
        logger.info(f"baseline: {metrics.val_acc:.4f} (epoch {metrics.best_epoch}), without a teacher")

    def trials(self, total: int) -> Iterator[None]:
        """Train until the study has `total` trials and all of them have ended; yields after each of our own."""
        is_waiting = False
        while True:
            self.study.check_inputs(self._inputs())  # the files may change while a search runs for days
            with self.study.claim(total) as claim:
                if claim is not None:
                    self._run_claim(claim)
            if claim is not None:
                self.tidy()
                is_waiting = False
                yield
                continue
            running = self.study.running()
            if not running:
                return
            if not is_waiting:
                logger.info(f"waiting for {running} trial{'s' * (running > 1)} of other processes")
                is_waiting = True
            time.sleep(POLL_S)

    def _run_claim(self, claim: Claim) -> None:
        values = ", ".join(f"{key.rpartition('.')[2]} {short(value)}" for key, value in claim.values.items())
        name = f"trial {claim.number}"
        logger.info(f"{name}: {'resumed' if claim.is_resumed else 'started'} ({values})")
        try:
            state, value, facts, outcome = self._outcome(claim)
            self.study.end(claim, state, value, **facts)
            logger.info(f"{name}: {outcome}")
        except UpdateFinishedTrialError:
            logger.warning(f"{name}: dropped: its heartbeat was missing too long, so its values are tried again")

    def _outcome(self, claim: Claim) -> tuple[TrialState, float | None, dict[str, Any], str]:
        """Train a trial to its end: state, value, facts, and the line for the terminal."""
        try:
            if claim.is_resumed:
                self._prune_if_due(claim)
            with storage_errors():
                result = self._run(override_texts(claim.values), claim.folder, self.study.seed, claim.trial)
        except optuna.TrialPruned:
            reports = self.study.trials()[claim.number].intermediate_values
            return TrialState.PRUNED, None, {}, f"pruned after epoch {len(reports)}, best {max(reports.values()):.4f}"
        except Exception as error:
            if _is_machine_trouble(error) or isinstance(error, UpdateFinishedTrialError):
                raise  # the trial can be resumed when storage or GPU are back, or the disk has room
            take_signals()
            # Not "pruned": a trial that crashes says nothing about its values, and samplers learn from those.
            outcome = f"failed: {_reason(error)}"
            if not isinstance(error, UserError):
                log = Path("log") / self.study.dataset / self.study.run_name(claim.folder)
                outcome += f" (traceback in {log})"
            return TrialState.FAIL, None, {"error": _reason(error)}, outcome
        facts = {"best_epoch": result.best_epoch, "test_acc": result.test.next_step_acc}
        value = result.best.next_step_acc
        return TrialState.COMPLETE, value, facts, f"{value:.4f} (epoch {result.best_epoch})"

    def _prune_if_due(self, claim: Claim) -> None:
        """Do what the process that was killed may have been about to do."""
        found = self.study.trials()[claim.number]
        with storage_errors():
            if PRUNED_AFTER in found.user_attrs or (found.intermediate_values and claim.trial.should_prune()):
                raise optuna.TrialPruned

    def tidy(self) -> None:
        """Keep best.pth of the best trials only, and checkpoint_latest.pth of no trial that has ended."""
        for rank, trial in enumerate(trials_by_rank(self.study.trials())):
            folder = self.study.trial_folder(trial.number)
            remove(folder / "checkpoint_latest.pth")
            if rank >= self._keep:
                remove(folder / "best.pth")

    def final_runs(self, seeds: list[int], best: dict[str, Any]) -> dict[tuple[str, int], RunMetrics]:
        """Train the `best` values with each seed, with and without a teacher; metrics by (kind, seed).

        Settings other than the teacher's, such as the learning rate, are the same in both, so the difference is due
        to distillation. Several processes on one machine share the work. A run is kept as long as the best values
        stay the same.
        """
        jobs = [(kind, seed) for seed in seeds for kind in ("vanilla", "distill")]
        others = {key: value for key, value in best.items() if not key.startswith("distill.")}
        settings = {"vanilla": [*override_texts(others), NO_TEACHER], "distill": override_texts(best)}
        metrics: dict[tuple[str, int], RunMetrics] = {}
        for wait in (False, True):  # first what no other process is training
            for kind, seed in jobs:
                if (kind, seed) not in metrics:
                    with contextlib.suppress(FolderInUseError):
                        metrics[kind, seed] = self._final_run(kind, seed, settings[kind], wait)
        return metrics

    def _final_run(self, kind: str, seed: int, settings: list[str], wait: bool) -> RunMetrics:
        folder = self.study.folder / "final" / f"{kind}_seed{seed}"
        with folder_lock(folder, wait=wait):
            path = folder / "result.json"
            record = json.loads(path.read_text()) if path.exists() else {}
            if record.get("settings") != settings:
                for model in (folder / "best.pth", folder / "checkpoint_latest.pth"):
                    if model.exists():
                        aside = set_aside(model)
                        logger.info(f"{model} has other settings: kept as {aside.name}")
                record = {"settings": settings}
                write_json(path, record)
            if "figures" not in record:  # as version 1 called the metrics, whose files are read too
                self.study.check_inputs(self._inputs())
                name = f"final run: {kind}, seed {seed}"
                logger.info(name)
                metrics = RunMetrics.from_result(self._run(settings, folder, seed))
                record["figures"] = dataclasses.asdict(metrics)
                write_json(path, record)
                logger.info(f"{name}: {metrics.val_acc:.4f} (val), {metrics.test_acc:.4f} (test)")
            remove(folder / "checkpoint_latest.pth")
            return RunMetrics(**record["figures"])

    def _run(self, settings: list[str], folder: Path, seed: int, trial: optuna.Trial | None = None) -> RunResult:
        """Train one run, whose messages go to its own log only."""
        gc.collect()  # the model of the run before, and the CUDA graphs recorded of it, hold each other
        wandb = self.study.config.wandb
        if wandb.enable:  # a run name of its own for each
            parts = [wandb.run_name or self.study.name, *folder.relative_to(self.study.folder).parts]
            settings = [*settings, *override_texts({"wandb.run_name": "_".join(parts)})]
        with logger.contextualize(file_only=True), warnings.catch_warnings():
            # An epoch that is trained again after a kill is in the study already.
            warnings.filterwarnings("ignore", message="The reported value is ignored")
            return self._train(
                seed=seed,
                config_overrides=[*self._overrides, *settings],
                run_name=self.study.run_name(folder),
                optuna_trial=trial,
            )


def _is_machine_trouble(error: Exception) -> bool:
    """Whether the cause is not what was being trained: the next trial would fail too."""
    if isinstance(error, OSError):
        return error.errno is not None and not isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, StorageError | WriteError | torch.AcceleratorError)


def trials_by_rank(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that have ended, the best first: finished before pruned before failed ones."""
    order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1, TrialState.FAIL: 2}
    ended = [trial for trial in trials if trial.state in order]
    return sorted(ended, key=lambda trial: (order[trial.state], -(best_value(trial) or 0.0), trial.number))


def short(value: Any) -> str:
    """A value as people read it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, lambda file: file.write(json.dumps(content).encode()))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return (text if isinstance(error, UserError) else f"{type(error).__name__}: {text}")[:MAX_REASON]
