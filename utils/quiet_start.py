"""Import this first in a script: Ctrl-C and SIGTERM during the seconds of the other imports end it in one line.

`run_command_line` takes over once the script runs.
"""

import os
import signal
import sys
from pathlib import Path

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def _leave(number: int, _: object) -> None:
    word = "interrupted" if number == signal.SIGINT else "terminated"
    os.write(2, f"{word}: nothing was begun\n".encode())
    os._exit(EXIT_CODES[number])


def _is_script() -> bool:
    """Whether the program is one of the project's scripts, and not one that imports them."""
    project = Path(__file__).resolve().parent.parent
    main = getattr(sys.modules["__main__"], "__file__", None)
    return main is not None and Path(main).resolve().parent in (project, project / "tools")


if _is_script():
    for _number in EXIT_CODES:
        signal.signal(_number, _leave)
