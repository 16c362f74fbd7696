"""Which trips are for training, validation and test, and their files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from utils.city_import.drives import Drive
from utils.errors import UserError
from utils.files.atomic import atomic_write_text

SPLITS = ("train", "val", "test")

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class SplitOptions:
    """How trips are shared out."""

    shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
    by: str = "random"  # or "time": the earliest trips are for training
    by_user: bool = False
    seed: int = 0


def check_users(users: Sequence[str], options: SplitOptions) -> None:
    """Refuse `by_user` where no trace has a user.

    Raises:
        UserError: it is so.
    """
    if options.by_user and not any(users):
        raise UserError("--by_user: the traces have no column of users; name it with --columns ...,user=NAME")


def split_drives(drives: Sequence[Drive], users: Sequence[str], options: SplitOptions) -> dict[str, Ints]:
    """Places of the trips of each split, in order of departure.

    What was one trace stays in one split, and with `by_user` all traces of a user.

    Args:
        drives: all trips.
        users: of the traces, by `Drive.source`; empty texts where there is none.
        options: shares, order and seed.

    Raises:
        UserError: there are no users, or too few trips for three splits.
    """
    check_users(users, options)
    keys = [users[drive.source] or f"trace {drive.source}" if options.by_user else drive.source for drive in drives]
    start = np.array([drive.time_s[0] for drive in drives], dtype=np.int64)
    _, group = np.unique(np.array(keys), return_inverse=True)
    size = np.bincount(group)
    if options.by == "time":
        earliest = np.full(len(size), np.iinfo(np.int64).max)
        np.minimum.at(earliest, group, start)
        order = np.argsort(earliest, kind="stable")
    else:
        order = np.random.default_rng(options.seed).permutation(len(size))
    split_of = np.empty(len(size), dtype=np.int64)
    split_of[order] = _shared_out(size[order], options.shares)
    by_start = np.argsort(start, kind="stable")
    found = {name: by_start[split_of[group[by_start]] == i] for i, name in enumerate(SPLITS)}
    empty = [name for name, share in zip(SPLITS, options.shares, strict=True) if share > 0 and not len(found[name])]
    if empty:
        what = "users" if options.by_user else "traces"
        raise UserError(
            f"no trips for {' and '.join(empty)}: trips {len(drives)}, {what} {len(size)}; that is too few for --split "
            f"{' '.join(f'{share:g}' for share in options.shares)}"
        )
    return found


def _shared_out(size: Ints, shares: Sequence[float]) -> Ints:
    """The split of each group, in order: the groups up to a share of all trips, and so on."""
    middle = np.cumsum(size) - size / 2
    limits = np.cumsum(shares)[:-1] / sum(shares) * size.sum()
    split = np.searchsorted(limits, middle, side="right")
    if len(size) >= len(shares) and min(shares) > 0:
        # However small a share is, it has a group.
        split[-1] = 2
        split[0] = 0
        if not (split == 1).any():
            split[int(np.searchsorted(split, 2)) - 1 if (split == 0).sum() > 1 else 1] = 1
    return split


def without_repeats(drives: Sequence[Drive], users: Sequence[str]) -> list[Drive]:
    """Leave out trips of the same user, roads and times as another one: they could be in two splits."""
    seen = set()
    kept = []
    for drive in drives:
        key = users[drive.source], drive.roads.tobytes(), drive.time_s.tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(drive)
    return kept


def write_split(path: Path, drives: Sequence[Drive], index: Ints, users: Sequence[str]) -> None:
    """Write a split in the data format; `mm_id` is the place of a trip among all, `traj_id` that of its trace."""

    def line(number: int) -> str:
        drive = drives[number]
        roads = ",".join(map(str, drive.roads.tolist()))
        times = ",".join(f"{moment}Z" for moment in drive.time_s.astype("M8[s]").astype(str).tolist())
        user = users[drive.source] or "0"
        user = f'"{user.replace(chr(34), chr(34) * 2)}"' if set(user) & set(',"\n\r') else user
        return f'{number},{user},{drive.source},"{roads}","{times}"\n'

    def write(file: TextIO) -> None:
        file.write("mm_id,entity_id,traj_id,rid_list,time_list\n")
        file.writelines(line(number) for number in index.tolist())

    atomic_write_text(path, write)
