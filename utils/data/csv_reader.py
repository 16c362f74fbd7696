"""Reading CSV files: columns by name, in chunks, with line numbers for error messages."""

import contextlib
import csv
import gc
import itertools
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from utils.errors import UserError
from utils.files.file_kinds import foreign_kind, not_utf8

# Polylines and long trips are single fields.
csv.field_size_limit(2**31 - 1)

CUT_OFF = "the file ends within this row: incomplete download?"

_NO_NUMBER = re.compile(r",[\s+-]*,|[+-]\s", re.ASCII)


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table, column by column."""

    columns: tuple[list[str], ...]
    lines: list[int]  # line of the file at which each row ends, from 1
    numbers: list[int]  # number of each row below the header, from 1
    malformed: list[tuple[int, str]]  # rows left out: line, and what is wrong
    unended_line: int = 0  # of the file's last row, if neither a line end nor a quote shows that it is whole

    def note(self, line: int) -> str:
        """What to add to an error in the row at `line`."""
        return f" ({CUT_OFF})" if line == self.unended_line else ""


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Millions of small objects and no circles: looking for circles among them would take most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_chunks(
    path: Path,
    names: Sequence[str],
    rows: int = 20_000,
    strict: bool = True,
    optional: Sequence[str] = (),
    separator: str = ",",
) -> Iterator[Chunk]:
    """The named columns of a CSV file, up to `rows` rows at a time.

    Args:
        path: the file.
        names: columns that must be there; others are ignored.
        rows: rows in a chunk.
        strict: whether a row with another number of fields than the header is an error; otherwise it is
            left out and listed in the chunk.
        optional: columns that come after those, empty where the file does not have them.
        separator: what is between two columns.

    Raises:
        UserError: the file cannot be read, is no CSV file or ends within a row, a column is missing, or a row is
            malformed.
    """
    try:
        if kind := foreign_kind(path):
            raise UserError(f"{path}: {kind}")
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = _Lines(file)
            reader = csv.reader(lines, delimiter=separator)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, names, path)
            places = [header.index(name) if name in header else None for name in (*names, *optional)]
            numbered = _numbered(reader, lines)
            while chunk_rows := list(itertools.islice(numbered, rows)):
                unended = reader.line_num if lines.may_be_cut else 0
                _check_end(chunk_rows[-1], header, lines, path)
                malformed = [
                    (line, f"row {number}: {_field_count(row, header)}")
                    for number, line, row in chunk_rows
                    if len(row) != len(header)
                ]
                if malformed and strict:
                    raise UserError(f"{path}, line {malformed[0][0]}: {malformed[0][1]}")
                good = [item for item in chunk_rows if len(item[2]) == len(header)]
                yield Chunk(
                    columns=tuple([] if place is None else [row[place] for _, _, row in good] for place in places),
                    lines=[line for _, line, _ in good],
                    numbers=[number for number, _, _ in good],
                    malformed=malformed,
                    unended_line=unended,
                )
                if lines.may_be_cut:
                    logger.warning(f"{path}, line {unended}: no line end follows; is the file whole?")
    except UnicodeDecodeError:
        raise UserError(f"{path}{not_utf8(path)}") from None
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not a CSV row ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def column_names(path: Path) -> list[str]:
    """The header of a CSV file; empty if it cannot be read (then `read_chunks` says why)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [name.strip() for name in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


class _Lines:
    """The lines of a file, and whether it has ended within a row."""

    def __init__(self, file: Iterator[str]):
        self._lines, self._next = file, next(file, None)
        self.of_row: list[str] = []  # those of the row that is being read

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._next is None:
            raise StopIteration
        line, self._next = self._next, next(self._lines, None)
        self.of_row.append(line)
        return line

    @property
    def has_no_end(self) -> bool:
        """Whether the file has ended without a line end."""
        return self._next is None and bool(self.of_row) and not self.of_row[-1].endswith(("\n", "\r"))

    @property
    def may_be_cut(self) -> bool:
        """Whether the file has ended with neither a line end nor a closing quote."""
        return self.has_no_end and not self.of_row[-1].endswith('"')

    def end_within_quotes(self) -> bool:
        """Whether the file has ended within a quoted field; csv itself says so in strict mode only."""
        if self._next is None:
            try:
                list(csv.reader(self.of_row, strict=True))
            except csv.Error as error:
                return "unexpected end of data" in str(error)
        return False


def _numbered(reader: Iterator[list[str]], lines: _Lines) -> Iterator[tuple[int, int, list[str]]]:
    """Rows that are not empty: number, line at which it ends, fields."""
    number = 0
    while True:
        last, lines.of_row = lines.of_row, []
        row = next(reader, None)
        if row is None:
            lines.of_row = last
            return
        if "".join(lines.of_row).strip():
            number += 1
            yield number, reader.line_num, row


def _check_end(last: tuple[int, int, list[str]], header: list[str], lines: _Lines, shown: str) -> None:
    """Refuse a file that ends within a row: what is missing behind it, nobody knows."""
    number, line, row = last
    if lines.end_within_quotes() or (lines.has_no_end and len(row) < len(header)):
        raise UserError(f"{shown}, line {line}: {CUT_OFF} (row {number}: {_field_count(row, header)}); fetch it again")


def _check_header(header: list[str], names: Sequence[str], shown: str) -> None:
    missing = [name for name in names if name not in header]
    if not missing:
        return
    found = ", ".join(header)[:200] or "none"
    separator = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), "")
    advice = f"; columns are separated by {separator!r}, expected commas" if separator else ""
    raise UserError(f"{shown}, line 1: column {', '.join(missing)} is missing (found: {found}){advice}")


def _field_count(row: list[str], header: list[str]) -> str:
    """How many fields a row has, and what may be wrong with it."""
    guess = ""
    if len(row) == len(header) + 1 and not row[-1].strip():
        guess = " (the last one is empty: a comma at the end of the row? remove it)"
    elif len(row) > len(header):
        guess = " (is a list not in quotes?)"
    return f"found {len(row)} field{'s' * (len(row) != 1)}, expected {len(header)}{guess}"


def parse_integers(texts: Sequence[str]) -> NDArray[np.int64] | None:
    """The whole numbers of comma-separated texts, packed; None if any text is not such a list."""
    if not texts:
        return np.empty(0, np.int64)
    joined = ",".join(texts)
    # NumPy stops reading at a NUL, and takes an item of blanks, or a sign alone, for a zero.
    if "\0" in joined or _NO_NUMBER.search(f",{joined},"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            values = np.fromstring(joined, dtype=np.int64, sep=",")
        except (ValueError, DeprecationWarning):
            return None
    # NumPy reads numbers past the limits of 64 bits as the limits.
    limits = np.iinfo(np.int64)
    if len(values) != joined.count(",") + 1 or values.min() == limits.min or values.max() == limits.max:
        return None
    return values


def distinct_sorted(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """`np.unique`, whose hash table is several times slower on millions of values than sorting them."""
    values = np.sort(values)
    is_first = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=is_first[1:])
    return values[is_first]
