"""Runs of distillation training on WandB: finding them, and choosing the file that has their model."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from utils.errors import UserError
from utils.tracking.wandb_client import Api, File, Run
from utils.tracking.wandb_service import FAILURES, is_refusal, service_errors

PAGE = 50
NEWEST_FIRST, OLDEST_FIRST = "-created_at", "+created_at"  # the second is what a service does by itself
MODEL_SUFFIXES = (".pth", ".pt")
BEST = "best.pth"

# Where a run keeps what we look for: ours first, then the names of other people's training code.
DISTILL_KEYS = ("distill.enable", "distill.enabled", "distill", "distill_enabled", "distill_enable")
MAX_EPOCH_KEYS = ("optimizer_config.max_epoch", "max_epoch", "max_epochs", "num_epochs", "epochs")
EPOCH_KEYS = ("epoch", "epochs")
AGGREGATES = ("max", "best", "last")  # what a summary may have of a metric, instead of its value
ACCURACY_KEYS = ("best_val_acc", "best_val_next_step_acc", "val_next_step_acc", "val_acc", "val/acc")


@dataclass(frozen=True)
class FoundRun:
    """A line of the table."""

    id: str
    name: str
    distill: bool | None
    epochs: int | None  # completed
    max_epoch: int | None  # configured
    val_acc: float | None
    state: str
    created: str

    @classmethod
    def of(cls, run: Run) -> "FoundRun":
        config, summary = run.config, dict(run.summary_metrics)
        max_epoch, epochs = _count(config, MAX_EPOCH_KEYS), _count(summary, EPOCH_KEYS)
        if epochs is None and run.state == "finished":
            epochs = max_epoch
        accuracy = _first(summary, ACCURACY_KEYS, _number)
        return cls(
            id=run.id,
            name=run.name or run.id,
            distill=_first(config, DISTILL_KEYS, _truth),
            epochs=epochs,
            max_epoch=max_epoch,
            val_acc=accuracy,
            state=run.state or "unknown",
            created=run.created_at or "",
        )

    @property
    def progress(self) -> str:
        """Epochs as people read them, such as 12/25."""
        parts = ["-" if value is None else str(value) for value in (self.epochs, self.max_epoch)]
        return parts[0] if self.max_epoch is None else "/".join(parts)

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
        """For the service: a form of MongoDB's that lets through whatever may match."""
        parts: list[dict[str, Any]] = []
        if self.state is not None:
            parts.append({"state": self.state})
        if self.distill is not None:
            spellings = [self.distill, str(self.distill), str(self.distill).lower()]
            parts.append({"$or": [*_equal("config", DISTILL_KEYS, spellings), _lacks("config", DISTILL_KEYS)]})
        if self.epochs is not None:
            configured = [*_equal("config", MAX_EPOCH_KEYS, [self.epochs]), _lacks("config", MAX_EPOCH_KEYS)]
            parts.append({"$or": [*configured, *_equal("summary_metrics", EPOCH_KEYS, [self.epochs])]})
        if self.min_val_acc is not None:
            keys = [f"{key}{part}" for key in ACCURACY_KEYS for part in ("", *(f".{name}" for name in AGGREGATES))]
            parts.append({"$or": _equal("summary_metrics", keys, [{"$gte": self.min_val_acc}])})
        return {"$and": parts} if parts else {}

    def matches(self, run: FoundRun) -> bool:
        """The filters once more, exactly."""
        return (
            (self.distill is None or run.distill is self.distill)
            and (self.epochs is None or self.epochs in (run.epochs, run.max_epoch))
            and (self.min_val_acc is None or (run.val_acc is not None and run.val_acc >= self.min_val_acc))
            and (self.state is None or run.state == self.state)
        )


def search_runs(api: Api, entity: str, project: str, search: Search, limit: int) -> list[FoundRun]:
    """The newest `limit` runs that match, newest first; pages are asked for as they are needed.

    Raises:
        UserError: no such project, or the service fails.
    """
    filters, order = search.filters(), NEWEST_FIRST
    while True:
        try:
            with service_errors():
                # Not lazy: configuration and summary come with the page instead of by a request for each run.
                runs = api.runs(f"{entity}/{project}", filters=filters, order=order, per_page=PAGE, lazy=False)
                found = _read_pages(runs, search, limit)
            break
        except ValueError:
            raise UserError(f"{entity}/{project}: no such project on WandB; see --entity and --project") from None
        except UserError as error:
            # A service that does not know such a filter, or the order, is read to its end.
            if not (is_refusal(error.__cause__) and (filters or order == NEWEST_FIRST)):
                raise
            filters, order = ({}, order) if filters else ({}, OLDEST_FIRST)
    found.sort(key=lambda row: row.created, reverse=True)
    return found[:limit]


