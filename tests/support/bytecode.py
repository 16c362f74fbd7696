"""Bytecode for all processes of a test run, where Python may not keep it beside the code.

With PYTHONDONTWRITEBYTECODE, as in many containers, every process would compile all of PyTorch again: four seconds.
Imported before anything large is.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / ".pytest_cache" / "bytecode"

if sys.dont_write_bytecode:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(FOLDER)
    sys.dont_write_bytecode = False
    # Of code that tests have written.
    shutil.rmtree(FOLDER / Path(tempfile.gettempdir()).relative_to("/"), ignore_errors=True)
