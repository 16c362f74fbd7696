"""TensorBoard event files of an earlier run, or of the part of this run before an interruption."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from utils.files.atomic import atomic_write, move, remove

EPOCH_TAGS = "val_"  # tags of this prefix count epochs from 1, the others batches from 0


def retire_events(folder: Path) -> None:
    """Take an earlier run's events out of TensorBoard's sight: two runs in one curve are no curve."""
    for path in folder.glob("events.out.tfevents*"):
        move(path, path.with_name(path.name.replace("tfevents", "earlier-run")))


def trim_events(folder: Path, batches: int, epochs: int) -> None:
    """Keep the points of the first `batches` batches and `epochs` epochs, each once.

    TensorBoard's own means, `purge_step`, is one number for all curves; these have two axes. And it leaves
    the points in the files, for readers that do not purge to see again.
    """
    paths = sorted(folder.glob("events.out.tfevents*"))
    if not paths:
        return
    file = io.BytesIO()
    writer = RecordWriter(file)
    for event in _kept_events(paths, batches, epochs):
        writer.write(event.SerializeToString())
    # In the place of the oldest file, so that the order of their names stays that of time.
    atomic_write(paths[0], lambda target: target.write(file.getvalue()))
    for path in paths[1:]:
        remove(path)


def read_rows(folder: Path) -> Iterator[dict[str, float]]:
    """The points of all curves in the order in which they were logged, those of a batch or an epoch together.

    Each row is {"batch": 3, "loss": ...} or {"epoch": 1, "val_next_step_acc": ...}.
    """
    points = (
        ("epoch" if value.tag.startswith(EPOCH_TAGS) else "batch", event.step, value.tag, value.simple_value)
        for path in sorted(folder.glob("events.out.tfevents*"))
        for event in map(Event.FromString, RawEventFileLoader(str(path)).Load())
        for value in event.summary.value
    )
    for (axis, step), row in itertools.groupby(points, key=lambda point: point[:2]):
        yield {axis: step, **{tag: number for _, _, tag, number in row}}


def _kept_events(paths: list[Path], batches: int, epochs: int) -> Iterator[Event]:
    seen: set[tuple[str, int]] = set()
    for path in paths:
        # The loader ends silently at a record that a killed process left half-written.
        for number, record in enumerate(RawEventFileLoader(str(path)).Load()):
            event = Event.FromString(record)
            if not event.HasField("summary"):
                if number == 0 and path == paths[0]:
                    yield event  # the file's version
                continue
            kept = [value for value in event.summary.value if _is_kept(value.tag, event.step, batches, epochs, seen)]
            if kept:
                del event.summary.value[:]
                event.summary.value.extend(kept)
                yield event


def _is_kept(tag: str, step: int, batches: int, epochs: int, seen: set[tuple[str, int]]) -> bool:
    done = step <= epochs if tag.startswith(EPOCH_TAGS) else step < batches
    if not done or (tag, step) in seen:
        return False
    seen.add((tag, step))
    return True
