"""The results of a study as files and as a table: trials.csv, best_config.yaml, final.csv."""

import csv
import io
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from utils.config import Config, config_to_yaml
from utils.files.atomic import atomic_write
from utils.search.study import SharedStudy, best_trial, best_value
from utils.search.worker import RunFigures, short

STATES = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


@dataclass(frozen=True)
class Row:
    """A trial, or the baseline, as people read it."""

    trial: str  # its number, or "baseline"
    state: str
    epochs: int
    val_acc: float | None  # of the best epoch
    test_acc: float | None  # of the same model; finished runs only
    values: dict[str, Any]
    host: str = ""
    seconds: float | None = None  # from its begin to its end, pauses included
    error: str = ""
    is_best: bool = False


def study_rows(study: SharedStudy) -> list[Row]:
    """The baseline, where there is one, and the trials by number."""
    rows = []
    baseline = study.noted("baseline")
    if baseline:
        figures = RunFigures(**baseline)
        rows.append(Row("baseline", "finished", len(figures.curve), figures.val_acc, figures.test_acc, {}))
    elif study.noted("baseline_error"):
        rows.append(Row("baseline", "failed", 0, None, None, {}, error=study.noted("baseline_error")))
    trials = study.trials()
    best = best_trial(trials)
    return rows + [_row(trial, best is not None and trial.number == best.number) for trial in trials]


def _row(trial: FrozenTrial, is_best: bool) -> Row:
    attributes = trial.user_attrs
    return Row(
        str(trial.number),
        STATES[trial.state],
        len(trial.intermediate_values),
        best_value(trial),
        attributes.get("test_acc"),
        trial.params,
        attributes.get("host", ""),
        trial.duration.total_seconds() if trial.duration else None,
        attributes.get("error", ""),
        is_best,
    )


def write_trials(path: Path, rows: list[Row], keys: Sequence[str]) -> None:
    """All rows as CSV, values of `keys` in columns of their own, to the last digit."""
    lines = [["trial", "state", "epochs", "val_acc", "test_acc", *keys, "host", "seconds", "error"]]
    lines += [
        [row.trial, row.state, row.epochs, row.val_acc, row.test_acc]
        + [row.values.get(key) for key in keys]
        + [row.host, row.seconds, row.error]
        for row in rows
    ]
    _write_csv(path, lines)


def write_best_config(path: Path, config: Config, trial: FrozenTrial, study: SharedStudy, command: str) -> None:
    """The complete configuration of the best trial, which the training script runs as it is."""
    values = ", ".join(f"{key} {value}" for key, value in trial.params.items())
    text = (
        f"# Study '{study.name}' on {study.dataset}: trial {trial.number}, validation accuracy {trial.value:.6f},\n"
        f"# with {values}.\n"
        f"# {command}\n"
    ) + config_to_yaml(config)
    atomic_write(path, lambda file: file.write(text.encode()))


def format_table(rows: list[Row], keys: Sequence[str]) -> str:
    """The rows for a terminal; the best trial is marked, and compared with the baseline."""
    names = column_names(keys)
    lines = [["", "trial", "state", "epochs", "val_acc", *(names[key] for key in keys)]]
    for row in rows:
        val_acc = "-" if row.val_acc is None else f"{row.val_acc:.4f}"
        values = [short(row.values[key]) if key in row.values else "-" for key in keys]
        lines.append(["*" if row.is_best else "", row.trial, row.state, str(row.epochs), val_acc, *values])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join(
        "  ".join(
            # words to the left, numbers to the right
            cell.ljust(width) if i in (0, 2) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return text + "\n" + _verdict(rows, keys)


def column_names(keys: Sequence[str]) -> dict[str, str]:
    """Short names of keys, without their section where that is clear."""
    short_names = [key.rpartition(".")[2] for key in keys]
    return {key: name if short_names.count(name) == 1 else key for key, name in zip(keys, short_names, strict=True)}


def _verdict(rows: list[Row], keys: Sequence[str]) -> str:
    best = next((row for row in rows if row.is_best), None)
    if best is None:
        return "no trial has finished"
    text = f"* best: trial {best.trial}, validation accuracy {best.val_acc:.4f}"
    baseline = next((row for row in rows if row.trial == "baseline"), None)
    if baseline is not None and baseline.val_acc is not None:
        text += f", {best.val_acc - baseline.val_acc:+.4f} against the baseline ({baseline.val_acc:.4f})"
        others = [name for key, name in column_names(keys).items() if not key.startswith("distill.")]
        if others:
            text += f", which has the configured {', '.join(others)}: not distillation's doing alone"
    return text


@dataclass(frozen=True)
class FinalComparison:
    """Distilled and vanilla runs with the same seeds."""

    figures: dict[tuple[str, int], RunFigures]  # by ("vanilla" or "distill", seed)

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(seed for _, seed in self.figures))

    def differences(self, split: str) -> list[float]:
        """Distilled less vanilla, for each seed; `split` is val or test."""
        return [self._accuracy("distill", seed, split) - self._accuracy("vanilla", seed, split) for seed in self.seeds]

    def _accuracy(self, kind: str, seed: int, split: str) -> float:
        return getattr(self.figures[kind, seed], f"{split}_acc")

    def _columns(self) -> list[tuple[str, list[float]]]:
        columns = []
        for split in ("val", "test"):
            columns += [
                (f"{kind}_{split}", [self._accuracy(kind, seed, split) for seed in self.seeds])
                for kind in ("vanilla", "distill")
            ]
            columns.append((f"difference_{split}", self.differences(split)))
        return columns

    def write(self, path: Path) -> None:
        """A CSV with a line for each seed, then mean and standard deviation."""
        columns = self._columns()
        lines = [["seed", *(name for name, _ in columns)]]
        lines += [[seed, *(values[i] for _, values in columns)] for i, seed in enumerate(self.seeds)]
        lines.append(["mean", *(statistics.mean(values) for _, values in columns)])
        lines.append(["deviation", *(deviation(values) for _, values in columns)])
        _write_csv(path, lines)

    def format(self) -> str:
        """For a terminal."""
        lines = ["seed        val: vanilla  distill  difference    test: vanilla  distill  difference"]
        columns = [values for _, values in self._columns()]
        cells = [(str(seed), [values[i] for values in columns]) for i, seed in enumerate(self.seeds)]
        cells += [("mean", [statistics.mean(values) for values in columns])]
        for name, (a, b, c, d, e, f) in cells:
            lines.append(f"{name:<11}     {a:.4f}   {b:.4f}     {c:+.4f}           {d:.4f}   {e:.4f}     {f:+.4f}")
        return "\n".join([*lines, self._sentence("val"), self._sentence("test")])

    def _sentence(self, split: str) -> str:
        differences = self.differences(split)
        text = f"{split}: distillation changes the accuracy by {statistics.mean(differences):+.4f}"
        spread = deviation(differences)
        if spread is None:
            return f"{text} (one seed: no deviation)"
        return f"{text}, standard deviation {spread:.4f} over {len(differences)} seeds"


def deviation(values: list[float]) -> float | None:
    """Sample standard deviation; None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def _write_csv(path: Path, lines: list[list[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def training_command(dataset: str, seed: int, path: Path, run_name: str, data_dir: str | None, cuda: int) -> str:
    """The command that trains with a configuration written here."""
    options = {
        "--dataset": dataset,
        "--data_dir": data_dir,
        "--seed": str(seed),
        "--cuda": str(cuda),
        "--config": path,
        "--run_name": run_name,
    }
    words = [word for name, value in options.items() if value for word in (name, shlex.quote(value))]
    return " ".join(["uv run python train_with_distill.py", *words])
