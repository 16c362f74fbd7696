"""The programs that faults are injected into, what their results are, and what of their files must be whole."""

import csv
import functools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from faults.injector import Fault
from scripts import MINI_CITY, make_mini_project, make_mini_teacher, mini, run, scalars

from models.hoser import HOSER
from utils.config import load_config
from utils.data.dataset import load_city
from utils.files.atomic import TEMPORARY_PREFIX
from utils.files.checksums import content_digest
from utils.files.tensor_files import load_tensors

EPOCHS = "optimizer_config.max_epoch=2"
SMALL_TEACHER = ("n_layer=1", "n_head=2", "n_embd=16", "block_size=24", "batch_size=30", "max_epoch=2")
SEARCH = """\
optuna:
  n_startup_trials: 1
  heartbeat_interval: 1
  grace_period: 3
  search_space:
    optimizer_config.learning_rate: {low: 1.0e-7, high: 0.02, log: true}
    distill.window: {choices: [2, 4]}
"""
TIMES = ("host", "seconds")  # columns of trials.csv that differ from run to run


@dataclass(frozen=True)
class Program:
    """A command, the folder that it begins in, and what it is for."""

    name: str
    command: list[str]
    make: Callable[[Path], object]  # fills an empty folder
    result: Callable[[Path], dict[str, Any]]  # what must come out the same
    bears_faults: bool = False  # it succeeds without some of its files, which it makes when it is run again
    small: tuple[str, ...] = ()  # options that make it quicker, for all but `--long`

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Reference:
    """An undisturbed run of a program."""

    start: Path  # folder as it was before it
    result: dict[str, Any]
    events: list[str]  # all changes of files, in order
    seconds: float


def reference_of(program: Program, folder: Path) -> Reference:
    """Run `program` undisturbed in `folder` twice: once its changes of files are written down, once it is timed."""
    start, told = folder / "start", folder / "events"
    start.mkdir(parents=True)
    program.make(start)
    results = []
    for fault in (asdict(Fault("record", told=str(told))), None):
        work = folder / f"work-{len(results)}"
        shutil.copytree(start, work)
        began = time.monotonic()
        done = run(program.command, work, fault=fault)
        seconds = time.monotonic() - began
        assert done.returncode == 0, done.stderr
        assert not damage(work, start), damage(work, start)
        results.append(program.result(work))
    assert results[0] == results[1]
    return Reference(start, results[0], told.read_text().splitlines(), seconds)


# Results -------------------------------------------------------------------------------------------------------


