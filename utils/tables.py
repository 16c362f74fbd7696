"""Reading CSV files: columns by name, in chunks, with line numbers for error messages."""

import csv
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


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table, column by column."""

    columns: tuple[list[str], ...]
    lines: list[int]  # line of the file at which each row ends, from 1


def read_chunks(path: Path, names: Sequence[str], rows: int = 20_000) -> Iterator[Chunk]:
    """The named columns of a CSV file, up to `rows` rows at a time.

    Raises:
        UserError: the file cannot be read, a column is missing, or a row has another number of fields.
    """
    shown = display_path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in names if name not in header]
            if missing:
                raise UserError(
                    f"{shown}, line 1: column {', '.join(missing)} is missing (found: {', '.join(header) or 'none'})"
                )
            places = [header.index(name) for name in names]
            picked: list[list[str]] = []
            lines: list[int] = []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{shown}, line {reader.line_num}: found {len(row)} fields, expected {len(header)} "
                        "(is a list not in quotes?)"
                    )
                picked.append([row[place] for place in places])
                lines.append(reader.line_num)
                if len(lines) == rows:
                    yield _chunk(picked, lines, len(names))
                    picked, lines = [], []
            yield _chunk(picked, lines, len(names))
    except UnicodeDecodeError as error:
        raise UserError(f"{shown}: not UTF-8 text (byte {error.start})") from None
    except csv.Error as error:
        raise UserError(f"{shown}, line {reader.line_num}: not a CSV row ({error})") from None
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror})") from None


def _chunk(picked: list[list[str]], lines: list[int], width: int) -> Chunk:
    columns = tuple(list(column) for column in zip(*picked, strict=True)) or ([],) * width
    return Chunk(columns, lines)


def parse_integers(texts: Sequence[str]) -> NDArray[np.int64] | None:
    """The whole numbers of comma-separated texts, packed; None if any text is not such a list."""
    if not texts:
        return np.empty(0, np.int64)
    joined = ",".join(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            values = np.fromstring(joined, dtype=np.int64, sep=",")
        except (ValueError, DeprecationWarning):
            return None
    return values if len(values) == joined.count(",") + 1 else None
