"""What a process of a search does: the baseline, trials until there are enough, and the final runs."""

import contextlib
import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import optuna
import torch
from loguru import logger
from optuna.trial import TrialState

from utils.errors import UserError
from utils.files.atomic import FolderInUseError, WriteError, atomic_write, folder_lock, remove, set_aside
from utils.files.checksums import file_digest
from utils.runtime.signals import take_signals
from utils.search.samplers import PRUNED_AFTER
from utils.search.space import override_texts
from utils.search.storage import StorageError, storage_errors
from utils.search.study import Claim, SharedStudy, TakenOverError, best_value, ended
from utils.training.metrics import Metrics

VANILLA = "distill.enable=false"
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
class RunFigures:
    """A run outside the study's trials, in figures."""

    val_acc: float
    best_epoch: int
    test_acc: float
    curve: list[float]  # validation accuracy of each epoch

    @classmethod
    def of(cls, result: RunResult) -> "RunFigures":
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

    # The baseline ----------------------------------------------------------------------------------------------

    def baseline(self, wait: bool) -> None:
        """Train without a teacher what the trials train with one, if nobody has; its figures go into the study.

        It is no trial of the study: one without values would blind the samplers to what trials have in common.
        On one machine one process trains it; with `wait`, the others wait for it. Another machine leaves it to
        the first as long as there are trials to do, and trains it itself if it is still missing then (`wait`).
        """
        folder = self.study.folder / "baseline"
        while not self.study.noted("baseline"):
            begun_at = self.study.noted("baseline_place")
            if not wait and self.study.spans_machines and begun_at not in (None, self.study.place):
                return
            try:
                with folder_lock(folder):
                    self._train_baseline(folder)
                return
            except FolderInUseError:
                if not wait:
                    return
                time.sleep(POLL_S)

    def _train_baseline(self, folder: Path) -> None:
        if self.study.noted("baseline"):
            return
        self.study.note("baseline_place", self.study.place)
        logger.info("baseline: training without a teacher")
        try:
            result = self._run([VANILLA], folder, self.study.seed)
        except Exception as error:
            if _is_machine_trouble(error):
                raise
            take_signals()  # may have come up as another error
            logger.error(f"baseline: failed: {_reason(error)}")
            self.study.note("baseline_error", _reason(error))
            return
        figures = RunFigures.of(result)
        self.study.note("baseline", dataclasses.asdict(figures))
        remove(folder / "checkpoint_latest.pth")
        logger.info(f"baseline: {figures.val_acc:.4f} (epoch {figures.best_epoch}), without a teacher")

    # Trials ----------------------------------------------------------------------------------------------------

    def trials(self, total: int) -> Iterator[None]:
        """Work until the study has `total` trials and all of them have ended; yields after each that is ours."""
        waiting = False
        while True:
            self.study.check_inputs(self._inputs())  # they may change while a search runs, for days
            with self.study.claim(total) as claim:
                if claim is not None:
                    self._run_claim(claim)
            if claim is not None:
                self.tidy()
                waiting = False
                yield
                continue
            at_work = self.study.others_at_work()
            if not at_work:
                return
            if not waiting:
                logger.info(f"waiting for {at_work} trial{'s' * (at_work > 1)} of other processes")
                waiting = True
            time.sleep(POLL_S)

    def _run_claim(self, claim: Claim) -> None:
        values = ", ".join(f"{key.rpartition('.')[2]} {short(value)}" for key, value in claim.values.items())
        name = f"trial {claim.number}"
        logger.info(f"{name}: {'taken up again' if claim.is_taken_up else 'begins'} ({values})")
        try:
            state, value, facts, told = self._outcome(claim)
            self.study.end(claim, state, value, **facts)
            logger.info(f"{name}: {told}")
        except TakenOverError:
            logger.warning(f"{name}: another process has taken it up, believing this one dead; ours is dropped")

    def _outcome(self, claim: Claim) -> tuple[TrialState, float | None, dict[str, Any], str]:
        """State, value, facts, and the line for the terminal, of a trial that is now trained to its end."""
        try:
            if claim.is_taken_up:
                self._prune_if_due(claim)
            with storage_errors():
                result = self._run(override_texts(claim.values), claim.folder, self.study.seed, claim.trial)
        except optuna.TrialPruned:
            reports, facts = self.study.trials()[claim.number].intermediate_values, self._model_facts(claim.folder)
            told = f"pruned after epoch {len(reports)}, best {max(reports.values()):.4f}"
            return TrialState.PRUNED, None, facts, told
        except TakenOverError:
            raise
        except Exception as error:
            if _is_machine_trouble(error):
                raise  # the trial can be taken up when storage or GPU are back, or the disk has room
            take_signals()
            # Not "pruned": a trial that crashes has said nothing about its values, and samplers learn from those.
            told = f"failed: {_reason(error)}"
            if not isinstance(error, UserError):
                log = Path("log") / self.study.dataset / self.study.run_name(claim.folder)
                told += f" (traceback in {log})"
            return TrialState.FAIL, None, {"error": _reason(error)}, told
        facts = {"best_epoch": result.best_epoch, "test_acc": result.test.next_step_acc}
        facts |= self._model_facts(claim.folder)
        value = result.best.next_step_acc
        return TrialState.COMPLETE, value, facts, f"{value:.4f} (epoch {result.best_epoch})"

    def _prune_if_due(self, claim: Claim) -> None:
        """Do what the process that was killed may have been about to do."""
        found = self.study.trials()[claim.number]
        with storage_errors():
            if PRUNED_AFTER in found.user_attrs or (found.intermediate_values and claim.trial.should_prune()):
                raise optuna.TrialPruned

    @staticmethod
    def _model_facts(folder: Path) -> dict[str, str]:
        """What tells the model of a trial from one that another machine went on with."""
        return {"model": file_digest(folder / "best.pth")}

    def tidy(self) -> None:
        """Keep best.pth of the best trials only, and checkpoint_latest.pth of none that has ended."""
        trials = ended(self.study.trials())
        for trial in trials:
            remove(self.study.trial_folder(trial.number) / "checkpoint_latest.pth")
        for rank, trial in enumerate(trials_by_rank(trials)):
            best = self.study.trial_folder(trial.number) / "best.pth"
            # Another one than the trial ended with: it was begun here, and ended on another machine.
            if best.exists() and (rank >= self._keep or trial.user_attrs.get("model") != file_digest(best)):
                remove(best)

    # Final runs ------------------------------------------------------------------------------------------------

    def final_runs(self, seeds: list[int], best: dict[str, Any]) -> dict[tuple[str, int], RunFigures]:
        """Train the `best` values with each seed, with and without a teacher; figures by (kind, seed).

        What is not the teacher's, such as the learning rate, is the same in both: the difference is distillation's.
        Several processes on one machine share the work. A run is kept as long as the best values are the same.
        """
        jobs = [(kind, seed) for seed in seeds for kind in ("vanilla", "distill")]
        others = {key: value for key, value in best.items() if not key.startswith("distill.")}
        settings = {"vanilla": [*override_texts(others), VANILLA], "distill": override_texts(best)}
        figures: dict[tuple[str, int], RunFigures] = {}
        for wait in (False, True):  # first what nobody is at
            for kind, seed in jobs:
                if (kind, seed) not in figures:
                    with contextlib.suppress(FolderInUseError):
                        figures[kind, seed] = self._final_run(kind, seed, settings[kind], wait)
        return figures

    def _final_run(self, kind: str, seed: int, settings: list[str], wait: bool) -> RunFigures:
        folder = self.study.folder / "final" / f"{kind}_seed{seed}"
        with folder_lock(folder, wait=wait):
            path = folder / "result.json"
            record = json.loads(path.read_text()) if path.exists() else {}
            if record.get("settings") != settings:
                for model in (folder / "best.pth", folder / "checkpoint_latest.pth"):
                    if model.exists():
                        aside = set_aside(model)
                        logger.info(f"{model} is of other settings: kept as {aside.name}")
                record = {"settings": settings}
                write_json(path, record)
            if "figures" not in record:
                self.study.check_inputs(self._inputs())
                logger.info(f"final run: {kind}, seed {seed}")
                figures = RunFigures.of(self._run(settings, folder, seed))
                record["figures"] = dataclasses.asdict(figures)
                write_json(path, record)
                logger.info(
                    f"final run: {kind}, seed {seed}: {figures.val_acc:.4f} (val), {figures.test_acc:.4f} (test)"
                )
            remove(folder / "checkpoint_latest.pth")
            return RunFigures(**record["figures"])

    # ---

    def _run(self, settings: list[str], folder: Path, seed: int, trial: optuna.Trial | None = None) -> RunResult:
        """Train one run, whose messages go to its own log only."""
        with logger.contextualize(file_only=True), warnings.catch_warnings():
            # Epochs trained again, because their checkpoint is on another machine, are reported already.
            warnings.filterwarnings("ignore", message="The reported value is ignored")
            return self._train(
                seed=seed,
                config_overrides=[*self._overrides, *settings, *self._tracking(folder)],
                run_name=self.study.run_name(folder),
                optuna_trial=trial,
            )

    def _tracking(self, folder: Path) -> list[str]:
        """Each run has a name of its own with the tracker."""
        wandb = self.study.config.wandb
        parts = [wandb.run_name or self.study.name, *folder.relative_to(self.study.folder).parts]
        return override_texts({"wandb.run_name": "_".join(parts)}) if wandb.enable else []


def _is_machine_trouble(error: Exception) -> bool:
    """Whether it is not the fault of what was being trained: the next trial would meet it too."""
    if isinstance(error, OSError):
        return error.errno is not None and not isinstance(error, ConnectionError | TimeoutError)
    return isinstance(error, StorageError | WriteError | torch.AcceleratorError)


def trials_by_rank(trials: list[optuna.trial.FrozenTrial]) -> list[optuna.trial.FrozenTrial]:
    """Trials that have ended, the best first: finished ones before pruned ones before failed ones."""
    order = {TrialState.COMPLETE: 0, TrialState.PRUNED: 1, TrialState.FAIL: 2}
    return sorted(trials, key=lambda trial: (order[trial.state], -(best_value(trial) or 0.0), trial.number))


def short(value: Any) -> str:
    """A value as people read it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path, lambda file: file.write(json.dumps(content).encode()))


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return (text if isinstance(error, UserError) else f"{type(error).__name__}: {text}")[:MAX_REASON]
