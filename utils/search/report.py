"""The results of a study as files and as tables: trials.csv, best_config.yaml, final.csv, and the pictures."""

import csv
import io
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loguru import logger
from optuna.trial import FrozenTrial, TrialState

from utils.config import config_to_yaml
from utils.files.atomic import atomic_write, remove_temporary_files
from utils.files.locks import file_lock
from utils.search.space import Load, column_names, override_texts
from utils.search.study import SharedStudy, best_trial, best_value, replacements
from utils.search.worker import RunMetrics, short

PICTURES_EVERY_S = 10.0
STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
# A line of trials.csv: these columns, with those of the searched keys after test_acc.
COLUMNS = ("trial", "state", "epochs", "val_acc", "test_acc", "host", "seconds", "error")
Row = dict[str, Any]


class StudyReport:
    """The files in the study's folder, kept up to date while it runs, and what is printed at its end."""

    def __init__(self, study: SharedStudy, load: Load, data_dir: str | None, cuda: int):
        """`load` gives the command line's configuration with further values."""
        self._study, self._load, self._data_dir, self._cuda = study, load, data_dir, cuda
        self._keys = list(study.space.distributions)
        self._best_path = study.folder / "best_config.yaml"
        self._lock_path = study.folder / ".results.lock"
        self._drawn_at = time.monotonic()
        with file_lock(self._lock_path):
            remove_temporary_files(study.folder)

    def write(self) -> None:
        """Bring the files up to date, unless another process is doing so; pictures only at intervals: they are slow."""
        with file_lock(self._lock_path, wait=False) as is_ours:
            if is_ours:
                self._write(pictures=time.monotonic() - self._drawn_at > PICTURES_EVERY_S)

    def finish(self) -> str:
        """Write all files; the table for the terminal, and the command that repeats the best trial."""
        with file_lock(self._lock_path):
            missing = self._write(pictures=True)
        if missing:
            logger.info(f"too few trials for some pictures: {', '.join(missing)}")
        text = format_table(study_rows(self._study), self._keys, self._deviations())
        best = best_trial(self._study.trials())
        if best is not None:
            text += f"\nto train its model again: {self._command(best)}"
        return f"{text}\nresults: {self._study.folder}"

    def finish_final(self, metrics: Mapping[tuple[str, int], RunMetrics]) -> str:
        """Write final.csv; its table for the terminal. `metrics` are those of `Worker.final_runs`."""
        lines = final_lines(metrics)
        with file_lock(self._lock_path):
            _write_csv(self._study.folder / "final.csv", lines)
        return format_final(lines)

    def _write(self, pictures: bool) -> list[str]:
        study, trials = self._study, self._study.trials()
        columns = [*COLUMNS[:5], *self._keys, *COLUMNS[5:]]
        rows = [[row.get(column) for column in columns] for row in study_rows(study)]
        _write_csv(study.folder / "trials.csv", [columns, *rows])
        best = best_trial(trials)
        if best is not None:
            self._write_best_config(best)
        if not pictures:
            return []
        from utils.search.plots import draw_study  # pyplot is slow to import

        missing = draw_study(study)
        self._drawn_at = time.monotonic()
        return missing

    def _deviations(self) -> str:
        """Standard deviations of the validation accuracy over the seeds in final.csv, as text."""
        path = self._study.folder / "final.csv"
        if not path.exists():
            return ""
        with path.open() as file:
            last = list(csv.DictReader(file))[-1]
        found = [(last[f"{kind}_val"], kind) for kind in ("vanilla", "distill")]
        return ", ".join(f"{float(value):.4f} ({kind})" for value, kind in found if value)

    def _write_best_config(self, best: FrozenTrial) -> None:
        """The complete configuration of the best trial, which the training script takes as it is."""
        values = ", ".join(f"{key} {value}" for key, value in best.params.items())
        text = (
            f"# Study '{self._study.name}' on {self._study.dataset}: trial {best.number}, validation accuracy "
            f"{best.value:.6f},\n# with {values}.\n# {self._command(best)}\n"
        ) + config_to_yaml(self._load(override_texts(best.params)))
        atomic_write(self._best_path, lambda file: file.write(text.encode()))

    def _command(self, best: FrozenTrial) -> str:
        """The command that repeats the best trial, in a folder of its own."""
        options = {
            "--dataset": self._study.dataset,
            "--data_dir": self._data_dir,
            "--seed": str(self._study.seed),
            "--cuda": str(self._cuda),
            "--config": str(self._best_path),
            "--run_name": f"{self._study.name}_trial{best.number}",
        }
        words = [word for name, value in options.items() if value for word in (name, shlex.quote(value))]
        return " ".join(["uv run python train_with_distill.py", *words])


