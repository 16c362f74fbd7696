"""Small data sets written by hand, and what is wrong with them as a user reads it."""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from utils.errors import UserError

START = datetime(2015, 11, 5, 8, 0, 0)
TRIP_HEADER = "rid_list,time_list"


def time_list(count: int, seconds: int = 10) -> str:
    """`count` times, `seconds` apart, as a split file has them."""
    return ",".join(f"{START + timedelta(seconds=i * seconds):%Y-%m-%dT%H:%M:%SZ}" for i in range(count))


def trip(rids: str, times: str | None = None) -> str:
    """A row of a split file; by default with as many times as `rids` has commas, and one."""
    return f'"{rids}","{time_list(rids.count(",") + 1) if times is None else times}"'


def write_lines(path: Path, *lines: str, end: str = "\n") -> Path:
    """Write lines with their ends, byte for byte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def write_trips(path: Path, *rows: str) -> Path:
    return write_lines(path, TRIP_HEADER, *rows)


def write_roads(
    folder: Path,
    polylines: Sequence[str],
    relations: Iterable[tuple[int, int]] = ((0, 0),),
    highways: Sequence[str] | None = None,
    lengths: Sequence[str] | None = None,
) -> Path:
    """`roadmap.geo` and `roadmap.rel`; texts stand in the files as they are given. Returns `folder`."""
    highways = highways or ["primary"] * len(polylines)
    lengths = lengths or ["100.0"] * len(polylines)
    rows = (
        f'{i},"{quoted(polyline)}",{length},"{quoted(highway)}"'
        for i, (polyline, length, highway) in enumerate(zip(polylines, lengths, highways, strict=True))
    )
    write_lines(folder / "roadmap.geo", "geo_id,coordinates,length,highway", *rows)
    write_lines(folder / "roadmap.rel", "origin_id,destination_id", *(f"{i},{j}" for i, j in relations))
    return folder


def quoted(text: str) -> str:
    """`text` as it stands inside a quoted CSV field."""
    return text.replace('"', '""')


def chain(roads: int) -> list[str]:
    """Polylines of roads one after the other, eastwards."""
    return [f"[[116.{i:04}, 39.9], [116.{i + 1:04}, 39.9]]" for i in range(roads)]


def append_line(path: Path, line: str) -> int:
    """Add a line to a file that ends with a line end; returns its number, from 1."""
    with path.open("a") as file:
        file.write(line + "\n")
    return path.read_text().count("\n")


def replace_line(path: Path, number: int, line: str) -> None:
    """Replace line `number`, from 1."""
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    write_lines(path, *lines)


def error_of(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The message of the `UserError` that the call ends with."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` but those in `.cache`, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".cache" not in path.parts
    }