def models(folder: Path, *patterns: str) -> dict[str, Any]:
    """Content of files of tensors, as hashes; ids that are drawn in each run are left out."""
    return {
        str(path.relative_to(folder)): content_digest(load_tensors(path))
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def trained(name: str, folder: Path) -> dict[str, Any]:
    """Models and curves of the run `name`."""
    return models(folder, f"save/Mini/{name}/*.pth", f"save/Mini/{name}/*.pt") | {
        "curves": scalars(folder / "tensorboard_log" / "Mini" / name)
    }


def prepared(folder: Path) -> dict[str, Any]:
    """Zones, transitions, and what was parsed."""
    names = ("road_network_partition", "zone_trans_mat.npy")
    return models(folder, "data/Mini/.cache/*.pt") | {
        name: (folder / "data" / "Mini" / name).read_bytes() for name in names
    }


def generated(folder: Path) -> dict[str, Any]:
    """Trips in each format, and what is counted of them but the time."""
    made = folder / "save" / "Mini" / "seed42" / "generated"
    record = json.loads((made / "generation.json").read_text())
    summary = {key: value for key, value in record["summary"].items() if key != "seconds"}
    names = ("trips.csv", "short.csv", "public.csv", "trips.geojson")
    return {name: (made / name).read_bytes() for name in names} | {"identity": record["identity"], "summary": summary}


def searched(folder: Path) -> dict[str, Any]:
    """Trials, the table of them, the best settings and the models that are kept."""
    import optuna

    from utils.search.storage import open_journal

    study = folder / "save" / "Mini" / "tune" / "distill"
    trials = optuna.load_study(study_name="distill", storage=open_journal(study)).trials
    with (study / "trials.csv").open() as file:
        rows = [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]
    return models(folder, "save/Mini/tune/distill/*/*.pth") | {
        "trials": [(t.number, t.state.name, t.value, t.params, t.intermediate_values) for t in trials],
        "rows": rows,
        "best": (study / "best_config.yaml").read_text(),
        "pictures": sorted(path.name for path in study.glob("*.png")),
    }


# Beginnings ----------------------------------------------------------------------------------------------------


def make_unprepared(folder: Path) -> None:
    """A city without zones."""
    make_mini_project(folder)
    for name in ("road_network_partition", "zone_trans_mat.npy"):
        (folder / "data" / "Mini" / name).unlink()


def make_model(folder: Path) -> None:
    """A city, and a model that no training has touched."""
    make_mini_project(folder)
    config = load_config("Mini", str(folder / "Mini.yaml"))
    torch.manual_seed(0)
    model = HOSER(config, load_city("Mini", config, folder / "data" / "Mini").features)
    (folder / "save" / "Mini" / "seed42").mkdir(parents=True)
    torch.save(model.state_dict(), folder / "save" / "Mini" / "seed42" / "best.pth")
    shutil.rmtree(folder / "data" / "Mini" / ".cache")


def make_taught(folder: Path) -> None:
    """A city with a teacher, and what to search."""
    make_mini_teacher(make_mini_project(folder))
    config = folder / "Mini.yaml"
    config.write_text(config.read_text() + SEARCH)


PROGRAMS = (
    Program(
        "train.py",
        mini("train.py", "--seed", "42", "--cuda", "-1", "--set", EPOCHS),
        make_mini_project,
        functools.partial(trained, "seed42"),
    ),
    Program(
        "train_with_distill.py",
        mini("train_with_distill.py", "--seed", "42", "--cuda", "-1", "--set", EPOCHS),
        make_taught,
        functools.partial(trained, "seed42_distill"),
    ),
    Program(
        "train_teacher.py",
        mini(
            *("tools/train_teacher.py", "--seed", "42", "--cuda", "-1"),
            *(part for setting in SMALL_TEACHER for part in ("--set", f"teacher.{setting}")),
        ),
        make_mini_project,
        functools.partial(trained, "teacher"),
    ),
    Program(
        "tune_hoser.py",
        mini(
            *("tools/tune_hoser.py", "--seed", "42", "--cuda", "-1", "--set", EPOCHS, "--n_trials", "2"),
            "--no-baseline",
        ),
        make_taught,
        searched,
        small=("--n_trials", "1"),
    ),
    Program("prepare_dataset.py", mini("tools/prepare_dataset.py"), make_unprepared, prepared, bears_faults=True),
    Program(
        "generate.py",
        mini(
            *("tools/generate.py", "--cuda", "-1", "--checkpoint", "save/Mini/seed42/best.pth", "--public_csv"),
            *("--queries", "train-od", "--number", "600", "--max_expansions", "8", "--geojson"),
        ),
        make_model,
        generated,
    ),
)
TRAININGS = PROGRAMS[:4]


# Files ---------------------------------------------------------------------------------------------------------


def damage(folder: Path, start: Path) -> list[str]:
    """What is wrong with the files below `folder`, of which those in `start` were there in the beginning."""
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_dir() or path.name.startswith(TEMPORARY_PREFIX):
            continue
        original = start / name
        if original.exists():
            if original.read_bytes() != path.read_bytes():
                found.append(f"{name}: changed")
            continue
        try:
            _read(path)
        except Exception as error:
            found.append(f"{name}: {type(error).__name__}: {error}")
    return found


def left_over(folder: Path) -> list[str]:
    """Temporary files below `folder`."""
    return [str(path.relative_to(folder)) for path in folder.rglob(f"{TEMPORARY_PREFIX}*")]


def _read(path: Path) -> None:
    """Read a whole file; an error if it is not whole. Files that are appended to may end in the middle of a line."""
    if path.suffix in (".pth", ".pt"):
        load_tensors(path)
    elif path.suffix == ".npy":
        np.load(path, allow_pickle=False)
    elif path.suffix == ".csv":
        with path.open() as file:
            rows = list(csv.DictReader(file, strict=True))
        assert rows or path.name == "short.csv"  # of one-road trips, which there need not be
        assert all(None not in row and None not in row.values() for row in rows)
    elif path.suffix in (".json", ".geojson"):
        assert isinstance(json.loads(path.read_text()), dict)
    elif path.suffix == ".yaml":
        assert isinstance(yaml.safe_load(path.read_text()), dict)
    elif path.suffix == ".png":
        from matplotlib.image import imread

        assert imread(path).size
    elif path.suffix == ".journal":
        from utils.search.storage import open_journal

        open_journal(path.parent)
    elif path.name == "road_network_partition":
        lines = path.read_text().splitlines()
        assert len(lines) == len((MINI_CITY / path.name).read_text().splitlines())
        assert all(line.isdecimal() for line in lines)
    elif "tfevents" in path.name or "earlier-run" in path.name:
        scalars(path.parent)
    elif path.suffix not in (".log", ".lock") and path.name not in (".lock", ".study_id"):
        raise AssertionError("no test knows what this file is")
