"""Where a study is kept: a journal in its folder, or a database that several machines share."""

import contextlib
import fcntl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import optuna
import sqlalchemy
from loguru import logger
from optuna.exceptions import StorageInternalError
from optuna.storages import JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from utils.config_sections import OptunaConfig
from utils.errors import UserError
from utils.files.atomic import make_folder, write_error

JOURNAL = "study.journal"
HEARTBEATS_MISSED = 3  # at least, before a trial counts as dead
DATABASE_ERRORS = (StorageInternalError, SQLAlchemyError)


class StorageError(UserError):
    """The study cannot be read or written: not the fault of any trial."""


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the errors of a database into a `StorageError`, which ends the process with one line."""
    try:
        yield
    except DATABASE_ERRORS as error:
        raise StorageError(
            f"the study's database cannot be reached ({_reason(error)}); the study is kept: run the same command again"
        ) from None


class JournalLock:
    """Lock of a journal that the system frees however its holder ends.

    Optuna's own locks are files that a killed process leaves behind; others then wait 30 s for each.
    """

    def __init__(self, journal: Path):
        self._journal = journal

    def acquire(self) -> bool:
        # Not Optuna's own name for it: another program that opens the study would wait for us to remove the file.
        self._file: BinaryIO = self._journal.with_name(f".{self._journal.name}.lock").open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._cut_half_line()
        return True

    def release(self) -> None:
        self._file.close()

    def _cut_half_line(self) -> None:
        """Remove what a process killed while writing left: the next line would be appended to it."""
        with self._journal.open("rb+") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            if end < len(content):
                file.truncate(end)


class Journal(JournalFileBackend):
    """Optuna's journal file, with our lock and our errors."""

    def __init__(self, path: Path):
        self._path = path
        super().__init__(str(path), lock_obj=JournalLock(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines.

        Raises:
            StorageError: they cannot be written, for example because the disk is full.
        """
        try:
            super().append_logs(logs)
        except OSError as error:
            raise StorageError(str(write_error(self._path, error))) from None


def open_journal(folder: Path) -> JournalStorage:
    """The journal in a study's folder, created if absent.

    Raises:
        UserError: it is damaged, or cannot be written.
    """
    make_folder(folder)
    path = folder / JOURNAL
    try:
        return JournalStorage(Journal(path))
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path}: not the journal of a study, or damaged ({type(error).__name__}: {error}); restore the file, "
            "or choose another --study_name"
        ) from None


class Database(RDBStorage):
    """Optuna's database storage. A missed heartbeat is a warning: the trial's next report finds out what is wrong."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Record that a running trial's process is alive."""
        try:
            super().record_heartbeat(trial_id)
        except DATABASE_ERRORS as error:
            logger.bind(file_only=False).warning(f"the study's database: no heartbeat recorded ({_reason(error)})")


def open_database(url: str, settings: OptunaConfig) -> RDBStorage:
    """The database at an SQLAlchemy URL, with Optuna's tables, created if absent.

    A trial whose heartbeat stops is failed, and its values are queued again as a new trial.

    Raises:
        UserError: the URL is malformed, its driver is not installed, or there is no connection.
    """
    try:
        parsed = sqlalchemy.engine.make_url(url)
    except ArgumentError:
        raise UserError(
            "--storage: found no database URL, expected one such as postgresql://user:password@host/database "
            "or sqlite:///study.db"
        ) from None
    shown = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError(f"--storage {shown}: is a database in memory, expected a file, such as sqlite:///study.db")
    if settings.grace_period < HEARTBEATS_MISSED * settings.heartbeat_interval:
        raise UserError(
            f"optuna.grace_period: found {settings.grace_period}, expected at least {HEARTBEATS_MISSED} times "
            f"optuna.heartbeat_interval = {settings.heartbeat_interval}, or running trials are taken for dead"
        )
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": 60}  # seconds that it may be locked by other processes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return Database(
                url,
                options,
                heartbeat_interval=settings.heartbeat_interval,
                grace_period=settings.grace_period,
                # Without the old trial's reports: the new trial starts from its first epoch and makes its own.
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
    except (ImportError, NoSuchModuleError) as error:
        raise UserError(
            f"--storage {shown}: no driver for this kind of database ({error}); for PostgreSQL install it with "
            "`uv sync --extra postgres`"
        ) from None
    except RuntimeError as error:
        raise UserError(f"--storage {shown}: {error}") from None
    except DATABASE_ERRORS as error:
        raise StorageError(
            f"--storage {shown}: cannot be opened ({_reason(error)}); if another machine has only just created it, run "
            "the same command again"
        ) from None


def _reason(error: Exception) -> str:
    return (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
