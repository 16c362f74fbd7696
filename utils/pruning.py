"""Reporting to an Optuna trial, which may end the run."""

from typing import TYPE_CHECKING

from utils.training import Metrics

if TYPE_CHECKING:
    import optuna


class TrialReporter:
    """Tells a trial the validation accuracy of each epoch, once; without a trial it does nothing."""

    def __init__(self, trial: "optuna.Trial | None"):
        self._trial = trial

    def catch_up(self, validations: list[Metrics]) -> None:
        """Report the epochs that a run killed before its report left out."""
        if self._trial is None:
            return
        reported = self._trial.study.get_trials(deepcopy=False)[self._trial.number].intermediate_values
        for epoch_id, metrics in enumerate(validations):
            if epoch_id not in reported:
                self._trial.report(metrics.next_step_acc, epoch_id)

    def report(self, val_acc: float, epoch_id: int) -> None:
        """Report an epoch (from 0).

        Raises:
            optuna.TrialPruned: the trial's pruner gives it up.
        """
        if self._trial is None:
            return
        self._trial.report(val_acc, epoch_id)
        if self._trial.should_prune():
            # Only a search needs Optuna, which takes a second to import.
            import optuna

            raise optuna.TrialPruned
