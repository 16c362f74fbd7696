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
from numpy.typing import NDArray

from utils.config import display_path
from utils.errors import UserError

# Polylines and long trips are single fields.
csv.field_size_limit(2**31 - 1)

_NO_NUMBER = re.compile(r",[\s+-]*,|[+-]\s", re.ASCII)


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table, column by column."""

    columns: tuple[list[str], ...]
    lines: list[int]  # line of the file at which each row ends, from 1
    numbers: list[int]  # number of each row below the header, from 1
    malformed: list[tuple[int, str]]  # rows left out: line, and what is wrong


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


def read_chunks(path: Path, names: Sequence[str], rows: int = 20_000, strict: bool = True) -> Iterator[Chunk]:
    """The named columns of a CSV file, up to `rows` rows at a time.

    Args:
        path: the file.
        names: columns that must be there; others are ignored.
        rows: rows in a chunk.
        strict: whether a row with another number of fields than the header is an error; otherwise it is
            left out and told of in the chunk.

    Raises:
        UserError: the file cannot be read, a column is missing, or a row is malformed.
    """
    shown = display_path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in names if name not in header]
            if missing:
                found = ", ".join(header)[:200] or "none"
                raise UserError(f"{shown}, line 1: column {', '.join(missing)} is missing (found: {found})")
            places = [header.index(name) for name in names]
            numbered = _numbered(reader)
            while chunk_rows := list(itertools.islice(numbered, rows)):
                malformed = [
                    (line, f"row {number}: found {len(row)} fields, expected {len(header)} (is a list not in quotes?)")
                    for number, line, row in chunk_rows
                    if len(row) != len(header)
                ]
                if malformed and strict:
                    raise UserError(f"{shown}, line {malformed[0][0]}: {malformed[0][1]}")
                good = [item for item in chunk_rows if len(item[2]) == len(header)]
                yield Chunk(
                    columns=tuple([row[place] for _, _, row in good] for place in places),
                    lines=[line for _, line, _ in good],
                    numbers=[number for number, _, _ in good],
                    malformed=malformed,
                )
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: not UTF-8 text (byte {error.start})") from None
    except csv.Error as error:
        raise UserError(f"{shown}, line {reader.line_num}: not a CSV row ({error})") from None
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror})") from None


def _numbered(reader) -> Iterator[tuple[int, int, list[str]]]:
    """Rows that are not empty: number, line at which it ends, fields."""
    number = 0
    for row in reader:
        if row:
            number += 1
            yield number, reader.line_num, row


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
