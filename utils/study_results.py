"""The files of a study's results, kept up to date while it runs."""

import time

from utils.config import display_path
from utils.files import file_lock, remove_temporary_files
from utils.search_space import Load, override_texts
from utils.study import SharedStudy, best_trial
from utils.study_plots import draw_study
from utils.study_report import (
    FinalComparison,
    format_table,
    study_rows,
    training_command,
    write_best_config,
    write_trials,
)
from utils.study_runs import RunFigures

PICTURES_EVERY_S = 10.0


class StudyResults:
    """trials.csv, best_config.yaml, final.csv and the pictures, in the study's folder."""

    def __init__(self, study: SharedStudy, load: Load, data_dir: str | None):
        """`load` gives the command line's configuration with further values."""
        self._study, self._load, self._data_dir = study, load, data_dir
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
            path = study.folder / "best_config.yaml"
            config = self._load(override_texts(best.params))
            command = training_command(study.dataset, study.seed, path, self._data_dir)
            write_best_config(path, config, best, study, command)
        if pictures:
            draw_study(study)
            self._drawn_at = time.monotonic()

    def finish(self) -> str:
        """Write all files, and give back the table for the terminal."""
        with file_lock(self._lock_path):
            self._write(pictures=True)
        study = self._study
        text = format_table(study_rows(study), list(study.space.distributions))
        path = study.folder / "best_config.yaml"
        if best_trial(study.trials()) is not None:
            text += f"\n{training_command(study.dataset, study.seed, path, self._data_dir)}"
        return f"{text}\nresults: {display_path(study.folder)}"

    def finish_final(self, figures: dict[tuple[str, int], RunFigures]) -> str:
        """Write final.csv, and give back its table for the terminal."""
        comparison = FinalComparison(figures)
        with file_lock(self._lock_path):
            comparison.write(self._study.folder / "final.csv")
        return comparison.format()
