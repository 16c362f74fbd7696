"""Writing files: beside others who write, on disks that are full or half there; and what is said of it beforehand."""

import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import error_of, write_lines
from scripts import make_mini_teacher, mini, run

from utils.command_line import run_command_line
from utils.config import config_to_dict, load_config
from utils.files import disk_space
from utils.files.atomic import TEMPORARY_PREFIX, atomic_write, remove_temporary_files
from utils.runtime.memory import memory_advice
from utils.tracking.log_file import LogFile
from utils.training.epoch_checkpoints import EpochCheckpoints
from utils.training.rolling_checkpoint import Identity, RollingCheckpoint

# Temporary files ------------------------------------------------------------------------------------------------


def test_left_overs_are_removed_and_files_that_are_being_written_are_not(workplace: Path) -> None:
    (workplace / f"{TEMPORARY_PREFIX}a-model.pth").touch()
    (workplace / f"{TEMPORARY_PREFIX}b-other.pth").touch()
    (workplace / f"{TEMPORARY_PREFIX}folder").mkdir()

    def write(file) -> None:
        remove_temporary_files(workplace)  # as another process does when it starts
        file.write(b"whole")

    atomic_write(workplace / "model.pth", write)
    assert (workplace / "model.pth").read_bytes() == b"whole"
    assert {path.name for path in workplace.iterdir()} == {"model.pth", f"{TEMPORARY_PREFIX}folder"}


def test_a_write_removes_what_a_killed_write_of_the_same_file_left(workplace: Path) -> None:
    (workplace / f"{TEMPORARY_PREFIX}a-model.pth").touch()
    (workplace / f"{TEMPORARY_PREFIX}b-other.pth").touch()
    atomic_write(workplace / "model.pth", lambda file: file.write(b"whole"))
    assert {path.name for path in workplace.iterdir()} == {"model.pth", f"{TEMPORARY_PREFIX}b-other.pth"}


def test_a_temporary_file_that_vanishes_before_it_is_locked_is_made_again(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, vanished = fcntl.flock, []

    def vanish(file: int, operation: int) -> None:
        if not vanished:
            vanished.extend(workplace.glob(f"{TEMPORARY_PREFIX}*"))
            vanished[0].unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", vanish)
    atomic_write(workplace / "model.pth", lambda file: file.write(b"whole"))
    assert len(vanished) == 1
    assert [path.name for path in workplace.iterdir()] == ["model.pth"]


# Folders that cannot be flushed ---------------------------------------------------------------------------------


def fail_for_folders(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)


def test_a_file_system_that_cannot_flush_folders_is_written_all_the_same(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_for_folders(monkeypatch, errno.EINVAL)
    atomic_write(workplace / "file", lambda file: file.write(b"new"))
    assert (workplace / "file").read_bytes() == b"new"


def test_a_rename_that_the_disk_does_not_confirm_is_an_error_that_says_so(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(workplace / "file", "old")
    fail_for_folders(monkeypatch, errno.EIO)
    message = error_of(atomic_write, workplace / "file", lambda file: file.write(b"new"))
    assert message == "file: is written, but the disk does not confirm it ([Errno 5] Input/output error)"
    assert (workplace / "file").read_bytes() == b"new"
    fail_for_folders(monkeypatch, errno.ENOSPC)
    message = error_of(atomic_write, workplace / "file", lambda file: file.write(b"newer"))
    assert message.endswith(f"does not confirm it ([Errno 28] No space left on device); {disk_space.REMEDIES}")


# Logs -----------------------------------------------------------------------------------------------------------


def test_a_log_that_cannot_be_written_costs_lines_and_one_message(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = LogFile(Path("/dev/full"))
    log.write("a line\n")
    log.write("another\n")
    log.stop()
    assert capsys.readouterr().err == (
        "/dev/full: lines are missing ([Errno 28] No space left on device); the run continues\n"
    )


# Room on the disk -----------------------------------------------------------------------------------------------


def test_sizes_read_as_those_of_df() -> None:
    assert [disk_space.readable(size) for size in (0, 1023, 1 << 10, 25 << 30, 3 << 41)] == [
        *("0B", "1023B", "1K", "25G", "6T")
    ]


def test_vanilla_training_needs_a_model_for_each_epoch_and_best(workplace: Path, messages: list[str]) -> None:
    EpochCheckpoints(workplace).announce(max_epoch=1_000, model_bytes=1 << 40)
    [message] = messages
    assert message.startswith(f"{workplace}: the run will write 1002T more, and ")
    assert message.endswith(f" are free; {disk_space.REMEDIES}")


def test_distillation_training_needs_a_checkpoint_twice_and_best(workplace: Path, messages: list[str]) -> None:
    config = config_to_dict(load_config("Mini"))
    checkpoint = RollingCheckpoint(workplace, Identity(1, "Mini", True), config)
    checkpoint.warn_of_a_full_disk(model_bytes=1 << 40)
    assert f"{workplace}: the run will write 7T more, and " in messages[-1]


def test_no_warning_where_there_is_room(project: Path) -> None:
    make_mini_teacher(project)
    for script in ("train.py", "train_with_distill.py"):
        done = run(mini(script, "--set", "optimizer_config.max_epoch=1"), project)
        assert done.returncode == 0, done.stderr
        assert "are free" not in done.stderr


def test_what_is_replaced_has_its_room(workplace: Path, messages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(workplace / "old", "x" * 999)  # 1000 bytes
    usage = disk_space.shutil.disk_usage(workplace)
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda path: usage._replace(free=1500))
    disk_space.warn_if_short(workplace, 2000, [workplace / "old"], spare=500)
    assert messages == []
    disk_space.warn_if_short(workplace, 2000, [], spare=500)
    [message] = messages
    assert message.startswith(f"{workplace}: the run will write 2.441K more, and 1.465K are free; use distillation")


# The machine ----------------------------------------------------------------------------------------------------


def last_words(error: BaseException, capsys: pytest.CaptureFixture[str]) -> str:
    def fail() -> None:
        raise error

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as ended:
            run_command_line(fail, kept="what is there stays")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/a/b")
    line = f"error: /a/b: [Errno 28] No space left on device; {disk_space.REMEDIES}; what is there stays\n"
    assert last_words(error, capsys) == line


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_file_that_may_not_be_written_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(number, "no", "log/Mini/seed1/2026.log")
    line = f"error: log/Mini/seed1/2026.log: [Errno {number}] no; what is there stays\n"
    assert last_words(error, capsys) == line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a mistake"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "my_features.npy"),
        OSError(errno.EIO, "Input/output error", "/a/b"),
        PermissionError(errno.EPERM, "Operation not permitted"),  # of a process or a socket
        ConnectionError("my service"),
        torch.AcceleratorError("CUDA error: device-side assert triggered"),
        MemoryError("Unable to allocate 7 TiB"),
    ],
)
def test_an_error_in_somebodys_code_keeps_its_traceback(error: Exception) -> None:
    """Only what the program understands becomes one line."""

    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        run_command_line(fail)
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 7.28 TiB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
)
def test_memory_that_runs_out_names_the_key_that_would_help_there(error: Exception, workplace: Path) -> None:
    def work() -> None:
        with memory_advice("lower teacher.batch_size"):
            raise error

    message = error_of(work)
    assert message.endswith("; lower teacher.batch_size")
    assert str(error).rstrip(".") in message


def test_other_errors_pass_through_where_memory_is_watched() -> None:
    with pytest.raises(RuntimeError, match="a mistake"), memory_advice("lower it"):
        raise RuntimeError("a mistake")
