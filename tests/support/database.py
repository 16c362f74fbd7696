"""A PostgreSQL server of a test's own, from the binaries that the system has."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The URL of an empty database; the server ends with the block. Skips the test where there is no PostgreSQL."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin/initdb"), default=None)
    found = binaries.parent if binaries else next((Path(p).parent for p in [shutil.which("initdb")] if p), None)
    if found is None:
        pytest.skip("no PostgreSQL here: neither /usr/lib/postgresql/*/bin/initdb nor initdb on the PATH")
    as_user: list[str] = []
    # Not in pytest's folder, which is closed to the server's user.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    if os.geteuid() == 0:  # the server refuses to run as root
        as_user = ["runuser", "-u", "postgres", "--"]
        if shutil.which("runuser") is None or subprocess.run([*as_user, "true"], capture_output=True).returncode:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
        shutil.chown(folder, "postgres")
    data, options = folder / "data", f"-k {folder} -c listen_addresses='' -F"
    control = [*as_user, str(found / "pg_ctl"), "-D", str(data), "-w", "-s"]
    try:
        initdb = [*as_user, str(found / "initdb"), "-D", str(data), "-U", "tuner", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(initdb, cwd="/", check=True, capture_output=True)
        subprocess.run([*control, "-o", options, "-l", str(folder / "log"), "start"], cwd="/", check=True)
        try:
            yield f"postgresql://tuner@/postgres?host={folder}"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], cwd="/", check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