def _read_pages(runs: Iterable[Run], search: Search, limit: int) -> list[FoundRun]:
    """The first `limit` that match, and maybe some more; of a server that does not sort, all."""
    found, in_order, before = [], True, None
    for position, run in enumerate(runs, start=1):
        row = FoundRun.of(run)
        in_order = in_order and (before is None or row.created <= before)
        before = row.created
        if search.matches(row):
            found.append(row)
        if in_order and len(found) >= limit and position % PAGE == 0:  # pages come whole
            break
    return found


def get_run(api: Api, entity: str, project: str, run_id: str) -> Run:
    """The run of that id.

    Raises:
        UserError: there is none, or the service fails.
    """
    path = f"{entity}/{project}/{run_id}"
    try:
        with service_errors():
            return api.run(path)
    except ValueError:
        raise UserError(f"{path}: no such run on WandB; `--search` lists the runs of a project") from None


def choose_file(run: Run, name: str | None = None) -> File:
    """The file of `run`, or of a model artifact that it logged, that has its model.

    That is best.pth, else the only model file; or the one called `name`.

    Raises:
        UserError: there is none, or no telling which.
    """
    with service_errors():
        files = _run_files(run, name)
        best = _choose(files, name)
        if best is not None:
            return best
        files += _artifact_files(run)
    best = _choose(files, name) or (files[0] if len(files) == 1 and name is None else None)
    if best is not None:
        return best
    candidates = ", ".join(sorted({file.name for file in files})) or "none"
    if name is not None:
        raise UserError(f"run {run.id}: found no file {name}; model files: {candidates}")
    if not files:
        raise UserError(f"run {run.id}: found no model file, expected {BEST} or another *.pth or *.pt")
    raise UserError(f"run {run.id}: found several model files and no telling which: {candidates}; choose with --file")


def _choose(files: list[File], name: str | None) -> File | None:
    """The file called `name`, by its whole name or the end of it; the least deeply nested one."""
    wanted = name or BEST
    same = [file for file in files if f"/{file.name}".endswith(f"/{wanted}")]
    return min(same, key=lambda file: (file.name.count("/"), file.name), default=None)


def _run_files(run: Run, name: str | None) -> list[File]:
    """By patterns, since a run may have thousands of other files."""
    patterns = [f"%{suffix}" for suffix in MODEL_SUFFIXES]
    if name is not None and not name.endswith(MODEL_SUFFIXES):
        patterns.append(f"%{name}")
    return [
        file for pattern in patterns for file in run.files(pattern=pattern) if file.name.endswith(pattern.strip("%"))
    ]


def _artifact_files(run: Run) -> list[File]:
    """Files of the logged model artifact: the version with the alias `best`, else the newest with a model."""
    try:
        models = [artifact for artifact in run.logged_artifacts() if artifact.type == "model"]
        models.sort(key=lambda artifact: ("best" in artifact.aliases, artifact.created_at or ""), reverse=True)
        for artifact in models:
            files = [file for file in artifact.files() if file.name.endswith(MODEL_SUFFIXES)]
            if files:
                return files
    except (LookupError, TypeError, ValueError):
        return []  # an older server, which does not know of artifacts
    except FAILURES as error:
        if not is_refusal(error):
            raise
    return []


def _equal(section: str, keys: Sequence[str], values: Sequence[Any]) -> list[dict[str, Any]]:
    return [{f"{section}.{key}": value} for key in keys for value in values]


def _lacks(section: str, keys: Sequence[str]) -> dict[str, Any]:
    """None of the names: it may have them written out flat, and a filter cannot name a key with a dot in it."""
    names = dict.fromkeys(key.partition(".")[0] for key in keys)
    return {"$and": [{f"{section}.{name}": {"$exists": False}} for name in names]}


def _first(tree: dict[str, Any], keys: tuple[str, ...], read: Callable[[Any], Any]) -> Any:
    """The first of the dotted `keys` that `read` can read, or None."""
    values = (read(value) for key in keys for value in _values(tree, key))
    return next((value for value in values if value is not None), None)


def _values(tree: Any, key: str) -> Iterator[Any]:
    """What stands in `tree` at a dotted key, be it nested or written out flat."""
    if isinstance(tree, dict):
        if key in tree:
            yield tree[key]
        section, dot, rest = key.partition(".")
        if dot:
            yield from _values(tree.get(section), rest)


def _count(tree: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    value = _first(tree, keys, _number)
    return None if value is None else int(value)


def _number(value: Any) -> float | None:
    """A finite number; of a summary such as {"max": 0.7}, what is in it."""
    if isinstance(value, dict):
        value = next((value[key] for key in AGGREGATES if key in value), None)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _truth(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None
