"""What the command lines share: arguments, error messages, exit codes. Imports nothing slow."""

import argparse
import errno
import gc
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from loguru import logger

from utils.errors import UserError
from utils.files.disk_space import FULL, REMEDIES
from utils.runtime.signals import listen_to_signals, received_signal
from utils.runtime.terminal import drop_output, log_to_terminal, output_is_closed

NOT_ALLOWED = (errno.EACCES, errno.EPERM)
WORDS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}


class Kept:
    """What there is of a program's work when it ends early; it changes while the program runs."""

    def __init__(self, text: str):
        self.text = text


def answer_before_imports(parse_arguments: Callable[[], argparse.Namespace]) -> None:
    """Answer --help and refuse mistakes before the imports that take seconds, and speed those up.

    Modules stay, so a search for garbage among what they make is in vain: it takes a twelfth of the time.
    """
    parse_arguments()
    gc.disable()  # until `run_command_line`


def run_command_line(main: Callable[[], None], kept: str | Kept = "files already written are complete") -> None:
    """Run `main` as a program: a `UserError` becomes one line on stderr and exit code 1.

    SIGINT and SIGTERM end the program with one line that says what is `kept`, and exit code 130 or 143; so do a full
    disk and a file that may not be read or written, with exit code 1. Any other error keeps its traceback: it may be a
    mistake in the code.
    """
    gc.freeze()  # what was imported is not searched for garbage, also not when the program ends: that takes 0.3 s
    gc.enable()
    kept = Kept(kept) if isinstance(kept, str) else kept
    listen_to_signals()
    log_to_terminal()
    threading.excepthook = _on_error_in_thread
    try:
        main()
        sys.stdout.flush()
    except BaseException as error:
        # The signal first: it may have come up as another error.
        number = received_signal()
        if number is not None:
            word, code = WORDS[number]
            logger.warning(f"{word}: {kept.text}")
            sys.exit(code)
        if isinstance(error, UserError):
            logger.error(f"error: {error}")
            sys.exit(1)
        if isinstance(error, BrokenPipeError) and output_is_closed():
            drop_output()
            sys.exit(1)
        if isinstance(error, OSError):
            drop_output()
            of_a_file = isinstance(error.filename, str)
            if error.errno in (*FULL, errno.EROFS) or (of_a_file and error.errno in NOT_ALLOWED):
                where = f"{error.filename}: " if of_a_file else ""
                advice = f"{REMEDIES}; " if error.errno in FULL else ""
                logger.error(f"error: {where}[Errno {error.errno}] {error.strerror}; {advice}{kept.text}")
                sys.exit(1)
        raise


def _on_error_in_thread(error: threading.ExceptHookArgs) -> None:
    # TensorBoard's writer hands what happens in its thread to its caller, besides.
    if not issubclass(error.exc_type, OSError):
        threading.__excepthook__(error)


# Sections of the configuration that one program reads, and others do not.
ONE_READER = {
    "teacher": "only tools/train_teacher.py reads it",
    "optuna": "only tools/tune_hoser.py reads it",
    "wandb": "only train_with_distill.py is tracked by W&B",
}


def warn_of_unread(overrides: Sequence[str], unread: Mapping[str, str], *others: str) -> None:
    """Say which settings have no effect in this program.

    Args:
        overrides: the `key=value` texts of `--set`.
        unread: keys and sections that the program does not read, and why.
        others: keys that are set in the file.
    """
    for key in dict.fromkeys([*(text.partition("=")[0].strip() for text in overrides), *others]):
        reason = unread.get(key) or unread.get(key.partition(".")[0])
        if reason:
            logger.warning(f"{key} has no effect here: {reason}")


def add_data_arguments(
    parser: argparse.ArgumentParser, dataset_required: bool = True, example: str = "optimizer_config.max_epoch=2"
) -> None:
    """The arguments that every command on a data set has; `example` is of a key that the program reads."""
    parser.add_argument(
        "--dataset", required=dataset_required, metavar="NAME", help="data set, such as Beijing; Demo is built in"
    )
    parser.add_argument("--data_dir", metavar="DIR", help="folder of the data set (default: data/NAME)")
    parser.add_argument(
        "--config", metavar="FILE", help="configuration (default: config/NAME.yaml, else the published values)"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        type=_override_text,
        metavar="KEY=VALUE",
        help=f"override a key of the configuration, such as {example}; repeatable",
    )


def _override_text(text: str) -> str:
    if not text.partition("=")[0].strip() or "=" not in text:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected KEY=VALUE, such as optimizer_config.max_epoch=2")
    return text


def output_file(text: str) -> Path:
    """A type of arguments: a file to write."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, expected a file")
    return Path(text)


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cuda", type=int, default=0, metavar="N", help="GPU number (default: 0); without CUDA, or with -1, the CPU"
    )


def add_seed_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--seed", type=seed_number, default=0, metavar="N", help="random seed (default: 0)")


def seed_number(text: str) -> int:
    """A seed on the command line: every generator here takes 0 to 2^32 - 1."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number from 0 to {2**32 - 1}")
    return value