def study_rows(study: SharedStudy) -> list[Row]:
    """The baseline, if there is one, and the trials by number: values by the names of the columns of trials.csv.

    val_acc is that of the best epoch, test_acc that of the same model; seconds include pauses.
    """
    rows: list[Row] = []
    baseline, error = study.noted("baseline"), study.noted("baseline_error")
    if baseline:
        metrics = RunMetrics(**baseline)
        rows.append({"trial": "baseline", "state": "finished", "epochs": len(metrics.curve)})
        rows[0] |= {"val_acc": metrics.val_acc, "test_acc": metrics.test_acc}
    elif error:
        rows.append({"trial": "baseline", "state": "failed", "epochs": 0, "error": error})
    trials = study.trials()
    best, repeated = best_trial(trials), replacements(trials)
    for trial in trials:
        error = trial.user_attrs.get("error", "")
        if trial.number in repeated:
            error = f"its process died; trial {repeated[trial.number]} repeats its values"
        rows.append(
            {
                "trial": str(trial.number),
                "state": STATES[trial.state],
                "epochs": len(trial.intermediate_values),
                "val_acc": best_value(trial),
                "test_acc": trial.user_attrs.get("test_acc"),
                **trial.params,
                "host": trial.user_attrs.get("host", ""),
                "seconds": trial.duration.total_seconds() if trial.duration else None,
                "error": error,
                "is_best": best is not None and trial.number == best.number,
            }
        )
    return rows


def format_table(rows: list[Row], keys: Sequence[str], deviations: str = "") -> str:
    """The rows for a terminal; the best trial is marked, and compared with the baseline.

    `deviations`: the standard deviations of final runs, as text; empty if there are none.
    """
    names = column_names(keys)
    lines = [["", "trial", "state", "epochs", "val_acc", *(names[key] for key in keys)]]
    for row in rows:
        val_acc = "-" if row.get("val_acc") is None else f"{row['val_acc']:.4f}"
        values = [short(row[key]) if key in row else "-" for key in keys]
        lines.append(
            ["*" * row.get("is_best", False), row["trial"], row["state"], str(row["epochs"]), val_acc, *values]
        )
    return "\n".join([_aligned(lines, left=(0, 2)), _verdict(rows, keys, deviations)])


def _verdict(rows: list[Row], keys: Sequence[str], deviations: str) -> str:
    best = next((row for row in rows if row.get("is_best")), None)
    if best is None:
        return "no trial has finished"
    text = f"* best: trial {best['trial']}, validation accuracy {best['val_acc']:.4f}"
    baseline = rows[0].get("val_acc") if rows[0]["trial"] == "baseline" else None
    if baseline is None:
        return text
    text += f", {best['val_acc'] - baseline:+.4f} against the baseline ({baseline:.4f})"
    if deviations:
        text += f"; over the seeds of final.csv the standard deviation is {deviations}"
    else:
        text += "; with one seed: --final_seeds shows how much seeds differ"
    others = [name for key, name in column_names(keys).items() if not key.startswith("distill.")]
    if others:
        text += f"\n  the baseline has the configured {', '.join(others)}: the difference is not distillation's alone"
    return text


def final_lines(metrics: Mapping[tuple[str, int], RunMetrics]) -> list[list[Any]]:
    """Distilled and vanilla runs with the same seeds: a heading, a line for each seed, mean and standard deviation."""
    seeds = list(dict.fromkeys(seed for _, seed in metrics))
    columns: dict[str, list[float]] = {}
    for split in ("val", "test"):
        vanilla, distill = (
            [getattr(metrics[kind, seed], f"{split}_acc") for seed in seeds] for kind in ("vanilla", "distill")
        )
        columns |= {f"vanilla_{split}": vanilla, f"distill_{split}": distill}
        columns[f"difference_{split}"] = [with_it - without for with_it, without in zip(distill, vanilla, strict=True)]
    deviations = [statistics.stdev(values) if len(seeds) > 1 else None for values in columns.values()]
    return [
        ["seed", *columns],
        *([seed, *(values[i] for values in columns.values())] for i, seed in enumerate(seeds)),
        ["mean", *map(statistics.mean, columns.values())],
        ["deviation", *deviations],
    ]


def format_final(lines: list[list[Any]]) -> str:
    """The lines of `final_lines` for a terminal, and what they say."""
    heading, *rows = lines
    signs = ["+" if name.startswith("difference") else "" for name in heading[1:]]
    cells = [
        [str(name), *("-" if x is None else f"{x:{sign}.4f}" for x, sign in zip(values, signs, strict=True))]
        for name, *values in rows
    ]
    sentences = []
    for split in ("val", "test"):
        column = heading.index(f"difference_{split}")
        mean, deviation = rows[-2][column], rows[-1][column]
        spread = " (one seed: no deviation)"
        if deviation is not None:
            spread = f", standard deviation {deviation:.4f} over {len(rows) - 2} seeds"
        sentences.append(f"{split}: distillation changes the accuracy by {mean:+.4f}{spread}")
    return "\n".join([_aligned([heading, *cells], left=(0,)), *sentences])


def _aligned(lines: list[list[str]], left: tuple[int, ...]) -> str:
    """A table whose columns `left` are words, aligned to the left, and the others numbers."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _write_csv(path: Path, lines: list[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))
