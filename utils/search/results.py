"""The files of a study's results, kept up to date while it runs."""

import time
from pathlib import Path

from optuna.trial import FrozenTrial

from utils.files.atomic import file_lock, remove_temporary_files
from utils.search.plots import draw_study
from utils.search.report import (
    FinalComparison,
    format_table,
    study_rows,
    training_command,
    write_best_config,
    write_trials,
)
from utils.search.space import Load, override_texts
from utils.search.study import SharedStudy, best_trial
from utils.search.worker import RunFigures

PICTURES_EVERY_S = 10.0


class StudyResults:
    """trials.csv, best_config.yaml, final.csv and the pictures, in the study's folder."""

    def __init__(self, study: SharedStudy, load: Load, data_dir: str | None, cuda: int):
        """`load` gives the command line's configuration with further values."""
        self._study, self._load, self._data_dir, self._cuda = study, load, data_dir, cuda
        self._lock_path = study.folder / ".results.lock"
        self._drawn_at = float("-inf")
        with file_lock(self._lock_path):
            remove_temporary_files(study.folder)

    def write(self) -> None:
        """Write all files anew, unless another process is at it; pictures not at every call, as they take seconds."""
        with file_lock(self._lock_path, wait=False) as is_ours:
            if is_ours:
                self._write(pictures=time.monotonic() - self._drawn_at > PICTURES_EVERY_S)

    def _write(self, pictures: bool) -> None:
        study, keys = self._study, list(self._study.space.distributions)
        trials, rows = study.trials(), study_rows(study)
        write_trials(study.folder / "trials.csv", rows, keys)
        best = best_trial(trials)
        if best is not None:
            config = self._load(override_texts(best.params))
            write_best_config(self._best_path, config, best, study, self._command(best))
        if pictures:
            draw_study(study)
            self._drawn_at = time.monotonic()

    def finish(self) -> str:
        """Write all files, and give back the table for the terminal."""
        with file_lock(self._lock_path):
            self._write(pictures=True)
        study = self._study
        text = format_table(study_rows(study), list(study.space.distributions))
        best = best_trial(study.trials())
        if best is not None:
            text += f"\nto train its model again: {self._command(best)}"
        return f"{text}\nresults: {study.folder}"

    @property
    def _best_path(self) -> Path:
        return self._study.folder / "best_config.yaml"

    def _command(self, best: FrozenTrial) -> str:
        """The command that repeats the best trial, in a folder in which no other run is."""
        study = self._study
        run_name = f"{study.name}_trial{best.number}"
        return training_command(study.dataset, study.seed, self._best_path, run_name, self._data_dir, self._cuda)

    def finish_final(self, figures: dict[tuple[str, int], RunFigures]) -> str:
        """Write final.csv, and give back its table for the terminal."""
        comparison = FinalComparison(figures)
        with file_lock(self._lock_path):
            comparison.write(self._study.folder / "final.csv")
        return comparison.format()
