"""Injecting faults and counting: what was lost, and what came out differently."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from faults.injector import Fault
from faults.programs import PROGRAMS, Program, Reference, damage, left_over
from scripts import Script, run

HEADINGS = ("injected", "survived", "lost", "differing")
PROPERTY = "faults"  # of a test's report: [program, kind, injected, lost, differing]
ENDS = {"SIGTERM": (143, "terminated: "), "SIGINT": (130, "interrupted: ")}
TIMEOUT_S = 300


@dataclass
class Tally:
    """Faults of one kind into one program."""

    program: str
    kind: str
    injected: int = 0
    lost: int = 0
    differing: int = 0
    stories: list[str] = field(default_factory=list)  # of what went wrong

    def add(self, fault: str, lost: list[str], differing: list[str]) -> None:
        """Count a fault that has happened."""
        self.injected += 1
        self.lost += bool(lost)
        self.differing += bool(differing and not lost)
        self.stories += [f"{self.program}, {fault}: {story}" for story in (*lost, *differing)]

    @property
    def row(self) -> list[object]:
        return [self.program, self.kind, self.injected, self.lost, self.differing]


@dataclass(frozen=True)
class Campaign:
    """Faults into one program, each into a fresh copy of its folder."""

    program: Program
    reference: Reference
    folder: Path

    def inject(self, faults: Iterable[Fault], kind: str) -> Tally:
        """Let each fault happen, run the program again, and compare with the undisturbed run."""
        tally = Tally(self.program.name, kind)
        for number, fault in enumerate(faults):
            work, told = self._fresh(number), self.folder / f"told-{number}"
            done = run(self.program.command, work, TIMEOUT_S, fault=asdict(replace(fault, told=str(told))))
            if "it happened" in told.read_text():
                lost = self._is_bad_end(fault, done.returncode, done.stderr) + damage(work, self.reference.start)
                self._judge(tally, str(fault), work, lost, rerun=done.returncode != 0 or self.program.bears_faults)
            shutil.rmtree(work)
        return tally

    def kill_after(self, moments_s: Iterable[float]) -> Tally:
        """SIGKILL from outside, some seconds after the start."""
        tally = Tally(self.program.name, "SIGKILL")
        for number, moment_s in enumerate(moments_s):
            work, killed = self._fresh(number), False
            while not killed:
                with Script(self.program.command, work) as script:
                    killed = script.wait(moment_s) is None
                if not killed:  # it was faster than we thought
                    shutil.rmtree(work)
                    work, moment_s = self._fresh(number), 0.7 * moment_s
            self._judge(tally, f"SIGKILL after {moment_s:.2f} s", work, damage(work, self.reference.start))
            shutil.rmtree(work)
        return tally

    def limit_files(self, sizes: Iterable[int]) -> Tally:
        """The system refuses files larger than a limit."""
        tally = Tally(self.program.name, "RLIMIT_FSIZE")
        for number, size in enumerate(sizes):
            work = self._fresh(number)
            done = run(self.program.command, work, TIMEOUT_S, file_size_limit=size)
            lost = self._is_bad_end(Fault("EFBIG"), done.returncode, done.stderr) + damage(work, self.reference.start)
            self._judge(tally, f"files up to {size} bytes", work, lost)
            shutil.rmtree(work)
        return tally

    def disturb(self, kind: str, disturbances: Iterable[Callable[[Path], None]], rerun: bool = True) -> Tally:
        """Each disturbance runs the program in a folder and disturbs it; then the program is run again if `rerun`."""
        tally = Tally(self.program.name, kind)
        for number, disturbance in enumerate(disturbances):
            work = self._fresh(number)
            disturbance(work)
            self._judge(tally, kind, work, damage(work, self.reference.start), rerun)
            shutil.rmtree(work)
        return tally

    def _fresh(self, number: int) -> Path:
        work = self.folder / f"work-{number}"
        shutil.copytree(self.reference.start, work)
        return work

    @staticmethod
    def _is_bad_end(fault: Fault, code: int, stderr: str) -> list[str]:
        """A program that a fault ends says so in one line; SIGKILL leaves it no time to."""
        if code == 0 or fault.kind in ("kill", "half"):
            return [] if code in (0, -9) else [f"exit code {code}: {stderr[-2000:]}"]
        if fault.kind == "cuda":  # torch's own words, and where; it may as well be a mistake in somebody's kernel
            return (
                []
                if code == 1 and "AcceleratorError: CUDA error" in stderr
                else [f"exit code {code}: {stderr[-2000:]}"]
            )
        expected, begin = ENDS.get(fault.kind, (1, "error: "))
        last = (stderr.splitlines() or [""])[-1]
        clear = code == expected and last.startswith(begin) and "Traceback" not in stderr
        if fault.kind == "ENOSPC" and clear:
            clear = "[Errno 28] No space left on device" in last and "rm save/*/seed*/epoch_*.pth" in last
        return [] if clear else [f"exit code {code}, unclear message: {stderr[-2000:]}"]

    def _judge(self, tally: Tally, fault: str, work: Path, lost: list[str], rerun: bool = True) -> None:
        """Run again what a fault ended, and compare."""
        if rerun and not lost:
            again = run(self.program.command, work, TIMEOUT_S)
            if again.returncode:
                lost = [f"running it again ends with code {again.returncode}: {again.stderr[-2000:]}"]
            else:
                lost = damage(work, self.reference.start)
        if not lost:
            lost = [f"{name}: left over" for name in left_over(work)]
        differing = [] if lost else self.differences(work)
        tally.add(fault, lost, differing)

    def differences(self, work: Path) -> list[str]:
        """What has come out otherwise than undisturbed."""
        found, expected = self.program.result(work), self.reference.result
        keys = sorted(found.keys() | expected.keys())
        return [f"{key} differs" for key in keys if found.get(key) != expected.get(key)]


def table(rows: Iterable[list[Any]]) -> list[str]:
    """What all tests have counted: a line for each kind of fault, with the faults into each program, and the sums."""
    counts: dict[str, Counter[str]] = {}
    for program, kind, injected, lost, differing in rows:
        found = {program: injected, "injected": injected, "lost": lost, "differing": differing}
        found["survived"] = injected - lost - differing
        counts.setdefault(kind, Counter()).update(found)
    columns = [*(program.name.removesuffix(".py") for program in PROGRAMS), *HEADINGS]
    names = [*(program.name for program in PROGRAMS), *HEADINGS]
    widths = [max(len(column), 6) + 2 for column in columns]
    total = sum(counts.values(), Counter())
    lines = ["fault".ljust(30) + "".join(column.rjust(width) for column, width in zip(columns, widths, strict=True))]
    for kind, counter in [*sorted(counts.items()), ("all", total)]:
        cells = (f"{counter[name]:,}".rjust(width) for name, width in zip(names, widths, strict=True))
        lines.append(kind.ljust(30) + "".join(cells))
    return lines
