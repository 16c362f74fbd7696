"""Reporting to an Optuna trial, which may prune the run."""

from typing import TYPE_CHECKING

from utils.training.metrics import Metrics

if TYPE_CHECKING:
    import optuna


class TrialReporter:
    """Reports the validation accuracy of each epoch to a trial, once; without a trial it does nothing."""

    def __init__(self, trial: "optuna.Trial | None"):
        self._trial = trial

    def catch_up(self, validations: list[Metrics], epochs_left: bool) -> None:
        """Report finished epochs that are not reported yet: the process was killed in between.

        Raises:
            optuna.TrialPruned: the pruner ends the trial, and there are epochs left.
        """
        study = getattr(self._trial, "study", None)
        if study is None or not validations:
            return
        reported = study.get_trials(deepcopy=False)[self._trial.number].intermediate_values
        missing = [epoch_id for epoch_id in range(len(validations)) if epoch_id not in reported]
        for epoch_id in missing:
            self._trial.report(validations[epoch_id].next_step_acc, epoch_id)
        if missing and epochs_left:
            self._prune_if_due()

    def report(self, val_acc: float, epoch_id: int) -> None:
        """Report an epoch (from 0).

        Raises:
            optuna.TrialPruned: the pruner ends the trial.
        """
        if self._trial is None:
            return
        self._trial.report(val_acc, epoch_id)
        self._prune_if_due()

    def _prune_if_due(self) -> None:
        if self._trial.should_prune():
            # Optuna takes a second to import, and only a search needs it.
            import optuna

            raise optuna.TrialPruned
