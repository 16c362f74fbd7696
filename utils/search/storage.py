"""Where a study is kept: a journal in its folder, or a database that several machines share."""

from __future__ import annotations

import contextlib
import fcntl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import optuna
import sqlalchemy
from loguru import logger
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from utils.config_sections import OptunaConfig
from utils.errors import UserError
from utils.files.atomic import file_lock, make_folder, write_error
from utils.runtime.signals import take_signals

Result = TypeVar("Result")

JOURNAL = "study.journal"
POLL_S = 0.5
BEATS_MISSED = 3  # signs of life, before a trial is taken for dead
ATTEMPTS = 4  # to create the tables of a database, which another machine may be doing at this moment


class StorageError(UserError):
    """The study cannot be read or written: not the fault of any trial."""


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what a database raises into a `StorageError`."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise StorageError(f"the study's storage cannot be reached ({reason}); the study itself is kept") from None


class Patience:
    """Does what may fail for a moment, as when a database is restarted, again for some time."""

    def __init__(self, limit_s: float):
        self._limit_s = limit_s

    def __call__(self, action: Callable[[], Result]) -> Result:
        """What `action` gives, which it may be asked for several times.

        Raises:
            StorageError: it has failed for too long.
        """
        deadline, told = time.monotonic() + self._limit_s, False
        while True:
            try:
                with storage_errors():
                    return action()
            except StorageError as error:
                take_signals()
                if time.monotonic() >= deadline:
                    raise
                if not told:
                    # On the terminal too, where a trial's own messages are not shown.
                    logger.bind(file_only=False).warning(f"{error}; trying again for {self._limit_s:.0f} s")
                told = True
                time.sleep(POLL_S)


class JournalLock:
    """Lock of a journal that the system frees however its holder ends.

    Optuna's own are files that a killed process leaves behind; others wait for 30 s for each.
    """

    def __init__(self, journal: Path):
        self._journal, self._file = journal, None

    def acquire(self) -> bool:
        # Not Optuna's own name for it: another program that opens the study would wait for us to remove the file.
        self._file: BinaryIO | None = self._journal.with_name(f".{self._journal.name}.lock").open("ab")
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
            StorageError: the disk is full, for one.
        """
        try:
            super().append_logs(logs)
        except OSError as error:
            raise StorageError(str(write_error(self._path, error))) from None


def open_journal(folder: Path) -> JournalStorage:
    """The journal of a study's folder, made if absent.

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
            f"{path}: no journal of a study, or damaged ({type(error).__name__}: {error}); put the file "
            "back, or choose another --study_name"
        ) from None


def open_database(url: str, settings: OptunaConfig) -> RDBStorage:
    """The database at an SQLAlchemy URL, with Optuna's tables, made if absent.

    Raises:
        UserError: no such URL, no driver for it, or no connection.
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
    if settings.grace_period < BEATS_MISSED * settings.heartbeat_interval:
        raise UserError(
            f"optuna.grace_period: found {settings.grace_period}, expected at least {BEATS_MISSED} times "
            f"optuna.heartbeat_interval = {settings.heartbeat_interval}, or living trials are taken for dead"
        )
    options: dict[str, Any] = {"pool_pre_ping": True}
    if parsed.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": 60}
    for attempt in range(ATTEMPTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return RDBStorage(
                    url,
                    options,
                    heartbeat_interval=settings.heartbeat_interval,
                    grace_period=settings.grace_period,
                )
        except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
            raise UserError(
                f"--storage {shown}: no driver for this kind of database ({error}); for PostgreSQL install it with "
                "`uv sync --extra postgres`"
            ) from None
        except RuntimeError as error:
            raise UserError(f"--storage {shown}: {error}") from None
        except (SQLAlchemyError, StorageInternalError) as error:
            reason = (str(error.__cause__ or error).splitlines() or [""])[0]
            if attempt == ATTEMPTS - 1:
                raise StorageError(f"--storage {shown}: cannot be opened ({reason})") from None
            time.sleep(0.2 * (attempt + 1))
    raise AssertionError


class StudyLock:
    """One process at a time, of all that share a study, counts its trials and takes one."""

    def __init__(self, folder: Path, storage: BaseStorage):
        self._paths, self._engine = [folder / ".study.lock"], None
        if isinstance(storage, RDBStorage):
            if storage.engine.dialect.name == "sqlite":
                # SQLite has no row to lock; those who share it share the file.
                database = Path(storage.engine.url.database)
                self._paths.append(database.with_name(database.name + ".lock"))
            else:
                self._engine = storage.engine

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for path in self._paths:
                stack.enter_context(file_lock(path))
            if self._engine is not None:
                stack.enter_context(self._row_lock())
            yield

    @contextlib.contextmanager
    def _row_lock(self) -> Iterator[None]:
        """Hold the one row of Optuna's `version_info`, for all studies of the database.

        No table refers to it, so that what is then written is not kept waiting by our own lock. The server frees it
        when our connection ends, however it ends.
        """
        version = sqlalchemy.table("version_info", sqlalchemy.column("version_info_id"))
        query = sqlalchemy.select(version.c.version_info_id).with_for_update()
        with storage_errors(), self._engine.connect() as connection, connection.begin():
            connection.execute(query).all()
            yield


class Heartbeat:
    """Signs of life of a running trial in a database, from the first moment to the end of the `with` block."""

    def __init__(self, storage: BaseStorage, trial_id: int):
        self._storage = storage if isinstance(storage, RDBStorage) else None
        self._trial_id, self._ended = trial_id, threading.Event()

    def __enter__(self) -> Heartbeat:
        if self._storage is not None:
            self._storage.record_heartbeat(self._trial_id)
            threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _beat(self) -> None:
        while not self._ended.wait(self._storage.get_heartbeat_interval()):
            try:
                self._storage.record_heartbeat(self._trial_id)
            except (StorageInternalError, SQLAlchemyError):
                # The next one may come through; the trial itself learns of the trouble when it reports.
                logger.bind(file_only=False).warning("the study's storage: no sign of life could be recorded")
