"""Runs of distillation training on W&B: finding them, and choosing the file that has their model."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from utils.errors import UserError
from utils.tracking.wandb_client import Api, File, Run, service_errors

PAGE = 50
MODEL_SUFFIXES = (".pth", ".pt")
BEST = "best.pth"

DISTILL, MAX_EPOCH = "distill.enable", "optimizer_config.max_epoch"  # of the configuration
EPOCH, ACCURACIES = "epoch", ("best_val_acc", "val_next_step_acc")  # of the summary; the last epoch's, while it runs

T = TypeVar("T")


@dataclass(frozen=True)
class FoundRun:
    """A line of the table; None is what the run does not have."""

    id: str
    name: str
    distill: bool | None
    epochs: int | None  # completed
    max_epoch: int | None  # configured
    val_acc: float | None
    state: str
    created: str

    @classmethod
    def from_run(cls, run: Run) -> "FoundRun":
        summary = dict(run.summary_metrics)
        accuracies = (_read(summary, key, _number) for key in ACCURACIES)
        return cls(
            id=run.id,
            name=run.name or run.id,
            distill=_read(run.config, DISTILL, lambda value: value if isinstance(value, bool) else None),
            epochs=_read(summary, EPOCH, _count),
            max_epoch=_read(run.config, MAX_EPOCH, _count),
            val_acc=next((value for value in accuracies if value is not None), None),
            state=run.state or "unknown",
            created=run.created_at or "",
        )

    @property
    def progress(self) -> str:
        """Epochs as people read them, such as 12/25."""
        done, configured = ("-" if value is None else str(value) for value in (self.epochs, self.max_epoch))
        return done if self.max_epoch is None else f"{done}/{configured}"

    @property
    def accuracy(self) -> str:
        return "-" if self.val_acc is None else f"{self.val_acc:.4f}"


@dataclass(frozen=True)
class Search:
    """What a run must be; None matches all."""

    distill: bool | None = None
    epochs: int | None = None
    min_val_acc: float | None = None
    state: str | None = None

    def filters(self) -> dict[str, Any]:
        """The search in the service's form, which is MongoDB's."""
        parts: list[dict[str, Any]] = []
        if self.state is not None:
            parts.append({"state": self.state})
        if self.distill is not None:
            parts.append({f"config.{DISTILL}": self.distill})
        if self.epochs is not None:
            keys = (f"config.{MAX_EPOCH}", f"summary_metrics.{EPOCH}")
            parts.append({"$or": [{key: self.epochs} for key in keys]})
        if self.min_val_acc is not None:
            parts.append({"$or": [{f"summary_metrics.{key}": {"$gte": self.min_val_acc}} for key in ACCURACIES]})
        return {"$and": parts} if parts else {}


def search_runs(api: Api, entity: str, project: str, search: Search, limit: int) -> list[FoundRun]:
    """The newest `limit` runs that match, newest first; only as many pages are asked for as that takes.

    Raises:
        UserError: no such project, or the service fails.
    """
    try:
        with service_errors():
            # Not lazy: configuration and summary come with the page instead of by a request for each run.
            runs = api.runs(
                f"{entity}/{project}", filters=search.filters(), order="-created_at", per_page=PAGE, lazy=False
            )
            return [FoundRun.from_run(run) for run in itertools.islice(runs, limit)]
    except ValueError:
        raise UserError(f"{entity}/{project}: no such project on W&B; see --entity and --project") from None


def get_run(api: Api, entity: str, project: str, run_id: str) -> Run:
    """The run with that id.

    Raises:
        UserError: there is none, or the service fails.
    """
    path = f"{entity}/{project}/{run_id}"
    try:
        with service_errors():
            return api.run(path)
    except ValueError:
        raise UserError(f"{path}: no such run on W&B; `--search` lists the runs of a project") from None


def choose_file(run: Run, name: str | None = None) -> File:
    """The file of `run`, or of a model artifact that it logged, that has its model.

    That is best.pth, else the only model file; or the one called `name`.

    Raises:
        UserError: there is none, or several and no way to tell which; or the service fails.
    """
    with service_errors():
        files = _run_files(run, name)
        chosen = _choose(files, name)
        if chosen is None:
            files += _artifact_files(run)
            chosen = _choose(files, name) or (files[0] if len(files) == 1 and name is None else None)
    if chosen is not None:
        return chosen
    candidates = ", ".join(sorted({file.name for file in files})) or "none"
    if name is not None:
        raise UserError(f"run {run.id}: found no file {name}; model files: {candidates}")
    if not files:
        raise UserError(f"run {run.id}: found no model file, expected {BEST} or another *.pth or *.pt")
    raise UserError(f"run {run.id}: found several model files: {candidates}; choose one with --file")


def _choose(files: list[File], name: str | None) -> File | None:
    """The file called `name`, by its whole name or the end of it; the least deeply nested one."""
    same = [file for file in files if f"/{file.name}".endswith(f"/{name or BEST}")]
    return min(same, key=lambda file: (file.name.count("/"), file.name), default=None)


def _run_files(run: Run, name: str | None) -> list[File]:
    """By patterns, since a run may have thousands of other files."""
    suffixes = [*MODEL_SUFFIXES, *([name] if name and not name.endswith(MODEL_SUFFIXES) else [])]
    return [file for suffix in suffixes for file in run.files(pattern=f"%{suffix}") if file.name.endswith(suffix)]


def _artifact_files(run: Run) -> list[File]:
    """Files of the logged model artifact: the version with the alias `best`, else the newest with a model."""
    models = [artifact for artifact in run.logged_artifacts() if artifact.type == "model"]
    models.sort(key=lambda artifact: ("best" in artifact.aliases, artifact.created_at or ""), reverse=True)
    found = ([file for file in model.files() if file.name.endswith(MODEL_SUFFIXES)] for model in models)
    return next((files for files in found if files), [])


def _read(tree: Any, key: str, read: Callable[[Any], T | None]) -> T | None:
    """What `read` makes of the value at a dotted key, or None."""
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return read(tree)


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
