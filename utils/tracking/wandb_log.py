"""What the W&B client has written on this disk: its transaction logs, of offline and of online runs.

The client has no call for this. Its log is the record format of LevelDB (blocks of 32 KiB; records of checksum,
length, kind, data) around protocol buffers; whatever cannot be read is taken as not written.
"""

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from utils.tracking.wandb_client import HistoryRecord, Record

MAGIC = b":W&B"
MAGIC_BYTES = 7  # with a version
BLOCK_BYTES = 32768
RECORD_HEADER = struct.Struct("<IHB")
WHOLE, FIRST, LAST = 1, 2, 4  # kinds of a record; 3 is one of the middle

OFFLINE = "offline-"
SET_ASIDE = "set-aside-"  # before the names of folders whose rows have been sent again

RowKey = tuple[str, int]  # axis ("batch" or "epoch") and number


@dataclass(frozen=True)
class PartLog:
    """The log of one part of a run, from a start of the client to its end."""

    path: Path

    @property
    def is_offline(self) -> bool:
        return self.path.parent.name.startswith(OFFLINE)

    @property
    def is_synced(self) -> bool:
        """Whether `wandb sync` has brought it to the service."""
        return self.path.with_suffix(".wandb.synced").exists()

    def set_aside(self) -> None:
        """Take it out of sight of us and of `wandb sync wandb/offline-run-*`."""
        folder = self.path.parent
        folder.rename(folder.with_name(SET_ASIDE + folder.name))

    @property
    def has_ended(self) -> bool:
        """Whether the client came to its end, having sent all that it could."""
        return any(record.HasField("exit") for record in read_records(self.path))

    @property
    def starting_step(self) -> int | None:
        """Rows that the service had before the first of these; None if nothing tells."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            return int(json.loads(self.path.with_suffix(".wandb.syncstate").read_text())["starting_step"])
        if self.is_offline:
            return None  # the steps in it count from 0, wherever its rows came to stand
        steps = (record.history.step.num for record in read_records(self.path) if record.HasField("history"))
        return next(steps, None)

    def is_empty(self) -> bool:
        """Whether the client was killed before it had written anything about the run."""
        return not any(record.HasField("run") for record in read_records(self.path))

    def mend(self) -> None:
        """Cut off what a killed client wrote of a last record: `wandb sync` gives up at half a record."""
        end = _end_of_records(self.path.read_bytes())
        if MAGIC_BYTES < end < self.path.stat().st_size:
            os.truncate(self.path, end)

    def rows(self) -> list[RowKey]:
        """The rows of the history, in the order in which they were logged."""
        keys = (_row_key(record.history) for record in read_records(self.path) if record.HasField("history"))
        return [key for key in keys if key is not None]


def part_logs(folder: Path, run_id: str) -> list[PartLog]:
    """Logs of all parts of a run below the client's `folder`, the earliest first."""
    # A part that starts in the second of another one has a number behind the id in its folder's name.
    paths = [
        path for path in folder.glob(f"*run-*/run-{run_id}.wandb") if path.parent.name.startswith(("run-", OFFLINE))
    ]
    return [PartLog(path) for path in sorted(paths, key=lambda path: path.parent.name.removeprefix(OFFLINE))]


def rows_at_service(logs: list[PartLog], arrived: int) -> list[RowKey | None]:
    """The `arrived` first rows of the service; None: one that no log on this disk knows.

    A client that was killed has logged rows that never arrived, so each part begins where the service says that it
    did, and not behind the one before it.
    """
    rows: list[RowKey | None] = []
    for log in logs:
        first = log.starting_step
        first = len(rows) if first is None else first
        rows = rows[:first] + [None] * (first - len(rows)) + log.rows()
    rows = rows[:arrived]
    return rows + [None] * (arrived - len(rows))


def first_error(path: Path) -> str | None:
    """The first error that the client's service process has noted: it says nothing aloud when it is refused."""
    if not path.is_file():
        return None
    for line in path.read_text(errors="replace").splitlines():
        if '"level":"ERROR' in line:
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                entry = json.loads(line)
                return ": ".join(str(entry[key]) for key in ("msg", "error", "status") if key in entry)
    return None


def _row_key(history: HistoryRecord) -> RowKey | None:
    for item in history.item:
        name = item.key or ".".join(item.nested_key)
        if name in ("batch", "epoch"):
            return name, int(json.loads(item.value_json))
    return None


def read_records(path: Path) -> Iterator[Record]:
    """Records up to the end, or up to the first that a killed process left incomplete."""
    for data in _chunks(path.read_bytes()):
        try:
            yield Record.FromString(data)
        except DecodeError:
            return


def _chunks(content: bytes) -> Iterator[bytes]:
    data = b""
    for kind, part, _ in _parts(content):
        data = part if kind in (WHOLE, FIRST) else data + part
        if kind in (WHOLE, LAST):
            yield data


def _end_of_records(content: bytes) -> int:
    """Where the last whole record ends."""
    return max((end for kind, _, end in _parts(content) if kind in (WHOLE, LAST)), default=0)


def _parts(content: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Kind, data and end of each part of a record, up to the first that is incomplete."""
    if not content.startswith(MAGIC):
        return
    position = MAGIC_BYTES
    while position + RECORD_HEADER.size <= len(content):
        left_in_block = BLOCK_BYTES - position % BLOCK_BYTES
        if left_in_block < RECORD_HEADER.size:
            position += left_in_block
            continue
        checksum, length, kind = RECORD_HEADER.unpack_from(content, position)
        part = content[position + RECORD_HEADER.size : position + RECORD_HEADER.size + length]
        if len(part) < length or checksum != zlib.crc32(bytes([kind]) + part):
            return
        position += RECORD_HEADER.size + length
        yield kind, part, position
